//! StopReplicating: nothing of ours stays on the host.

use std::collections::BTreeSet;

use farshore_core::names::CHECKPOINT_PREFIX;
use farshore_hyperv::{HyperVError, Hypervisor};
use jiff::Timestamp;

use super::{Engine, Next, State};
use crate::crash::CrashPoint;
use crate::fault::{OrFault, Result};
use crate::store::Store;

impl<H: Hypervisor + 'static, S: Store> Engine<H, S> {
    /// Drops what is uncommitted, keeps our reference points as long as asked, then removes all of ours.
    pub(super) async fn release(&mut self, keep_points_until: Option<Timestamp>) -> Result<Next> {
        self.set_step("RemovingTracking");
        let vm = match self.host.vm(self.vm).await {
            // With the machine everything of ours went.
            Err(HyperVError::VmNotFound { .. }) => return self.released(),
            other => other.or_fault()?,
        };
        for checkpoint in self.host.checkpoints(self.vm).await.or_fault()? {
            if checkpoint.name.starts_with(CHECKPOINT_PREFIX) {
                self.host.delete_checkpoint(self.vm, &checkpoint.id).await.or_fault()?;
            }
        }
        let disks: Vec<_> = vm.disks.iter().map(|d| d.disk_id).collect();
        self.remove_all_logs(&vm, &disks).await?;
        if self.journal.as_ref().is_some_and(|j| j.running.is_some()) {
            self.edit(|j| j.running = None).await?;
        }
        if let Some(until) = keep_points_until.filter(|until| *until > self.now()) {
            self.set_step("KeepingPoints");
            return Ok(Next::At(until));
        }
        let own: BTreeSet<String> = self.journal.iter().flat_map(|j| j.own_points.iter().cloned()).collect();
        for point in self.host.reference_points(self.vm).await.or_fault()? {
            // Ours by the journal, or by their name if the journal is lost. Nobody else's.
            if own.contains(&point.id.0) || point.name.starts_with(CHECKPOINT_PREFIX) {
                self.host.destroy_reference_point(self.vm, &point.id).await.or_fault()?;
            }
        }
        self.released()
    }

    fn released(&mut self) -> Result<Next> {
        self.context.crash.pass(CrashPoint::TracesRemoved);
        self.context.journals.remove(self.vm).or_fault()?;
        self.journal = None;
        self.report.send_modify(|r| {
            r.state = State::Disabled;
            r.step = "Released";
            r.released = true;
            r.trouble = None;
            r.progress = None;
        });
        tracing::info!(vm.id = %self.vm, "released: nothing of ours is left on the host");
        Ok(Next::Changed)
    }
}
