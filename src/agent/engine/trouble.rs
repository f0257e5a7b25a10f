//! Failures: the ladder, stopping, and what is let go of meanwhile.

use farshore_core::cycle::{SLICE_MIN, Slice, near_reserve, slice_ends};
use farshore_core::fault::{Class, Code, Fault};
use farshore_core::format::commit::Kind;
use farshore_core::relationship::{Journal, Stage, unmet};
use farshore_core::retry::{self, Failures};
use farshore_hyperv::Hypervisor;
use jiff::Timestamp;
use std::time::Duration;

use super::{Assignment, Engine, Goal, Next, State, Trouble, host};
use crate::fault::{OrFault, Result};
use crate::store::Store;

/// An unrecoverable fault holds the engine until what it depends on changes.
#[derive(Clone, Debug)]
pub(super) struct Stopped {
    fault: Fault,
    generation: i64,
    /// What was unmet, if that was it.
    unmet: Vec<Fault>,
    /// The host as it was; see [`host::fingerprint`].
    fingerprint: String,
}

impl<H: Hypervisor + 'static, S: Store> Engine<H, S> {
    /// Notes a failure and says when to look again.
    pub(super) async fn failed(&mut self, goal: &Assignment, fault: Fault) -> Next {
        let class = fault.class();
        tracing::warn!(vm.id = %self.vm, error.code = %fault.code, error.message = %fault.message, ?class, "failed");
        // First of all: a repair that comes while the failure is noted must not go unseen.
        let fingerprint = match class {
            Class::Recoverable => String::new(),
            _ => host::fingerprint(&*self.host, self.vm, &goal.disks).await,
        };
        let now = self.now();
        let known = match &self.journal {
            Some(journal) => journal.failures.clone(),
            None => self.early_failures.clone(),
        };
        let at_least = fault.retry_after_seconds.map(Duration::from_secs);
        let minute = self.context.timing.retry_minute;
        let failures = retry::after_failure(known.as_ref(), minute, at_least, rand::random(), now);
        self.failed_generation = Some(goal.generation);
        self.early_failures = Some(failures.clone());
        if fault.code == Code::LogCorrupt {
            // Read every byte before they are believed again.
            self.trusted_logs = false;
        }
        self.note_failure(&fault, &failures).await;
        let held = match &self.journal {
            Some(_) => {
                self.let_go(goal, class != Class::Recoverable || fault.code == Code::LowDiskSpace).await
            }
            None => Ok(()),
        };
        if let Err(error) = held {
            tracing::warn!(vm.id = %self.vm, %error, "the checkpoint could not be let go of yet");
        }
        if class == Class::Recoverable {
            return Next::At(self.with_guard(failures.next_at));
        }
        let unmet = self.report.borrow().unmet.clone();
        self.stopped = Some(Stopped { fault, generation: goal.generation, unmet, fingerprint });
        Next::At(self.later(self.context.timing.inventory_refresh))
    }

    /// Notes a failure in the journal and shows it; before there is a journal it is only shown.
    async fn note_failure(&mut self, fault: &Fault, failures: &Failures) {
        if self.journal.is_some() {
            let noted = (Some(failures.clone()), Some(fault.clone()));
            if let Err(error) = self.edit(|j| (j.failures, j.fault) = noted).await {
                tracing::error!(vm.id = %self.vm, %error, "the failure could not be noted");
            }
            return self.show_journal();
        }
        let retried = fault.class() == Class::Recoverable;
        self.report.send_modify(|r| {
            r.state = if retried { r.state } else { State::Critical };
            r.trouble = Some(Trouble { fault: fault.clone(), failures: failures.clone(), retried });
        });
    }

    fn later(&self, wait: Duration) -> Timestamp {
        self.now().checked_add(wait).unwrap_or(Timestamp::MAX)
    }

    /// While something of ours grows on the host, it is looked at meanwhile.
    fn with_guard(&self, until: Timestamp) -> Timestamp {
        let holds = self.journal.as_ref().and_then(|j| j.running.as_ref());
        match holds {
            Some(running) if running.stage < Stage::Committing => {
                until.min(self.later(self.context.timing.inventory_refresh))
            }
            _ => until,
        }
    }

    /// Is the engine held by an unrecoverable fault whose ground has not changed?
    pub(super) async fn is_stopped(&mut self, goal: &Assignment) -> Option<Next> {
        let stopped = self.stopped.clone()?;
        if stopped.generation == goal.generation && !self.is_changed(goal, &stopped).await {
            return Some(Next::At(self.later(self.context.timing.inventory_refresh)));
        }
        tracing::info!(vm.id = %self.vm, error.code = %stopped.fault.code, "something changed: trying again");
        self.stopped = None;
        self.failed_generation = None;
        None
    }

    /// Before a step: is the next try later?
    pub(super) async fn is_too_early(&mut self, goal: &Assignment) -> Result<Option<Next>> {
        let journal = self.journal()?;
        let Some(until) = journal.failures.as_ref().map(|f| f.next_at) else { return Ok(None) };
        let recoverable = journal.fault.as_ref().is_none_or(|f| f.class() == Class::Recoverable);
        let at_once = match self.failed_generation {
            // A person has edited the spec.
            Some(generation) => generation != goal.generation,
            // After a restart: what a person may have repaired meanwhile is looked at.
            None => !recoverable,
        };
        if at_once || self.now() >= until {
            return Ok(None);
        }
        self.failed_generation = Some(goal.generation);
        self.let_go(goal, false).await?;
        Ok(Some(Next::At(self.with_guard(until))))
    }

    async fn is_changed(&self, goal: &Assignment, stopped: &Stopped) -> bool {
        match stopped.fault.code {
            Code::NotAuthorized => return self.store.renewed().await,
            Code::VMNotFound => return self.host.vm(self.vm).await.is_ok(),
            _ => {}
        }
        if !stopped.unmet.is_empty() {
            let vm = self.host.vm(self.vm).await;
            return vm.is_ok_and(|vm| unmet(&host::facts(&vm, Some(&goal.disks))) != stopped.unmet);
        }
        host::fingerprint(&*self.host, self.vm, &goal.disks).await != stopped.fingerprint
    }

    /// Lets go of what grows on the host while nothing can be sent: logs first, then the checkpoint. `now`: at
    /// once; else only when a slice would end anyway.
    async fn let_go(&mut self, goal: &Assignment, at_once: bool) -> Result<()> {
        let Some(running) = self.journal()?.running.clone() else { return Ok(()) };
        let Some(instant) = running.instant.clone() else { return self.drop_cycle().await };
        let paths = || instant.disks.iter().map(|d| d.path.as_str());
        match (running.kind, running.stage) {
            (Kind::Base, Stage::Frozen) => {
                let avhdx = self.host.avhdx_bytes(self.vm, &instant.checkpoint_id.as_str().into()).await;
                let space = host::space(&*self.host, paths(), goal.reserve).await?;
                self.report.send_modify(|r| r.tracking = space.tracking(*avhdx.as_ref().unwrap_or(&0), 0));
                let slice = Slice {
                    age: Duration::try_from(self.now().duration_since(instant.time)).unwrap_or_default(),
                    // No matter how little it has: nothing more can be sent now.
                    copied: SLICE_MIN,
                    avhdx_bytes: avhdx.unwrap_or(0),
                    disk_bytes: instant.disks.iter().map(|d| d.virtual_size).sum(),
                    free: space.free,
                    reserve: space.reserve,
                    asked: false,
                };
                if at_once || slice_ends(&slice, self.context.timing.slice_age).is_some() {
                    return self.end_slice().await;
                }
                Ok(())
            }
            // Half a log is of no use; the checkpoint must not grow until the next try.
            (_, Stage::Intent | Stage::Frozen) => self.drop_cycle().await,
            // A sealed log may wait for the link as long as there is room.
            (kind, Stage::Ready | Stage::Converted) if kind != Kind::Base => {
                let space = host::space(&*self.host, paths(), goal.reserve).await?;
                if near_reserve(space.free, space.reserve) {
                    tracing::warn!(vm.id = %self.vm, cycle = %running.id, "dropping sealed logs: the volume is nearly full");
                    return self.drop_cycle().await;
                }
                Ok(())
            }
            (_, Stage::Ready | Stage::Converted | Stage::Committing) => Ok(()),
        }
    }

    async fn end_slice(&mut self) -> Result<()> {
        let Some(checkpoint) = self.running()?.instant.as_ref().map(|i| i.checkpoint_id.clone()) else {
            return self.drop_cycle().await;
        };
        if self.close_slice().await? {
            self.convert(&checkpoint).await.map(drop)
        } else {
            self.drop_cycle().await
        }
    }

    /// Deletes the running cycle's checkpoint and logs, and forgets it.
    pub(super) async fn drop_cycle(&mut self) -> Result<()> {
        let name = farshore_core::names::checkpoint(self.running()?.id);
        for checkpoint in self.host.checkpoints(self.vm).await.or_fault()? {
            if checkpoint.name == name {
                self.host.delete_checkpoint(self.vm, &checkpoint.id).await.or_fault()?;
            }
        }
        self.forget_cycle().await
    }

    /// Whatever failed before works again.
    pub(super) async fn clear_trouble(&mut self) -> Result<()> {
        if self.journal()?.failures.is_none() && self.journal()?.fault.is_none() {
            return Ok(());
        }
        self.failed_generation = None;
        self.early_failures = None;
        self.edit(|j| (j.failures, j.fault) = (None, None)).await
    }

    pub(super) fn trouble(&self, journal: &Journal) -> Option<Trouble> {
        let (fault, failures) = (journal.fault.clone()?, journal.failures.clone()?);
        let retried = self.stopped.is_none() && fault.class() == Class::Recoverable;
        Some(Trouble { fault, failures, retried })
    }

    pub(super) fn state(&self, journal: &Journal) -> State {
        let goal = self.goal.borrow();
        let copied = journal.since.as_ref().is_some_and(|s| s.copied_up_to.is_empty());
        let class = journal.fault.as_ref().map(Fault::class);
        match class {
            _ if goal.goal != Goal::Replicate => State::Disabled,
            Some(Class::NeedsResync) => State::ResynchronizationRequired,
            Some(Class::Unrecoverable) => State::Critical,
            Some(Class::Recoverable)
                if journal.fault.as_ref().map(|f| f.code) == Some(Code::LowDiskSpace) =>
            {
                State::Suspended
            }
            _ if goal.paused => State::Suspended,
            _ if copied => State::Replicating,
            _ if journal.running.is_some() || journal.since.is_some() => State::Copying,
            _ => State::Ready,
        }
    }
}
