//! What goes wrong on the host and in storage: the right class, a remedy, and nothing lost (R9).

use farshore_azure::Include;
use farshore_core::units::MIB;
use farshore_lab::host::admin::{Data, Fault};
use farshore_lab::launch::NAMESPACE as SYSTEM;
use farshore_test_scenario::{Protected, Stage, stage, stage_alone};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

async fn protected<'a>(stage: &'a Stage, name: &str) -> Protected<'a> {
    let vm = stage.make_vm(name, &[8 * MIB]).await.unwrap();
    vm.write(0, 0, &[1; 4096]).await.unwrap();
    stage.protect(name, name, json!({})).await.unwrap();
    stage.await_condition(name, "Protected", "True").await.unwrap();
    vm
}

async fn points(vm: &Protected<'_>) -> Vec<String> {
    let points = farshore_lab::proof::points(&vm.containers.replica).await.unwrap();
    points.into_iter().map(|p| p.name).collect()
}

// R9.1: not recoverable; what is replicated stays.
#[test]
fn a_broken_chain_is_critical_says_what_to_do_and_loses_nothing() {
    stage(async |stage| {
        let vm = protected(stage, "broken-chain").await;
        let before = points(&vm).await;
        let fault = || Fault::BreakChain { vm: vm.name.clone(), disk: "0".into() };
        stage.admin().fault(fault()).await.unwrap();
        vm.write(0, MIB, &[2; 4096]).await.unwrap();
        let (reason, message) = stage.await_condition(&vm.name, "Stalled", "True").await.unwrap();
        assert_eq!(reason, "BrokenVHDChain");
        assert!(message.contains("Inspect Disk"), "{message}");
        let status =
            stage.await_status(&vm.name, "health Critical", |s| s["health"] == "Critical").await.unwrap();
        assert_eq!(status["lastError"]["code"], "BrokenVHDChain");
        assert!(before.iter().all(|p| status["recoveryPoints"].to_string().contains(p)), "{status}");

        stage.admin().fault(fault()).await.unwrap();
        vm.point_after(Timestamp::now()).await.unwrap();
        stage.await_condition(&vm.name, "Protected", "True").await.unwrap();
        vm.prove_all(&stage.folder(&vm.name).unwrap()).await.unwrap();
    });
}

// R9.2, R5.3: refused early; the running VM is not touched.
#[test]
fn a_full_host_volume_is_low_disk_space_and_the_vm_runs_on() {
    stage_alone(async |stage| {
        let vm = protected(stage, "full-volume").await;
        stage.admin().fault(Fault::FillVolume { free: Some(12 * MIB) }).await.unwrap();
        let status = stage
            .await_status(&vm.name, "LowDiskSpace", |s| s["lastError"]["code"] == "LowDiskSpace")
            .await
            .unwrap();
        assert_ne!(status["health"], "Normal", "{status}");
        vm.write(0, 2 * MIB, &[3; 4096]).await.unwrap();
        stage.admin().fault(Fault::FillVolume { free: None }).await.unwrap();
        vm.point_after(Timestamp::now()).await.unwrap();
        vm.prove_all(&stage.folder(&vm.name).unwrap()).await.unwrap();
    });
}

// R9.1: wrong credentials are not retried and name what to repair; repaired, it goes on.
#[test]
fn wrong_storage_credentials_are_critical_until_they_are_repaired() {
    stage(async |stage| {
        let account = stage.world.blobs().account();
        stage
            .apply(json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong-keys", "namespace": SYSTEM},
                "stringData": {account: "d3Jvbmcga2V5"},
            }))
            .await
            .unwrap();
        let mut vault = stage.world.vault().await.unwrap();
        vault["metadata"]["name"] = "wrong".into();
        vault["spec"]["authentication"]["sharedKey"]["secretRef"]["name"] = "wrong-keys".into();
        stage.create::<farshore_api::RecoveryVault>(vault).await.unwrap();
        let vm = stage.make_vm("wrong-key", &[8 * MIB]).await.unwrap();
        stage.protect("wrong-key", "wrong-key", json!({"vault": "wrong"})).await.unwrap();
        let (reason, message) = stage.await_condition("wrong-key", "Stalled", "True").await.unwrap();
        assert_eq!(reason, "NotAuthorized");
        assert!(message.contains("RecoveryVault"), "{message}");

        let secrets: Api<Secret> = Api::namespaced(stage.world.client(), SYSTEM);
        let right = json!({"stringData": {account: stage.world.blobs().key()}});
        secrets.patch("wrong-keys", &PatchParams::default(), &Patch::Merge(&right)).await.unwrap();
        vm.point_after(Timestamp::now()).await.unwrap();
    });
}

// R8.1 in its first form: lost tracking is announced, the VM is copied again, old points stay.
#[test]
fn lost_change_tracking_is_copied_again_and_old_points_stay() {
    stage(async |stage| {
        let vm = protected(stage, "lost-tracking").await;
        let before = points(&vm).await;
        stage.admin().fault(Fault::LoseTracking { vm: vm.name.clone(), code: None }).await.unwrap();
        vm.write(0, 3 * MIB, &[4; 4096]).await.unwrap();
        vm.point_after(Timestamp::now()).await.unwrap();
        let after = points(&vm).await;
        assert!(before.iter().all(|p| after.contains(p)), "{before:?} not in {after:?}");
        vm.prove_all(&stage.folder(&vm.name).unwrap()).await.unwrap();
    });
}

// R5.3: a burst between two cycles, larger than a cycle usually carries.
#[test]
fn a_write_burst_is_carried_by_the_next_cycles() {
    stage(async |stage| {
        let vm = protected(stage, "burst").await;
        for seed in 0..4 {
            let data = Data::Random { seed, len: 6 * MIB };
            stage.admin().write(&vm.name, "0", seed * 512 * 1024, data).await.unwrap();
        }
        vm.point_after(Timestamp::now()).await.unwrap();
        vm.prove_all(&stage.folder(&vm.name).unwrap()).await.unwrap();
    });
}

// A sparse disk costs what is in it, not what it could hold; memory stays bounded (R5.2).
#[test]
fn a_sparse_disk_of_64_gib_costs_what_it_holds() {
    stage_alone(async |stage| {
        let vm = stage.make_vm("sparse", &[64 << 30]).await.unwrap();
        for i in 0..16 {
            vm.write(0, i * (4 << 30), &[9; 65536]).await.unwrap();
        }
        stage.protect("sparse", "sparse", json!({})).await.unwrap();
        stage.await_condition("sparse", "Protected", "True").await.unwrap();
        let sent: u64 =
            vm.containers.up.list("", Include::default()).await.unwrap().iter().map(|blob| blob.len).sum();
        assert!(sent < 2 * MIB, "{sent} bytes were sent for 1 MiB");
    });
}
