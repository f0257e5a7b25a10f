//! What cannot be protected says why and what to do; nothing that is protected suffers (R4.1).

use farshore_core::units::MIB;
use farshore_lab::host::admin::{DiskSettings, Settings};
use farshore_test_scenario::stage;
use serde_json::json;

// R4.1
#[test]
fn an_unknown_vm_is_named_with_what_to_do() {
    stage(async |stage| {
        stage.protect("unknown-vm", "no-such-vm", json!({})).await.unwrap();
        let (reason, message) = stage.await_condition("unknown-vm", "Stalled", "True").await.unwrap();
        assert_eq!(reason, "VMNotFound");
        assert!(message.contains("no-such-vm"), "{message}");
        stage.delete("unknown-vm").await.unwrap();
    });
}

#[test]
fn a_policy_that_does_not_exist_is_named_and_found_when_it_is_made() {
    stage(async |stage| {
        let vm = stage.make_vm("late-policy", &[8 * MIB]).await.unwrap();
        vm.write(0, 0, &[1; 512]).await.unwrap();
        stage.protect("late-policy", "late-policy", json!({"policy": "late"})).await.unwrap();
        let (reason, message) = stage.await_condition("late-policy", "Stalled", "True").await.unwrap();
        assert_eq!(reason, "PolicyNotFound");
        assert!(message.contains("late"), "{message}");
        stage
            .create::<farshore_api::ReplicationPolicy>(json!({
                "metadata": {"name": "late"}, "spec": {"replicationInterval": "30s"},
            }))
            .await
            .unwrap();
        stage.await_condition("late-policy", "Protected", "True").await.unwrap();
    });
}

#[test]
fn the_younger_of_two_protected_vms_for_one_vm_stalls_and_the_older_goes_on() {
    stage(async |stage| {
        let vm = stage.make_vm("twice", &[8 * MIB]).await.unwrap();
        stage.protect("twice", "twice", json!({})).await.unwrap();
        stage.await_condition("twice", "Protected", "True").await.unwrap();
        stage.protect("twice-again", "twice", json!({})).await.unwrap();
        let (reason, message) = stage.await_condition("twice-again", "Stalled", "True").await.unwrap();
        assert_eq!(reason, "DuplicateProtection");
        assert!(message.contains("twice"), "{message}");
        vm.point_after(jiff::Timestamp::now()).await.unwrap();
        stage.delete("twice-again").await.unwrap();
        vm.point_after(jiff::Timestamp::now()).await.unwrap();
    });
}

// R4.1
#[test]
fn a_shared_disk_is_an_unmet_prerequisite() {
    stage(async |stage| {
        let vm = stage.make_vm("shared-disk", &[8 * MIB]).await.unwrap();
        let disk = DiskSettings { disk: "0".into(), shared: Some(true), ..DiskSettings::default() };
        let shared = Settings { disks: vec![disk], ..Settings::default() };
        stage.admin().configure(&vm.name, shared).await.unwrap();
        stage.protect("shared-disk", "shared-disk", json!({})).await.unwrap();
        let (reason, message) = stage.await_condition("shared-disk", "Stalled", "True").await.unwrap();
        assert_eq!(reason, "SharedDisk");
        assert!(message.contains("exclude"), "{message}");
    });
}

// R0.3: an edge that comes with a later version is refused, never accepted and ignored.
#[test]
fn another_desired_state_is_answered_with_not_implemented_yet() {
    stage(async |stage| {
        let vm = stage.make_vm("no-edge", &[8 * MIB]).await.unwrap();
        stage.protect("no-edge", "no-edge", json!({})).await.unwrap();
        stage.await_condition("no-edge", "Protected", "True").await.unwrap();
        stage.patch("no-edge", json!({"spec": {"desiredState": "FailedOver", "epoch": 2}})).await.unwrap();
        let (reason, _) = stage.await_condition("no-edge", "Stalled", "True").await.unwrap();
        assert_eq!(reason, "NotImplementedYet");
        vm.point_after(jiff::Timestamp::now()).await.unwrap();
    });
}
