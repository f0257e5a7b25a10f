//! NBD, by programs that are not ours.

use std::fs;

use farshore_hyperv::PowerState;
use farshore_lab::host::admin::{Data, NewDisk, NewVm};

use crate::support::{Host, MIB, Nbd, Scribbler, blake3_of, contents, tool, uri};

#[tokio::test(flavor = "multi_thread")]
async fn foreign_tools_list_write_and_read_the_disks_of_a_running_machine() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[64 * MIB, 9 * MIB]).await;
    let listed = tool("nbdinfo", &["--list", &format!("nbd+unix:///?socket={}", vm.nbd.display())]);
    assert!(listed.contains("export=\"0\"") && listed.contains("export=\"1\""), "{listed}");
    assert_eq!(tool("nbdinfo", &["--size", &uri(&vm, 1)]).trim(), (9 * MIB).to_string());

    let image = host.dir().join("image");
    let mut bytes = vec![0; 64 << 20];
    farshore_lab::host::random(1).fill(&mut bytes[..20 << 20]);
    farshore_lab::host::random(2).fill(&mut bytes[50 << 20..]);
    fs::write(&image, &bytes).unwrap();
    tool("nbdcopy", &["--flush", &image.to_string_lossy(), &uri(&vm, 0)]);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image.to_string_lossy(), &uri(&vm, 0)]);
    let digest = host.admin.digest("vm", Some(16 * MIB)).await.unwrap();
    assert_eq!(digest[0].blake3, blake3_of(&bytes));
    assert_eq!(digest[0].ranges, bytes.chunks(16 << 20).map(blake3_of).collect::<Vec<_>>());

    for command in ["write -P 0xa5 1000 70000", "write -z 2000 5000", "discard 512 1024", "flush"] {
        tool("qemu-io", &["-f", "raw", "-c", command, &uri(&vm, 1)]);
    }
    let read = tool(
        "qemu-io",
        &["-f", "raw", "-c", "read -P 0xa5 7000 64000", "-c", "read -P 0 2000 5000", &uri(&vm, 1)],
    );
    assert!(!read.contains("failed"), "{read}");
    assert_eq!(host.admin.read("vm", "1", 1535, 3).await.unwrap(), [0, 0xa5, 0xa5]);

    host.admin.shutdown("vm").await.unwrap();
    // The file itself, by QEMU's own VHDX driver.
    let file = &host.info().await.disks[0].path;
    tool("qemu-img", &["compare", "-f", "vhdx", "-F", "raw", file, &image.to_string_lossy()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_refuse_while_the_machine_is_off_and_connections_end_with_it() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[8 * MIB]).await;
    let mut guest = Nbd::connect(&vm, 0);
    guest.write(0, b"last words").unwrap();
    host.admin.stop("vm").await.unwrap();
    assert!(guest.write(0, b"ghost").is_err());
    assert!(Nbd::try_connect(&vm, 0).is_err());
    let refused = std::process::Command::new("nbdinfo").arg(uri(&vm, 0)).output().unwrap();
    assert!(!refused.status.success());
    assert_eq!(host.info().await.state, PowerState::Off);
    assert_eq!(host.admin.read("vm", "0", 0, 10).await.unwrap(), b"last words");
    host.admin.start("vm").await.unwrap();
    assert_eq!(Nbd::connect(&vm, 0).read(0, 10).unwrap(), b"last words");
    assert!(Nbd::try_connect(&vm, 1).is_err(), "there is no second disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_any_alignment_end_where_they_should_on_both_sector_sizes() {
    let host = Host::start(&[]).await;
    for (name, sector) in [("s512", 512), ("s4096", 4096)] {
        let disk = NewDisk { size: Some(3 * MIB), logical_sector_size: Some(sector), ..NewDisk::default() };
        let vm = NewVm { disks: vec![disk], ..NewVm::with_disks(name, &[]) };
        let vm = host.admin.create(vm).await.unwrap();
        host.admin.start(name).await.unwrap();
        // On the second layer, where only whole sectors can be kept.
        host.admin.standard_checkpoint(name, "before").await.unwrap();
        let mut guest = Scribbler::new(Nbd::connect(&vm, 0), vec![0; 3 << 20], u64::from(sector));
        for _ in 0..300 {
            guest.scribble();
        }
        assert_eq!(host.admin.digest(name, None).await.unwrap()[0].blake3, blake3_of(&guest.model), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_can_begin_as_an_image_raw_or_qcow2() {
    let host = Host::start(&[]).await;
    let (raw, qcow) = (host.dir().join("raw.img"), host.dir().join("disk.qcow2"));
    let mut bytes = vec![0; (5 << 20) + 1536];
    farshore_lab::host::random(3).fill(&mut bytes[3 << 20..]);
    fs::write(&raw, &bytes).unwrap();
    let (raw_text, qcow_text) = (raw.to_string_lossy(), qcow.to_string_lossy());
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw_text, &qcow_text]);
    let disk = |image| NewDisk { image: Some(image), ..NewDisk::default() };
    let larger = NewDisk { size: Some(6 * MIB), fixed: true, ..disk(raw.clone()) };
    let vm = NewVm { disks: vec![disk(raw), disk(qcow), larger], ..NewVm::with_disks("vm", &[]) };
    let vm = host.admin.create(vm).await.unwrap();
    for index in 0..2 {
        assert!(contents(vm.info.disks[index].path.as_ref()) == bytes, "disk {index}");
    }
    bytes.resize(6 << 20, 0);
    assert!(contents(vm.info.disks[2].path.as_ref()) == bytes);
    assert!(!vm.folder.join("image.raw").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_may_have_one_name_and_are_told_apart_by_id() {
    let host = Host::start(&[]).await;
    let first = host.vm(&[MIB]).await;
    let second = host.admin.create(NewVm::with_disks("vm", &[MIB])).await.unwrap();
    assert_ne!((&first.folder, &first.nbd), (&second.folder, &second.nbd));
    assert!(host.admin.start("vm").await.is_err(), "which one?");
    let id = second.info.id.to_string();
    host.admin.start(&id).await.unwrap();
    host.admin.write(&id, "0", 0, Data::Byte { value: 1, len: 512 }).await.unwrap();
    assert_eq!(Nbd::connect(&second, 0).read(511, 2).unwrap(), [1, 0]);
    assert_eq!(Nbd::connect(&first, 0).read(0, 1).unwrap(), [0]);
    assert!(host.admin.delete(&id).await.is_err(), "it runs");
    host.admin.stop(&id).await.unwrap();
    host.admin.delete(&id).await.unwrap();
    assert!(!second.folder.exists() && !second.nbd.exists());
}
