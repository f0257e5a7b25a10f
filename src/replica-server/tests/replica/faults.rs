//! Storage that answers late, wrongly or not at all.

use std::time::Duration;

use farshore_lab::blob::{Action, Fault, Match};
use farshore_replica_server::{Crash, Next, VmTask};

use crate::source::{Lab, Source, every_cycle, settle};

const MIB: u64 = 1 << 20;

fn on(operation: &str, contains: String, action: Action) -> Fault {
    let matches = Match { operation: Some(operation.into()), contains: Some(contains), ..Match::default() };
    Fault { matches, skip: 0, count: Some(2), action }
}

async fn live(vm: &mut Source, task: &mut VmTask) {
    settle(task, &every_cycle()).await;
    vm.scribble(9);
    vm.delta().await;
    settle(task, &every_cycle()).await;
    assert_eq!(vm.cursor().await.applied, vm.previous);
    assert_eq!(vm.prove_points().await, [4, 5]);
}

// A write whose answer is lost was done; one that was refused was not. Both end in the same bytes.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_and_passing_failures_change_nothing() {
    let lab = Lab::start().await;
    let busy = Action::Status { status: 503, code: "ServerBusy".into(), retry_after: None };
    for (operation, contains, action) in [
        ("PutPage", "disk-", Action::DropAfter),
        ("PutPage", "disk-", busy.clone()),
        ("PutBlob", "cursor.json", Action::DropAfter),
        ("PutBlob", "cursor.json", Action::DropBefore),
        ("PutBlob", "points/", Action::DropAfter),
        ("CreatePageBlob", "disk-", Action::DropAfter),
        ("ClearPages", "disk-", Action::DropAfter),
        ("SnapshotBlob", "disk-", Action::DropAfter),
        ("SetBlobMetadata", "disk-", Action::DropAfter),
        ("GetBlob", "-up/", Action::CutDownload(100)),
        ("GetBlob", "-up/", Action::Truncate(100)),
        ("GetBlob", "ledger.json", busy),
        ("LeaseBlob", "disk-", Action::DropAfter),
    ] {
        let mut vm = lab.vm(&[MIB]).await;
        // Whatever the double calls it, a fault that hits nothing proves nothing.
        let id = vm.vm.to_string();
        let path = if contains == "-up/" { format!("{id}-up/") } else { contains.to_owned() };
        let fault = on(operation, path, action.clone());
        lab.double.fault(fault.clone());
        let mut task = vm.task();
        let name = format!("{operation} {contains} {action:?}");
        vm.protect().await;
        // Some of these are a fault for the ladder; it goes on then.
        let mut settled = false;
        for _ in 0..100 {
            match task.step(&every_cycle()).await {
                Ok(Next::Now) => {}
                Ok(Next::At(_)) if vm.previous == applied(&vm).await => {
                    settled = true;
                    break;
                }
                Ok(Next::At(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        assert!(settled, "{name}");
        let hits: u64 = lab.double.faults().iter().filter(|a| a.fault == fault).map(|a| a.hits).sum();
        assert!(hits > 0, "{name} hit nothing");
        assert_eq!(vm.prove_points().await, [4], "{name}");
    }
}

async fn applied(vm: &Source) -> Option<farshore_core::format::commit::CommitRef> {
    let found = vm.store.down.get(farshore_core::names::CURSOR, 1 << 20).await.unwrap();
    match found {
        Some(_) => vm.cursor().await.applied,
        None => None,
    }
}

// R9.1: what a person must mend is named.
#[tokio::test(flavor = "multi_thread")]
async fn faults_have_the_catalogues_names() {
    let lab = Lab::start().await;
    for (status, code, want) in
        [(403, "AuthorizationFailure", "NotAuthorized"), (407, "", "ProxyAuthenticationRequired")]
    {
        let vm = lab.vm(&[MIB]).await;
        let action = Action::Status { status, code: code.into(), retry_after: None };
        let matches = Match { contains: Some(vm.vm.to_string()), ..Match::default() };
        lab.double.fault(Fault { matches, skip: 0, count: Some(1), action });
        let fault = vm.task().step(&every_cycle()).await.unwrap_err();
        assert_eq!(fault.code.to_string(), want);
    }
}

// The container goes while it works: a person is told, nothing else breaks.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_container_is_named() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB]).await;
    vm.protect().await;
    vm.store.down.delete_container().await.unwrap();
    let fault = vm.task().step(&every_cycle()).await.unwrap_err();
    assert_eq!(fault.code.to_string(), "ContainerMissing");
}

// Told to stop in the middle, it gives its leases back: the next worker need not wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_gives_its_leases_back() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB]).await;
    vm.protect().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let told = stop.clone();
    let crash = Crash::hook(move |at| {
        if at == farshore_replica_server::CrashPoint::PagesWritten {
            told.cancel();
        }
    });
    let mut ctx = vm.context("worker-1", crash);
    ctx.stop = stop;
    let mut first = VmTask::new(ctx);
    while first.step(&every_cycle()).await.unwrap() == Next::Now {}
    assert!(vm.cursor().await.applied.is_none());
    let mut second = vm.task();
    live(&mut vm, &mut second).await;
}
