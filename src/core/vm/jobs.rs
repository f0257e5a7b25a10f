//! RecoveryJobs: operations that a person can watch, step by step, in Site Recovery's words (R4.3, HYPERV 8).
//!
//! What a job says follows from how the VM stands, so it can be made again at any time; when steps began and
//! ended is kept by the job itself.

use super::observed::{Finding, Goal, Observed};
use super::replicate::has_point;
use super::stands::Stand;
use super::status::{Kind, Status};
use crate::fault::Class;
use crate::format::ledger::{DeletionPolicy, LedgerState};
use crate::ids::{Epoch, VmId};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Prerequisites, relationship, initial replication.
    EnableProtection,
    /// Network and the other settings after initial replication.
    FinalizeProtection,
    /// Replication is stopped.
    DisableProtection,
}

/// State of a job or of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Not begun.
    NotStarted,
    /// Running.
    InProgress,
    /// Done.
    Succeeded,
    /// Waits for a person.
    Suspended,
    /// Was not necessary, or does not exist here.
    Skipped,
}

impl JobState {
    /// Nothing more will happen to it.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Skipped)
    }
}

/// Steps, as Site Recovery names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepName {
    /// Every prerequisite of the VM is looked at.
    PrerequisitesCheck,
    /// Storage account and containers.
    IdentifyingReplicationTarget,
    /// CreateReplicationRelationship.
    EnableReplication,
    /// StartReplication.
    StartingInitialReplication,
    /// The first recovery point is recorded.
    UpdatingProviderStates,
    /// Network settings after initial replication.
    ConfigureNetwork,
    /// The other settings after initial replication.
    FinalizeProtection,
    /// The host stops replicating.
    DisableReplication,
    /// Change tracking on the host is removed.
    RemoveHostTracking,
    /// Replica and points are removed.
    RemoveReplica,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Which.
    pub name: StepName,
    /// How far.
    pub state: JobState,
    /// For a person.
    pub message: String,
    /// Percent, where it can be told.
    pub progress: Option<u32>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// What is done.
    pub operation: Operation,
    /// The VM's id, if known.
    pub vm_id: Option<VmId>,
    /// The epoch that asked for it.
    pub epoch: Epoch,
    /// In order.
    pub steps: Vec<Step>,
    /// Why it waits.
    pub error: Option<Finding>,
}

impl Job {
    /// State of the whole.
    #[must_use]
    pub fn state(&self) -> JobState {
        if self.steps.iter().any(|s| s.state == JobState::Suspended) {
            JobState::Suspended
        } else if self.steps.iter().all(|s| s.state.is_over()) {
            JobState::Succeeded
        } else {
            JobState::InProgress
        }
    }

    /// The step that runs or waits.
    #[must_use]
    pub fn current(&self) -> Option<StepName> {
        self.steps.iter().find(|s| !s.state.is_over()).map(|s| s.name)
    }

    /// Percent of the whole: each step counts the same.
    #[must_use]
    pub fn progress(&self) -> u32 {
        let each = |s: &Step| if s.state.is_over() { 100 } else { s.progress.unwrap_or(0).min(100) };
        let sum: u32 = self.steps.iter().map(each).sum();
        sum.checked_div(u32::try_from(self.steps.len()).unwrap_or(1)).unwrap_or(0)
    }
}

fn step(name: StepName, state: JobState, message: impl Into<String>) -> Step {
    Step { name, state, message: message.into(), progress: None }
}

/// "Enable protection", and when that is over "Finalize protection".
pub(super) fn enabling(s: &Stand<'_>, status: &Status) -> Vec<Job> {
    let me = &s.o.me;
    let released = s.ledger.is_some_and(|l| l.state == LedgerState::Released);
    let ledger = s.ledger.filter(|l| l.state != LedgerState::Released);
    // Not this object's VM: nothing is being enabled.
    if ledger.is_none() && !released && me.began() {
        return vec![];
    }
    let agent = s.agent().is_some_and(|a| a.goal_observed);
    let point = ledger.is_some_and(|l| has_point(s.o, l));
    let protected = ledger.is_some_and(|l| l.state == LedgerState::Protected);
    let progress = status.initial.map(|i| i.percent());
    let facts = [
        (StepName::PrerequisitesCheck, ledger.is_some(), "", None),
        (StepName::IdentifyingReplicationTarget, ledger.is_some(), "", None),
        (StepName::EnableReplication, agent || point, "CreateReplicationRelationship", None),
        (StepName::StartingInitialReplication, point || protected, "StartReplication", progress),
        (StepName::UpdatingProviderStates, protected, "", None),
    ];
    let mut running = true;
    let mut steps: Vec<Step> = Vec::new();
    for (name, done, message, progress) in facts {
        // A step is never done before the one before it.
        let state = match (running, done || protected) {
            (true, true) => JobState::Succeeded,
            (true, false) => JobState::InProgress,
            (false, _) => JobState::NotStarted,
        };
        running &= state == JobState::Succeeded;
        let progress = progress.filter(|_| state == JobState::InProgress);
        steps.push(Step { name, state, message: message.into(), progress });
    }
    let stalled = status.condition(Kind::Stalled).filter(|_| status.is(Kind::Stalled));
    let mut error = None;
    if let (Some(stalled), Some(current)) =
        (stalled, steps.iter_mut().find(|s| s.state == JobState::InProgress))
    {
        current.state = JobState::Suspended;
        current.message.clone_from(&stalled.message);
        error = status.last_error.clone().filter(|e| e.code.entry().class == Class::Unrecoverable);
    }
    let (vm_id, epoch) = (s.vm_id, me.intent.epoch);
    let mut jobs = vec![Job { operation: Operation::EnableProtection, vm_id, epoch, steps, error }];
    if protected {
        let skipped = "NetworkNotConfigurable: networks are set at failover, which is not in this version";
        let steps = vec![
            step(StepName::ConfigureNetwork, JobState::Skipped, skipped),
            step(StepName::FinalizeProtection, JobState::Succeeded, ""),
        ];
        jobs.push(Job { operation: Operation::FinalizeProtection, vm_id, epoch, steps, error: None });
    }
    jobs
}

/// "Disable protection"; none if nothing was ever enabled.
pub(super) fn disabling(
    o: &Observed,
    vm_id: Option<VmId>,
    policy: DeletionPolicy,
    waits: Option<&str>,
) -> Vec<Job> {
    if !o.me.began() && o.relationships.is_empty() {
        return vec![];
    }
    let told = o.relationships.iter().all(|r| r.wish.goal != Goal::Replicate);
    let released = o.ledger().is_none_or(|l| l.state == LedgerState::Released) && waits.is_none();
    let done = |is: bool| if is { JobState::Succeeded } else { JobState::InProgress };
    let first = match waits {
        Some(why) => step(StepName::DisableReplication, JobState::Suspended, why),
        None => step(StepName::DisableReplication, done(told && released), ""),
    };
    let tracking = match policy {
        DeletionPolicy::Retain => step(
            StepName::RemoveHostTracking,
            JobState::Skipped,
            "Retain keeps the reference point for 7 days",
        ),
        DeletionPolicy::StopReplication | DeletionPolicy::Purge => {
            step(StepName::RemoveHostTracking, done(told), "the host is told and not waited for")
        }
    };
    let gone = o.stored().is_some_and(|s| s.replica.is_none());
    let replica = match policy {
        DeletionPolicy::Retain | DeletionPolicy::StopReplication => step(
            StepName::RemoveReplica,
            JobState::Skipped,
            format!("{policy:?} keeps replica and recovery points"),
        ),
        DeletionPolicy::Purge if o.me.abandon => {
            step(StepName::RemoveReplica, JobState::Skipped, "abandoned")
        }
        DeletionPolicy::Purge => step(StepName::RemoveReplica, done(gone), ""),
    };
    let steps = vec![first, tracking, replica];
    vec![Job { operation: Operation::DisableProtection, vm_id, epoch: o.me.intent.epoch, steps, error: None }]
}
