//! Deletion with each policy, without host, without storage; and creating again.

use super::*;
use crate::fault::Fault;
use crate::vm::status::{Is, Kind};

fn gone(o: &Observed) -> bool {
    !o.me.finalizer
}

fn waits(o: &Observed) -> Option<(String, String)> {
    let status = decide(o, at(300)).status;
    let ready = status.condition(Kind::Ready).unwrap();
    status
        .condition(Kind::Stalled)
        .filter(|c| c.is == Is::True)
        .map(|_| (ready.reason.clone(), ready.message.clone()))
}

#[test]
fn retain_stops_the_host_keeps_its_points_a_week_and_leaves_all_data() {
    let mut o = deleting(protected(), DeletionPolicy::Retain);
    let plan = decide(&o, at(200));
    assert_eq!(names_of(&plan.actions), ["ApplyRelationship", "RevokeSas", "WriteLedger"]);
    settle(&mut o, at(200));
    assert!(gone(&o));
    let until = Some(at(200 + 7 * 24 * 3600));
    assert_eq!(o.relationships[0].wish.goal, Goal::StopReplicating { keep_points_until: until });
    assert_eq!((ledger(&mut o).state, o.relationships[0].sas.is_some()), (LedgerState::Released, false));
    assert!(!stored(&mut o).points.is_empty());
}

#[test]
fn stop_replication_leaves_nothing_on_the_host_and_all_data() {
    let mut o = deleting(protected(), DeletionPolicy::StopReplication);
    settle(&mut o, at(200));
    assert!(gone(&o) && stored(&mut o).replica.is_some());
    assert_eq!(o.relationships[0].wish.goal, Goal::StopReplicating { keep_points_until: None });
}

#[test]
fn purge_waits_for_its_annotation_while_replication_goes_on() {
    let mut o = deleting(protected(), DeletionPolicy::Purge);
    for wrong in [None, Some("yes".to_owned()), Some(disk(1).to_string())] {
        o.me.confirm_purge = wrong;
        let plan = decide(&o, at(200));
        assert_eq!(plan.actions, []);
        let (reason, message) = waits(&o).unwrap();
        assert_eq!(reason, "PurgeNotConfirmed");
        assert!(message.contains(&format!("farshore.dev/confirm-purge: {}", vm())), "{message}");
    }
    o.me.confirm_purge = Some(vm().to_string().to_uppercase());
    assert_eq!(names_of(&decide(&o, at(200)).actions), ["ApplyRelationship", "RevokeSas", "WriteLedger"]);
    let plan = decide(&o, at(200));
    carry_out(&mut o, &plan, at(200));
    assert_eq!(decide(&o, at(201)).actions, [Action::RemoveContainers(vm())], "the ledger says so first");
    settle(&mut o, at(201));
    assert!(gone(&o) && stored(&mut o).replica.is_none());
}

#[test]
fn deletion_does_not_wait_for_a_host() {
    for policy in [DeletionPolicy::Retain, DeletionPolicy::StopReplication] {
        let mut o = deleting(protected(), policy);
        o.reports.clear();
        o.relationships[0].report = AgentReport::default();
        settle(&mut o, at(200));
        assert!(gone(&o), "{policy:?}");
    }
    let told = deleting(protected(), DeletionPolicy::Retain);
    assert!(
        decide(&told, at(200)).actions.iter().filter(|a| !a.is_irreversible()).all(Action::is_best_effort)
    );
}

#[test]
fn deletion_waits_for_storage_until_it_is_abandoned_and_tells_the_host_at_once() {
    let mut o = deleting(protected(), DeletionPolicy::Retain);
    let away = Storage::Failed(Fault::new(Code::NetworkError, "connection refused"));
    let there = std::mem::replace(&mut o.storage, away);
    settle(&mut o, at(200));
    assert!(!gone(&o) && o.relationships[0].wish.goal != Goal::Replicate);
    let ready = decide(&o, at(201)).status.condition(Kind::Ready).unwrap().clone();
    assert!(ready.reason == "DeletionWaits" && ready.message.contains("farshore.dev/abandon"), "{ready:?}");
    let mut back = o.clone();
    back.storage = there;
    settle(&mut back, at(210));
    assert!(gone(&back) && ledger(&mut back).state == LedgerState::Released);
    o.me.abandon = true;
    settle(&mut o, at(210));
    assert!(gone(&o));
}

#[test]
fn an_abandoned_deletion_is_recorded_when_it_can_be() {
    let mut o = deleting(protected(), DeletionPolicy::Purge);
    o.me.abandon = true;
    settle(&mut o, at(200));
    assert!(gone(&o) && ledger(&mut o).state == LedgerState::Released);
    assert!(stored(&mut o).replica.is_some(), "without confirmation nothing is purged");
}

#[test]
fn what_is_not_ours_is_left_alone() {
    type Break = fn(&mut Observed);
    let cases: [(&str, Break); 3] = [
        ("another owner", |o| stored(o).replica.as_mut().unwrap().name = "other".into()),
        ("another cluster", |o| ledger(o).cluster_id = "c2".into()),
        ("failed over", |o| ledger(o).state = LedgerState::FailedOver),
    ];
    for (name, break_it) in cases {
        let mut o = deleting(protected(), DeletionPolicy::Purge);
        o.me.confirm_purge = Some(vm().to_string());
        break_it(&mut o);
        let before = stored(&mut o).clone();
        settle(&mut o, at(200));
        assert!(gone(&o), "{name}");
        assert_eq!(*stored(&mut o), before, "{name}");
    }
}

#[test]
fn an_object_for_which_nothing_was_made_goes_at_once() {
    type Break = fn(&mut Observed);
    let cases: [(&str, Break); 3] = [
        ("as created", |_| ()),
        ("nothing known", |o| (o.site, o.vault, o.storage) = (None, None, Storage::NotLookedAt)),
        ("storage away", |o| o.storage = Storage::Failed(Fault::new(Code::NetworkError, "x"))),
    ];
    for (name, break_it) in cases {
        let mut o = deleting(fresh(), DeletionPolicy::Purge);
        break_it(&mut o);
        assert_eq!(decide(&o, at(200)).actions, [Action::ReleaseFinalizer], "{name}");
    }
    let mut o = deleting(protected(), DeletionPolicy::Retain);
    o.me.finalizer = false;
    assert_eq!(decide(&o, at(200)).actions, [], "not ours to hold");
}

// DESIGN 5, FORMATS: re-creation adopts by container metadata and known intent.
#[test]
fn creating_it_again_goes_on_from_the_last_verified_cycle() {
    let mut o = deleting(protected(), DeletionPolicy::Retain);
    settle(&mut o, at(200));
    let mut o = created_again(o);
    settle(&mut o, at(1000));
    let wish = &o.relationships[0].wish;
    assert_eq!((wish.goal, wish.stream), (Goal::Replicate, Stream(2)));
    assert_eq!(wish.base.as_ref().map(|b| b.commit.id), Some(cycle(1, 3)));
    let status = decide(&o, at(1001)).status;
    assert_eq!(status.state, Some(LedgerState::Enabling));
    assert!(status.is(Kind::Protected), "the old points are there");
    taken_up(&mut o);
    point(&mut o, cycle(2, 1), at(1010));
    settle(&mut o, at(1011));
    assert_eq!(ledger(&mut o).state, LedgerState::Protected);
}

#[test]
fn creating_it_again_with_other_disks_copies_everything() {
    let mut o = deleting(protected(), DeletionPolicy::Retain);
    settle(&mut o, at(200));
    let mut o = created_again(o);
    o.me.exclude = vec!["disk2.vhdx".into()];
    settle(&mut o, at(1000));
    let wish = &o.relationships[0].wish;
    assert_eq!((&wish.base, &wish.disks), (&None, &vec![disk(1)]));
}

#[test]
fn creating_it_again_with_an_old_or_another_intent_stalls() {
    let mut o = protected();
    o.me.intent = intent(7, Place::Protected);
    settle(&mut o, at(150));
    let mut o = deleting(o, DeletionPolicy::Retain);
    o.me.intent = intent(7, Place::Protected);
    settle(&mut o, at(200));
    for (epoch, desired, want) in [
        (1, Place::Protected, "StaleDesiredState"),
        (7, Place::FailedOver, "StaleDesiredState"),
        (8, Place::FailedOver, "ProtectFirst"),
    ] {
        let mut again = created_again(o.clone());
        (again.me.desired, again.me.intent) = (desired, intent(epoch, desired));
        let plan = settle(&mut again, at(1000));
        assert_eq!(plan.status.condition(Kind::Stalled).unwrap().reason, want);
        assert_eq!(ledger(&mut again).state, LedgerState::Released, "{want}");
    }
}

#[test]
fn after_a_purge_a_vm_starts_over_above_what_the_host_was_given() {
    let mut o = protected();
    o.relationships[0].report.journal_lost = true;
    settle(&mut o, at(150));
    assert_eq!(o.relationships[0].wish.stream, Stream(2));
    let mut o = deleting(o, DeletionPolicy::Purge);
    o.me.confirm_purge = Some(vm().to_string());
    settle(&mut o, at(200));
    // The host has not let go yet. Under the same name, and under another:
    let mut same = created_again(o.clone());
    settle(&mut same, at(1000));
    let wish = &same.relationships[0].wish;
    assert_eq!((wish.stream, &wish.base, wish.goal), (Stream(3), &None, Goal::Replicate));
    let mut other = created_again(o);
    other.me.name = "sql01-new".into();
    other.leftovers = std::mem::take(&mut other.relationships);
    settle(&mut other, at(1000));
    let r = &other.relationships[0];
    assert_eq!(
        (r.wish.stream, r.wish.protected_vm.1.as_str(), other.leftovers.len()),
        (Stream(3), "sql01-new", 0)
    );
}

#[test]
fn an_interrupted_purge_is_finished_or_taken_up_again() {
    let mut o = deleting(protected(), DeletionPolicy::Purge);
    o.me.confirm_purge = Some(vm().to_string());
    let plan = decide(&o, at(200));
    carry_out(&mut o, &plan, at(200));
    // Killed here; the object let go by force, the manifest applied again.
    let mut again = created_again(o.clone());
    let plan = decide(&again, at(1000));
    assert_eq!(names_of(&plan.actions)[..3], ["CreateContainer", "CreateContainer", "CreateContainer"]);
    settle(&mut again, at(1000));
    assert_eq!(again.relationships[0].wish.base, None, "what is left of the data is not relied on");
    settle(&mut o, at(1000));
    assert!(gone(&o) && stored(&mut o).replica.is_none());
}
