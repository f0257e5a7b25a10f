//! Change tracking: what is reported suffices to bring an older copy up to date.

use farshore_disk::Extents;
use farshore_hyperv::{Checkpoint, Consistency, HyperVError, Hypervisor, RctId, win32};
use farshore_lab::host::admin::{Data, Fault};

use crate::support::{Host, MIB, Nbd, Scribbler, contents, frozen, tool};

/// Brings `copy` up to date with what changed.
pub fn replay(copy: &mut [u8], now: &[u8], changed: &Extents) {
    for extent in changed {
        let range = usize::try_from(extent.offset).unwrap()..usize::try_from(extent.end()).unwrap();
        copy[range.clone()].copy_from_slice(&now[range]);
    }
}

async fn changed(host: &Host, since: &RctId, until: &Checkpoint) -> farshore_hyperv::Result<Extents> {
    let vm = host.info().await;
    host.hyperv.query_changes(vm.id, vm.disks[0].disk_id, since, &until.id).await
}

// R7.1
#[tokio::test(flavor = "multi_thread")]
async fn changes_replayed_onto_an_older_copy_give_the_newer_checkpoint_whatever_the_guest_does() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[24 * MIB]).await;
    let mut guest = Scribbler::new(Nbd::connect(&vm, 0), vec![0; 24 << 20], 5);
    (0..100).for_each(|_| guest.scribble());
    let id = vm.info.id;
    let first = host.hyperv.create_checkpoint(id, "cycle 1", Consistency::Crash).await.unwrap();
    let mut copies = vec![(first.disks[0].rct_id.clone(), frozen(&first, 0))];
    let mut last = host.hyperv.convert_to_reference_point(id, &first.id).await.unwrap();
    for round in 0..6 {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let writer = std::thread::spawn(move || {
            while stopped.try_recv().is_err() {
                guest.scribble();
            }
            guest
        });
        let checkpoint =
            host.hyperv.create_checkpoint(id, &format!("cycle {round}"), Consistency::Crash).await.unwrap();
        let now = frozen(&checkpoint, 0);
        // From the last point and from every older one that is still there.
        for (since, old) in &copies {
            let extents = changed(&host, since, &checkpoint).await.unwrap();
            let mut copy = old.clone();
            replay(&mut copy, &now, &extents);
            assert!(copy == now, "round {round}: the changes are not complete");
        }
        let point = host.hyperv.convert_to_reference_point(id, &checkpoint.id).await.unwrap();
        assert_eq!(point.disks[0].rct_id, checkpoint.disks[0].rct_id);
        if round % 2 == 1 {
            host.hyperv.destroy_reference_point(id, &last.id).await.unwrap();
            copies.pop();
        }
        copies.push((checkpoint.disks[0].rct_id.clone(), now));
        last = point;
        stop.send(()).unwrap();
        guest = writer.join().unwrap();
    }
    assert!(
        host.admin.digest("vm", None).await.unwrap()[0].blake3 == crate::support::blake3_of(&guest.model)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_the_blocks_that_were_written_and_no_others() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[24 * MIB + 512]).await;
    let id = vm.info.id;
    let first = host.hyperv.create_checkpoint(id, "1", Consistency::Crash).await.unwrap();
    let since = first.disks[0].rct_id.clone();
    host.hyperv.convert_to_reference_point(id, &first.id).await.unwrap();
    let mut guest = Nbd::connect(&vm, 0);
    guest.write(5000, &[1; 100]).unwrap();
    guest.zero(8 * MIB, 8192).unwrap();
    guest.write(24 * MIB, &[2; 512]).unwrap();
    let second = host.hyperv.create_checkpoint(id, "2", Consistency::Crash).await.unwrap();
    guest.write(12 * MIB, &[3; 512]).unwrap();
    let mut want = Extents::one(4096, 4096);
    want.insert(8 * MIB, 8192);
    want.insert(24 * MIB, 512);
    assert_eq!(changed(&host, &since, &second).await.unwrap(), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ranges_come_in_pages_and_are_all_there() {
    let host = Host::start(&[]).await;
    let size = 80 * MIB;
    let vm = host.vm(&[size]).await;
    let first = host.hyperv.create_checkpoint(vm.info.id, "1", Consistency::Crash).await.unwrap();
    let mut guest = Nbd::connect(&vm, 0);
    let mut want = Extents::new();
    // Every second block: more ranges than one answer holds.
    for block in (0..size / 4096).step_by(2) {
        guest.zero(block * 4096, 4096).unwrap();
        want.insert(block * 4096, 4096);
    }
    assert!(want.len() > farshore_hyperv::wire::RANGES_PER_PAGE);
    let second = host.hyperv.create_checkpoint(vm.info.id, "2", Consistency::Crash).await.unwrap();
    assert_eq!(changed(&host, &first.disks[0].rct_id, &second).await.unwrap(), want);
}

// R8.1
#[tokio::test(flavor = "multi_thread")]
async fn lost_tracking_is_an_error_of_its_own_with_windows_code() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[8 * MIB]).await;
    let (id, disk) = (vm.info.id, vm.info.disks[0].disk_id);
    let lost = |code| Err(HyperVError::TrackingLost { disk, code });
    let first = host.hyperv.create_checkpoint(id, "1", Consistency::Crash).await.unwrap();
    let point = host.hyperv.convert_to_reference_point(id, &first.id).await.unwrap();
    let since = point.rct_id(disk).unwrap().clone();
    host.admin
        .fault(Fault::LoseTracking { vm: "vm".into(), code: Some(win32::CTLOG_INCONSISTENT_TRACKING_FILE) })
        .await
        .unwrap();
    let second = host.hyperv.create_checkpoint(id, "2", Consistency::Crash).await.unwrap();
    assert_eq!(changed(&host, &since, &second).await, lost(win32::CTLOG_INCONSISTENT_TRACKING_FILE));
    assert_eq!(changed(&host, &"unknown".into(), &second).await, lost(win32::VHD_INVALID_CHANGE_TRACKING_ID));
    let point = host.hyperv.convert_to_reference_point(id, &second.id).await.unwrap();
    host.hyperv.destroy_reference_point(id, &point.id).await.unwrap();
    let third = host.hyperv.create_checkpoint(id, "3", Consistency::Crash).await.unwrap();
    let gone = changed(&host, point.rct_id(disk).unwrap(), &third).await;
    assert_eq!(gone, lost(win32::VHD_INVALID_CHANGE_TRACKING_ID));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_written_by_somebody_else_while_the_machine_is_off_loses_its_tracking() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[8 * MIB]).await;
    let (id, disk) = (vm.info.id, vm.info.disks[0].disk_id);
    let first = host.hyperv.create_checkpoint(id, "1", Consistency::Crash).await.unwrap();
    let point = host.hyperv.convert_to_reference_point(id, &first.id).await.unwrap();
    host.admin.shutdown("vm").await.unwrap();
    host.admin.start("vm").await.unwrap();
    host.admin.write("vm", "0", 4096, Data::Byte { value: 9, len: 4096 }).await.unwrap();
    host.admin.shutdown("vm").await.unwrap();
    let since = point.rct_id(disk).unwrap();
    let second = host.hyperv.create_checkpoint(id, "2", Consistency::Crash).await.unwrap();
    assert_eq!(
        changed(&host, since, &second).await,
        Ok(Extents::one(4096, 4096)),
        "off and on again is no loss"
    );
    host.hyperv.delete_checkpoint(id, &second.id).await.unwrap();

    let file = host.info().await.disks[0].path.clone();
    tool("qemu-io", &["-f", "vhdx", "-c", "write -P 7 1M 4k", &file]);
    assert_eq!(contents(file.as_ref())[1 << 20], 7);
    host.admin.start("vm").await.unwrap();
    let third = host.hyperv.create_checkpoint(id, "3", Consistency::Crash).await.unwrap();
    let code = win32::CTLOG_VHD_CHANGED_OFFLINE;
    assert_eq!(changed(&host, since, &third).await, Err(HyperVError::TrackingLost { disk, code }));
}
