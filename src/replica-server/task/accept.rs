//! A commit was found: prove what it lists, or say for good that it cannot be used.

use farshore_core::fault::{Code, Fault};
use farshore_core::format::commit::{Commit, Kind};
use farshore_core::format::cursor::{Cursor, Refused};
use farshore_core::format::ledger::Ledger;
use farshore_core::ids::{Cycle as CycleNo, CycleId, Hash};
use farshore_core::points::{backlog_lost, set_backlog_lost};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Next, VmTask};
use crate::apply::Batch;
use crate::chain::{Cycle, verified};
use crate::context::{Context, Policy};
use crate::crash::CrashPoint;
use crate::halt::Halt;
use crate::segment::{self, Source};
use crate::store::refused;

/// Segments being verified at the same time.
const VERIFYING: usize = 8;
/// Cycles up to this size are kept in memory between verifying and applying.
const KEEP: u64 = 8 << 20;
/// How often a cycle is read again before it is refused.
const LOOKS: u32 = 2;

impl VmTask {
    /// Verifies a commit that continues the chain; a Base cycle is applied on the way.
    pub(super) async fn accept(
        &mut self,
        ledger: &Ledger,
        policy: &Policy,
        commit: Commit,
        hash: Hash,
    ) -> Result<(), Halt> {
        let id = commit.id();
        self.same_sizes(&commit).await?;
        if backlog_lost(&self.cursor()?.now) && commit.full_copy.len() != commit.disks.len() {
            let message =
                "cycles before it can no longer be applied: only a full copy of every disk can follow";
            return Err(refused(id, Code::MissingSegment, message.into()));
        }
        let mut cycle = Cycle::new(&commit, hash);
        if commit.kind == Kind::Base {
            for disk in &commit.disks {
                cycle.add(&self.ctx.store.list(id, disk, &self.ctx.budget).await?);
            }
            return self.accept_base(ledger, policy, commit, cycle).await;
        }
        let stop = self.ctx.stop.clone();
        tokio::select! {
            () = stop.cancelled() => return Err(Halt::Stopped),
            done = verify(&self.ctx, &commit, &mut cycle) => done?,
        }
        self.still_followed(id).await?;
        let newly = verified(&commit, hash);
        let before = self.cursor()?.now.verified.clone();
        let (term, stream) = (commit.term, commit.stream);
        let point = cycle.newest_point();
        let edit = |cursor: &mut Cursor| {
            cursor.verified = Some(newly.clone());
            cursor.refused = None;
            // Before the first set there is no point that anybody could start from.
            if cursor.newest_point.is_some() {
                cursor.newest_point = Some(point.clone());
            }
        };
        let ctx = self.ctx.clone();
        // A cycle verified by two workers is the same cycle; one claimed or applied meanwhile changes nothing.
        let still = |now: &Cursor| now.verified == before && (now.term, now.stream) == (term, stream);
        self.cursor_mut()?.update(&ctx, edit, still).await?;
        ctx.crash.at(CrashPoint::Verified);
        let (ranges, stored) = (cycle.pending.ranges, cycle.pending.stored);
        tracing::info!(vm.id = %ctx.vm, cycle = %id, kind = ?commit.kind, ranges, stored, "verified");
        // If somebody wrote something else too, the chain does not fit any more and is read again.
        if let Some(chain) = &mut self.chain {
            chain.push(cycle);
        }
        Ok(())
    }

    pub(super) async fn accept_base(
        &mut self,
        ledger: &Ledger,
        policy: &Policy,
        commit: Commit,
        cycle: Cycle,
    ) -> Result<(), Halt> {
        if !backlog_lost(&self.cursor()?.now) {
            // What was verified before is whole in the replica first, and becomes a set: the copy that follows
            // overwrites it, and until it is done that set is the quickest point.
            while self.apply_due(ledger, policy, true).await? {}
            if !self.chain().await?.backlog.is_empty() {
                return Err(Halt::Overtaken("cycles before a Base cycle may not be applied now"));
            }
            let idle = self.cursor()?.claim()?.is_none();
            if idle && commit.cycle == CycleNo::FIRST && self.is_due(policy, true).await? {
                self.make_set(policy, true).await?;
            }
        }
        let copied = self.cursor()?.now.verified.as_ref().map(|v| v.copied_up_to.clone()).unwrap_or_default();
        let batch: Batch = std::iter::once(cycle).collect();
        self.apply(batch, policy, copied, Some(&commit)).await
    }

    /// A disk keeps its size while its chain lasts; only a copy from nothing may change it.
    pub(super) async fn same_sizes(&mut self, commit: &Commit) -> Result<(), Halt> {
        let Some(newest) = self.chain().await?.newest() else { return Ok(()) };
        for disk in commit.disks.iter().filter(|d| !commit.full_copy.contains(&d.disk_id)) {
            let before = newest.disks.iter().find(|d| d.disk_id == disk.disk_id).map(|d| d.virtual_size);
            if let Some(before) = before.filter(|size| *size != disk.virtual_size) {
                let message =
                    format!("disk {} had {before} bytes and now has {}", disk.disk_id, disk.virtual_size);
                return Err(refused(commit.id(), Code::CorruptCommit, message));
            }
        }
        Ok(())
    }

    /// True the first times that something is wrong with a cycle. To refuse it is for good and costs a
    /// resynchronization; what is wrong on the way from storage only is right when it is read again.
    pub(super) fn suspect(&mut self, cycle: CycleId) -> bool {
        let known = self.cursor.as_ref().and_then(|c| c.now.refused.as_ref()).is_some_and(|r| r.id == cycle);
        let times = match self.suspected {
            Some((id, times)) if id == cycle => times,
            _ => 0,
        };
        self.suspected = Some((cycle, times.saturating_add(1)));
        !known && times < LOOKS && !self.ctx.stop.is_cancelled()
    }

    /// Notes in the cursor that a cycle cannot be used. Everything verified before it stays and is applied.
    pub(super) async fn refuse(
        &mut self,
        cycle: CycleId,
        code: Code,
        message: String,
    ) -> Result<Next, Fault> {
        tracing::error!(vm.id = %self.ctx.vm, cycle = %cycle, error.code = %code, message, "refused a cycle");
        let ctx = self.ctx.clone();
        let poll = ctx.timing.commit_poll_max;
        let message: String = message.chars().take(512).collect();
        let note = Refused { id: cycle, code: code.to_string(), message };
        let later = self.later(poll);
        let Some(file) = self.cursor.as_mut() else { return Ok(later) };
        if file.now.refused.as_ref() == Some(&note) {
            return Ok(later);
        }
        let before = file.now.clone();
        let still = |now: &Cursor| now.verified == before.verified && now.stream == before.stream;
        let edit = |cursor: &mut Cursor| {
            cursor.refused = Some(note.clone());
            // Refused although it was verified: storage lost it since.
            if cursor.verified.as_ref().is_some_and(|v| cycle <= v.commit.id) {
                set_backlog_lost(cursor, true);
            }
        };
        match file.update(&ctx, edit, still).await {
            Ok(()) => {
                self.ctx.crash.at(CrashPoint::Refused);
                Ok(self.later(ctx.timing.commit_poll_min))
            }
            Err(Halt::Fault(fault)) => {
                self.forget();
                Err(fault)
            }
            Err(Halt::Overtaken(_) | Halt::Busy | Halt::Stopped | Halt::Refused { .. }) => {
                self.forget();
                Ok(self.later(ctx.timing.commit_poll_min))
            }
        }
    }
}

/// Proves that everything a commit lists is there and is what it says, before any of it is applied.
async fn verify(ctx: &Context, commit: &Commit, cycle: &mut Cycle) -> Result<(), Halt> {
    let id = commit.id();
    for disk in &commit.disks {
        let list = ctx.store.list(id, disk, &ctx.budget).await?;
        cycle.add(&list);
        let stored: u64 = list.segments.iter().map(|s| s.stored).fold(0, u64::saturating_add);
        let keep = stored <= KEEP;
        stream::iter(list.segments.into_iter().zip(0_u32..))
            .map(|(entry, index)| async move {
                segment::verify(ctx, Source::new(id, disk.disk_id, index, &entry), entry, keep).await?;
                ctx.crash.at(CrashPoint::SegmentVerified);
                Ok::<_, Halt>(())
            })
            .buffer_unordered(VERIFYING)
            .try_collect::<()>()
            .await?;
    }
    Ok(())
}
