//! The protect road, and what keeps a VM on it.

use super::*;
use crate::fault::Fault;
use crate::vm::ledger_edit::LedgerExt;
use crate::vm::status::{Is, Kind};

fn stalled(o: &Observed) -> Option<String> {
    let status = decide(o, at(150)).status;
    let c = status.condition(Kind::Stalled).unwrap().clone();
    (c.is == Is::True).then_some(c.reason)
}

// R4.1, R4.2, R6.1: one step after the other, the ledger always first.
#[test]
fn the_protect_road_goes_over_finalizer_ledger_relationship_to_protected() {
    let mut o = fresh();
    o.me.finalizer = false;
    let now = at(10);
    let plan = decide(&o, now);
    assert_eq!(plan.actions, [Action::AddFinalizer]);
    carry_out(&mut o, &plan, now);

    let plan = decide(&o, now);
    assert_eq!(
        names_of(&plan.actions),
        ["CreateContainer", "CreateContainer", "CreateContainer", "CreateLedger"]
    );
    carry_out(&mut o, &plan, now);
    let l = ledger(&mut o);
    assert_eq!((l.state, l.seq, l.epoch, l.claim.as_str()), (LedgerState::Enabling, 1, Epoch(1), "host/h1"));
    assert_eq!(l.disks, [disk(1), disk(2)]);

    let plan = decide(&o, now);
    assert_eq!(names_of(&plan.actions), ["ApplyRelationship", "IssueSas"]);
    carry_out(&mut o, &plan, now);
    let wish = &o.relationships[0].wish;
    assert_eq!((wish.goal, wish.term, wish.stream, &wish.base), (Goal::Replicate, Term(1), Stream(1), &None));
    assert_eq!(o.relationships[0].namespace, crate::host::namespace("h1"));

    assert_eq!(decide(&o, now).actions, [], "nothing to do until there is a point");
    taken_up(&mut o);
    verified(&mut o, cycle(1, 2), at(20));
    assert_eq!(decide(&o, at(20)).actions, [], "a verified Base is no point");
    point(&mut o, cycle(1, 3), at(30));
    let plan = decide(&o, at(31));
    assert_eq!(names_of(&plan.actions), ["WriteLedger"]);
    assert_eq!(plan.status.state, Some(LedgerState::Enabling), "the ledger first, then the status");
    carry_out(&mut o, &plan, at(31));
    let plan = decide(&o, at(32));
    assert_eq!((plan.actions, plan.status.state), (vec![], Some(LedgerState::Protected)));
    assert!(plan.status.is(Kind::Ready) && plan.status.is(Kind::Protected));
}

#[test]
fn side_is_copied_again_when_it_lags_behind_the_ledger() {
    let mut o = protected();
    ledger(&mut o).seq += 1;
    assert_eq!(decide(&o, at(101)).actions, [Action::CopySide]);
}

// R4.1: each failure is named by its code and says what to do.
#[test]
fn what_stands_in_the_way_stalls_with_its_code_and_nothing_is_made() {
    type Break = fn(&mut Observed);
    let cases: [(&str, Break, Code); 14] = [
        ("no site", |o| (o.site, o.reports) = (None, vec![]), Code::SiteNotFound),
        ("no policy", |o| o.policy = None, Code::PolicyNotFound),
        ("no vault", |o| (o.vault, o.storage) = (None, Storage::NotLookedAt), Code::VaultNotFound),
        ("namespace", |o| o.policy.as_mut().unwrap().allowed = false, Code::NamespaceNotAllowed),
        ("no VM", |o| o.reports.clear(), Code::VMNotFound),
        (
            "name twice",
            |o| {
                let other = "7b0e4c1e-0000-4000-8000-000000000002".parse().unwrap();
                o.reports.push(Report { vm_id: other, ..report() });
            },
            Code::VMAmbiguous,
        ),
        ("two hosts", |o| o.reports.push(Report { host: host("h2"), ..report() }), Code::VMClaimedTwice),
        (
            "older rival",
            |o| o.rivals = vec![Rival { name: "shop/old".into(), uid: "u0".into(), created_at: at(-5) }],
            Code::DuplicateProtection,
        ),
        (
            "other owner",
            |o| {
                let owner = Owner { namespace: "x".into(), name: "y".into(), ..Owner::default() };
                stored(o).replica = Some(owner);
            },
            Code::AlreadyProtected,
        ),
        ("somebody's container", |o| stored(o).replica = Some(Owner::default()), Code::AlreadyProtected),
        (
            "other cluster, no ledger yet",
            |o| {
                let (namespace, name) = ("shop".into(), "sql01".into());
                stored(o).replica =
                    Some(Owner { namespace, name, cluster_id: "c2".into(), ..Owner::default() });
            },
            Code::OwnedByAnotherCluster,
        ),
        ("enters elsewhere", |o| o.me.desired = Place::FailedOver, Code::ProtectFirst),
        ("container gone", |o| o.me.written.state = Some(LedgerState::Protected), Code::ContainerMissing),
        (
            "storage refuses",
            |o| o.storage = Storage::Failed(Fault::new(Code::NotAuthorized, "403")),
            Code::NotAuthorized,
        ),
    ];
    for (name, break_it, want) in cases {
        let mut o = fresh();
        break_it(&mut o);
        let plan = decide(&o, at(150));
        assert_eq!(plan.actions, [], "{name}");
        let c = plan.status.condition(Kind::Stalled).unwrap();
        assert_eq!((c.is, c.reason.as_str()), (Is::True, want.to_string().as_str()), "{name}");
        assert!(c.message.contains(want.entry().remedy), "{name}: {}", c.message);
        assert_eq!(plan.status.last_error.as_ref().map(|e| e.code), Some(want), "{name}");
        assert!(!plan.status.is(Kind::Ready) && !plan.status.is(Kind::Reconciling), "{name}");
    }
}

#[test]
fn prerequisites_are_all_named_in_one_condition() {
    let mut o = fresh();
    o.reports[0].disks[0].shared = true;
    o.reports[0].unmet.push(Finding::new(Code::CheckpointsDisabled, "checkpoints are off"));
    let plan = decide(&o, at(10));
    let c = plan.status.condition(Kind::Stalled).unwrap();
    assert_eq!((plan.actions, c.is, c.reason.as_str()), (vec![], Is::True, "PrerequisitesNotMet"));
    for code in [Code::SharedDisk, Code::CheckpointsDisabled] {
        assert!(
            c.message.contains(&code.to_string()) && c.message.contains(code.entry().remedy),
            "{}",
            c.message
        );
    }
}

#[test]
fn a_vm_that_its_host_has_not_reported_yet_is_waited_for_a_while() {
    let mut o = fresh();
    o.reports.clear();
    let status = decide(&o, at(119)).status;
    assert!(status.is(Kind::Reconciling) && !status.is(Kind::Stalled));
    assert_eq!((status.last_error, status.health), (None, Some(crate::fault::Health::Normal)));
    assert_eq!(decide(&o, at(120)).status.condition(Kind::Stalled).unwrap().reason, "VMNotFound");
}

#[test]
fn what_passes_by_itself_is_waited_for_and_not_stalled() {
    for break_it in [
        |o: &mut Observed| o.reports[0].host.connected = false,
        |o: &mut Observed| o.vault.as_mut().unwrap().unusable = Some("it does not answer".into()),
        |o: &mut Observed| o.storage = Storage::Failed(Fault::new(Code::NetworkError, "connection refused")),
    ] {
        let mut o = fresh();
        break_it(&mut o);
        let plan = decide(&o, at(10));
        assert_eq!((plan.actions, stalled(&o)), (vec![], None));
        assert!(plan.status.is(Kind::Reconciling));
    }
}

#[test]
fn the_younger_of_two_stalls_and_the_older_goes_on() {
    let rival = |second| Rival { name: "shop/other".into(), uid: "u0".into(), created_at: at(second) };
    let mut o = fresh();
    o.rivals = vec![rival(1)];
    assert_eq!(stalled(&o), None);
    o.rivals = vec![rival(-1)];
    assert_eq!(stalled(&o).as_deref(), Some("DuplicateProtection"));
    // The one whose containers they are stays in force, whoever is older.
    let mut o = protected();
    o.rivals = vec![rival(-1)];
    assert_eq!(stalled(&o), None);
}

// DESIGN 5: nothing that a ledger of another cluster, or one that went back, says is acted on.
#[test]
fn a_ledger_that_is_foreign_damaged_or_behind_stalls_and_is_left_alone() {
    type Break = fn(&mut Observed);
    let cases: [(&str, Break, Code); 6] = [
        ("foreign", |o| ledger(o).cluster_id = "c2".into(), Code::OwnedByAnotherCluster),
        ("damaged", |o| stored(o).ledger = Record::Unreadable("not JSON".into()), Code::LedgerUnreadable),
        ("gone", |o| stored(o).ledger = Record::Absent, Code::ContainerMissing),
        ("behind side.json", |o| ledger(o).seq = 1, Code::LedgerBehind),
        ("behind the host", |o| o.relationships[0].wish.stream = Stream(2), Code::LedgerBehind),
        ("behind the cursor", |o| verified(o, cycle(2, 1), at(90)), Code::LedgerBehind),
    ];
    for (name, break_it, want) in cases {
        let mut o = protected();
        break_it(&mut o);
        let plan = decide(&o, at(150));
        assert_eq!(plan.actions, [], "{name}");
        assert_eq!(stalled(&o), Some(want.to_string()), "{name}");
    }
}

#[test]
fn a_vm_whose_container_vanished_is_never_started_over_by_itself() {
    let mut o = protected();
    let s = stored(&mut o);
    (s.replica, s.ledger, s.side, s.cursor) = (None, Record::Absent, Record::Absent, Record::Absent);
    for forget in [false, true] {
        if forget {
            o.me.written = Status::default();
        }
        for _ in 0..3 {
            let plan = decide(&o, at(150));
            assert_eq!(plan.actions, []);
            assert_eq!(plan.status.condition(Kind::Stalled).unwrap().reason, "ContainerMissing");
            carry_out(&mut o, &plan, at(150));
        }
    }
    let mut o = deleting(o, DeletionPolicy::Retain);
    settle(&mut o, at(200));
    assert!(!o.me.finalizer, "deleting it is the way out");
}

// R0.3, DESIGN 4
#[test]
fn a_higher_epoch_without_a_move_is_accepted_and_written() {
    let mut o = protected();
    o.me.intent = intent(7, Place::Protected);
    let plan = settle(&mut o, at(150));
    assert_eq!(ledger(&mut o).epoch, Epoch(7));
    let effective = plan.status.effective.unwrap();
    assert_eq!((effective.epoch, effective.set_by.as_str()), (Epoch(7), "ProtectedVM/shop/sql01"));
}

#[test]
fn an_edge_that_does_not_exist_yet_stalls_and_replication_goes_on() {
    let mut o = protected();
    (o.me.desired, o.me.intent) = (Place::FailedOver, intent(2, Place::FailedOver));
    let plan = settle(&mut o, at(150));
    assert_eq!(stalled(&o).as_deref(), Some("NotImplementedYet"));
    assert_eq!((ledger(&mut o).epoch, o.relationships[0].wish.goal), (Epoch(1), Goal::Replicate));
    assert_eq!(plan.status.state, Some(LedgerState::Protected));
    // Back again, with a higher epoch, as the remedy says.
    (o.me.desired, o.me.intent) = (Place::Protected, intent(3, Place::Protected));
    settle(&mut o, at(160));
    assert_eq!((stalled(&o), ledger(&mut o).epoch), (None, Epoch(3)));
}

#[test]
fn a_stale_manifest_changes_neither_policy_nor_deletion() {
    let mut o = protected();
    o.me.intent = intent(7, Place::Protected);
    settle(&mut o, at(150));
    let mut old = created_again(o);
    old.me.deletion_policy = DeletionPolicy::Purge;
    old.policy.as_mut().unwrap().interval_seconds = 30;
    let plan = settle(&mut old, at(160));
    assert_eq!(stalled(&old).as_deref(), Some("StaleDesiredState"));
    assert!(plan.status.condition(Kind::Stalled).unwrap().message.contains("epoch 7"));
    let l = ledger(&mut old);
    assert_eq!((l.deletion_policy, l.policy.replication_interval_seconds), (DeletionPolicy::Retain, 300));
}

#[test]
fn a_policy_that_changes_is_recorded_before_the_agent_hears_of_it() {
    let mut o = protected();
    o.policy.as_mut().unwrap().interval_seconds = 30;
    let plan = decide(&o, at(150));
    assert_eq!(names_of(&plan.actions), ["WriteLedger"]);
    settle(&mut o, at(150));
    assert_eq!(o.relationships[0].wish.schedule.interval_seconds, 30);
    // It vanishes: what the ledger says stays in force.
    o.policy = None;
    let plan = settle(&mut o, at(160));
    assert_eq!((plan.actions, o.relationships[0].wish.schedule.interval_seconds), (vec![], 30));
    assert_eq!(stalled(&o).as_deref(), Some("PolicyNotFound"));
}

#[test]
fn a_shorter_retention_waits_a_day_and_a_longer_one_does_not() {
    let mut o = protected();
    let kept = |o: &Observed| o.relationships[0].wish.schedule.retention_seconds;
    o.policy.as_mut().unwrap().retention_seconds = 3600;
    settle(&mut o, at(200));
    assert_eq!(kept(&o), 86_400);
    let day = 24 * 3600;
    settle(&mut o, at(200 + day - 1));
    assert_eq!(kept(&o), 86_400);
    settle(&mut o, at(200 + day));
    assert_eq!((kept(&o), ledger(&mut o).shorter_retention()), (3600, None));
    o.policy.as_mut().unwrap().retention_seconds = 7200;
    settle(&mut o, at(201 + day));
    assert_eq!(kept(&o), 7200);
}

#[test]
fn pause_and_resume_reach_the_agent_with_or_without_storage() {
    let mut o = protected();
    o.me.paused = true;
    settle(&mut o, at(150));
    assert!(o.relationships[0].wish.schedule.paused);
    assert_eq!(decide(&o, at(150)).status.replication_state, Some(ReplicationState::Suspended));
    o.storage = Storage::Failed(Fault::new(Code::NetworkError, "connection refused"));
    o.me.paused = false;
    settle(&mut o, at(160));
    assert!(!o.relationships[0].wish.schedule.paused);
}

// R9.2: a lost journal costs no full copy.
#[test]
fn a_lost_journal_gets_a_new_stream_that_goes_on_from_the_verified_cycle() {
    let mut o = protected();
    o.relationships[0].report.journal_lost = true;
    let plan = decide(&o, at(150));
    assert_eq!(names_of(&plan.actions), ["WriteLedger"], "the ledger first");
    settle(&mut o, at(150));
    let wish = &o.relationships[0].wish;
    assert_eq!(wish.stream, Stream(2));
    assert_eq!(
        wish.base.as_ref().map(|b| (b.commit.id, b.reference_point_id.as_str())),
        Some((cycle(1, 3), "rp-3"))
    );
    assert_eq!(ledger(&mut o).state, LedgerState::Protected);
    assert_eq!(decide(&o, at(151)).actions, [], "the old report does not count for the new stream");
    // The base stays what it was when the stream was raised.
    taken_up(&mut o);
    o.relationships[0].report.journal_lost = false;
    point(&mut o, cycle(2, 1), at(160));
    assert_eq!(settle(&mut o, at(161)).actions, []);
    assert_eq!(o.relationships[0].wish.base.as_ref().map(|b| b.commit.id), Some(cycle(1, 3)));
}

#[test]
fn a_journal_lost_before_anything_was_verified_starts_over() {
    let mut o = fresh();
    settle(&mut o, at(10));
    taken_up(&mut o);
    o.relationships[0].report.journal_lost = true;
    settle(&mut o, at(20));
    let wish = &o.relationships[0].wish;
    assert_eq!((wish.stream, &wish.base), (Stream(2), &None));
}

// R8.1
#[test]
fn lost_tracking_or_a_refused_cycle_copies_everything_again_and_keeps_the_points() {
    let tracking = |o: &mut Observed| {
        o.relationships[0].report.error = Some(AgentError {
            code: Code::ChangeTrackingLost,
            message: "disk1.vhdx".into(),
            since: at(140),
            attempts: 1,
        });
    };
    let refused = |o: &mut Observed| refuse(o, cycle(1, 4), Code::CorruptSegment);
    for (name, break_it, code) in [
        ("tracking", &tracking as &dyn Fn(&mut Observed), Code::ChangeTrackingLost),
        ("refused", &refused, Code::CorruptSegment),
    ] {
        let mut o = protected();
        break_it(&mut o);
        let plan = decide(&o, at(150));
        let c = plan.status.condition(Kind::ResynchronizationRequired).unwrap();
        assert_eq!((c.is, c.reason.as_str()), (Is::True, code.to_string().as_str()), "{name}");
        settle(&mut o, at(150));
        let wish = &o.relationships[0].wish;
        assert_eq!((wish.stream, &wish.base), (Stream(2), &None), "{name}");
        let plan = decide(&o, at(151));
        assert_eq!(plan.actions, [], "{name}");
        assert!(plan.status.is(Kind::ResynchronizationRequired), "{name}: until it is done");
        assert!(plan.status.is(Kind::Protected), "{name}: the old points are there");
        assert_eq!(plan.status.replication_state, Some(ReplicationState::Resynchronizing), "{name}");
        o.relationships[0].report = AgentReport::default();
        taken_up(&mut o);
        point(&mut o, cycle(2, 1), at(200));
        assert!(!decide(&o, at(201)).status.is(Kind::ResynchronizationRequired), "{name}");
    }
}

// R9.2: what fails again and again is not tried in a loop.
#[test]
fn full_copies_that_fail_in_a_row_follow_the_ladder() {
    let mut o = protected();
    refuse(&mut o, cycle(1, 4), Code::CorruptSegment);
    settle(&mut o, at(150));
    refuse(&mut o, cycle(2, 1), Code::CorruptSegment);
    let plan = decide(&o, at(160));
    assert_eq!((plan.actions, plan.next_check), (vec![], at(210)), "one minute from the first");
    settle(&mut o, at(210));
    assert_eq!(o.relationships[0].wish.stream, Stream(3));
    refuse(&mut o, cycle(3, 1), Code::CorruptSegment);
    settle(&mut o, at(300));
    assert_eq!(o.relationships[0].wish.stream, Stream(3), "two minutes from the second");
    settle(&mut o, at(330));
    assert_eq!(o.relationships[0].wish.stream, Stream(4));
}

#[test]
fn a_journal_lost_in_an_unfinished_full_copy_does_not_go_back_to_the_broken_chain() {
    let mut o = protected();
    refuse(&mut o, cycle(1, 4), Code::CorruptSegment);
    settle(&mut o, at(150));
    o.relationships[0].report = AgentReport { journal_lost: true, ..AgentReport::default() };
    taken_up(&mut o);
    settle(&mut o, at(160));
    let wish = &o.relationships[0].wish;
    assert_eq!((wish.stream, &wish.base), (Stream(3), &None));
}

#[test]
fn sas_are_renewed_at_half_life_with_new_keys_and_when_they_are_refused() {
    let half = 12 * 3600;
    let issued = |o: &mut Observed, now| {
        // The VM stays as it is; only time passes.
        point(o, cycle(1, 4), now);
        names_of(&decide(o, now).actions)
    };
    let mut o = protected();
    let at_issue = 10;
    assert_eq!(issued(&mut o, at(at_issue + half - 1)), [""; 0]);
    assert_eq!(issued(&mut o, at(at_issue + half)), ["IssueSas"]);
    let mut o = protected();
    o.vault.as_mut().unwrap().signer = "key2".into();
    assert_eq!(issued(&mut o, at(150)), ["IssueSas"]);
    let mut o = protected();
    let code = Code::CredentialExpired;
    o.relationships[0].report.error =
        Some(AgentError { code, message: "403".into(), since: at(140), attempts: 1 });
    assert_eq!(issued(&mut o, at(150)), ["IssueSas"]);
    settle(&mut o, at(150));
    assert_eq!(issued(&mut o, at(1000)), [""; 0], "refused before the new ones were made: no loop");
}

// DESIGN 5, claims
#[test]
fn a_vm_that_moves_inside_its_failover_cluster_gets_a_new_stream_on_the_new_host() {
    let node = |name: &str| Host { failover_cluster: Some("fc".into()), ..host(name) };
    let mut o = fresh();
    o.reports[0].host = node("h1");
    settle(&mut o, at(10));
    assert_eq!(ledger(&mut o).claim, "cluster/fc");
    taken_up(&mut o);
    point(&mut o, cycle(1, 3), at(20));
    settle(&mut o, at(30));
    o.reports[0].host = node("h2");
    settle(&mut o, at(40));
    assert_eq!(o.relationships.len(), 1);
    let r = &o.relationships[0];
    assert_eq!((r.host.as_str(), r.wish.stream), ("h2", Stream(2)));
    assert_eq!(r.wish.base.as_ref().map(|b| b.commit.id), Some(cycle(1, 3)));
    assert!(r.sas.is_some());
}

#[test]
fn a_vm_reported_by_a_foreign_host_is_not_followed_until_a_person_says_so() {
    let mut o = protected();
    o.reports[0].host = host("h2");
    let plan = settle(&mut o, at(150));
    assert_eq!(stalled(&o).as_deref(), Some("VMClaimedTwice"));
    assert_eq!((plan.actions, o.relationships[0].host.as_str()), (vec![], "h1"));
    o.me.owner_host = Some("h2".into());
    settle(&mut o, at(160));
    assert_eq!((stalled(&o), o.relationships[0].host.as_str(), o.relationships.len()), (None, "h2", 1));
    assert_eq!(ledger(&mut o).claim, "host/h2");
}

#[test]
fn a_vm_that_vanishes_stalls_and_its_relationship_stays() {
    let mut o = protected();
    o.reports.clear();
    let plan = settle(&mut o, at(150));
    assert_eq!((plan.actions, o.relationships.len()), (vec![], 1));
    assert_eq!(stalled(&o).as_deref(), Some("VMNotFound"));
    assert_eq!(plan.status.vm_id, Some(vm()), "once resolved, the id counts");
}
