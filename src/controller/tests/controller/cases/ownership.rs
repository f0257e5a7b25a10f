//! Whose a VM is: other owners, other clusters, two manifests, shared disks, unknown VMs.

use farshore_core::format::ledger::LedgerState;
use farshore_core::ids::Stream;
use serde_json::json;

use crate::stage::{NAMESPACE, find, stage};

#[test]
fn containers_of_another_protected_vm_are_left_alone() {
    stage(async |stage| {
        let vm = stage.report("taken").await;
        let owner =
            [("namespace", "elsewhere"), ("name", "theirs")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        vm.containers.replica.create(&owner.into()).await.unwrap();
        stage.protect_as("taken", json!({})).await;
        let message = stage.await_stalled("taken", "AlreadyProtected").await;
        assert!(message.contains("elsewhere/theirs"), "{message}");
        assert_eq!(vm.exists().await, [true, false, false]);
        stage.delete("taken").await;
        stage.await_gone("taken").await;
        assert_eq!(vm.exists().await, [true, false, false]);
    });
}

// DESIGN 5, adoption
#[test]
fn a_ledger_of_another_cluster_stalls_and_is_not_written() {
    stage(async |stage| {
        let vm = stage.protected("foreign", json!({})).await;
        let mut ledger = vm.ledger().await;
        ledger.cluster_id = "another-cluster".into();
        ledger.seq += 1;
        vm.put_ledger(&ledger).await;
        let message = stage.await_stalled("foreign", "OwnedByAnotherCluster").await;
        assert!(message.contains("another-cluster"), "{message}");
        stage.delete("foreign").await;
        stage.await_gone("foreign").await;
        assert_eq!(vm.ledger().await, ledger, "what is another's is left as it is");
    });
}

#[test]
fn the_younger_of_two_stalls_and_takes_over_when_the_older_is_gone() {
    stage(async |stage| {
        let vm = stage.protected("first", json!({"deletionPolicy": "Purge"})).await;
        let by_id = json!({"source": {"site": "amsterdam", "vmID": vm.id.to_string()}});
        stage.protect_as("second", by_id).await;
        let message = stage.await_stalled("second", "DuplicateProtection").await;
        assert!(message.contains(&format!("{NAMESPACE}/first")), "{message}");
        let status = stage.await_status("first", "Ready", |s| find(s, "Ready")["status"] == "True").await;
        assert_eq!(status["state"], "Protected");
        let confirm = json!({"metadata": {"annotations": {"farshore.dev/confirm-purge": vm.id.to_string()}}});
        stage.patch("first", confirm).await;
        stage.delete("first").await;
        stage.await_gone("first").await;
        stage.await_status("second", "Enabling", |s| s["state"] == "Enabling").await;
        let rel = vm.relationship(|r| r.spec.protected_vm.name == "second").await;
        assert_eq!(
            (rel.spec.stream, rel.spec.goal, &rel.spec.base),
            (2, farshore_api::Goal::Replicate, &None)
        );
    });
}

// R4.1
#[test]
fn unmet_prerequisites_are_named_and_protection_goes_on_when_they_are_met() {
    stage(async |stage| {
        let vm = stage.report("unmet").await;
        let disk = |id: &str, shared: bool| {
            json!({"id": id, "path": format!("D:\\{id}.vhdx"), "slot": "SCSI 0:0", "format": "VHDX",
                "virtualSizeBytes": 8 << 20, "shared": shared})
        };
        let ids: Vec<String> = vm.disks.iter().map(ToString::to_string).collect();
        let finding =
            json!([{"code": "CheckpointsDisabled", "message": "checkpoints are disabled for unmet"}]);
        let disks = json!([disk(&ids[0], false), disk(&ids[1], true)]);
        stage.report_as(&vm, json!({"disks": disks, "findings": finding, "protectable": false})).await;
        let object = stage.protect_as("unmet", json!({})).await;
        let message = stage.await_stalled("unmet", "PrerequisitesNotMet").await;
        assert!(message.contains("SharedDisk") && message.contains("Set-VM -CheckpointType"), "{message}");
        let job = stage.await_job(&object, "enable", |s| s["state"] == "Suspended").await;
        assert_eq!(job["status"]["currentStep"], "Prerequisites check for enabling protection");
        assert_eq!(vm.exists().await, [false; 3]);
        stage.report_as(&vm, json!({"disks": disks, "findings": []})).await;
        stage.await_stalled("unmet", "SharedDisk").await;
        stage.patch("unmet", json!({"spec": {"disks": {"exclude": [ids[1]]}}})).await;
        let rel = vm.relationship(|_| true).await;
        assert_eq!(rel.spec.disks, [ids[0].clone()]);
    });
}

#[test]
fn an_unknown_vm_is_waited_for_and_found_when_it_appears() {
    stage(async |stage| {
        stage.protect_as("late", json!({})).await;
        let message = stage.await_stalled("late", "VMNotFound").await;
        assert!(message.contains("late"), "{message}");
        let vm = stage.report("late").await;
        vm.relationship(|_| true).await;
        stage.await_condition("late", "Stalled", "False").await;
    });
}

#[test]
fn a_namespace_that_may_not_use_the_policy_is_told_so() {
    stage(async |stage| {
        let closed = json!({"metadata": {"name": "closed"}, "spec": {"allowedNamespaces": ["other"]}});
        stage.create_cluster::<farshore_api::ReplicationPolicy>(closed).await.unwrap();
        stage.report("closed").await;
        stage.protect_as("closed", json!({"policy": "closed"})).await;
        let message = stage.await_stalled("closed", "NamespaceNotAllowed").await;
        assert!(message.contains("allowedNamespaces"), "{message}");
    });
}

// DESIGN 12: two writers, one ledger.
#[test]
fn a_ledger_written_by_somebody_else_meanwhile_is_read_again() {
    stage(async |stage| {
        let vm = stage.protected("raced", json!({})).await;
        let mut ledger = vm.ledger().await;
        ledger.seq += 1;
        ledger.nonce = "another".into();
        ledger.handled_tokens.insert("request".into(), "kept".into());
        vm.put_ledger(&ledger).await;
        stage.patch("raced", json!({"spec": {"epoch": 4}})).await;
        stage.await_status("raced", "epoch 4", |s| s["effective"]["epoch"] == 4).await;
        let after = vm.ledger().await;
        assert_eq!(
            (after.seq, after.stream, after.state),
            (ledger.seq + 1, Stream(1), LedgerState::Protected)
        );
        assert_eq!(after.handled_tokens, ledger.handled_tokens, "nothing of it is lost");
    });
}
