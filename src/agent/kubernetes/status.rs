//! What an engine reports, as the status of its relationship: at most one write per VM and minute, and only if
//! something changed; a change of meaning is written at once.

use std::time::Duration;

use farshore_api as api;
use farshore_api::condition::{self, Draft};
use farshore_api::{ReplicationRelationship, ReplicationRelationshipStatus, ReplicationState, reason};
use farshore_core::fault::Class;
use farshore_core::format::commit::Kind;
use jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::MANAGER;
use super::connection::Connection;
use crate::engine::{Goal, Report, State, Trouble};

/// Which relationship.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Option<String>,
}

/// Writes reports until the engine is gone or the relationship is.
pub(super) async fn run(
    connection: Connection,
    place: Place,
    mut written: ReplicationRelationshipStatus,
    mut reports: watch::Receiver<Report>,
    refresh: Duration,
) {
    let mut last_write: Option<Instant> = None;
    loop {
        let report = reports.borrow_and_update().clone();
        let next = status(&written, &report, Timestamp::now());
        let wait = match Change::between(&written, &next) {
            Change::Nothing => None,
            Change::Numbers => {
                Some(last_write.map_or(Duration::ZERO, |at| refresh.saturating_sub(at.elapsed())))
            }
            Change::Meaning => Some(Duration::ZERO),
        };
        if wait.is_some_and(|wait| wait.is_zero()) {
            match write(&connection, &place, &next).await {
                Ok(()) => {
                    written = next;
                    last_write = Some(Instant::now());
                    continue;
                }
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return,
                Err(error) => {
                    tracing::warn!(relationship = %place.name, %error, "the status could not be written");
                    tokio::time::sleep(refresh.min(Duration::from_secs(5))).await;
                    continue;
                }
            }
        }
        let due = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            changed = reports.changed() => if changed.is_err() { return },
        }
    }
}

async fn write(
    connection: &Connection,
    place: &Place,
    status: &ReplicationRelationshipStatus,
) -> kube::Result<()> {
    let relationships: Api<ReplicationRelationship> = Api::namespaced(connection.client(), &place.namespace);
    let object = json!({
        "apiVersion": "farshore.dev/v1alpha1",
        "kind": "ReplicationRelationship",
        // Another object of the same name is not ours to write to.
        "metadata": {"name": place.name, "uid": place.uid},
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    relationships.patch_status(&place.name, &params, &Patch::Apply(&object)).await?;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// Progress, sizes, the step, the last cycle.
    Numbers,
    /// What a person or the controller acts on.
    Meaning,
}

impl Change {
    fn between(old: &ReplicationRelationshipStatus, new: &ReplicationRelationshipStatus) -> Self {
        let error =
            |s: &ReplicationRelationshipStatus| s.last_error.as_ref().map(|e| (e.code.clone(), e.class));
        let kind = |s: &ReplicationRelationshipStatus| s.last_cycle.as_ref().map(|c| c.kind);
        let meaning = old.observed != new.observed
            || old.state != new.state
            || old.released != new.released
            || old.journal_lost != new.journal_lost
            || old.unmet_prerequisites != new.unmet_prerequisites
            || error(old) != error(new)
            || kind(old) != kind(new);
        let same = || {
            let ReplicationRelationshipStatus { conditions, .. } = new;
            let bare = |s: &ReplicationRelationshipStatus| ReplicationRelationshipStatus {
                conditions: Vec::new(),
                ..s.clone()
            };
            bare(old) == bare(new) && condition::same(&old.conditions, conditions)
        };
        match meaning {
            true => Self::Meaning,
            false if same() => Self::Nothing,
            false => Self::Numbers,
        }
    }
}

/// The status for a report. What was acknowledged before is never taken back: a journal that is lost does not
/// undo the cycles that were committed.
fn status(
    old: &ReplicationRelationshipStatus,
    report: &Report,
    now: Timestamp,
) -> ReplicationRelationshipStatus {
    let observed = report.observed.map(|o| api::Observed {
        goal: match o.goal {
            Goal::Replicate => api::Goal::Replicate,
            Goal::StopReplicating { .. } => api::Goal::StopReplicating,
        },
        term: o.term.0,
        stream: o.stream.0,
        generation: o.generation,
    });
    let place = |c: &api::LastCycle| (c.term, c.stream, c.cycle);
    let last_cycle = report.last.map(|last| api::LastCycle {
        term: last.commit.id.term.0,
        stream: last.commit.id.stream.0,
        cycle: last.commit.id.cycle.0,
        kind: kind(last.kind),
        commit_hash: last.commit.hash.to_string(),
        committed_at: api::Time(whole_seconds(last.at)),
    });
    let last_cycle = match (last_cycle, old.last_cycle.clone()) {
        (Some(new), Some(old)) if place(&new) < place(&old) => Some(old),
        (None, old) => old,
        (new, _) => new,
    };
    let generation = observed.map(|o| o.generation);
    ReplicationRelationshipStatus {
        observed: observed.or(old.observed),
        state: Some(state(report.state)),
        step: (!report.step.is_empty()).then(|| report.step.to_owned()),
        progress: report.progress.map(|p| api::Progress {
            bytes_total: p.total,
            bytes_copied: p.copied.min(p.total),
            bytes_sent: p.sent,
        }),
        tracking: (report.tracking.free > 0).then_some(api::Tracking {
            avhdx_bytes: report.tracking.avhdx,
            log_bytes: report.tracking.logs,
            // In steps of 64 MiB, so that it does not change for its own sake.
            volume_free_bytes: report.tracking.free >> 26 << 26,
        }),
        last_cycle,
        missed_cycles: report.missed_cycles.max(if report.journal_lost { old.missed_cycles } else { 0 }),
        unmet_prerequisites: report
            .unmet
            .iter()
            .take(64)
            .map(|f| api::Finding { code: f.code.to_string(), message: cut(&f.message) })
            .collect(),
        last_error: report.trouble.as_ref().map(agent_error),
        released: report.released,
        journal_lost: report.journal_lost,
        conditions: condition::merge(&old.conditions, drafts(report), generation, now),
    }
}

fn agent_error(trouble: &Trouble) -> api::AgentError {
    api::AgentError {
        code: trouble.fault.code.to_string(),
        class: match trouble.fault.class() {
            Class::Recoverable => api::ErrorClass::Recoverable,
            Class::Unrecoverable => api::ErrorClass::Unrecoverable,
            Class::NeedsResync => api::ErrorClass::NeedsResync,
        },
        message: cut(&trouble.fault.message),
        since: api::Time(whole_seconds(trouble.failures.since)),
        attempts: trouble.failures.attempts,
        next_retry_at: trouble.retried.then(|| api::Time(whole_seconds(trouble.failures.next_at))),
    }
}

fn drafts(report: &Report) -> Vec<Draft> {
    let trouble = report.trouble.as_ref();
    let message = trouble.map_or_else(String::new, |t| format!("{}. {}", t.fault, t.fault.entry().remedy));
    let stalled = trouble.is_some_and(|t| !t.retried);
    let why = match trouble.map(|t| t.fault.class()) {
        Some(Class::NeedsResync) => reason::RESYNCHRONIZATION_REQUIRED,
        Some(Class::Unrecoverable) if !report.unmet.is_empty() => reason::PREREQUISITES_NOT_MET,
        Some(Class::Unrecoverable) => reason::REPLICATION_FAILED,
        Some(Class::Recoverable) => reason::RETRYING,
        None if report.journal_lost => reason::JOURNAL_LOST,
        None if report.state == State::Suspended => reason::PAUSED,
        None if report.state == State::Replicating => reason::REPLICATING,
        None if report.state == State::Disabled => reason::IDLE,
        None => reason::INITIAL_REPLICATION,
    };
    let ready = report.state == State::Replicating && trouble.is_none();
    let busy = !stalled && matches!(report.state, State::Ready | State::Copying);
    vec![
        Draft::new(condition::READY, ready, why, message.clone()),
        Draft::new(condition::RECONCILING, busy, if busy { reason::IN_PROGRESS } else { reason::IDLE }, ""),
        Draft::new(
            condition::STALLED,
            stalled,
            if stalled { why } else { reason::NOT_STALLED },
            if stalled { message } else { String::new() },
        ),
    ]
}

const fn state(state: State) -> ReplicationState {
    match state {
        State::Disabled => ReplicationState::Disabled,
        State::Ready => ReplicationState::ReadyForReplication,
        State::Copying => ReplicationState::WaitingToCompleteInitialReplication,
        State::Replicating => ReplicationState::Replicating,
        State::Suspended => ReplicationState::Suspended,
        State::Critical => ReplicationState::Critical,
        State::ResynchronizationRequired => ReplicationState::WaitingToStartResynchronization,
    }
}

const fn kind(kind: Kind) -> api::CycleKind {
    match kind {
        Kind::Base => api::CycleKind::Base,
        Kind::Delta => api::CycleKind::Delta,
        Kind::Application => api::CycleKind::Application,
        Kind::Resync => api::CycleKind::Resync,
        Kind::Final => api::CycleKind::Final,
        Kind::Failback => api::CycleKind::Failback,
    }
}

/// The API keeps whole seconds.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Longest text that the schema takes.
const MAX_TEXT: usize = 2048;

fn cut(text: &str) -> String {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use farshore_core::fault::{Code, Fault};
    use farshore_core::format::commit::CommitRef;
    use farshore_core::ids::{Cycle, CycleId, Hash, Stream, Term};
    use farshore_core::relationship::LastCommit;
    use farshore_core::retry::Failures;

    use super::*;
    use crate::engine::{Observed, Progress};

    fn report() -> Report {
        let id = CycleId { term: Term(1), stream: Stream(2), cycle: Cycle(7) };
        Report {
            observed: Some(Observed {
                goal: Goal::Replicate,
                term: Term(1),
                stream: Stream(2),
                generation: 3,
            }),
            state: State::Replicating,
            step: "WaitingForTick",
            progress: Some(Progress { total: 9, copied: 5, sent: 3 }),
            last: Some(LastCommit {
                commit: CommitRef { id, hash: Hash([7; 32]) },
                kind: Kind::Delta,
                at: Timestamp::UNIX_EPOCH,
            }),
            ..Report::default()
        }
    }

    fn trouble(code: Code, retried: bool) -> Trouble {
        let at = Timestamp::UNIX_EPOCH;
        Trouble {
            fault: Fault::new(code, "seen"),
            failures: Failures { since: at, attempts: 2, next_at: at },
            retried,
        }
    }

    // DESIGN 3, write budget.
    #[test]
    fn numbers_wait_for_their_minute_and_a_change_of_meaning_does_not() {
        let now = Timestamp::UNIX_EPOCH;
        let old = status(&ReplicationRelationshipStatus::default(), &report(), now);
        let later = now + jiff::SignedDuration::from_secs(60);
        let change = |new: &Report| Change::between(&old, &status(&old, new, later));
        assert_eq!(change(&report()), Change::Nothing, "times alone are no change");
        let mut moved = report();
        moved.progress = Some(Progress { total: 9, copied: 6, sent: 4 });
        moved.step = "UploadingSegments";
        assert_eq!(change(&moved), Change::Numbers);
        type Break = fn(&mut Report);
        let cases: [(&str, Break); 6] = [
            ("generation", |r| r.observed.as_mut().unwrap().generation = 4),
            ("state", |r| r.state = State::Critical),
            ("error", |r| r.trouble = Some(trouble(Code::NetworkError, true))),
            ("prerequisite", |r| r.unmet = vec![Fault::new(Code::SharedDisk, "x")]),
            ("released", |r| r.released = true),
            ("journal lost", |r| r.journal_lost = true),
        ];
        for (name, change_it) in cases {
            let mut new = report();
            change_it(&mut new);
            assert_eq!(change(&new), Change::Meaning, "{name}");
        }
    }

    #[test]
    fn what_was_acknowledged_is_never_taken_back() {
        let now = Timestamp::UNIX_EPOCH;
        let old = status(&ReplicationRelationshipStatus::default(), &report(), now);
        let lost = status(&old, &Report { journal_lost: true, ..Report::default() }, now);
        assert_eq!((lost.observed, &lost.last_cycle), (old.observed, &old.last_cycle));
        let mut back = report();
        back.last.as_mut().unwrap().commit.id.cycle = Cycle(3);
        assert_eq!(status(&old, &back, now).last_cycle, old.last_cycle);
    }

    // R9.1
    #[test]
    fn a_fault_that_a_person_must_clear_stalls_with_its_remedy() {
        let mut stuck = report();
        stuck.trouble = Some(trouble(Code::BrokenVHDChain, false));
        let status = status(&ReplicationRelationshipStatus::default(), &stuck, Timestamp::UNIX_EPOCH);
        let stalled = condition::find(&status.conditions, condition::STALLED).unwrap();
        assert_eq!(stalled.status, "True");
        assert!(stalled.message.contains(Code::BrokenVHDChain.entry().remedy), "{}", stalled.message);
        let error = status.last_error.unwrap();
        assert_eq!((error.code.as_str(), error.next_retry_at), ("BrokenVHDChain", None));
    }
}
