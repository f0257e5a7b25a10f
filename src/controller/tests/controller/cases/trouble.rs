//! What goes wrong while a VM is protected: journals, tracking, refused cycles, storage, edges.

use farshore_core::format::ledger::LedgerState;
use farshore_core::ids::Stream;
use serde_json::json;

use crate::stage::{find, stage, stage_alone};

#[test]
fn a_lost_journal_gets_a_new_stream_with_a_base() {
    stage(async |stage| {
        let vm = stage.protected("journal", json!({})).await;
        vm.verify(1, 9).await;
        vm.take_up(json!({"journalLost": true})).await;
        let rel = vm.relationship(|r| r.spec.stream == 2).await;
        let base = rel.spec.base.unwrap();
        assert_eq!((base.stream, base.cycle, base.rct_ids.len()), (1, 9, 2));
        let ledger = vm.ledger().await;
        assert_eq!((ledger.stream, ledger.state), (Stream(2), LedgerState::Protected));
        vm.take_up(json!({})).await;
        stage.await_condition("journal", "Ready", "True").await;
    });
}

// R8.1, R9.1
#[test]
fn a_refused_cycle_copies_everything_again_and_keeps_the_points() {
    stage(async |stage| {
        let vm = stage.protected("refused", json!({})).await;
        vm.refuse(1, 3, "CorruptSegment").await;
        let rel = vm.relationship(|r| r.spec.stream == 2).await;
        assert_eq!(rel.spec.base, None);
        let (reason, _) = stage.await_condition("refused", "ResynchronizationRequired", "True").await;
        assert_eq!(reason, "CorruptSegment");
        let status = stage
            .await_status("refused", "Resynchronizing", |s| s["replicationState"] == "Resynchronizing")
            .await;
        assert_eq!(
            (status["recoveryPoints"].as_array().unwrap().len(), &find(&status, "Protected")["status"]),
            (1, &json!("True"))
        );
        vm.take_up(json!({})).await;
        vm.point(2, 1).await;
        stage.await_condition("refused", "ResynchronizationRequired", "False").await;
        assert_eq!(vm.ledger().await.stream, Stream(2), "once is enough");
    });
}

#[test]
fn an_error_of_the_agent_shows_with_its_class() {
    stage(async |stage| {
        let vm = stage.protected("error", json!({})).await;
        let error = |code: &str, class: &str| {
            json!({"lastError": {"code": code, "class": class, "message": "D:\\ is nearly full",
                "since": jiff::Timestamp::now(), "attempts": 2}})
        };
        vm.take_up(error("LowDiskSpace", "Recoverable")).await;
        let (reason, message) = stage.await_condition("error", "Reconciling", "True").await;
        assert_eq!(reason, "Retrying");
        assert!(message.contains("Free space"), "{message}");
        vm.take_up(error("BrokenVHDChain", "Unrecoverable")).await;
        stage.await_stalled("error", "BrokenVHDChain").await;
        let status = stage.await_status("error", "Critical", |s| s["health"] == "Critical").await;
        assert_eq!(status["lastError"]["code"], "BrokenVHDChain");
        assert!(status["lastError"]["recommendedAction"].as_str().unwrap().contains("Inspect Disk"));
        vm.take_up(json!({})).await;
        stage.await_condition("error", "Ready", "True").await;
    });
}

#[test]
fn storage_that_is_away_is_shown_and_pausing_works_meanwhile() {
    stage_alone(async |stage| {
        let vm = stage.protected("away", json!({})).await;
        stage.world.blobs().link().cut();
        let (reason, _) = stage.await_condition("away", "LedgerReachable", "False").await;
        assert_eq!(reason, "LedgerUnreachable");
        stage.patch("away", json!({"spec": {"paused": true}})).await;
        vm.relationship(|r| r.spec.schedule.paused).await;
        let status = stage.await_status("away", "state", |s| s["state"] == "Protected").await;
        assert_eq!(find(&status, "Protected")["status"], "True", "what was there is not forgotten");
        stage.world.blobs().link().mend();
        stage.await_condition("away", "LedgerReachable", "True").await;
        stage.await_status("away", "Suspended", |s| s["replicationState"] == "Suspended").await;
        stage.patch("away", json!({"spec": {"paused": false}})).await;
        vm.relationship(|r| !r.spec.schedule.paused).await;
    });
}

// R0.3
#[test]
fn an_edge_of_a_later_version_is_refused_and_taken_back() {
    stage(async |stage| {
        let vm = stage.protected("edge", json!({})).await;
        stage.patch("edge", json!({"spec": {"desiredState": "FailedOver", "epoch": 2}})).await;
        stage.await_stalled("edge", "NotImplementedYet").await;
        assert_eq!(vm.ledger().await.epoch.0, 1);
        stage.patch("edge", json!({"spec": {"desiredState": "Protected", "epoch": 3}})).await;
        stage.await_condition("edge", "Ready", "True").await;
        assert_eq!(vm.ledger().await.epoch.0, 3);
    });
}

#[test]
fn a_deleted_container_stalls_and_nothing_is_started_over() {
    stage(async |stage| {
        let vm = stage.protected("lost", json!({})).await;
        vm.containers.replica.delete_container().await.unwrap();
        stage.await_stalled("lost", "ContainerMissing").await;
        assert_eq!(vm.exists().await, [false, true, true]);
        stage.delete("lost").await;
        stage.await_gone("lost").await;
    });
}

// R9.1
#[test]
fn wrong_storage_credentials_are_named_and_mended() {
    use k8s_openapi::api::core::v1::Secret;
    use kube::Api;
    use kube::api::{Patch, PatchParams};
    stage(async |stage| {
        let mut vault = stage.world.vault().await.unwrap();
        vault["metadata"]["name"] = json!("locked");
        vault["spec"]["authentication"]["sharedKey"]["secretRef"]["name"] = json!("locked-storage");
        let secrets: Api<Secret> = Api::namespaced(stage.client(), &crate::stage::launch_namespace());
        let write = async |key: &str| {
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "locked-storage"},
                "stringData": {stage.world.blobs().account(): key}});
            let params = PatchParams::apply("test").force();
            secrets.patch("locked-storage", &params, &Patch::Apply(&secret)).await.unwrap();
        };
        write("bm90IHRoZSBrZXkgYXQgYWxs").await;
        stage.create_cluster::<farshore_api::RecoveryVault>(vault).await.unwrap();
        let vm = stage.report("locked").await;
        stage.protect_as("locked", json!({"vault": "locked"})).await;
        let message = stage.await_stalled("locked", "NotAuthorized").await;
        assert!(message.contains("RecoveryVault's authentication"), "{message}");
        write(stage.world.blobs().key()).await;
        vm.relationship(|_| true).await;
    });
}
