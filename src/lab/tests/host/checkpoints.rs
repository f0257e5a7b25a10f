//! Checkpoints: one instant, merges while the guest writes, chains.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farshore_hyperv::{CheckpointKind, Consistency, DiskType, HyperVError, Hypervisor};
use farshore_lab::host::admin::Data;

use crate::support::{Host, MIB, Nbd, Scribbler, avhdx_files, blake3_of, frozen};

/// Newest number written to a disk, if all before it are there too.
fn newest(bytes: &[u8]) -> u64 {
    let numbers: Vec<u64> =
        bytes.chunks_exact(4096).map(|b| u64::from_le_bytes(b[..8].try_into().unwrap())).collect();
    let newest = *numbers.iter().max().unwrap();
    let ring = numbers.len() as u64;
    for n in newest.saturating_sub(ring - 1).max(1)..=newest {
        assert_eq!(numbers[usize::try_from(n % ring).unwrap()], n, "a number before {newest} is missing");
    }
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn all_disks_of_a_checkpoint_are_from_one_instant() {
    let host = Host::start(&["--record"]).await;
    let vm = host.vm(&[2 * MIB, 2 * MIB]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, guest) = (Arc::clone(&stop), vm.clone());
    let writer = std::thread::spawn(move || {
        let mut disks = [Nbd::connect(&guest, 0), Nbd::connect(&guest, 1)];
        let mut n = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            let mut block = [0; 4096];
            block[..8].copy_from_slice(&n.to_le_bytes());
            // The second disk is written when the first one's write is acknowledged.
            disks.iter_mut().for_each(|disk| disk.write(n % 512 * 4096, &block).unwrap());
        }
        n
    });
    let id = vm.info.id;
    let (mut seen, mut digests) = (Vec::new(), Vec::new());
    for round in 0..12 {
        let checkpoint =
            host.hyperv.create_checkpoint(id, &round.to_string(), Consistency::Crash).await.unwrap();
        let disks = [frozen(&checkpoint, 0), frozen(&checkpoint, 1)];
        let (first, second) = (newest(&disks[0]), newest(&disks[1]));
        assert!(first == second || first == second + 1, "{first} on the first disk, {second} on the second");
        seen.push(first);
        digests.push(
            checkpoint.disks.iter().map(|d| d.disk_id).zip(disks.iter().map(|d| blake3_of(d))).collect(),
        );
        host.hyperv.convert_to_reference_point(id, &checkpoint.id).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.join().unwrap() >= *seen.last().unwrap());
    assert!(seen.is_sorted() && seen.first() < seen.last(), "the guest was writing: {seen:?}");
    let instants = host.admin.instants("vm").await.unwrap();
    assert_eq!(instants.into_iter().map(|i| i.digests).collect::<Vec<_>>(), digests);
}

// R5.4
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_merges_while_the_guest_writes_and_nothing_is_lost() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[96 * MIB]).await;
    let id = vm.info.id;
    let mut guest = Scribbler::new(Nbd::connect(&vm, 0), vec![0; 96 << 20], 77);
    for round in 0..4 {
        let checkpoint = host.hyperv.create_checkpoint(id, "c", Consistency::Crash).await.unwrap();
        let before = blake3_of(&frozen(&checkpoint, 0));
        assert_eq!(before, blake3_of(&guest.model), "round {round}: frozen is what was written before");
        (0..150).for_each(|_| guest.scribble());
        assert_eq!(before, blake3_of(&frozen(&checkpoint, 0)), "round {round}: frozen stays");
        let avhdx = host.hyperv.avhdx_bytes(id, &checkpoint.id).await.unwrap();
        assert!(avhdx > 2 * MIB, "{avhdx} bytes after {round}");
        let merging = Arc::new(AtomicBool::new(true));
        let still = Arc::clone(&merging);
        let writer = std::thread::spawn(move || {
            let mut during = 0;
            while still.load(Ordering::Relaxed) {
                guest.scribble();
                during += 1;
            }
            (guest, during)
        });
        if round % 2 == 0 {
            host.hyperv.convert_to_reference_point(id, &checkpoint.id).await.unwrap();
        } else {
            host.hyperv.delete_checkpoint(id, &checkpoint.id).await.unwrap();
        }
        merging.store(false, Ordering::Relaxed);
        let (back, during) = writer.join().unwrap();
        guest = back;
        assert!(during > 0);
        assert_eq!(
            host.admin.digest("vm", None).await.unwrap()[0].blake3,
            blake3_of(&guest.model),
            "round {round}"
        );
        assert!(avhdx_files(&vm).is_empty() && host.hyperv.checkpoints(id).await.unwrap().is_empty());
        assert_eq!(host.info().await.disks[0].disk_type, DiskType::Dynamic);
    }
    assert_eq!(host.hyperv.reference_points(id).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_off_can_be_checkpointed_converted_and_started_again() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[8 * MIB]).await;
    let id = vm.info.id;
    host.admin.write("vm", "0", 0, Data::Random { seed: 1, len: 3 * MIB }).await.unwrap();
    host.hyperv.shutdown(id).await.unwrap();
    let want = host.admin.digest("vm", None).await.unwrap()[0].blake3;
    let checkpoint = host.hyperv.create_checkpoint(id, "last", Consistency::Crash).await.unwrap();
    assert_eq!(blake3_of(&frozen(&checkpoint, 0)), want);
    let refused = host.hyperv.create_checkpoint(id, "app", Consistency::Application).await;
    assert!(matches!(refused, Err(HyperVError::InvalidState { .. })), "{refused:?}");
    let point = host.hyperv.convert_to_reference_point(id, &checkpoint.id).await.unwrap();
    assert!(avhdx_files(&vm).is_empty());
    host.hyperv.start(id).await.unwrap();
    host.admin.write("vm", "0", MIB, Data::Byte { value: 1, len: 4096 }).await.unwrap();
    let next = host.hyperv.create_checkpoint(id, "next", Consistency::Crash).await.unwrap();
    let disk = next.disks[0].disk_id;
    let changed = host.hyperv.query_changes(id, disk, point.rct_id(disk).unwrap(), &next.id).await.unwrap();
    assert_eq!(changed, farshore_disk::Extents::one(MIB, 4096), "tracking went through off and on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_checkpoint_stays_below_and_an_older_recovery_checkpoint_waits_for_the_newer() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[8 * MIB]).await;
    let id = vm.info.id;
    let mut guest = Scribbler::new(Nbd::connect(&vm, 0), vec![0; 8 << 20], 3);
    guest.scribble();
    host.admin.standard_checkpoint("vm", "by a person").await.unwrap();
    let mut states = Vec::new();
    let mut taken = Vec::new();
    for name in ["old", "new"] {
        guest.scribble();
        taken.push(host.hyperv.create_checkpoint(id, name, Consistency::Crash).await.unwrap());
        states.push(blake3_of(&guest.model));
    }
    guest.scribble();
    assert_eq!(avhdx_files(&vm).len(), 3);
    assert_eq!(host.info().await.disks[0].disk_type, DiskType::Differencing);
    let names = |all: Vec<farshore_hyperv::Checkpoint>| all.into_iter().map(|c| c.name).collect::<Vec<_>>();
    assert_eq!(names(host.hyperv.checkpoints(id).await.unwrap()), ["old", "new"]);

    let point = host.hyperv.convert_to_reference_point(id, &taken[0].id).await.unwrap();
    assert_eq!(host.hyperv.convert_to_reference_point(id, &taken[0].id).await.unwrap(), point, "asked again");
    let gone = host.hyperv.checkpoint(id, &taken[0].id).await;
    assert_eq!(gone, Err(HyperVError::CheckpointNotFound { vm: id, checkpoint: taken[0].id.clone() }));
    assert_eq!(blake3_of(&frozen(&taken[1], 0)), states[1]);
    host.hyperv.delete_checkpoint(id, &taken[1].id).await.unwrap();
    assert_eq!(avhdx_files(&vm).len(), 1, "only the person's is left");
    let left = host.info().await.checkpoints;
    assert_eq!(
        left.iter().map(|c| (c.name.as_str(), c.kind)).collect::<Vec<_>>(),
        [("by a person", CheckpointKind::Standard)]
    );
    assert_eq!(host.admin.digest("vm", None).await.unwrap()[0].blake3, blake3_of(&guest.model));
    host.hyperv.delete_checkpoint(id, &left[0].id).await.unwrap();
    assert_eq!(host.admin.digest("vm", None).await.unwrap()[0].blake3, blake3_of(&guest.model));
    assert!(avhdx_files(&vm).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_or_deleting_what_is_gone_is_no_error_and_foreign_points_stay() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[MIB]).await;
    let id = vm.info.id;
    let mut points = Vec::new();
    for name in ["ours", "theirs"] {
        let checkpoint = host.hyperv.create_checkpoint(id, name, Consistency::Application).await.unwrap();
        assert_eq!(checkpoint.consistency, Consistency::Application);
        points.push(host.hyperv.convert_to_reference_point(id, &checkpoint.id).await.unwrap());
        host.hyperv.delete_checkpoint(id, &checkpoint.id).await.unwrap();
    }
    for _ in 0..2 {
        host.hyperv.destroy_reference_point(id, &points[0].id).await.unwrap();
        assert_eq!(host.hyperv.reference_points(id).await.unwrap(), points[1..]);
    }
}
