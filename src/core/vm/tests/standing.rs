//! Status, jobs and events as they follow from how a VM stands.

use super::*;
use crate::fault::{Fault, Health};
use crate::vm::jobs::{JobState, Operation, StepName};
use crate::vm::status::{Is, Kind};
use crate::vm::timeline;

fn conditions(status: &Status) -> Vec<(Kind, Is, &str)> {
    let mut list: Vec<_> = status.conditions.iter().map(|c| (c.kind, c.is, c.reason.as_str())).collect();
    list.sort_by_key(|c| c.0);
    list
}

// R7.3
#[test]
fn a_protected_vm_shows_all_its_conditions() {
    let mut o = protected();
    o.relationships[0].report.tracking =
        Some(Tracking { avhdx_bytes: 1, log_bytes: 2, volume_free_bytes: 3 });
    let status = decide(&o, at(150)).status;
    assert_eq!(
        conditions(&status),
        [
            (Kind::Ready, Is::True, "AsDesired"),
            (Kind::Reconciling, Is::False, "Idle"),
            (Kind::Stalled, Is::False, "NotStalled"),
            (Kind::Protected, Is::True, "Replicating"),
            (Kind::RecoveryPointsCurrent, Is::True, "RecoveryPointCurrent"),
            (Kind::LedgerReachable, Is::True, "LedgerReachable"),
            (Kind::ResynchronizationRequired, Is::False, "Idle"),
        ]
    );
    assert_eq!((status.health, status.rpo_seconds), (Some(Health::Normal), Some(60)));
    assert_eq!((status.disks.len(), status.tracking.map(|t| t.log_bytes)), (2, Some(2)));
    assert_eq!((status.host.as_deref(), status.storage_account.as_deref()), (Some("h1"), Some("acct")));
}

// R7.3, R9.1
#[test]
fn health_and_conditions_follow_what_goes_wrong() {
    type Break = fn(&mut Observed);
    struct Case {
        name: &'static str,
        break_it: Break,
        now: i64,
        health: Health,
        ready: (Is, &'static str),
        current: Is,
    }
    let cases = [
        Case {
            name: "network",
            break_it: |o| {
                let e =
                    AgentError { code: Code::NetworkError, message: "x".into(), since: at(120), attempts: 2 };
                o.relationships[0].report.error = Some(e);
            },
            now: 150,
            health: Health::Warning,
            ready: (Is::True, "AsDesired"),
            current: Is::True,
        },
        Case {
            name: "broken chain",
            break_it: |o| {
                let e = AgentError {
                    code: Code::BrokenVHDChain,
                    message: "x".into(),
                    since: at(120),
                    attempts: 1,
                };
                o.relationships[0].report.error = Some(e);
            },
            now: 150,
            health: Health::Critical,
            ready: (Is::False, "BrokenVHDChain"),
            current: Is::True,
        },
        Case {
            name: "late",
            break_it: |_| (),
            now: 90 + 2 * 300 + 121,
            health: Health::Warning,
            ready: (Is::True, "AsDesired"),
            current: Is::False,
        },
        Case {
            name: "all points too old",
            break_it: |_| (),
            now: 90 + 86_401,
            health: Health::Critical,
            ready: (Is::False, "RecoveryPointTooOld"),
            current: Is::False,
        },
        Case {
            name: "paused",
            break_it: |o| {
                o.me.paused = true;
                o.relationships[0].wish.schedule.paused = true;
            },
            now: 150,
            health: Health::Warning,
            ready: (Is::True, "Paused"),
            current: Is::True,
        },
        Case {
            name: "host lost",
            break_it: |o| o.reports[0].host.connected = false,
            now: 150,
            health: Health::Critical,
            ready: (Is::False, "HostLost"),
            current: Is::True,
        },
        Case {
            name: "an error of a stream before",
            break_it: |o| {
                let e =
                    AgentError { code: Code::BrokenVHDChain, message: "x".into(), since: at(1), attempts: 1 };
                o.relationships[0].report.error = Some(e);
                o.relationships[0].report.observed = None;
            },
            now: 150,
            health: Health::Normal,
            ready: (Is::True, "AsDesired"),
            current: Is::True,
        },
    ];
    for case in cases {
        let mut o = protected();
        (case.break_it)(&mut o);
        let status = decide(&o, at(case.now)).status;
        let ready = status.condition(Kind::Ready).unwrap();
        assert_eq!(status.health, Some(case.health), "{}", case.name);
        assert_eq!((ready.is, ready.reason.as_str()), case.ready, "{}", case.name);
        assert_eq!(status.condition(Kind::RecoveryPointsCurrent).unwrap().is, case.current, "{}", case.name);
    }
}

#[test]
fn while_storage_is_away_the_last_known_is_shown_and_the_ledger_is_not_reachable() {
    let mut o = protected();
    let before = decide(&o, at(150));
    carry_out(&mut o, &before, at(150));
    o.storage = Storage::Failed(Fault::new(Code::NetworkError, "connection refused"));
    let status = decide(&o, at(160)).status;
    assert_eq!((status.state, &status.points), (Some(LedgerState::Protected), &before.status.points));
    assert_eq!(status.condition(Kind::LedgerReachable).unwrap().is, Is::False);
    assert_eq!(status.last_error.as_ref().map(|e| e.code), Some(Code::NetworkError));
    assert!(status.is(Kind::Protected) && !status.is(Kind::Stalled));
}

// R5, R7.3
#[test]
fn initial_replication_shows_percent_and_an_estimate() {
    let mut o = fresh();
    settle(&mut o, at(0));
    taken_up(&mut o);
    o.relationships[0].report.progress = Some((1000, 250));
    let status = decide(&o, at(100)).status;
    let initial = status.initial.unwrap();
    assert_eq!((initial.percent(), initial.eta), (25, Some(at(400))));
    assert_eq!(status.condition(Kind::Ready).unwrap().reason, "InitialReplication");
    assert_eq!(decide(&protected(), at(150)).status.initial, None);
}

fn steps(plan: &Plan, operation: Operation) -> Vec<(StepName, JobState)> {
    let job = plan.jobs.iter().find(|j| j.operation == operation);
    job.map(|j| j.steps.iter().map(|s| (s.name, s.state)).collect()).unwrap_or_default()
}

// R4.3
#[test]
fn enabling_is_a_job_that_can_be_watched_step_by_step() {
    use JobState::{InProgress, NotStarted, Succeeded};
    use StepName::*;
    let mut o = fresh();
    let names = [
        PrerequisitesCheck,
        IdentifyingReplicationTarget,
        EnableReplication,
        StartingInitialReplication,
        UpdatingProviderStates,
    ];
    let states = |plan: &Plan| {
        let steps = steps(plan, Operation::EnableProtection);
        assert_eq!(steps.iter().map(|s| s.0).collect::<Vec<_>>(), names);
        steps.iter().map(|s| s.1).collect::<Vec<_>>()
    };
    assert_eq!(states(&decide(&o, at(10))), [InProgress, NotStarted, NotStarted, NotStarted, NotStarted]);
    settle(&mut o, at(10));
    assert_eq!(states(&decide(&o, at(11))), [Succeeded, Succeeded, InProgress, NotStarted, NotStarted]);
    taken_up(&mut o);
    o.relationships[0].report.progress = Some((100, 50));
    let plan = decide(&o, at(12));
    assert_eq!(states(&plan), [Succeeded, Succeeded, Succeeded, InProgress, NotStarted]);
    assert_eq!((plan.jobs[0].progress(), plan.jobs[0].current()), (70, Some(StartingInitialReplication)));
    point(&mut o, cycle(1, 2), at(20));
    assert_eq!(states(&decide(&o, at(20))), [Succeeded, Succeeded, Succeeded, Succeeded, InProgress]);
    settle(&mut o, at(20));
    let plan = decide(&o, at(21));
    assert_eq!(states(&plan), [Succeeded; 5]);
    assert_eq!((plan.jobs[0].state(), plan.jobs[0].progress()), (Succeeded, 100));
}

// R6.1
#[test]
fn finalize_skips_the_network_and_says_why() {
    let plan = decide(&protected(), at(150));
    let job = plan.jobs.iter().find(|j| j.operation == Operation::FinalizeProtection).unwrap();
    assert_eq!(job.state(), JobState::Succeeded);
    assert_eq!(
        steps(&plan, Operation::FinalizeProtection),
        [
            (StepName::ConfigureNetwork, JobState::Skipped),
            (StepName::FinalizeProtection, JobState::Succeeded)
        ]
    );
    assert!(job.steps[0].message.starts_with("NetworkNotConfigurable"));
}

#[test]
fn a_job_that_waits_for_a_person_says_for_what() {
    let mut o = fresh();
    o.reports[0].disks[0].shared = true;
    let plan = decide(&o, at(10));
    let job = &plan.jobs[0];
    assert_eq!((job.state(), job.current()), (JobState::Suspended, Some(StepName::PrerequisitesCheck)));
    assert_eq!(job.error.as_ref().map(|e| e.code), Some(Code::SharedDisk));
    o.reports[0].disks[0].shared = false;
    assert_eq!(decide(&o, at(11)).jobs[0].state(), JobState::InProgress);
}

#[test]
fn a_deletion_is_a_job_too() {
    let o = deleting(protected(), DeletionPolicy::Retain);
    let plan = decide(&o, at(200));
    assert_eq!(
        steps(&plan, Operation::DisableProtection),
        [
            (StepName::DisableReplication, JobState::InProgress),
            (StepName::RemoveHostTracking, JobState::Skipped),
            (StepName::RemoveReplica, JobState::Skipped),
        ]
    );
    let mut o = o;
    let plan = decide(&o, at(200));
    carry_out(&mut o, &plan, at(200));
    assert_eq!(decide(&o, at(201)).jobs[0].state(), JobState::Succeeded);
}

#[test]
fn each_transition_is_one_event_and_standing_still_is_none() {
    let mut o = fresh();
    let mut told = Vec::new();
    let mut before = Status::default();
    let mut look = |o: &mut Observed, now: i64| {
        for n in 0..6 {
            let plan = decide(o, at(now + n));
            told.extend(timeline::events(&before, &plan.status).into_iter().map(|e| (e.warning, e.reason)));
            before = plan.status.clone();
            carry_out(o, &plan, at(now + n));
        }
    };
    look(&mut o, 10);
    taken_up(&mut o);
    point(&mut o, cycle(1, 2), at(20));
    look(&mut o, 21);
    let away = std::mem::replace(&mut o.storage, Storage::Failed(Fault::new(Code::NetworkError, "x")));
    look(&mut o, 40);
    o.storage = away;
    look(&mut o, 60);
    o.reports[0].unmet.clear();
    (o.me.desired, o.me.intent) = (Place::FailedOver, intent(2, Place::FailedOver));
    look(&mut o, 80);
    let want = [
        (false, "Enabling"),
        (false, "RecoveryPointCurrent"),
        (false, "Protected"),
        (true, "NetworkError"),
        (true, "LedgerUnreachable"),
        (false, "LedgerReachable"),
        (true, "NotImplementedYet"),
    ];
    assert_eq!(told, want.map(|(w, r)| (w, r.to_owned())));
}
