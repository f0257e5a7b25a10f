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

mod accept;
mod apply;
mod points;

use std::sync::Arc;
use std::time::Duration;

use farshore_core::fault::{Code, Fault};
use farshore_core::format::cursor::Cursor;
use farshore_core::format::ledger::Ledger;
use farshore_core::ids::CycleId;
use farshore_core::points::{Verdict, backlog_lost, check, follows, look, poll_interval};
use jiff::Timestamp;

use crate::chain::Chain;
use crate::context::{Context, Policy};
use crate::crash::CrashPoint;
use crate::cursor::CursorFile;
use crate::halt::Halt;
use crate::set::{self, SetName};
use crate::store::{LedgerFile, refused};

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
            cursor.refused = None;
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
                Err(Halt::Refused { .. }) if backlog_lost(cursor) => Chain::unknown(cursor),
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
        if refused.code == Code::UnreadableFormat.to_string() && !self.format_seen {
            self.format_seen = true;
            return false;
        }
        true
    }
}

fn replicating(ledger: &Ledger) -> bool {
    use farshore_core::format::ledger::LedgerState;
    use farshore_core::format::side::Side;
    matches!(ledger.state, LedgerState::Enabling | LedgerState::Protected) && ledger.owner == Side::OnPremises
}
