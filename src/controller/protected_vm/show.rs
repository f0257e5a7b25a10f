//! From decided status and jobs to the API's types: times are filled in here and nowhere else.

use farshore_api as api;
use farshore_api::condition::MAX_MESSAGE;
use farshore_core::fault::{Class, Health};
use farshore_core::format::commit::Consistency;
use farshore_core::format::ledger::LedgerState;
use farshore_core::names;
use farshore_core::vm::jobs::{Job, JobState, Operation, StepName};
use farshore_core::vm::observed::{Finding, ReplicationState};
use farshore_core::vm::status::{Condition, Is, Status};
use farshore_core::vm::transition::Place;
use jiff::Timestamp;

/// Longest text of a [`api::ReportedError`].
const MAX_TEXT: usize = 2048;

/// The status as the API has it. Transition times are those of `old` where a condition's status stays the same.
pub fn status(s: &Status, old: &[api::Condition], now: Timestamp) -> api::ProtectedVMStatus {
    let Status {
        observed_generation,
        state,
        health,
        replication_state,
        effective,
        allowed,
        vm_id,
        host,
        storage_account,
        rpo_seconds,
        points,
        initial,
        tracking,
        disks,
        last_error,
        conditions,
    } = s;
    api::ProtectedVMStatus {
        observed_generation: Some(*observed_generation),
        state: state.and_then(self::state),
        health: health.map(|h| match h {
            Health::Normal => api::Health::Normal,
            Health::Warning => api::Health::Warning,
            Health::Critical => api::Health::Critical,
        }),
        replication_state: replication_state.map(self::replication_state),
        effective: effective.as_ref().map(|e| api::Effective {
            state: place(e.place),
            epoch: i64::try_from(e.epoch.0).unwrap_or(i64::MAX),
            next_epoch: i64::try_from(e.epoch.next().0).unwrap_or(i64::MAX),
            set_by: e.set_by.clone(),
        }),
        allowed_transitions: allowed.iter().map(|p| place(*p)).collect(),
        vm_id: vm_id.map(|id| id.to_string()),
        host: host.clone(),
        storage_account: storage_account.clone(),
        rpo: rpo_seconds.map(api::Duration::from_secs),
        recovery_points: points
            .iter()
            .map(|p| api::RecoveryPoint {
                name: p.name.clone(),
                time: api::Time(p.time),
                consistency: match p.consistency {
                    Consistency::Crash => api::Consistency::Crash,
                    Consistency::Application => api::Consistency::Application,
                    Consistency::Final => api::Consistency::Final,
                },
            })
            .collect(),
        initial_replication: initial.map(|i| api::InitialReplication {
            percent: i.percent(),
            bytes_total: i.total,
            bytes_copied: i.copied,
            eta: i.eta.map(|t| api::Time(whole_seconds(t))),
        }),
        tracking: tracking.map(|t| api::Tracking {
            avhdx_bytes: t.avhdx_bytes,
            log_bytes: t.log_bytes,
            volume_free_bytes: t.volume_free_bytes,
        }),
        disks: disks
            .iter()
            .map(|d| api::ReplicatedDisk {
                id: d.id.to_string(),
                path: d.path.clone(),
                virtual_size_bytes: d.virtual_size,
                blob: Some(names::disk_blob(d.id)),
            })
            .collect(),
        last_error: last_error.as_ref().map(error),
        conditions: self::conditions(conditions, *observed_generation, old, now),
    }
}

fn state(state: LedgerState) -> Option<api::State> {
    Some(match state {
        LedgerState::Enabling => api::State::Enabling,
        LedgerState::Protected => api::State::Protected,
        LedgerState::FailedOver => api::State::FailedOver,
        LedgerState::FailoverCommitted => api::State::FailoverCommitted,
        LedgerState::FailbackSynchronized => api::State::FailbackSynchronized,
        LedgerState::FailedBack => api::State::FailedBack,
        LedgerState::FailbackCommitted => api::State::FailbackCommitted,
        LedgerState::Released => return None,
    })
}

const fn replication_state(state: ReplicationState) -> api::ReplicationState {
    match state {
        ReplicationState::Disabled => api::ReplicationState::Disabled,
        ReplicationState::ReadyForReplication => api::ReplicationState::ReadyForReplication,
        ReplicationState::WaitingToCompleteInitialReplication => {
            api::ReplicationState::WaitingToCompleteInitialReplication
        }
        ReplicationState::Replicating => api::ReplicationState::Replicating,
        ReplicationState::Suspended => api::ReplicationState::Suspended,
        ReplicationState::Critical => api::ReplicationState::Critical,
        ReplicationState::WaitingToStartResynchronization => {
            api::ReplicationState::WaitingToStartResynchronization
        }
        ReplicationState::Resynchronizing => api::ReplicationState::Resynchronizing,
    }
}

const fn place(place: Place) -> api::DesiredState {
    match place {
        Place::Protected => api::DesiredState::Protected,
        Place::FailedOver => api::DesiredState::FailedOver,
        Place::FailoverCommitted => api::DesiredState::FailoverCommitted,
        Place::FailbackSynchronized => api::DesiredState::FailbackSynchronized,
        Place::FailedBack => api::DesiredState::FailedBack,
        Place::FailbackCommitted => api::DesiredState::FailbackCommitted,
    }
}

/// Site Recovery's four fields.
pub fn error(f: &Finding) -> api::ReportedError {
    let entry = f.code.entry();
    api::ReportedError {
        code: f.code.to_string(),
        message: bounded(&f.message, MAX_TEXT),
        possible_causes: bounded(&entry.causes.join("; "), MAX_TEXT),
        recommended_action: bounded(entry.remedy, MAX_TEXT),
    }
}

fn conditions(
    list: &[Condition],
    generation: i64,
    old: &[api::Condition],
    now: Timestamp,
) -> Vec<api::Condition> {
    let mut conditions: Vec<api::Condition> = list
        .iter()
        .map(|c| {
            let status = match c.is {
                Is::True => "True",
                Is::False => "False",
                Is::Unknown => "Unknown",
            };
            let before = api::condition::find(old, c.kind.as_str()).filter(|o| o.status == status);
            api::Condition {
                type_: c.kind.as_str().into(),
                status: status.into(),
                reason: c.reason.clone(),
                message: bounded(&c.message, MAX_MESSAGE),
                observed_generation: Some(generation),
                last_transition_time: before
                    .map_or_else(|| api::Time(whole_seconds(now)), |o| o.last_transition_time.clone()),
            }
        })
        .collect();
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    conditions
}

/// The API keeps whole seconds; a finer time would never equal what is read back.
pub fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// Cut at a character, so that the schema takes it.
pub fn bounded(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max.saturating_sub('…'.len_utf8()));
    text.get(..end).unwrap_or_default().to_owned() + "…"
}

/// Operation in the API.
pub const fn operation(o: Operation) -> api::Operation {
    match o {
        Operation::EnableProtection => api::Operation::EnableProtection,
        Operation::FinalizeProtection => api::Operation::FinalizeProtection,
        Operation::DisableProtection => api::Operation::DisableProtection,
    }
}

/// Status of a job. Times of steps that were there already are kept; a step that begins or ends now has this time.
pub fn job(job: &Job, old: Option<&api::RecoveryJobStatus>, now: Timestamp) -> api::RecoveryJobStatus {
    let now = || Some(api::Time(whole_seconds(now)));
    let state = job.state();
    let over = state == JobState::Succeeded;
    let steps = job
        .steps
        .iter()
        .map(|step| {
            let name = step_name(step.name);
            let before = old.and_then(|o| o.steps.iter().find(|s| s.name == name));
            let started_at = before.and_then(|b| b.started_at.clone());
            let finished_at = before.and_then(|b| b.finished_at.clone());
            let begun = step.state != JobState::NotStarted;
            api::Step {
                name: name.into(),
                state: job_state(step.state),
                started_at: if begun { started_at.or_else(now) } else { None },
                finished_at: if step.state.is_over() { finished_at.or_else(now) } else { None },
                message: Some(bounded(&step.message, MAX_TEXT)).filter(|m| !m.is_empty()),
                progress: step.progress,
            }
        })
        .collect();
    let succeeded = api::Condition {
        type_: api::condition::SUCCEEDED.into(),
        status: if over { "True" } else { "Unknown" }.into(),
        reason: match state {
            JobState::Succeeded => api::reason::SUCCEEDED,
            JobState::Suspended => api::reason::WAITING_FOR_ACTION,
            JobState::NotStarted | JobState::InProgress | JobState::Skipped => api::reason::IN_PROGRESS,
        }
        .into(),
        message: job.error.as_ref().map(|e| bounded(&e.message, MAX_MESSAGE)).unwrap_or_default(),
        observed_generation: None,
        last_transition_time: api::Time(Timestamp::UNIX_EPOCH),
    };
    let before = old.and_then(|o| api::condition::find(&o.conditions, api::condition::SUCCEEDED));
    let same = before.filter(|b| b.status == succeeded.status).map(|b| b.last_transition_time.clone());
    let last_transition_time = same.or_else(now).unwrap_or(api::Time(Timestamp::UNIX_EPOCH));
    api::RecoveryJobStatus {
        state: job_state(state),
        current_step: job.current().map(|s| step_name(s).to_owned()),
        steps,
        started_at: old.and_then(|o| o.started_at.clone()).or_else(now),
        finished_at: if over { old.and_then(|o| o.finished_at.clone()).or_else(now) } else { None },
        progress: job.progress(),
        error: job.error.as_ref().map(error),
        conditions: vec![api::Condition { last_transition_time, ..succeeded }],
    }
}

const fn job_state(state: JobState) -> api::JobState {
    match state {
        JobState::NotStarted => api::JobState::NotStarted,
        JobState::InProgress => api::JobState::InProgress,
        JobState::Succeeded => api::JobState::Succeeded,
        JobState::Suspended => api::JobState::Suspended,
        JobState::Skipped => api::JobState::Skipped,
    }
}

const fn step_name(name: StepName) -> &'static str {
    match name {
        StepName::PrerequisitesCheck => api::step::PREREQUISITES_CHECK,
        StepName::IdentifyingReplicationTarget => api::step::IDENTIFYING_REPLICATION_TARGET,
        StepName::EnableReplication => api::step::ENABLE_REPLICATION,
        StepName::StartingInitialReplication => api::step::STARTING_INITIAL_REPLICATION,
        StepName::UpdatingProviderStates => api::step::UPDATING_PROVIDER_STATES,
        StepName::ConfigureNetwork => api::step::CONFIGURE_NETWORK,
        StepName::FinalizeProtection => api::step::FINALIZE_PROTECTION,
        StepName::DisableReplication => api::step::DISABLE_REPLICATION,
        StepName::RemoveHostTracking => api::step::REMOVE_HOST_TRACKING,
        StepName::RemoveReplica => api::step::REMOVE_REPLICA,
    }
}

/// Class of a code as metrics count it.
pub const fn class(class: Class) -> &'static str {
    match class {
        Class::Recoverable => "Recoverable",
        Class::Unrecoverable => "Unrecoverable",
        Class::NeedsResync => "NeedsResync",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use farshore_core::fault::CATALOG;
    use farshore_core::vm::status::{Kind, reason};

    use super::*;

    #[test]
    fn every_reason_is_one_of_the_apis_and_every_code_fits_its_schema() {
        let known: BTreeSet<&str> = api::reason::ALL.iter().copied().collect();
        for reason in reason::ALL {
            assert!(known.contains(reason), "{reason}");
        }
        for entry in CATALOG {
            assert!(entry.code.to_string().chars().all(|c| c.is_ascii_alphanumeric()), "{}", entry.code);
        }
    }

    #[test]
    fn a_status_survives_the_way_to_the_api_and_back() {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        let s = Status {
            observed_generation: 3,
            state: Some(LedgerState::Protected),
            conditions: vec![Condition::new(Kind::Ready, true, "AsDesired", "protected")],
            rpo_seconds: Some(90),
            ..Status::default()
        };
        let shown = status(&s, &[], at);
        assert_eq!(super::super::facts::written(Some(&shown)), s);
        let later = at.checked_add(jiff::SignedDuration::from_secs(60)).unwrap();
        let again = status(&s, &shown.conditions, later);
        assert_eq!(again.conditions[0].last_transition_time.0, at, "the transition time stays");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let cut = bounded(&"ä".repeat(3000), MAX_TEXT);
        assert!(cut.len() <= MAX_TEXT && cut.ends_with("ä…"));
    }
}
