//! What the replica server answers: verified cycles let older reference points go.

use farshore_core::relationship::read_cursor;
use farshore_hyperv::Hypervisor;

use super::Engine;
use crate::crash::CrashPoint;
use crate::fault::{OrFault, Result};
use crate::store::Store;

impl<H: Hypervisor + 'static, S: Store> Engine<H, S> {
    /// Reads the cursor while a committed cycle waits for it, and destroys points that nobody needs any more.
    pub(super) async fn verify(&mut self) -> Result<()> {
        if !self.journal()?.unverified.is_empty()
            && let Some(cursor) = self.cursor().await?
        {
            let news = read_cursor(self.journal()?, &cursor, None);
            if let Some(index) = news.verified {
                self.edit(|j| {
                    let mut verified: Vec<_> = j.unverified.drain(..=index).collect();
                    j.verified = verified.pop();
                })
                .await?;
                self.context.crash.pass(CrashPoint::VerifiedNoted);
            }
            if let Some(fault) = news.fault {
                return Err(fault);
            }
        }
        for id in self.journal()?.obsolete_points() {
            self.host.destroy_reference_point(self.vm, &id.as_str().into()).await.or_fault()?;
            self.context.crash.pass(CrashPoint::PointDestroyed);
            self.edit(|j| {
                j.own_points.remove(&id);
            })
            .await?;
            self.context.crash.pass(CrashPoint::PointForgotten);
        }
        Ok(())
    }
}
