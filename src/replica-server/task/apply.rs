//! Applying what is due: leases, claim, pages, cursor.

use std::collections::BTreeMap;

use farshore_core::format::commit::{Commit, CommitRef};
use farshore_core::format::cursor::Cursor;
use farshore_core::format::ledger::Ledger;
use farshore_core::ids::{CycleId, DiskId};
use farshore_core::points::{
    Claim, backlog_lost, batch_end, claim, follows, may_apply, set_backlog_lost, set_claim,
};

use super::VmTask;
use crate::apply::{Batch, Job, create_blobs, disks_of};
use crate::chain::verified;
use crate::context::Policy;
use crate::crash::CrashPoint;
use crate::halt::Halt;
use crate::lease::Leases;
use crate::set;

impl VmTask {
    /// Applies the backlog as far as it is due; true if something was.
    pub(super) async fn apply_due(
        &mut self,
        ledger: &Ledger,
        policy: &Policy,
        all: bool,
    ) -> Result<bool, Halt> {
        if backlog_lost(&self.cursor()?.now) {
            return Ok(false);
        }
        let last = set::last(self.sets().await?);
        let claimed = self.cursor()?.claim()?.map(|c| c.target.id);
        let limits = self.ctx.limits;
        let chain = self.chain().await?;
        let pending = chain.pending();
        let Some(end) = batch_end(&pending, claimed, last, policy.spacing, limits, all) else {
            return Ok(false);
        };
        let batch: Batch = chain.backlog.iter().take(end).cloned().collect();
        if batch.iter().any(|c| !may_apply(c.id(), ledger)) {
            return Ok(false);
        }
        self.apply(batch, policy, BTreeMap::new(), None).await?;
        Ok(true)
    }

    /// Applies one batch. `accepted` is the commit of a Base cycle that is verified on the way.
    pub(super) async fn apply(
        &mut self,
        batch: Batch,
        policy: &Policy,
        copied: BTreeMap<DiskId, u64>,
        accepted: Option<&Commit>,
    ) -> Result<(), Halt> {
        let Some(target) = batch.last() else { return Ok(()) };
        create_blobs(&self.ctx, &target.disks).await?;
        let leases = Leases::take(&self.ctx, disks_of(&batch)).await?;
        self.ctx.crash.at(CrashPoint::LeasesTaken);
        let stop = self.ctx.stop.clone();
        let done = tokio::select! {
            () = stop.cancelled() => Err(Halt::Stopped),
            () = leases.lost() => Err(Halt::Overtaken("a lease is lost")),
            done = self.apply_held(&leases, &batch, policy, copied, accepted) => done,
        };
        leases.release().await;
        done
    }

    pub(super) async fn apply_held(
        &mut self,
        leases: &Leases,
        batch: &Batch,
        policy: &Policy,
        copied: BTreeMap<DiskId, u64>,
        accepted: Option<&Commit>,
    ) -> Result<(), Halt> {
        let Some(target) = batch.last() else { return Ok(()) };
        let started = std::time::Instant::now();
        self.confirm(target.id()).await?;
        let token = self.claim(target.pending.commit).await?;
        Job { ctx: &self.ctx, leases, batch, copied: &copied }.run().await?;
        let commit = target.pending.commit;
        if accepted.is_some() {
            self.still_followed(commit.id).await?;
        }
        let newly = accepted.map(|c| verified(c, commit.hash));
        let edit = |cursor: &mut Cursor| {
            cursor.applied = Some(commit);
            if let Some(newly) = &newly {
                cursor.verified = Some(newly.clone());
                cursor.refused = None;
                set_backlog_lost(cursor, false);
            }
            // Taking out a claim cannot fail.
            drop(set_claim(cursor, None));
        };
        let ctx = self.ctx.clone();
        self.cursor_mut()?.update(&ctx, edit, |now| holds(now, &token)).await?;
        ctx.crash.at(CrashPoint::Applied);
        let cycles = batch.len();
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(vm.id = %ctx.vm, cycle = %commit.id, kind = ?target.pending.kind, cycles, ms, "applied");
        self.chain.get_or_insert_default().applied(target.clone());
        self.set_if_due(leases, policy, false).await?;
        Ok(())
    }

    /// Right before a cycle counts as verified: the ledger may have been given another stream since it was
    /// found, and the controller may be about to read from the cursor what that stream goes on from.
    pub(super) async fn still_followed(&mut self, cycle: CycleId) -> Result<(), Halt> {
        match self.ledger.read(&self.ctx.store).await? {
            Some(ledger) if cycle.is_of(ledger.term, ledger.stream) => Ok(()),
            _ => Err(Halt::Overtaken("the ledger follows another writer")),
        }
    }

    /// With the leases in hand: is everything still as it was when we decided?
    pub(super) async fn confirm(&mut self, target: CycleId) -> Result<(), Halt> {
        let ctx = self.ctx.clone();
        let ledger = self.ledger.read(&ctx.store).await?.ok_or(Halt::Overtaken("the ledger is gone"))?;
        let file = self.cursor.as_mut().ok_or(Halt::Overtaken("the cursor was forgotten"))?;
        let claims = file.now.extra.clone();
        if !file.refresh(&ctx).await? {
            self.sets = None;
        }
        let fits = self.chain.as_ref().is_some_and(|chain| chain.fits(&file.now));
        if !fits || file.now.extra != claims {
            return Err(Halt::Overtaken("somebody else went on"));
        }
        if follows(&file.now, &ledger).is_err() || !may_apply(target, &ledger) {
            return Err(Halt::Overtaken("the ledger follows another writer"));
        }
        Ok(())
    }

    pub(super) async fn claim(&mut self, target: CommitRef) -> Result<String, Halt> {
        let ctx = self.ctx.clone();
        let token = uuid::Uuid::new_v4().to_string();
        let claim = Claim { target, token: token.clone() };
        let before = self.cursor()?.now.applied;
        let edit = |cursor: &mut Cursor| drop(set_claim(cursor, Some(&claim)));
        let unclaimed = self.cursor()?.now.extra.clone();
        self.cursor_mut()?.update(&ctx, edit, |now| now.applied == before && now.extra == unclaimed).await?;
        ctx.crash.at(CrashPoint::Claimed);
        Ok(token)
    }
}

fn holds(cursor: &Cursor, token: &str) -> bool {
    matches!(claim(cursor), Ok(Some(claim)) if claim.token == token)
}
