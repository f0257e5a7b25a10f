//! The work on one VM, a step at a time. A task keeps nothing that it could not read again from storage.
//!
//! ```text
//!           ┌────────────── nothing new: look again later ◀──────────────┐
//!           ▼                                                            │
//!  ledger, cursor ─▶ backlog due? ─▶ set owed? ─▶ next commit there? ─▶ check
//!                       │ apply        │ snapshot                       │ accept
//!                       ▼              ▼                                ▼
//!                   step again     step again      Base: verify while applying │ else: verify ─▶ cursor.verified
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farshore_core::fault::{Code, Fault};
use farshore_core::format::commit::{Commit, CommitRef, Kind};
use farshore_core::format::cursor::{Cursor, Refused};
use farshore_core::format::ledger::Ledger;
use farshore_core::ids::{CycleId, Hash};
use farshore_core::points::{
    Claim, Verdict, batch_end, check, follows, look, may_apply, poll_interval, set_claim, set_due,
};
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use crate::apply::{Batch, Job, create_blobs, disks_of};
use crate::chain::{Chain, Cycle, verified};
use crate::context::{Context, Policy};
use crate::crash::CrashPoint;
use crate::cursor::CursorFile;
use crate::halt::Halt;
use crate::lease::Leases;
use crate::prune;
use crate::segment::{self, Source};
use crate::set::{self, SetName};
use crate::store::{LedgerFile, refused};

/// Segments being verified at the same time.
const VERIFYING: usize = 8;
/// Cycles up to this size are kept in memory between verifying and applying.
const KEEP: u64 = 8 << 20;

/// How often a cycle is read again before it is refused.
const LOOKS: u32 = 2;

/// What a step says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is more to do.
    Now,
    /// Nothing to do before.
    At(Timestamp),
}

/// The work on one VM.
#[derive(Debug)]
pub struct VmTask {
    pub(crate) ctx: Context,
    ledger: LedgerFile,
    cursor: Option<CursorFile>,
    chain: Option<Chain>,
    sets: Option<Vec<SetName>>,
    /// Cycles before this one are to be removed.
    garbage: Option<CycleId>,
    /// What the worker before left was looked for.
    tidied: bool,
    /// A cycle that something is wrong with, and how often it was.
    suspected: Option<(CycleId, u32)>,
    /// A refusal for its format is looked at again once by each process: it may be newer by now.
    format_seen: bool,
}

impl VmTask {
    /// Starts from nothing but storage.
    #[must_use]
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            ledger: LedgerFile::default(),
            cursor: None,
            chain: None,
            sets: None,
            garbage: None,
            tidied: false,
            suspected: None,
            format_seen: false,
        }
    }

    /// Does the next thing there is to do.
    ///
    /// # Errors
    /// What failed; the caller tries again on the ladder.
    pub async fn step(&mut self, policy: &Policy) -> Result<Next, Fault> {
        let soon = self.ctx.timing.commit_poll_min;
        match self.try_step(policy).await {
            Ok(next) => Ok(next),
            Err(Halt::Fault(fault)) => {
                self.forget();
                Err(fault)
            }
            Err(Halt::Overtaken(why)) => {
                tracing::debug!(vm.id = %self.ctx.vm, why, "start over");
                self.forget();
                Ok(self.later(soon))
            }
            Err(Halt::Busy) => {
                self.forget();
                Ok(self.later((self.ctx.timing.blob_lease / 10).max(soon)))
            }
            Err(Halt::Stopped) => Ok(self.later(soon)),
            Err(Halt::Refused { cycle, code, message }) => {
                if self.suspect(cycle) {
                    tracing::warn!(vm.id = %self.ctx.vm, cycle = %cycle, error.code = %code, message, "read again");
                    tokio::time::sleep(soon).await;
                    return Ok(Next::Now);
                }
                self.refuse(cycle, code, message).await
            }
        }
    }

    /// True the first times that something is wrong with a cycle. To refuse it is for good and costs a
    /// resynchronization; what is wrong on the way from storage only is right when it is read again.
    fn suspect(&mut self, cycle: CycleId) -> bool {
        let known = self.cursor.as_ref().and_then(|c| c.now.refused.as_ref()).is_some_and(|r| r.id == cycle);
        let times = match self.suspected {
            Some((id, times)) if id == cycle => times,
            _ => 0,
        };
        self.suspected = Some((cycle, times.saturating_add(1)));
        !known && times < LOOKS && !self.ctx.stop.is_cancelled()
    }

    /// Applies everything that is verified, boundary or not; for a failover that wants the latest.
    ///
    /// # Errors
    /// What failed.
    pub async fn flush(&mut self, policy: &Policy) -> Result<(), Fault> {
        loop {
            let outcome = async {
                let Some(ledger) = self.prepare().await? else { return Ok(false) };
                self.apply_due(&ledger, policy, true).await
            };
            match outcome.await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(Halt::Fault(fault)) => {
                    self.forget();
                    return Err(fault);
                }
                Err(Halt::Refused { code, message, .. }) => return Err(Fault::new(code, message)),
                Err(Halt::Stopped) => return Ok(()),
                Err(Halt::Overtaken(_) | Halt::Busy) => {
                    self.forget();
                    tokio::time::sleep(self.ctx.timing.commit_poll_min).await;
                }
            }
        }
    }

    fn forget(&mut self) {
        self.cursor = None;
        self.chain = None;
        self.sets = None;
    }

    fn later(&self, wait: Duration) -> Next {
        Next::At(self.ctx.now().checked_add(wait).unwrap_or(Timestamp::MAX))
    }

    async fn try_step(&mut self, policy: &Policy) -> Result<Next, Halt> {
        let poll = poll_interval(policy.interval, &self.ctx.timing);
        let Some(ledger) = self.prepare().await? else { return Ok(self.later(poll)) };
        if self.apply_due(&ledger, policy, false).await? || self.set_owed(policy).await? {
            return Ok(Next::Now);
        }
        if self.must_not_look() {
            self.collect(policy).await?;
            return Ok(self.later(poll));
        }
        let now = self.ctx.now();
        let look = look(&self.cursor()?.now, &ledger, policy.interval, &self.ctx.timing, now);
        if now < look.at {
            self.collect(policy).await?;
            // The ledger is looked at meanwhile: it may follow another writer any time.
            let Next::At(soon) = self.later(self.ctx.timing.commit_poll_max) else { return Ok(Next::Now) };
            return Ok(Next::At(look.at.min(soon)));
        }
        let found = self.ctx.store.commit(look.name).await?;
        let Some((commit, hash)) = found else {
            self.collect(policy).await?;
            return Ok(self.later(look.again));
        };
        // What was found is judged by the ledger and the cursor of now.
        let ctx = self.ctx.clone();
        if !self.cursor_mut()?.refresh(&ctx).await? {
            return Err(Halt::Overtaken("somebody else wrote the cursor"));
        }
        let Some(ledger) = self.ledger.read(&self.ctx.store).await? else { return Ok(self.later(poll)) };
        match check(&commit, look.name, &self.cursor()?.now, &ledger) {
            Verdict::Wait(why) => {
                tracing::debug!(vm.id = %self.ctx.vm, cycle = %look.name, ?why, "a commit waits");
                Ok(self.later(poll))
            }
            Verdict::Refuse(code, message) => Err(refused(look.name, code, message)),
            Verdict::Accept => {
                self.accept(&ledger, policy, commit, hash).await?;
                Ok(Next::Now)
            }
        }
    }

    /// Reads ledger and cursor and follows the ledger's writer; `None` while there is nothing to follow.
    async fn prepare(&mut self) -> Result<Option<Arc<Ledger>>, Halt> {
        let Some(ledger) = self.ledger.read(&self.ctx.store).await? else { return Ok(None) };
        if self.cursor.is_none() {
            self.cursor = CursorFile::read(&self.ctx).await?;
            self.chain = None;
        }
        if self.cursor.is_none() {
            if !replicating(&ledger) {
                return Ok(None);
            }
            self.cursor = Some(CursorFile::create(&self.ctx, &ledger).await?);
            self.ctx.crash.at(CrashPoint::CursorCreated);
        }
        if let Err(why) = follows(&self.cursor()?.now, &ledger) {
            tracing::debug!(vm.id = %self.ctx.vm, ?why, "the ledger does not let us replicate");
            return Ok(None);
        }
        self.take_stream(&ledger).await?;
        Ok(Some(ledger))
    }

    /// Writes the ledger's term and stream into the cursor. From then on no commit of a stream before can be
    /// verified any more, by anybody: a base that the controller reads from this cursor, or a later one, is
    /// what the new stream's first commit must continue.
    async fn take_stream(&mut self, ledger: &Ledger) -> Result<(), Halt> {
        let ctx = self.ctx.clone();
        let (term, stream) = (ledger.term, ledger.stream);
        let file = self.cursor_mut()?;
        if (file.now.term, file.now.stream) >= (term, stream) {
            return Ok(());
        }
        let edit = |cursor: &mut Cursor| {
            (cursor.term, cursor.stream) = (term, stream);
            // Unless it is the backlog that is broken, which only a full copy mends.
            if !backlog_is_broken(cursor) {
                cursor.refused = None;
            }
        };
        file.update(&ctx, edit, |now| (now.term, now.stream) < (term, stream)).await?;
        ctx.crash.at(CrashPoint::StreamTaken);
        Ok(())
    }

    fn cursor(&self) -> Result<&CursorFile, Halt> {
        self.cursor.as_ref().ok_or(Halt::Overtaken("the cursor was forgotten"))
    }

    fn cursor_mut(&mut self) -> Result<&mut CursorFile, Halt> {
        self.cursor.as_mut().ok_or(Halt::Overtaken("the cursor was forgotten"))
    }

    async fn chain(&mut self) -> Result<&mut Chain, Halt> {
        let cursor = &self.cursor()?.now;
        if self.chain.as_ref().is_none_or(|chain| !chain.fits(cursor)) {
            let chain = match Chain::load(&self.ctx, cursor).await {
                // Known already, and only a full copy goes on from here.
                Err(Halt::Refused { .. }) if backlog_is_broken(cursor) => Chain::unknown(cursor),
                loaded => loaded?,
            };
            self.chain = Some(chain);
        }
        self.chain.as_mut().ok_or(Halt::Overtaken("the chain was forgotten"))
    }

    async fn sets(&mut self) -> Result<&mut Vec<SetName>, Halt> {
        if self.sets.is_none() {
            self.sets = Some(set::list(&self.ctx).await?);
        }
        self.sets.as_mut().ok_or(Halt::Overtaken("the sets were forgotten"))
    }

    /// True while a refused cycle bars the way.
    fn must_not_look(&mut self) -> bool {
        let Some(cursor) = self.cursor.as_ref().map(|c| &c.now) else { return true };
        let Some(refused) = &cursor.refused else { return false };
        if backlog_is_broken(cursor) {
            return false;
        }
        if refused.code == Code::UnreadableFormat.to_string() && !self.format_seen {
            self.format_seen = true;
            return false;
        }
        true
    }

    /// Applies the backlog as far as it is due; true if something was.
    async fn apply_due(&mut self, ledger: &Ledger, policy: &Policy, all: bool) -> Result<bool, Halt> {
        if backlog_is_broken(&self.cursor()?.now) {
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
    async fn apply(
        &mut self,
        batch: Batch,
        policy: &Policy,
        copied: BTreeMap<farshore_core::ids::DiskId, u64>,
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

    async fn apply_held(
        &mut self,
        leases: &Leases,
        batch: &Batch,
        policy: &Policy,
        copied: BTreeMap<farshore_core::ids::DiskId, u64>,
        accepted: Option<&Commit>,
    ) -> Result<(), Halt> {
        let Some(target) = batch.last() else { return Ok(()) };
        let started = std::time::Instant::now();
        self.confirm(target.id()).await?;
        let token = self.claim(target.pending.commit).await?;
        Job { ctx: &self.ctx, leases, batch, copied: &copied }.run().await?;
        let commit = target.pending.commit;
        let newly = accepted.map(|c| verified(c, commit.hash));
        let edit = |cursor: &mut Cursor| {
            cursor.applied = Some(commit);
            if let Some(newly) = &newly {
                cursor.verified = Some(newly.clone());
                cursor.refused = None;
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

    /// With the leases in hand: is everything still as it was when we decided?
    async fn confirm(&mut self, target: CycleId) -> Result<(), Halt> {
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

    async fn claim(&mut self, target: CommitRef) -> Result<String, Halt> {
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

    /// Makes a set of what is applied if one is due; also after a crash between the two.
    async fn set_owed(&mut self, policy: &Policy) -> Result<bool, Halt> {
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

    async fn is_due(&mut self, policy: &Policy, always: bool) -> Result<bool, Halt> {
        let last = set::last(self.sets().await?);
        let Some(applied) = &self.chain().await?.applied else { return Ok(false) };
        let newer = last.is_none_or(|last| applied.id() > last.id);
        let due = set_due(&applied.pending, last, policy.spacing);
        Ok(due || (always && newer && applied.pending.kind.is_point()))
    }

    async fn make_set(&mut self, policy: &Policy, always: bool) -> Result<(), Halt> {
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
    async fn set_if_due(&mut self, leases: &Leases, policy: &Policy, always: bool) -> Result<(), Halt> {
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

    async fn let_go(&mut self, applied: CycleId, policy: &Policy) -> Result<(), Halt> {
        let ctx = self.ctx.clone();
        let sets = self.sets().await?;
        let line = prune::points(&ctx, sets, applied, policy.retention).await?;
        prune::orphans(&ctx, sets).await?;
        self.garbage = line.or(self.garbage);
        Ok(())
    }

    /// Removes what is old, a round at a time, while there is nothing better to do. The first time it looks
    /// for what the worker before left when it was killed.
    async fn collect(&mut self, policy: &Policy) -> Result<(), Halt> {
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

    async fn name_newest_point(&mut self) -> Result<(), Halt> {
        let ctx = self.ctx.clone();
        let Some(point) = self.chain().await?.newest_point().map(Cycle::newest_point) else { return Ok(()) };
        let edit = |cursor: &mut Cursor| cursor.newest_point = Some(point.clone());
        self.cursor_mut()?.update(&ctx, edit, |now| now.newest_point.is_none()).await?;
        ctx.crash.at(CrashPoint::NewestPointSet);
        Ok(())
    }

    /// Verifies a commit that continues the chain; a Base cycle is applied on the way.
    async fn accept(
        &mut self,
        ledger: &Ledger,
        policy: &Policy,
        commit: Commit,
        hash: Hash,
    ) -> Result<(), Halt> {
        let id = commit.id();
        self.same_sizes(&commit).await?;
        if backlog_is_broken(&self.cursor()?.now) && commit.full_copy.len() != commit.disks.len() {
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

    async fn accept_base(
        &mut self,
        ledger: &Ledger,
        policy: &Policy,
        commit: Commit,
        cycle: Cycle,
    ) -> Result<(), Halt> {
        if !backlog_is_broken(&self.cursor()?.now) {
            // What was verified before is whole in the replica first, and becomes a set: the copy that follows
            // overwrites it, and until it is done that set is the quickest point.
            while self.apply_due(ledger, policy, true).await? {}
            if !self.chain().await?.backlog.is_empty() {
                return Err(Halt::Overtaken("cycles before a Base cycle may not be applied now"));
            }
            let idle = self.cursor()?.claim()?.is_none();
            if idle && commit.cycle == farshore_core::ids::Cycle::FIRST && self.is_due(policy, true).await? {
                self.make_set(policy, true).await?;
            }
        }
        let copied = self.cursor()?.now.verified.as_ref().map(|v| v.copied_up_to.clone()).unwrap_or_default();
        let batch: Batch = std::iter::once(cycle).collect();
        self.apply(batch, policy, copied, Some(&commit)).await
    }

    /// A disk keeps its size while its chain lasts; a replica blob is made once.
    async fn same_sizes(&mut self, commit: &Commit) -> Result<(), Halt> {
        let Some(newest) = self.chain().await?.newest() else { return Ok(()) };
        for disk in &commit.disks {
            let before = newest.disks.iter().find(|d| d.disk_id == disk.disk_id).map(|d| d.virtual_size);
            if let Some(before) = before.filter(|size| *size != disk.virtual_size) {
                let message =
                    format!("disk {} had {before} bytes and now has {}", disk.disk_id, disk.virtual_size);
                return Err(refused(commit.id(), Code::CorruptCommit, message));
            }
        }
        Ok(())
    }

    /// Notes in the cursor that a cycle cannot be used. Everything verified before it stays and is applied.
    async fn refuse(&mut self, cycle: CycleId, code: Code, message: String) -> Result<Next, Fault> {
        tracing::error!(vm.id = %self.ctx.vm, cycle = %cycle, error.code = %code, message, "refused a cycle");
        let ctx = self.ctx.clone();
        let poll = ctx.timing.commit_poll_max;
        let message: String = message.chars().take(512).collect();
        let note = Refused { id: cycle, code: code.to_string(), message };
        let later = self.later(poll);
        let Some(file) = self.cursor.as_mut() else { return Ok(later) };
        let hidden =
            backlog_is_broken(&file.now) && file.now.verified.as_ref().is_some_and(|v| v.commit.id < cycle);
        if hidden || file.now.refused.as_ref() == Some(&note) {
            return Ok(later);
        }
        let before = file.now.clone();
        let still = |now: &Cursor| now.verified == before.verified && now.stream == before.stream;
        match file.update(&ctx, |cursor| cursor.refused = Some(note.clone()), still).await {
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

/// A cycle that was verified and could not be applied any more: storage lost or changed it. Nothing after it
/// can be applied on top of the replica, only a full copy.
fn backlog_is_broken(cursor: &Cursor) -> bool {
    match (&cursor.refused, &cursor.verified) {
        (Some(refused), Some(verified)) => refused.id <= verified.commit.id,
        _ => false,
    }
}

fn holds(cursor: &Cursor, token: &str) -> bool {
    matches!(farshore_core::points::claim(cursor), Ok(Some(claim)) if claim.token == token)
}

fn replicating(ledger: &Ledger) -> bool {
    use farshore_core::format::ledger::LedgerState;
    use farshore_core::format::side::Side;
    matches!(ledger.state, LedgerState::Enabling | LedgerState::Protected) && ledger.owner == Side::OnPremises
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
