//! Snapshot sets, and letting go of what is old.

use farshore_core::format::cursor::Cursor;
use farshore_core::ids::CycleId;
use farshore_core::points::set_due;

use super::VmTask;
use crate::chain::Cycle;
use crate::context::Policy;
use crate::crash::CrashPoint;
use crate::halt::Halt;
use crate::lease::Leases;
use crate::{prune, set};

impl VmTask {
    /// Makes a set of what is applied if one is due; also after a crash between the two.
    pub(super) async fn set_owed(&mut self, policy: &Policy) -> Result<bool, Halt> {
        if self.cursor()?.claim()?.is_some() {
            return Ok(false);
        }
        if self.cursor()?.now.newest_point.is_none() && !self.sets().await?.is_empty() {
            return self.name_newest_point().await.map(|()| true);
        }
        if !self.is_due(policy, false).await? {
            return Ok(false);
        }
        self.make_set(policy, false).await?;
        Ok(true)
    }

    pub(super) async fn is_due(&mut self, policy: &Policy, always: bool) -> Result<bool, Halt> {
        let last = set::last(self.sets().await?);
        let Some(applied) = &self.chain().await?.applied else { return Ok(false) };
        let newer = last.is_none_or(|last| applied.id() > last.id);
        let due = set_due(&applied.pending, last, policy.spacing);
        Ok(due || (always && newer && applied.pending.kind.is_point()))
    }

    pub(super) async fn make_set(&mut self, policy: &Policy, always: bool) -> Result<(), Halt> {
        let Some(applied) = self.chain().await?.applied.clone() else { return Ok(()) };
        let leases = Leases::take(&self.ctx, applied.disks.iter().map(|d| d.disk_id)).await?;
        let stop = self.ctx.stop.clone();
        let done = tokio::select! {
            () = stop.cancelled() => Err(Halt::Stopped),
            () = leases.lost() => Err(Halt::Overtaken("a lease is lost")),
            done = async {
                self.confirm(applied.id()).await?;
                self.set_if_due(&leases, policy, always).await
            } => done,
        };
        leases.release().await;
        done
    }

    /// Takes the set, names the newest point if it is the first one, lets go what is beyond retention.
    pub(super) async fn set_if_due(
        &mut self,
        leases: &Leases,
        policy: &Policy,
        always: bool,
    ) -> Result<(), Halt> {
        if !self.is_due(policy, always).await? {
            return Ok(());
        }
        let Some(applied) = self.chain().await?.applied.clone() else { return Ok(()) };
        set::take(&self.ctx, leases, &applied).await?;
        // Listed again: how old a set is, storage says.
        self.sets = Some(set::list(&self.ctx).await?);
        if self.cursor()?.now.newest_point.is_none() {
            self.name_newest_point().await?;
        }
        // The point stands; that old ones could not be removed yet must not undo anything.
        if let Err(halt) = self.let_go(applied.id(), policy).await {
            tracing::warn!(vm.id = %self.ctx.vm, ?halt, "old points were not removed");
            self.sets = None;
        }
        Ok(())
    }

    pub(super) async fn let_go(&mut self, applied: CycleId, policy: &Policy) -> Result<(), Halt> {
        let ctx = self.ctx.clone();
        let sets = self.sets().await?;
        let line = prune::points(&ctx, sets, applied, policy.retention).await?;
        prune::orphans(&ctx, sets).await?;
        self.garbage = line.or(self.garbage);
        Ok(())
    }

    /// Removes what is old, a round at a time, while there is nothing better to do. The first time it looks
    /// for what the worker before left when it was killed.
    pub(super) async fn collect(&mut self, policy: &Policy) -> Result<(), Halt> {
        if !self.tidied {
            if let Some(applied) = self.cursor()?.now.applied {
                self.let_go(applied.id, policy).await?;
            }
            self.tidied = true;
        }
        let Some(line) = self.garbage else { return Ok(()) };
        if !prune::cycles(&self.ctx, line).await? {
            self.garbage = None;
        }
        Ok(())
    }

    pub(super) async fn name_newest_point(&mut self) -> Result<(), Halt> {
        let ctx = self.ctx.clone();
        let Some(point) = self.chain().await?.newest_point().map(Cycle::newest_point) else { return Ok(()) };
        let edit = |cursor: &mut Cursor| cursor.newest_point = Some(point.clone());
        self.cursor_mut()?.update(&ctx, edit, |now| now.newest_point.is_none()).await?;
        ctx.crash.at(CrashPoint::NewestPointSet);
        Ok(())
    }
}
