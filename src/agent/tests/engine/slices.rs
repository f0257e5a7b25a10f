//! Initial replication in slices: a VM that writes faster than the copy stays within the host's space budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use farshore_agent::store::{Put, SasPair, SasStore, Store};
use farshore_azure::BlobError;
use farshore_core::format::commit::Kind;

use crate::support::{Lab, MIB, until};

/// Storage at the end of a slow link.
struct Slow(SasStore<SasPair>);

impl Store for Slow {
    async fn put_new(&self, name: &str, bytes: Bytes, crc64: u64) -> Result<Put, BlobError> {
        // About 60 MiB a second.
        tokio::time::sleep(Duration::from_micros(bytes.len() as u64 / 64)).await;
        self.0.put_new(name, bytes, crc64).await
    }

    async fn get(&self, name: &str, max: u64) -> Result<Option<Bytes>, BlobError> {
        self.0.get(name, max).await
    }
}

// R5.3
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_writes_faster_than_the_copy_stays_within_the_space_budget() {
    let lab = Lab::start(Some(4096 * MIB)).await;
    let size = 192 * MIB;
    let vm = Arc::new(lab.vm("vm", &[size]).await);
    for at in 0..size / (8 * MIB) {
        vm.write(0, at * 8 * MIB, 8 * MIB, 500 + at).await;
    }
    let follower = vm.follower();
    let _following = follower.follow(1, 1);
    let written = Arc::new(AtomicU64::new(0));
    let (guest, counter) = (Arc::clone(&vm), Arc::clone(&written));
    let writer = tokio::spawn(async move {
        for n in 0_u64.. {
            guest.write(0, (n * 13 % 190) * MIB, MIB, 9000 + n).await;
            counter.fetch_add(MIB, Ordering::Relaxed);
        }
    });
    let Ok(store) = Arc::try_unwrap(vm.store()) else { panic!("nobody else has it") };
    let mut assignment = vm.assignment();
    assignment.parallelism = 32;
    let mut engine = vm.engine_with(assignment, vm.context(), Arc::new(Slow(store)));
    let mut most = 0;
    loop {
        let report = tokio::time::timeout(Duration::from_secs(120), engine.report.changed()).await;
        report.expect("initial replication ends").unwrap();
        let report = engine.report.borrow_and_update().clone();
        most = most.max(report.tracking.avhdx);
        if report.last.is_some_and(|l| l.kind == Kind::Delta) {
            break;
        }
    }
    writer.abort();
    let points = follower.points().len();
    until("verified", || async { follower.points().len() > points.saturating_sub(1) }).await;
    engine.end().await;
    let kinds = follower.kinds();
    let slices = kinds.iter().filter(|k| **k == Kind::Base).count();
    assert!(slices >= 2, "{kinds:?}");
    let written = written.load(Ordering::Relaxed);
    assert!(written > size / 2, "the guest wrote only {written} bytes");
    // A tenth of the disk ends a slice; changes already begun and the block size come on top.
    assert!(most < size * 6 / 10, "AVHDX grew to {most} of {size} in {slices} slices");
    assert!(vm.check_points(&follower).await >= 1);
}
