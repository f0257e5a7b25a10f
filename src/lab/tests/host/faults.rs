//! What goes wrong on request, and what the caller is told.

use std::time::{Duration, Instant};

use farshore_hyperv::{Consistency, HyperVError, Hypervisor, PowerState, win32};
use farshore_lab::host::admin::{Data, DiskSettings, Fault, Settings};

use crate::support::{Host, MIB, Nbd, avhdx_files, until};

const VM: &str = "vm";

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_pauses_the_machine_until_there_is_space_again() {
    let host = Host::start(&["--volume-bytes", "83886080"]).await;
    let vm = host.vm(&[256 * MIB]).await;
    let total = host.hyperv.host().await.unwrap().volumes[0].total;
    assert_eq!(total, 80 * MIB);
    let mut guest = Nbd::connect(&vm, 0);
    let writer = std::thread::spawn(move || {
        for piece in 0..100 {
            let mut data = vec![0; 1 << 20];
            farshore_lab::host::random(piece).fill(&mut data);
            guest.write(piece * MIB, &data)?;
        }
        guest.flush()
    });
    until("the machine pauses", async || host.info().await.state == PowerState::PausedCritical).await;
    let folder = vm.folder.to_string_lossy().into_owned();
    let free = host.hyperv.volume(&folder).await.unwrap().free;
    assert!(free < 8 * MIB && !writer.is_finished(), "{free} bytes free");
    let refused = host.hyperv.create_checkpoint(vm.info.id, "c", Consistency::Crash).await;
    assert!(
        matches!(refused, Err(HyperVError::InvalidState { state: PowerState::PausedCritical, .. })),
        "{refused:?}"
    );
    // Turning it off lets the write go.
    host.admin.stop(VM).await.unwrap();
    assert!(writer.join().unwrap().is_err());
    assert_eq!(host.info().await.state, PowerState::Off);
    assert!(host.hyperv.volume("/elsewhere").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_filled_by_others_stops_checkpoints_and_writes_and_goes_on_when_they_leave() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[64 * MIB]).await;
    host.admin.fault(Fault::FillVolume { free: Some(3 * MIB) }).await.unwrap();
    let free = host.hyperv.volume(&vm.info.disks[0].path).await.unwrap().free;
    assert!(free <= 3 * MIB, "{free}");
    let refused = host.hyperv.create_checkpoint(vm.info.id, "c", Consistency::Crash).await;
    assert!(matches!(refused, Err(HyperVError::DiskFull { .. })), "{refused:?}");
    assert!(avhdx_files(&vm).is_empty());
    let mut guest = Nbd::connect(&vm, 0);
    let writer = std::thread::spawn(move || guest.write(0, &[5; 4096]));
    until("the machine pauses", async || host.info().await.state == PowerState::PausedCritical).await;
    host.admin.fault(Fault::FillVolume { free: None }).await.unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(host.info().await.state, PowerState::Running);
    assert_eq!(host.admin.read(VM, "0", 4095, 2).await.unwrap(), [5, 0]);
    host.hyperv.create_checkpoint(vm.info.id, "c", Consistency::Crash).await.unwrap();
}

// R9.1
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_chain_is_found_by_the_next_checkpoint_and_the_guest_runs_on() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[8 * MIB, 8 * MIB]).await;
    let fault = Fault::BreakChain { vm: VM.into(), disk: "1".into() };
    host.admin.fault(fault.clone()).await.unwrap();
    let broken = host.hyperv.create_checkpoint(vm.info.id, "c", Consistency::Crash).await.unwrap_err();
    let path = host.info().await.disks[1].path.clone();
    assert_eq!(broken, HyperVError::BrokenChain { path, code: win32::VHD_CHILD_PARENT_ID_MISMATCH });
    assert_eq!(avhdx_files(&vm).len(), 2, "only the standard checkpoint's");
    host.admin.write(VM, "1", 0, Data::Byte { value: 3, len: 512 }).await.unwrap();
    host.admin.stop(VM).await.unwrap();
    assert!(matches!(host.admin.start(VM).await, Err(HyperVError::BrokenChain { .. })));
    host.admin.fault(fault).await.unwrap();
    host.admin.start(VM).await.unwrap();
    host.hyperv.create_checkpoint(vm.info.id, "c", Consistency::Crash).await.unwrap();
    assert_eq!(host.admin.read(VM, "1", 511, 2).await.unwrap(), [3, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_checkpoints_and_failed_vss_leave_nothing_behind() {
    let host = Host::start(&[]).await;
    let vm = host.vm(&[MIB]).await;
    let id = vm.info.id;
    let create = |consistency| host.hyperv.create_checkpoint(id, "c", consistency);
    host.admin.fault(Fault::FailVss { vm: VM.into(), on: true }).await.unwrap();
    let failed = create(Consistency::Application).await.unwrap_err();
    assert!(matches!(failed, HyperVError::VssFailed { code: win32::VSS_MORE_DATA, .. }), "{failed:?}");
    host.admin.fault(Fault::RefuseCheckpoints { vm: VM.into(), on: true }).await.unwrap();
    assert!(matches!(create(Consistency::Crash).await, Err(HyperVError::InvalidState { .. })));
    let settings = Settings { checkpoints_enabled: Some(false), ..Settings::default() };
    host.admin.configure(VM, settings).await.unwrap();
    assert_eq!(create(Consistency::Crash).await, Err(HyperVError::CheckpointsDisabled { vm: id }));
    assert!(avhdx_files(&vm).is_empty() && host.hyperv.checkpoints(id).await.unwrap().is_empty());

    let settings = Settings { checkpoints_enabled: Some(true), ..Settings::default() };
    host.admin.configure(VM, settings).await.unwrap();
    host.admin.fault(Fault::RefuseCheckpoints { vm: VM.into(), on: false }).await.unwrap();
    let checkpoint = create(Consistency::Crash).await.unwrap();
    host.hyperv.delete_checkpoint(id, &checkpoint.id).await.unwrap();
    host.admin.fault(Fault::FailVss { vm: VM.into(), on: false }).await.unwrap();
    create(Consistency::Application).await.unwrap();
}

// R4.1
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_forbid_protection_are_reported_as_set() {
    let host = Host::start(&["--cluster", "c1", "--switch", "LAN"]).await;
    let vm = host.vm(&[MIB, MIB]).await;
    let settings = Settings {
        disks: vec![
            DiskSettings { disk: "1".into(), shared: Some(true), pass_through: None },
            DiskSettings {
                disk: vm.info.disks[0].disk_id.to_string(),
                shared: None,
                pass_through: Some(true),
            },
        ],
        replication_mode: Some(1),
        configuration_version: Some("5.0".into()),
        name: Some("renamed".into()),
        ..Settings::default()
    };
    host.admin.configure(VM, settings).await.unwrap();
    let info = host.hyperv.vm(vm.info.id).await.unwrap();
    assert_eq!(
        info.disks.iter().map(|d| (d.shared, d.pass_through)).collect::<Vec<_>>(),
        [(false, true), (true, false)]
    );
    assert_eq!(
        (info.replication_mode, info.configuration_version.as_str(), info.name.as_str()),
        (1, "5.0", "renamed")
    );
    assert_eq!(info.nics[0].switch.as_deref(), Some("LAN"));
    let about = host.hyperv.host().await.unwrap();
    assert_eq!((about.name.as_str(), about.failover_cluster.as_deref()), ("h1", Some("c1")));
    let unknown = farshore_core::ids::VmId(uuid::Uuid::from_u128(1));
    assert_eq!(host.hyperv.vm(unknown).await, Err(HyperVError::VmNotFound { vm: unknown }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_call_is_slow_and_others_are_not() {
    let host = Host::start(&[]).await;
    let delay = |millis| Fault::Delay { call: "Host".into(), millis };
    host.admin.fault(delay(60_000)).await.unwrap();
    let patient = host.hyperv.clone().with_timeout(Duration::from_millis(300));
    assert!(matches!(patient.host().await, Err(HyperVError::Unreachable { .. })));
    host.hyperv.vms().await.unwrap();
    host.admin.fault(delay(0)).await.unwrap();
    let begun = Instant::now();
    host.hyperv.host().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30));
}
