//! The host process ends, cleanly or not, and comes back.

use std::sync::mpsc;
use std::time::Duration;

use farshore_hyperv::{Consistency, Hypervisor, PowerState};
use farshore_lab::host::admin::{AdminVm, Data};

use crate::changes::replay;
use crate::support::{Dice, Host, MIB, Nbd, avhdx_files, blake3_of, contents, frozen, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_restart_keeps_disks_checkpoints_points_power_and_exact_tracking() {
    let mut host = Host::start(&["--record"]).await;
    let vm = host.vm(&[8 * MIB]).await;
    let (id, disk) = (vm.info.id, vm.info.disks[0].disk_id);
    let first = host.hyperv.create_checkpoint(id, "1", Consistency::Crash).await.unwrap();
    let point = host.hyperv.convert_to_reference_point(id, &first.id).await.unwrap();
    host.admin.write("vm", "0", 4096, Data::Random { seed: 4, len: 4096 }).await.unwrap();
    let second = host.hyperv.create_checkpoint(id, "2", Consistency::Crash).await.unwrap();
    host.admin.write("vm", "0", MIB, Data::Random { seed: 5, len: 512 }).await.unwrap();
    let before = (host.admin.digest("vm", None).await.unwrap(), host.admin.instants("vm").await.unwrap());
    assert_eq!(before.1.len(), 2);

    host.terminate();
    host.run().await;
    assert_eq!(host.info().await.state, PowerState::Running, "it ran, it runs");
    assert_eq!(host.hyperv.checkpoints(id).await.unwrap(), [second.clone()]);
    assert_eq!(host.hyperv.reference_points(id).await.unwrap(), [point.clone()]);
    assert_eq!(
        (host.admin.digest("vm", None).await.unwrap(), host.admin.instants("vm").await.unwrap()),
        before
    );
    let since = point.rct_id(disk).unwrap();
    let changed = host.hyperv.query_changes(id, disk, since, &second.id).await.unwrap();
    assert_eq!(changed, farshore_disk::Extents::one(4096, 4096));
    host.hyperv.convert_to_reference_point(id, &second.id).await.unwrap();
    let third = host.hyperv.create_checkpoint(id, "3", Consistency::Crash).await.unwrap();
    let changed = host.hyperv.query_changes(id, disk, &second.disks[0].rct_id, &third.id).await.unwrap();
    assert_eq!(changed, farshore_disk::Extents::one(MIB, 4096), "the open interval was kept exactly");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_under_load_the_changes_are_still_complete() {
    let mut host = Host::start(&[]).await;
    let vm = host.vm(&[16 * MIB]).await;
    let (id, disk) = (vm.info.id, vm.info.disks[0].disk_id);
    host.admin.write("vm", "0", 0, Data::Random { seed: 6, len: 16 * MIB }).await.unwrap();
    let first = host.hyperv.create_checkpoint(id, "1", Consistency::Crash).await.unwrap();
    let (mut copy, mut since) = (frozen(&first, 0), first.disks[0].rct_id.clone());
    host.hyperv.convert_to_reference_point(id, &first.id).await.unwrap();
    for round in 0..5 {
        let (begun, begin) = mpsc::channel();
        let guest = vm.clone();
        let writer = std::thread::spawn(move || {
            let (mut disk, mut dice) = (Nbd::connect(&guest, 0), Dice(round));
            let (mut written, mut flushed) = (0, 0);
            // Until the host is killed. Low numbers only: the upper half must not be reported.
            while disk
                .write(4 * MIB + dice.below(512) * 4096, &[u8::try_from(round).unwrap() + 1; 4096])
                .is_ok()
            {
                written += 1;
                if written == 50 {
                    begun.send(()).unwrap();
                }
                if written % 10 == 0 && disk.flush().is_ok() {
                    flushed = written;
                }
            }
            flushed
        });
        begin.recv().unwrap();
        if round % 2 == 1 {
            // Also in the life of a checkpoint: writes are in an AVHDX.
            host.hyperv.create_checkpoint(id, "held", Consistency::Crash).await.unwrap();
        }
        host.kill();
        assert!(writer.join().unwrap() > 0);
        host.run().await;
        assert_eq!(host.info().await.state, PowerState::Running);
        let checkpoint = host.hyperv.create_checkpoint(id, "after", Consistency::Crash).await.unwrap();
        let now = frozen(&checkpoint, 0);
        let changed = host.hyperv.query_changes(id, disk, &since, &checkpoint.id).await.unwrap();
        replay(&mut copy, &now, &changed);
        assert!(copy == now, "round {round}: the changes are not complete");
        assert!(
            changed.total() <= 3 * MIB,
            "round {round}: coarse, not everything: {} bytes",
            changed.total()
        );
        since = checkpoint.disks[0].rct_id.clone();
        for held in host.hyperv.checkpoints(id).await.unwrap().iter().rev() {
            host.hyperv.convert_to_reference_point(id, &held.id).await.unwrap();
        }
        assert!(avhdx_files(&vm).is_empty());
    }
}

/// Writes ever higher numbers all over a disk until the host is gone; for each block the number that a flush covers.
fn number_blocks(guest: &AdminVm, blocks: u64, seed: u64) -> Vec<u64> {
    let (mut disk, mut dice) = (Nbd::connect(guest, 0), Dice(seed));
    let (mut written, mut flushed) = (vec![0; usize::try_from(blocks).unwrap()], Vec::new());
    for n in 1_u64.. {
        let block = dice.below(blocks);
        let mut data = [0; 4096];
        data[..8].copy_from_slice(&(seed * 1_000_000 + n).to_le_bytes());
        if disk.write(block * 4096, &data).is_err() {
            break;
        }
        written[usize::try_from(block).unwrap()] = seed * 1_000_000 + n;
        if n % 20 == 0 {
            if disk.flush().is_err() {
                break;
            }
            flushed.clone_from(&written);
        }
    }
    flushed
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_anywhere_between_checkpoint_and_merge_lose_no_change_and_nothing_that_was_flushed() {
    let mut host = Host::start(&[]).await;
    let vm = host.vm(&[8 * MIB]).await;
    let (id, disk) = (vm.info.id, vm.info.disks[0].disk_id);
    let mut dice = Dice(99);
    for round in 1..=10 {
        let first = host.hyperv.create_checkpoint(id, "known", Consistency::Crash).await.unwrap();
        let (mut copy, since) = (frozen(&first, 0), first.disks[0].rct_id.clone());
        for held in host.hyperv.checkpoints(id).await.unwrap().iter().rev() {
            host.hyperv.convert_to_reference_point(id, &held.id).await.unwrap();
        }
        let guest = vm.clone();
        let writer = std::thread::spawn(move || number_blocks(&guest, 2048, round));
        let cycling = tokio::spawn({
            let hyperv = host.hyperv.clone();
            async move {
                let mut cycles = 0;
                while let Ok(taken) = hyperv.create_checkpoint(id, "cycle", Consistency::Crash).await
                    && hyperv.convert_to_reference_point(id, &taken.id).await.is_ok()
                {
                    cycles += 1;
                }
                cycles
            }
        });
        // Anywhere in a cycle: this is the dice's choice, not a wait for something.
        tokio::time::sleep(Duration::from_millis(50 + dice.below(400))).await;
        host.kill();
        let (flushed, _cycles) = (writer.join().unwrap(), cycling.await.unwrap());
        host.run().await;
        let after = host.hyperv.create_checkpoint(id, "after", Consistency::Crash).await.unwrap();
        let now = frozen(&after, 0);
        for (block, want) in flushed.iter().enumerate() {
            let found = u64::from_le_bytes(now[block * 4096..block * 4096 + 8].try_into().unwrap());
            assert!(found >= *want, "round {round}: block {block} has {found}, {want} was flushed");
        }
        replay(&mut copy, &now, &host.hyperv.query_changes(id, disk, &since, &after.id).await.unwrap());
        assert!(copy == now, "round {round}: the changes are not complete");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_cut_off_by_a_kill_is_ended_by_the_next_run() {
    let mut host = Host::start(&[]).await;
    let vm = host.vm(&[256 * MIB]).await;
    let id = vm.info.id;
    let first = host.hyperv.create_checkpoint(id, "1", Consistency::Crash).await.unwrap();
    host.admin.write("vm", "0", 0, Data::Random { seed: 8, len: 200 * MIB }).await.unwrap();
    Nbd::connect(&vm, 0).flush().unwrap();
    let want = host.admin.digest("vm", None).await.unwrap()[0].blake3;
    let base = vm.folder.join("disk0.vhdx");
    let grown = |more: u64| std::fs::metadata(&base).unwrap().len() > more;
    let small = std::fs::metadata(&base).unwrap().len();
    let (converter, asked) = (host.hyperv.clone(), first.id.clone());
    let converting = tokio::spawn(async move { converter.convert_to_reference_point(id, &asked).await });
    until("the merge began", async || grown(small)).await;
    host.kill();
    assert!(converting.await.unwrap().is_err(), "killed before the end of the merge");
    assert_eq!(avhdx_files(&vm).len(), 1);

    host.run().await;
    let point = host.hyperv.convert_to_reference_point(id, &first.id).await.unwrap();
    assert_eq!(host.hyperv.reference_points(id).await.unwrap(), [point]);
    assert!(avhdx_files(&vm).is_empty());
    assert_eq!(host.admin.digest("vm", None).await.unwrap()[0].blake3, want);
    host.admin.stop("vm").await.unwrap();
    assert_eq!(blake3_of(&contents(&base)), want, "the base alone holds everything");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_cut_off_by_power_off_ends_while_the_machine_is_off() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[128 * MIB]).await;
    let id = vm.info.id;
    let first = host.hyperv.create_checkpoint(id, "1", Consistency::Crash).await.unwrap();
    host.admin.write("vm", "0", 0, Data::Random { seed: 9, len: 100 * MIB }).await.unwrap();
    let base = vm.folder.join("disk0.vhdx");
    let small = std::fs::metadata(&base).unwrap().len();
    let (converter, asked) = (host.hyperv.clone(), first.id.clone());
    let converting = tokio::spawn(async move { converter.convert_to_reference_point(id, &asked).await });
    until("the merge began", async || std::fs::metadata(&base).unwrap().len() > small).await;
    host.hyperv.stop(id).await.unwrap();
    converting.await.unwrap().unwrap();
    assert!(avhdx_files(&vm).is_empty());
    let mut want = vec![0; 128 << 20];
    farshore_lab::host::random(9).fill(&mut want[..100 << 20]);
    assert_eq!(host.admin.digest("vm", None).await.unwrap()[0].blake3, blake3_of(&want));
}
