//! One VM's replication: a loop that looks at what is, does one step, and looks again.
//!
//! ```text
//! goal ──> take up ──> restart table ──┬─ Idle ──> verify, wait for the tick, begin: checkpoint (+ logs)
//!          (journal)   (host's traces) ├─ Read ──> copy a slice
//!                                      ├─ Convert ──> reference point
//!                                      ├─ Upload ──> segments, lists, commit
//!                                      ├─ Commit ──> put it, or learn its fate from the cursor
//!                                      └─ Redo, Lost
//! ```
//! Every step may be the last one before a crash; the next life begins at the same place of the table. What is
//! decided is decided in `farshore_core::relationship` and `farshore_core::cycle`; here it is done.

mod assignment;
mod begin;
mod commit;
mod copy;
mod host;
mod logs;
mod release;
mod trouble;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use farshore_core::cycle::{self, Due};
use farshore_core::fault::{Code, Fault};
use farshore_core::ids::VmId;
use farshore_core::relationship::{Journal, NextStep, OnHost, Restart, Running, TakeUp, restart, take_up};
use farshore_core::retry::Failures;
use farshore_core::timing::Timing;
use farshore_disk::segment::Compression;
use farshore_hyperv::Hypervisor;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use assignment::{Assignment, Goal, Observed, Progress, Report, State, Tracking, Trouble};
pub use host::facts;

use crate::crash::{Crash, CrashPoint};
use crate::fault::{Classify, OrFault, Result};
use crate::journal::{JournalError, JournalStore};
use crate::store::Store;
use crate::transfer::{Budget, Transfer};
use trouble::Stopped;

/// The only source of the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// What every engine of a process is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where journals are.
    pub journals: JournalStore,
    /// Shared by all VMs.
    pub budget: Budget,
    /// All periods.
    pub timing: Timing,
    /// The time.
    pub clock: Clock,
    /// Where to die.
    pub crash: Crash,
}

/// zstd's fastest ordinary level: on images of systems within a few per cent of the next, at twice the speed.
const ZSTD_LEVEL: i32 = 1;

/// When the loop turns next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// At once.
    Now,
    /// At a time, or when the goal changes.
    At(Timestamp),
    /// When the goal changes.
    Changed,
}

/// The replication of one VM.
#[derive(Debug)]
pub struct Engine<H, S> {
    vm: VmId,
    host: Arc<H>,
    store: Arc<S>,
    context: Context,
    goal: watch::Receiver<Assignment>,
    report: watch::Sender<Report>,
    /// As on disk. `None` before it is loaded, or if there is none.
    journal: Option<Journal>,
    loaded: bool,
    /// Logs that no cycle needs were looked for since this process began the stream.
    swept: bool,
    /// The running cycle's logs were sealed, or read whole, by this process.
    trusted_logs: bool,
    /// The spec under which the last failure happened: another one is tried at once.
    failed_generation: Option<i64>,
    /// Failures before there is a journal to note them in.
    early_failures: Option<Failures>,
    stopped: Option<Stopped>,
}

impl<H: Hypervisor + 'static, S: Store> Engine<H, S> {
    /// An engine for the VM of the assignment, with the receiving end of its reports.
    pub fn new(
        host: Arc<H>,
        store: Arc<S>,
        context: Context,
        goal: watch::Receiver<Assignment>,
    ) -> (Self, watch::Receiver<Report>) {
        let (report, reports) = watch::channel(Report::default());
        let vm = goal.borrow().vm;
        let engine = Self {
            vm,
            host,
            store,
            context,
            goal,
            report,
            journal: None,
            loaded: false,
            swept: false,
            trusted_logs: false,
            failed_generation: None,
            early_failures: None,
            stopped: None,
        };
        (engine, reports)
    }

    /// Brings the goal about until `stop`. May be dropped anywhere.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let goal = self.goal.borrow_and_update().clone();
            let next = tokio::select! {
                next = self.turn(&goal) => next,
                () = stop.cancelled() => return,
            };
            let wait = match next {
                Next::Now => Some(Duration::ZERO),
                Next::At(at) => Some(Duration::try_from(at.duration_since(self.now())).unwrap_or_default()),
                Next::Changed => None,
            };
            let due = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                changed = self.goal.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    async fn turn(&mut self, goal: &Assignment) -> Next {
        let next = match self.step(goal).await {
            Ok(next) => next,
            Err(fault) => self.failed(goal, fault).await,
        };
        self.show_journal();
        next
    }

    async fn step(&mut self, goal: &Assignment) -> Result<Next> {
        if let Some(next) = self.is_stopped(goal).await {
            return Ok(next);
        }
        let damaged = self.load()?;
        let known = self.journal.as_ref().map(|j| (j.term, j.stream));
        let take_up = match take_up(known, (goal.term, goal.stream), goal.observed) {
            // There was a stream, though the status does not say which.
            TakeUp::Begin if damaged && goal.observed.is_none() => TakeUp::JournalLost,
            other => other,
        };
        match take_up {
            TakeUp::Stale => {
                let (term, stream) = known.unwrap_or((goal.term, goal.stream));
                let message = format!(
                    "the goal carries term {}, stream {}; this host has seen term {term}, stream {stream}",
                    goal.term, goal.stream
                );
                return Err(Fault::new(Code::LedgerBehind, message));
            }
            TakeUp::JournalLost if goal.goal == Goal::Replicate => {
                self.show_observed(goal, true);
                self.set_step("WaitingForStream");
                tracing::warn!(vm.id = %self.vm, "no journal of this stream; nothing is uploaded until it is raised");
                return Ok(Next::Changed);
            }
            TakeUp::JournalLost => {}
            TakeUp::Begin if goal.goal == Goal::Replicate => self.begin_stream(goal).await?,
            TakeUp::Begin | TakeUp::Continue => {}
        }
        self.show_observed(goal, false);
        match goal.goal {
            Goal::Replicate => self.replicate(goal).await,
            Goal::StopReplicating { keep_points_until } => self.release(keep_points_until).await,
        }
    }

    async fn replicate(&mut self, goal: &Assignment) -> Result<Next> {
        if let Some(next) = self.is_too_early(goal).await? {
            return Ok(next);
        }
        let found = self.look().await?;
        let Restart { leftovers, step } = restart(self.journal()?, &found);
        for id in leftovers {
            // Of a cycle that is made again, or left behind by a life before, here or on another node.
            tracing::info!(vm.id = %self.vm, checkpoint = %id, "deleting a checkpoint of ours that is not needed");
            self.host.delete_checkpoint(self.vm, &id.into()).await.or_fault()?;
            self.context.crash.pass(CrashPoint::DroppedCheckpointDeleted);
        }
        match step {
            NextStep::Idle => self.idle(goal).await,
            NextStep::Redo => self.forget_cycle().await.map(|()| Next::Now),
            NextStep::Read => self.copy_slice(goal).await,
            NextStep::Convert { checkpoint } => self.convert(&checkpoint).await,
            NextStep::NotePoint { reference_point } => self.note_point(reference_point).await,
            NextStep::Upload => self.upload(goal).await,
            NextStep::Commit => self.put_commit(goal).await,
            NextStep::Lost(fault) => Err(fault),
        }
    }

    async fn idle(&mut self, goal: &Assignment) -> Result<Next> {
        self.sweep(goal).await?;
        self.verify().await?;
        let (unverified, next_tick) = {
            let journal = self.journal()?;
            (journal.unverified.len(), journal.next_tick)
        };
        let now = self.now();
        let look_again = now.checked_add(self.context.timing.verify_poll).unwrap_or(Timestamp::MAX);
        if goal.paused {
            self.set_step("Paused");
            self.clear_trouble().await?;
            return Ok(if unverified > 0 { Next::At(look_again) } else { Next::Changed });
        }
        match cycle::due(next_tick.unwrap_or(now), goal.interval, now) {
            Due::Later { at } => {
                self.set_step("WaitingForTick");
                self.clear_trouble().await?;
                Ok(Next::At(if unverified > 0 { at.min(look_again) } else { at }))
            }
            Due::Now { .. } if !cycle::may_begin(unverified) => {
                self.set_step("WaitingForVerification");
                self.clear_trouble().await?;
                Ok(Next::At(look_again))
            }
            Due::Now { tick, missed } => self.begin_cycle(goal, tick, missed).await,
        }
    }

    /// What of ours is on the host.
    async fn look(&mut self) -> Result<OnHost> {
        let checkpoints = self.host.checkpoints(self.vm).await.or_fault()?;
        let points = self.host.reference_points(self.vm).await.or_fault()?;
        let running = self.journal()?.running.clone();
        let logs_sealed = match running {
            Some(running) => self.logs_sealed(running).await?,
            None => false,
        };
        Ok(OnHost {
            checkpoints: checkpoints.into_iter().map(|c| (c.id.0, c.name)).collect(),
            reference_points: points.into_iter().map(|p| (p.id.0, p.checkpoint.0)).collect(),
            logs_sealed,
        })
    }

    async fn logs_sealed(&mut self, running: Running) -> Result<bool> {
        if running.kind == farshore_core::format::commit::Kind::Base {
            return Ok(false);
        }
        let deep = !self.trusted_logs;
        let sealed = blocking(move || Ok(logs::are_sealed(&running, deep))).await?;
        self.trusted_logs = sealed;
        Ok(sealed)
    }

    fn now(&self) -> Timestamp {
        self.context.clock.now()
    }

    fn second(&self) -> Duration {
        self.context.timing.retry_minute / 60
    }

    fn set_step(&self, step: &'static str) {
        self.report.send_if_modified(|r| std::mem::replace(&mut r.step, step) != step);
    }

    /// Reads the journal once. True if it is there and damaged: then it counts as lost.
    fn load(&mut self) -> Result<bool> {
        if self.loaded {
            return Ok(false);
        }
        match self.context.journals.load(self.vm) {
            Ok(journal) => {
                self.journal = journal;
                self.loaded = true;
                Ok(false)
            }
            Err(error @ JournalError::Damaged { .. }) => {
                tracing::error!(vm.id = %self.vm, %error, "the journal is lost");
                Ok(true)
            }
            Err(error) => Err(error.fault()),
        }
    }

    fn show_observed(&self, goal: &Assignment, journal_lost: bool) {
        let Assignment { goal, term, stream, generation, .. } = *goal;
        self.report.send_if_modified(|r| {
            let before = (r.observed, r.journal_lost);
            r.observed = Some(Observed { goal, term, stream, generation });
            r.journal_lost = journal_lost;
            before != (r.observed, r.journal_lost)
        });
    }

    fn journal(&self) -> Result<&Journal> {
        self.journal.as_ref().ok_or_else(|| Fault::new(Code::JournalLost, "there is no journal"))
    }

    fn running(&self) -> Result<&Running> {
        let running = self.journal()?.running.as_ref();
        running.ok_or_else(|| Fault::new(Code::Unknown, "no cycle is under way"))
    }

    /// Makes `journal` durable; only then is it what this engine knows.
    async fn save(&mut self, journal: Journal) -> Result<()> {
        let journals = self.context.journals.clone();
        self.journal = Some(blocking(move || journals.save(&journal).map(|()| journal).or_fault()).await?);
        self.loaded = true;
        Ok(())
    }

    async fn edit(&mut self, edit: impl FnOnce(&mut Journal)) -> Result<()> {
        let mut journal = self.journal()?.clone();
        edit(&mut journal);
        self.save(journal).await
    }

    /// Forgets the running cycle: its checkpoint was deleted as a leftover, its logs go now.
    async fn forget_cycle(&mut self) -> Result<()> {
        let dropped = self.running()?.clone();
        tracing::info!(vm.id = %self.vm, cycle = %dropped.id, stage = ?dropped.stage, "the cycle is made again");
        self.remove_logs(&dropped).await?;
        self.trusted_logs = false;
        self.edit(|j| j.running = None).await
    }

    async fn remove_logs(&self, running: &Running) -> Result<()> {
        let disks = running.instant.iter().flat_map(|i| &i.disks);
        let logs: Vec<String> = disks.filter_map(|d| d.log.clone()).collect();
        blocking(move || logs.iter().try_for_each(|log| logs::remove(log.as_ref())).or_fault()).await
    }

    fn transfer(&self, goal: &Assignment, cycle: farshore_core::ids::CycleId) -> Arc<Transfer<S>> {
        Arc::new(Transfer {
            vm: self.vm,
            cycle,
            store: Arc::clone(&self.store),
            budget: self.context.budget.clone(),
            compression: if goal.compress { Compression::Zstd(ZSTD_LEVEL) } else { Compression::None },
            parallelism: goal.parallelism,
            segment_bytes: cycle::segment_bytes(goal.parallelism),
            second: self.second(),
            crash: self.context.crash.clone(),
            bytes_sent: 0.into(),
        })
    }

    /// Has the goal moved on since `goal` was taken up? Then what can end early does.
    fn is_asked_to_end(&self, goal: &Assignment) -> bool {
        let now = self.goal.borrow();
        now.paused || now.goal != Goal::Replicate || (now.term, now.stream) != (goal.term, goal.stream)
    }

    /// Copies what the journal knows into the report.
    fn show_journal(&self) {
        let Some(journal) = &self.journal else { return };
        let state = self.state(journal);
        let trouble = self.trouble(journal);
        self.report.send_if_modified(|r| {
            let before = (r.state, r.last, r.missed_cycles, r.trouble.clone());
            (r.state, r.last, r.missed_cycles, r.trouble) =
                (state, journal.last, journal.missed_cycles, trouble);
            before != (r.state, r.last, r.missed_cycles, r.trouble.clone())
        });
    }
}

/// Runs blocking work on its own thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Fault::new(Code::Unknown, format!("work ended: {e}"))))
}
