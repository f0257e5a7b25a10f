//! The main road: initial replication, deltas, pause, streams, release.

use std::time::Duration;

use farshore_agent::engine::{Assignment, Goal, State};
use farshore_core::format::commit::Kind;
use farshore_core::format::side::Side;
use farshore_core::ids::{Stream, Term};
use farshore_core::relationship::{Anchor, Base};
use farshore_hyperv::Hypervisor as _;

use crate::support::{Lab, MIB, until};

// R5.1, R5.2, R5.4, R5.5, R7.1
#[tokio::test(flavor = "multi_thread")]
async fn initial_replication_and_deltas_give_states_that_the_disks_really_had() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB, 8 * MIB]).await;
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    let mut engine = vm.engine(vm.assignment());
    for round in 1..6 {
        engine.committed(round).await;
        // The same number goes to both disks, one after the other.
        vm.write(0, (round % 7) * MIB, 8192, 100 + round).await;
        vm.write(1, (round % 5) * MIB + 4096, 40_960, 200 + round).await;
        vm.zero(0, 4 * MIB, 65_536).await;
    }
    let last = engine.committed(7).await;
    assert_eq!(last.state, State::Replicating);
    until("all verified", || async { follower.points().len() >= 6 }).await;
    engine.end().await;
    assert_eq!(follower.kinds()[..2], [Kind::Base, Kind::Delta]);
    assert!(vm.check_points(&follower).await >= 6);
    assert_eq!(vm.log_files(), Vec::<std::path::PathBuf>::new(), "logs are deleted when committed");
    assert!(
        lab.host().checkpoints(vm.id()).await.unwrap().is_empty(),
        "no checkpoint is held between cycles"
    );
    assert!(lab.host().reference_points(vm.id()).await.unwrap().len() <= 3);
}

// Zero and unallocated ranges cost no transfer.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_empty_disk_costs_what_it_holds() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[512 * MIB]).await;
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    // After the first delta there is none for long.
    let interval = Duration::from_secs(3600);
    let engine = vm.engine(Assignment { interval, ..vm.assignment() });
    until("the first cycle", || async { follower.sent().len() == 2 }).await;
    engine.end().await;
    let sent = follower.sent();
    // 324 KiB are written; a run of data is sent in pieces of 64 KiB.
    assert!(sent[0] >= 324 << 10 && sent[0] <= 512 << 10, "{sent:?}");
    assert_eq!(sent[1], 0, "nothing changed");
    assert_eq!(vm.check_points(&follower).await, 1);
    let segments = vm.up.list("", farshore_azure::Include::default()).await.unwrap();
    assert!(segments.iter().map(|b| b.len).sum::<u64>() < MIB, "{segments:?}");
}

// R7.1
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_vm_finishes_its_cycle_and_begins_no_other_until_it_goes_on() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    let mut engine = vm.engine(vm.assignment());
    engine.committed(2).await;
    engine.edit(|a| a.paused = true);
    engine.until("paused", |r| r.step == "Paused" && r.state == State::Suspended).await;
    let at = engine.report.borrow().last;
    assert!(lab.host().checkpoints(vm.id()).await.unwrap().is_empty());
    vm.write(0, MIB, 4096, 5).await;
    engine.edit(|a| a.paused = false);
    let cycle = at.unwrap().commit.id.cycle.0;
    let report = engine.committed(cycle + 2).await;
    assert!(report.missed_cycles < 1000);
    until("verified", || async { follower.points().len() as u64 >= cycle }).await;
    engine.end().await;
    vm.check_points(&follower).await;
}

// DESIGN 6: at most three points; while nothing is verified, ticks are skipped.
#[tokio::test(flavor = "multi_thread")]
async fn unverified_cycles_hold_up_the_next_and_skipped_ticks_are_counted() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let follower = vm.follower();
    let mut engine = vm.engine(vm.assignment());
    engine.until("held up", |r| r.step == "WaitingForVerification").await;
    let last = engine.report.borrow().last.unwrap();
    assert_eq!(last.commit.id.cycle.0, 2, "one Base and one Delta wait");
    assert!(follower.one(Term(1), Stream(1)).await);
    engine.committed(3).await;
    engine.until("held up again", |r| r.step == "WaitingForVerification").await;
    assert_eq!(lab.host().reference_points(vm.id()).await.unwrap().len(), 3);
    // Ticks pass meanwhile.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _following = follower.follow(1, 1);
    let report = engine.committed(4).await;
    assert!(report.missed_cycles >= 3, "{report:?}");
    let host = lab.host();
    until("old points go", || async { host.reference_points(vm.id()).await.unwrap().len() <= 2 }).await;
    engine.end().await;
    vm.check_points(&follower).await;
}

/// The base that the controller would fill in from cursor.json.
fn base_of(follower: &crate::replay::Follower) -> Base {
    let commit = follower.commits().pop().unwrap();
    let reference = follower.last().unwrap();
    Base {
        commit: reference,
        anchor: Some(Anchor {
            commit: reference,
            reference_point_id: commit.reference_point_id,
            rct_ids: commit.disks.iter().map(|d| (d.disk_id, d.rct_id.clone())).collect(),
            copied_up_to: commit.disks.iter().filter_map(|d| Some((d.disk_id, d.copied_up_to?))).collect(),
        }),
        owned_points: commit.own_point_ids,
    }
}

// DESIGN 3: an agent without its journal uploads nothing until it gets a new stream; then only changes travel.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_is_reported_and_a_new_stream_goes_on_from_what_is_verified() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let follower = vm.follower();
    let following = follower.follow(1, 1);
    let mut engine = vm.engine(vm.assignment());
    engine.committed(3).await;
    engine.end().await;
    let committed = vm.journals().load(vm.id()).unwrap().unwrap().previous;
    until("verified", || async { follower.last() == committed }).await;
    drop(following);
    std::fs::remove_dir_all(&vm.state).unwrap();

    let mut assignment = vm.assignment();
    assignment.observed = Some((Term(1), Stream(1)));
    let mut engine = vm.engine(assignment);
    engine.until("lost", |r| r.journal_lost && r.observed.is_some()).await;
    assert_eq!(vm.journals().load(vm.id()).unwrap(), None);

    vm.write(0, 3 * MIB, 8192, 77).await;
    let base = base_of(&follower);
    vm.side(2, Side::OnPremises, 1, 2).await;
    let _following = follower.follow(1, 2);
    engine.edit(|a| {
        a.stream = Stream(2);
        a.base = Some(base);
    });
    engine.until("second stream", |r| r.last.is_some_and(|l| l.commit.id.stream == Stream(2))).await;
    engine.committed(2).await;
    until("verified", || async { follower.last().is_some_and(|l| l.id.stream == Stream(2)) }).await;
    engine.end().await;
    let of_second = follower.commits().into_iter().filter(|c| c.stream == Stream(2));
    assert!(of_second.clone().all(|c| c.kind == Kind::Delta && c.full_copy.is_empty()));
    assert!(vm.check_points(&follower).await >= 3);
    let most = follower.sent().pop().unwrap();
    assert!(most <= 64 << 10, "only changes travel: {most}");
}

// A new stream without base copies everything again, over what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_stream_without_base_copies_again_in_full_and_continues_the_chain() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB, 8 * MIB]).await;
    let follower = vm.follower();
    let following = follower.follow(1, 1);
    let mut engine = vm.engine(vm.assignment());
    engine.committed(3).await;
    engine.edit(|a| a.paused = true);
    engine.until("paused", |r| r.step == "Paused").await;
    let committed = vm.journals().load(vm.id()).unwrap().unwrap().previous;
    until("verified", || async { follower.last() == committed }).await;
    drop(following);
    vm.zero(0, 0, 64 << 10).await;
    vm.side(2, Side::OnPremises, 1, 2).await;
    let _following = follower.follow(1, 2);
    engine.edit(|a| {
        a.paused = false;
        a.stream = Stream(2);
    });
    engine.until("second stream", |r| r.last.is_some_and(|l| l.commit.id.stream == Stream(2))).await;
    engine.committed(3).await;
    until("verified", || async {
        follower.last().is_some_and(|l| l.id.stream == Stream(2) && l.id.cycle.0 >= 3)
    })
    .await;
    engine.end().await;
    let first = follower.commits().into_iter().find(|c| c.stream == Stream(2)).unwrap();
    assert_eq!((first.kind, first.full_copy.len()), (Kind::Base, 2));
    vm.check_points(&follower).await;
    assert!(lab.host().reference_points(vm.id()).await.unwrap().len() <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goal_below_the_journal_is_never_acted_on() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    vm.side(1, Side::OnPremises, 1, 2).await;
    let mut assignment = vm.assignment();
    assignment.stream = Stream(2);
    let mut engine = vm.engine(assignment);
    engine.committed(1).await;
    engine.edit(|a| a.stream = Stream(1));
    let report = engine.until("refused", |r| r.trouble.is_some()).await;
    assert_eq!(report.trouble.unwrap().fault.code, farshore_core::fault::Code::LedgerBehind);
    assert_eq!(report.observed.unwrap().stream, Stream(2));
    engine.end().await;
}

// DESIGN 5: a side that lost ownership commits nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn no_cycle_begins_when_side_json_says_that_azure_owns_the_vm() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    vm.side(5, Side::Azure, 2, 1).await;
    let mut engine = vm.engine(vm.assignment());
    let report = engine.until("refused", |r| r.trouble.is_some()).await;
    assert!(report.trouble.unwrap().fault.message.contains("Azure owns the VM"));
    engine.end().await;
    assert!(vm.up.list("", farshore_azure::Include::default()).await.unwrap().is_empty());
    assert!(lab.host().checkpoints(vm.id()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_leaves_nothing_of_ours_and_everything_of_others_on_the_host() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let host = lab.host();
    let foreign =
        host.create_checkpoint(vm.id(), "nightly backup", farshore_hyperv::Consistency::Crash).await.unwrap();
    let foreign = host.convert_to_reference_point(vm.id(), &foreign.id).await.unwrap();
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    let mut engine = vm.engine(vm.assignment());
    engine.committed(3).await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(1500);
    engine.edit(|a| a.goal = Goal::StopReplicating { keep_points_until: Some(soon) });
    engine.until("kept", |r| r.step == "KeepingPoints").await;
    assert!(host.reference_points(vm.id()).await.unwrap().len() >= 2, "ours are kept until then");
    engine.until("released", |r| r.released).await;
    assert!(jiff::Timestamp::now() >= soon);
    engine.end().await;
    let left: Vec<_> = host.reference_points(vm.id()).await.unwrap().into_iter().map(|p| p.id).collect();
    assert_eq!(left, [foreign.id]);
    assert!(host.checkpoints(vm.id()).await.unwrap().is_empty());
    assert_eq!(vm.journals().load(vm.id()).unwrap(), None);
    assert!(vm.log_files().is_empty());
}
