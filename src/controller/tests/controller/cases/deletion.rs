//! Deletion with each policy; without storage; and creating again.

use farshore_api::Goal;
use farshore_core::format::ledger::LedgerState;
use farshore_core::ids::Stream;
use farshore_lab::launch::{Seen, until};
use serde_json::json;

use crate::stage::{LIMIT, abandon, find, stage, stage_alone};

#[test]
fn retain_keeps_the_data_and_the_hosts_points_for_a_week() {
    stage(async |stage| {
        let vm = stage.protected("retain", json!({})).await;
        let object = stage.protected_vms().get("retain").await.unwrap();
        stage.delete("retain").await;
        stage.await_gone("retain").await;
        let rel = vm.relationship(|r| r.spec.goal == Goal::StopReplicating).await;
        let keep = rel.spec.keep_points_until.unwrap().0.duration_since(jiff::Timestamp::now());
        assert!((keep.as_hours() - 7 * 24).abs() <= 1, "{keep:?}");
        let ledger = vm.ledger().await;
        assert_eq!((ledger.state, vm.exists().await), (LedgerState::Released, [true; 3]));
        assert!(vm.sas().await.is_none(), "the host's SAS is taken away");
        stage.await_job(&object, "disable", |s| s["state"] == "Succeeded").await;
    });
}

#[test]
fn stop_replication_asks_the_host_to_leave_nothing() {
    stage(async |stage| {
        let vm = stage.protected("stop", json!({"deletionPolicy": "StopReplication"})).await;
        stage.delete("stop").await;
        stage.await_gone("stop").await;
        let rel = vm.relationship(|r| r.spec.goal == Goal::StopReplicating).await;
        assert_eq!(rel.spec.keep_points_until, None);
        assert_eq!((vm.ledger().await.state, vm.exists().await), (LedgerState::Released, [true; 3]));
        // When the host is done, nothing is left of the relationship.
        vm.take_up(json!({"released": true})).await;
        let api = stage.relationships();
        until("end of the relationship", LIMIT, async || {
            Ok(match api.get_opt(&vm.id.to_string()).await.unwrap() {
                None => Seen::Yes(()),
                Some(found) => Seen::NotYet(format!("{:?}", found.status)),
            })
        })
        .await
        .unwrap();
    });
}

#[test]
fn purge_removes_the_containers_once_confirmed() {
    stage(async |stage| {
        let vm = stage.protected("purge", json!({"deletionPolicy": "Purge"})).await;
        stage.delete("purge").await;
        let message = stage.await_stalled("purge", "PurgeNotConfirmed").await;
        assert!(message.contains(&format!("farshore.dev/confirm-purge: {}", vm.id)), "{message}");
        assert_eq!((vm.exists().await, vm.ledger().await.state), ([true; 3], LedgerState::Protected));
        assert_eq!(
            vm.relationship(|_| true).await.spec.goal,
            Goal::Replicate,
            "replication goes on until then"
        );
        let confirm = json!({"metadata": {"annotations": {"farshore.dev/confirm-purge": vm.id.to_string()}}});
        stage.patch("purge", confirm).await;
        stage.await_gone("purge").await;
        assert_eq!(vm.exists().await, [false; 3]);
        vm.relationship(|r| r.spec.goal == Goal::StopReplicating && r.spec.keep_points_until.is_none()).await;
    });
}

#[test]
fn creating_it_again_adopts_what_is_there() {
    stage(async |stage| {
        let vm = stage.protected("again", json!({})).await;
        vm.verify(1, 5).await;
        stage.delete("again").await;
        stage.await_gone("again").await;
        stage.protect_as("again", json!({})).await;
        let rel = vm.relationship(|r| r.spec.goal == Goal::Replicate).await;
        let base = rel.spec.base.clone().unwrap();
        assert_eq!((rel.spec.stream, base.stream, base.cycle), (2, 1, 5));
        assert_eq!(base.rct_ids.len(), 2);
        vm.await_sas(|_| true).await;
        vm.take_up(json!({})).await;
        vm.point(2, 1).await;
        stage.await_status("again", "Protected", |s| s["state"] == "Protected").await;
        assert_eq!(vm.ledger().await.stream, Stream(2));
        // The base is what the stream began from, however far it has come.
        assert_eq!(vm.relationship(|_| true).await.spec.base, Some(base));
    });
}

// DESIGN 4: what CEL cannot see, the ledger decides.
#[test]
fn an_old_manifest_created_again_moves_nothing() {
    stage(async |stage| {
        let vm = stage.protected("stale", json!({})).await;
        stage.patch("stale", json!({"spec": {"epoch": 7}})).await;
        stage.await_status("stale", "epoch 7", |s| s["effective"]["epoch"] == 7).await;
        stage.delete("stale").await;
        stage.await_gone("stale").await;
        stage.protect_as("stale", json!({"epoch": 3})).await;
        let message = stage.await_stalled("stale", "StaleDesiredState").await;
        assert!(message.contains("epoch 7"), "{message}");
        assert_eq!(vm.ledger().await.state, LedgerState::Released);
        stage.patch("stale", json!({"spec": {"epoch": 8}})).await;
        vm.relationship(|r| r.spec.goal == Goal::Replicate).await;
    });
}

#[test]
fn an_object_for_which_nothing_was_made_goes_at_once() {
    stage(async |stage| {
        stage.protect_as("nothing", json!({"policy": "no-such-policy"})).await;
        stage.await_stalled("nothing", "PolicyNotFound").await;
        stage.delete("nothing").await;
        stage.await_gone("nothing").await;
    });
}

#[test]
fn deletion_waits_for_storage_or_is_abandoned() {
    stage_alone(async |stage| {
        let back = stage.protected("storage-back", json!({})).await;
        let never = stage.protected("storage-gone", json!({})).await;
        stage.world.blobs().link().cut();
        for name in ["storage-back", "storage-gone"] {
            stage.delete(name).await;
            let waits = |s: &serde_json::Value| find(s, "Ready")["reason"] == "DeletionWaits";
            let status = stage.await_status(name, "DeletionWaits", waits).await;
            assert!(find(&status, "Ready")["message"].as_str().unwrap().contains("farshore.dev/abandon"));
            assert_eq!(find(&status, "LedgerReachable")["status"], "False");
        }
        back.relationship(|r| r.spec.goal == Goal::StopReplicating).await;
        stage.patch("storage-gone", abandon()).await;
        stage.await_gone("storage-gone").await;
        stage.world.blobs().link().mend();
        stage.await_gone("storage-back").await;
        assert_eq!(back.ledger().await.state, LedgerState::Released);
        assert_eq!(never.exists().await, [true; 3]);
    });
}
