//! The same on Azurite, which is not ours: wire format, leases, conditions, snapshots.

use std::time::Duration;

use farshore_azure::{BlobService, Credential, Endpoint, HttpOptions, SharedKey};
use farshore_core::names;
use farshore_lab::launch::{self, Parts, Port, Seen, until};
use farshore_replica_server::{CrashPoint, VmTask};

use crate::crash::kill_at;
use crate::source::{Source, every_cycle, policy, settle};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn points_are_exact_on_azurite_too() {
    let folder = tempfile::tempdir().unwrap();
    let parts = Parts::new(folder.path().join("logs")).unwrap();
    let port = Port::free().unwrap();
    let (data, number) = (folder.path().join("data"), port.number());
    // Installing it once for the machine blocks for a while.
    let program = tokio::task::spawn_blocking(move || launch::azurite(&data, number).unwrap()).await.unwrap();
    parts.start("azurite", program).unwrap();
    let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{number}/devstoreaccount1")).unwrap();
    let credential = Credential::SharedKey(SharedKey::emulator());
    let service = BlobService::new(endpoint, credential, &HttpOptions::default()).unwrap();
    until("Azurite", SOON, async || {
        Ok(match service.container("probe").metadata().await {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();

    let mut vm = Source::create(&service, &[2 * MIB, MIB + 4096]).await;
    vm.protect().await;
    settle(&mut vm.task(), &policy()).await;
    for seed in 10..13 {
        vm.scribble(seed);
        vm.delta().await;
    }
    // Killed in the middle of the merge, with leases in hand.
    let mut killed = VmTask::new(vm.context("worker-1", kill_at(CrashPoint::MetadataSet, 1)));
    let killed = tokio::spawn(async move { settle(&mut killed, &policy()).await }).await;
    assert!(killed.unwrap_err().is_panic());
    vm.break_leases().await;
    settle(&mut vm.task(), &policy()).await;
    assert_eq!(vm.prove_points().await, [4, 7]);

    // A new stream that copies all again, in another size; old points go.
    vm.new_stream(2, true).await;
    vm.disks[0].bytes.truncate(MIB as usize);
    vm.base(Some(MIB / 2)).await;
    vm.scribble(20);
    vm.base(None).await;
    vm.scribble(21);
    vm.delta().await;
    let mut task = vm.task();
    settle(&mut task, &every_cycle()).await;
    assert_eq!(vm.prove_points().await, [4, 7, 3]);
    vm.now.store(2 * 86_400, std::sync::atomic::Ordering::SeqCst);
    vm.delta().await;
    settle(&mut task, &every_cycle()).await;
    assert_eq!(vm.prove_points().await, [4]);
    assert_eq!(
        vm.uploaded("").await.iter().filter_map(|n| names::parse_cycle(n)).min(),
        vm.previous.map(|p| p.id)
    );

    // A cycle of a later version.
    vm.change_commit = Some(Box::new(|c| c.min_reader = 7));
    vm.delta().await;
    settle(&mut task, &every_cycle()).await;
    assert_eq!(vm.cursor().await.refused.unwrap().code, "UnreadableFormat");
    parts.stop_all(Duration::from_secs(10)).await;
}
