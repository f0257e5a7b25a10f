//! What goes wrong on the host and in storage: named, retried or stopped, and nothing is lost.

use std::time::Duration;

use farshore_agent::engine::{Report, State};
use farshore_azure::Condition;
use farshore_core::fault::Code;
use farshore_core::format::Record as _;
use farshore_core::ids::{Hash, Stream, Term};
use farshore_core::names;
use farshore_hyperv::Hypervisor as _;
use farshore_lab::blob::{Action, Fault as BlobFault, Match, Settings as BlobSettings, Taken};
use farshore_lab::host::admin::{DiskSettings, Fault, Settings};

use crate::support::{Lab, MIB, until};

fn code(report: &Report) -> Option<Code> {
    report.trouble.as_ref().map(|t| t.fault.code)
}

// R9.2: a full volume is refused early; the VM runs on; it goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn low_disk_space_is_refused_before_a_checkpoint_and_retried() {
    let lab = Lab::start(Some(1024 * MIB)).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    let mut engine = vm.engine(vm.assignment());
    engine.committed(2).await;
    lab.admin.fault(Fault::FillVolume { free: Some(20 * MIB) }).await.unwrap();
    let report = engine.until("low disk", |r| code(r) == Some(Code::LowDiskSpace)).await;
    assert_eq!(report.state, State::Suspended);
    let trouble = report.trouble.unwrap();
    assert!(trouble.retried && trouble.fault.message.contains("stay in reserve"), "{trouble:?}");
    let second =
        engine.until("second try", |r| r.trouble.as_ref().is_some_and(|t| t.failures.attempts >= 2)).await;
    assert_eq!(second.trouble.unwrap().failures.since, trouble.failures.since);
    assert!(lab.host().checkpoints(vm.id()).await.unwrap().is_empty());
    vm.write(0, MIB, 65_536, 9).await;
    lab.admin.fault(Fault::FillVolume { free: None }).await.unwrap();
    let cycle = report.last.unwrap().commit.id.cycle.0;
    let report = engine.committed(cycle + 1).await;
    engine.until("trouble over", |r| r.trouble.is_none()).await;
    assert!(report.missed_cycles > 0);
    until("verified", || async { follower.points().len() as u64 >= cycle }).await;
    engine.end().await;
    vm.check_points(&follower).await;
}

// R9.1: a broken chain stops, and goes on when it is repaired.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_chain_stops_the_vm_until_it_is_repaired() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    let mut engine = vm.engine(vm.assignment());
    engine.committed(2).await;
    let break_it = || Fault::BreakChain { vm: "vm".into(), disk: "0".into() };
    lab.admin.fault(break_it()).await.unwrap();
    let report = engine.until("broken", |r| r.trouble.as_ref().is_some_and(|t| !t.retried)).await;
    assert_eq!((code(&report), report.state), (Some(Code::BrokenVHDChain), State::Critical));
    let host = lab.host();
    until("nothing is held", || async { host.checkpoints(vm.id()).await.unwrap().is_empty() }).await;
    let cycle = report.last.unwrap().commit.id.cycle.0;
    lab.admin.fault(break_it()).await.unwrap();
    engine.committed(cycle + 1).await;
    until("verified", || async { follower.points().len() as u64 >= cycle }).await;
    engine.end().await;
    vm.check_points(&follower).await;
}

// R8.1, R9.1
#[tokio::test(flavor = "multi_thread")]
async fn lost_tracking_asks_for_a_resynchronization_and_holds_nothing() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    let mut engine = vm.engine(vm.assignment());
    engine.committed(2).await;
    lab.admin.fault(Fault::LoseTracking { vm: "vm".into(), code: None }).await.unwrap();
    let report = engine.until("lost", |r| code(r) == Some(Code::ChangeTrackingLost)).await;
    engine.until("state", |r| r.state == State::ResynchronizationRequired).await;
    assert!(!report.trouble.unwrap().retried);
    let host = lab.host();
    until("nothing is held", || async { host.checkpoints(vm.id()).await.unwrap().is_empty() }).await;
    engine.end().await;
    vm.check_points(&follower).await;
}

// R4.1
#[tokio::test(flavor = "multi_thread")]
async fn unmet_prerequisites_are_all_named_and_looked_at_again_when_the_vm_changes() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB, 8 * MIB]).await;
    let disk = |shared| DiskSettings { disk: "1".into(), shared: Some(shared), ..DiskSettings::default() };
    let bad = Settings { replication_mode: Some(1), disks: vec![disk(true)], ..Settings::default() };
    lab.admin.configure("vm", bad).await.unwrap();
    let mut engine = vm.engine(vm.assignment());
    let report = engine.until("unmet", |r| !r.unmet.is_empty() && r.trouble.is_some()).await;
    let codes: Vec<_> = report.unmet.iter().map(|f| f.code).collect();
    assert_eq!(codes, [Code::AlreadyReplicating, Code::SharedDisk]);
    assert!(report.last.is_none());
    let good = Settings { replication_mode: Some(0), disks: vec![disk(false)], ..Settings::default() };
    lab.admin.configure("vm", good).await.unwrap();
    let report = engine.committed(1).await;
    assert!(report.unmet.is_empty());
    engine.end().await;
}

// R9.1
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_vm_is_critical() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    lab.admin.stop("vm").await.unwrap();
    lab.admin.delete("vm").await.unwrap();
    let mut engine = vm.engine(vm.assignment());
    let report = engine.until("unknown", |r| r.trouble.is_some()).await;
    let trouble = report.trouble.unwrap();
    assert_eq!((trouble.fault.code, trouble.retried), (Code::VMNotFound, false));
    engine.end().await;
}

// R9.1
#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_critical_and_the_slice_is_let_go_of() {
    let lab = Lab::start(None).await;
    let mut vm = lab.vm("vm", &[8 * MIB]).await;
    // A signature for another container: useless for this one.
    vm.sas.up = vm.sas.down.clone();
    let mut engine = vm.engine(vm.assignment());
    let report = engine.until("refused", |r| r.trouble.is_some()).await;
    let trouble = report.trouble.unwrap();
    assert_eq!((trouble.fault.code, trouble.retried), (Code::NotAuthorized, false), "{}", trouble.fault);
    assert!(!trouble.fault.message.contains("sig="), "{}", trouble.fault.message);
    let host = lab.host();
    until("nothing is held", || async { host.checkpoints(vm.id()).await.unwrap().is_empty() }).await;
    engine.end().await;
}

// R9.2: storage is away in the middle of everything.
#[tokio::test(flavor = "multi_thread")]
async fn failing_and_lost_answers_of_storage_are_ridden_out() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB, 8 * MIB]).await;
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    let put =
        || Match { operation: Some("PutBlob".into()), contains: Some("-up/".into()), ..Match::default() };
    // The double lets some through, fails one, lets some through, loses an answer, and so on.
    for skip in [1, 3, 4, 6, 9, 13, 20, 21, 22, 23, 24, 25, 30] {
        let action = if skip % 2 == 0 {
            Action::DropAfter
        } else {
            Action::Status { status: 500, code: "InternalError".into(), retry_after: None }
        };
        lab.double.fault(BlobFault { matches: put(), skip, count: Some(1), action });
    }
    let mut engine = vm.engine(vm.assignment());
    for round in 1..8 {
        engine.committed(round).await;
        vm.write(0, round * 65_536, 30_000 / 512 * 512, round).await;
        vm.write(1, round * 131_072, 4096, round).await;
    }
    until("verified", || async { follower.points().len() >= 6 }).await;
    engine.end().await;
    vm.check_points(&follower).await;
}

// FORMATS: taken names. Each service answers in its own way.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_recognised_as_ours_by_the_cursor() {
    let lab = Lab::start(None).await;
    for (n, taken) in [Taken::Overwrite, Taken::Conflict, Taken::Mismatch].into_iter().enumerate() {
        let name = format!("vm{n}");
        lab.double.set(BlobSettings { taken, ..lab.double.settings() });
        let vm = lab.vm(&name, &[8 * MIB]).await;
        let follower = vm.follower();
        let commit = Match {
            suffix: Some("/commit".into()),
            prefix: Some(format!("/{}", vm.up.name())),
            ..Match::default()
        };
        let lose = BlobFault { matches: commit, skip: 1, count: Some(1), action: Action::DropAfter };
        lab.double.fault(lose);
        let mut engine = vm.engine(vm.assignment());
        let report = engine.until("its fate is not known", |r| r.step == "WaitingForCommit").await;
        assert!(report.trouble.is_none(), "{report:?}");
        assert_eq!(report.last.unwrap().commit.id.cycle.0, 1);
        let _following = follower.follow(1, 1);
        engine.committed(3).await;
        until("verified", || async { follower.points().len() >= 2 }).await;
        engine.end().await;
        vm.check_points(&follower).await;
    }
}

// FORMATS: another writer.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_name_taken_by_another_writer_stops_the_vm() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let follower = vm.follower();
    let mut engine = vm.engine(vm.assignment());
    engine.committed(1).await;
    // Somebody with rights to the container writes what this stream would write next.
    assert!(follower.one(Term(1), Stream(1)).await);
    let mut commit = follower.commits().pop().unwrap();
    let next = commit.id().next();
    commit.previous = follower.last();
    commit.cycle = next.cycle;
    commit.full_copy.clear();
    let foreign = commit.encode().unwrap();
    let reference = farshore_core::format::commit::CommitRef { id: next, hash: Hash::of(&foreign) };
    // Whoever comes first wins; here always the stranger, in the cycle after the next.
    engine.until("some cycle", |r| r.last.is_some()).await;
    let taken = vm.up.put_if(&names::commit(next), foreign.into(), &Condition::IfNoneMatchAny).await;
    if taken.is_err() {
        // Our own commit of that name landed first; then the cursor is what the stranger forges.
        engine.committed(next.cycle.0).await;
    }
    follower.put_cursor(&follower.cursor(reference, &commit)).await;
    let report = engine.until("another writer", |r| code(r) == Some(Code::CommitNameTaken)).await;
    assert!(!report.trouble.unwrap().retried);
    let last = engine.report.borrow().last;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(engine.report.borrow().last, last, "nothing more is committed");
    engine.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_damaged_before_it_is_uploaded_is_made_again() {
    let lab = Lab::start(None).await;
    let vm = lab.vm("vm", &[8 * MIB]).await;
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    // Storage refuses segments of the second cycle for a while: its log waits.
    let segment = Match {
        operation: Some("PutBlob".into()),
        contains: Some("/0000000002/".into()),
        ..Match::default()
    };
    let away = Action::Status { status: 500, code: "InternalError".into(), retry_after: None };
    lab.double.fault(BlobFault { matches: segment, skip: 0, count: Some(12), action: away });
    let mut engine = vm.engine(vm.assignment());
    engine.committed(1).await;
    vm.write(0, 2 * MIB, 1 << 20, 4).await;
    engine
        .until("storage away", |r| {
            code(r) == Some(Code::StorageUnavailable) || code(r) == Some(Code::Throttled)
        })
        .await;
    engine.end().await;
    let logs = vm.log_files();
    let log = logs.iter().find(|l| l.extension().is_some_and(|e| e == "hrl"));
    if let Some(log) = log {
        let mut bytes = std::fs::read(log).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(log, bytes).unwrap();
    }
    let mut engine = vm.engine(vm.assignment());
    engine.committed(3).await;
    until("verified", || async { follower.points().len() >= 2 }).await;
    engine.end().await;
    vm.check_points(&follower).await;
}
