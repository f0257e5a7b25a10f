//! Cycles come, points appear.

use std::time::Duration;

use farshore_core::format::commit::Kind;

use crate::source::{Lab, every_cycle, policy, settle};

const MIB: u64 = 1 << 20;

// R5.2, R5.5, R7.1: both disks of every point are from one instant, through initial replication and deltas.
#[tokio::test(flavor = "multi_thread")]
async fn every_point_holds_what_the_disks_held() {
    let lab = Lab::start().await;
    // One size is no whole MiB: the replica is padded.
    let mut vm = lab.vm(&[2 * MIB, MIB + 4096]).await;
    let mut task = vm.task();
    settle(&mut task, &policy()).await;
    let before = vm.cursor().await;
    assert_eq!((before.verified, before.newest_point), (None, None));

    vm.protect().await;
    for seed in 10..16 {
        vm.scribble(seed);
        vm.delta().await;
        settle(&mut task, &policy()).await;
    }
    // Cycle 4 is the first delta: always a set. Then every fifteen minutes.
    assert_eq!(vm.prove_points().await, [4, 7, 10]);
    let cursor = vm.cursor().await;
    let last = vm.previous.unwrap();
    assert_eq!(cursor.verified.map(|v| v.commit), Some(last));
    assert_eq!(cursor.applied, Some(last));
    assert!(cursor.newest_point.unwrap().name.ends_with("-0000000010"));
    assert_eq!(vm.replica(0).await, vm.disks[0].bytes);
}

// DESIGN 6: cycles between two boundaries are merged; a page written ten times is put once.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_written_in_ten_cycles_is_put_once() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[2 * MIB]).await;
    let mut task = vm.task();
    vm.protect().await;
    settle(&mut task, &policy()).await;
    let hourly = farshore_replica_server::Policy { spacing: Duration::from_secs(3600), ..policy() };
    let before = lab.double.stats();
    for byte in 1..=12 {
        vm.fill(0, MIB, 8192, byte);
        vm.delta().await;
        settle(&mut task, &hourly).await;
    }
    let after = lab.double.stats();
    assert_eq!(after.page_bytes - before.page_bytes, 8192);
    assert_eq!(after.page_writes - before.page_writes, 1);
    assert_eq!(vm.prove_points().await, [4, 16]);
    // Between the sets every cycle is a point all the same.
    vm.fill(0, 0, 512, 9);
    vm.delta().await;
    settle(&mut task, &hourly).await;
    let cursor = vm.cursor().await;
    assert!(cursor.newest_point.unwrap().name.ends_with("-0000000017"));
    assert_eq!(cursor.applied.unwrap().id.cycle.0, 16, "verified and waiting");
    task.flush(&hourly).await.unwrap();
    assert_eq!(vm.cursor().await.applied.unwrap().id.cycle.0, 17);
    assert_eq!(vm.replica(0).await, vm.disks[0].bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_clear_pages() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[4 * MIB]).await;
    let mut task = vm.task();
    vm.fill(0, 0, 4 * MIB, 7);
    vm.base(None).await;
    vm.delta().await;
    settle(&mut task, &every_cycle()).await;
    let blob = farshore_core::names::disk_blob(vm.disks[0].id);
    let used = async |vm: &crate::source::Source| {
        let ranges = vm.store.replica.page_ranges(&blob, None).await.unwrap();
        ranges.iter().map(|r| r.end - r.start).sum::<u64>()
    };
    assert_eq!(used(&vm).await, 4 * MIB + 512, "the disk and the footer");
    vm.fill(0, MIB, 2 * MIB, 0);
    vm.delta().await;
    let before = lab.double.stats().page_bytes;
    settle(&mut task, &every_cycle()).await;
    assert_eq!(used(&vm).await, 2 * MIB + 512);
    assert_eq!(lab.double.stats().page_bytes, before, "no byte of zeros was put");
    assert_eq!(vm.prove_points().await, [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_cycle_is_a_set_of_its_own() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB]).await;
    let mut task = vm.task();
    vm.protect().await;
    vm.scribble(9);
    vm.cycle(Kind::Application).await;
    settle(&mut task, &policy()).await;
    assert_eq!(vm.prove_points().await, [4, 5]);
}

// What is far is not looked for: a commit that is not due costs no request.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_before_the_next_cycle_is_due() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB]).await;
    let mut task = vm.task();
    vm.protect().await;
    vm.change_commit =
        Some(Box::new(|c| c.next_cycle_at = jiff::Timestamp::now() + Duration::from_secs(200)));
    vm.delta().await;
    settle(&mut task, &policy()).await;
    vm.delta().await;
    let before = lab.double.stats().total();
    settle(&mut task, &policy()).await;
    assert_eq!(lab.double.stats().total() - before, 1, "the ledger only");
    assert_eq!(vm.cursor().await.verified.unwrap().commit.id.cycle.0, 5);
    vm.now.store(300, std::sync::atomic::Ordering::SeqCst);
    settle(&mut task, &policy()).await;
    assert_eq!(vm.cursor().await.verified.unwrap().commit.id.cycle.0, 6);
}
