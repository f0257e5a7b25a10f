//! The protect road on real parts, step by step and with everything killed in between.

use farshore_azure::{BlobErrorKind, Credential, Endpoint, HttpOptions, PutNew, Sas, crc64};
use farshore_core::format::Record as _;
use farshore_core::format::ledger::LedgerState;
use farshore_core::format::side::SideRecord;
use farshore_core::ids::Stream;
use farshore_core::names;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::stage::{NAMESPACE, Vm, events, find, host_namespace, stage, stage_alone, text};

fn states(job: &Value) -> Vec<&str> {
    job["status"]["steps"].as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap()).collect()
}

// R4.1, R4.2, R4.3, R6.1
#[test]
fn a_vm_is_protected_step_by_step() {
    stage(async |stage| {
        let vm = stage.report("road").await;
        let object = stage.protect_as("road", json!({})).await;
        let rel = vm.relationship(|_| true).await;
        assert_eq!(rel.namespace(), Some(host_namespace()));
        assert_eq!((rel.spec.term, rel.spec.stream, &rel.spec.base), (1, 1, &None));
        assert_eq!(rel.spec.disks, vm.disks.iter().map(ToString::to_string).collect::<Vec<_>>());
        let ledger = vm.ledger().await;
        assert_eq!((ledger.state, ledger.disks.clone()), (LedgerState::Enabling, vm.disks.clone()));
        let (metadata, _) = vm.containers.up.metadata().await.unwrap().unwrap();
        for (key, want) in
            [("namespace", NAMESPACE), ("name", "road"), ("vmname", "road"), ("site", "amsterdam")]
        {
            assert_eq!(metadata.get(key).map(String::as_str), Some(want), "{metadata:?}");
        }
        assert_eq!(metadata.get("clusterid"), Some(&ledger.cluster_id));

        let job = stage.await_job(&object, "enable", |s| s["currentStep"] == "Enable replication").await;
        assert_eq!(states(&job), ["Succeeded", "Succeeded", "InProgress", "NotStarted", "NotStarted"]);
        vm.take_up(json!({"progress": {"bytesTotal": 100, "bytesCopied": 40, "bytesSent": 10}})).await;
        let status =
            stage.await_status("road", "progress", |s| s["initialReplication"]["percent"] == 40).await;
        assert_eq!(
            (&status["state"], &status["replicationState"]),
            (&json!("Enabling"), &json!("WaitingToCompleteInitialReplication"))
        );
        let job =
            stage.await_job(&object, "enable", |s| s["currentStep"] == "Starting initial replication").await;
        assert_eq!(states(&job), ["Succeeded", "Succeeded", "Succeeded", "InProgress", "NotStarted"]);

        vm.verify(1, 1).await;
        let name = vm.point(1, 2).await;
        let status = stage.await_status("road", "Protected", |s| s["state"] == "Protected").await;
        assert_eq!(vm.ledger().await.state, LedgerState::Protected, "the ledger first");
        for (condition, want) in [
            ("Ready", "True"),
            ("Reconciling", "False"),
            ("Stalled", "False"),
            ("Protected", "True"),
            ("RecoveryPointsCurrent", "True"),
            ("LedgerReachable", "True"),
            ("ResynchronizationRequired", "False"),
        ] {
            assert_eq!(find(&status, condition)["status"], want, "{condition}: {status}");
            assert_eq!(find(&status, condition)["observedGeneration"], status["observedGeneration"]);
        }
        assert_eq!(status["recoveryPoints"][0]["name"], name);
        assert_eq!(status["health"], "Normal");
        assert_eq!(status["effective"]["nextEpoch"], 2);
        assert_eq!(status["disks"].as_array().unwrap().len(), 2);
        let job = stage.await_job(&object, "enable", |s| s["state"] == "Succeeded").await;
        assert!(job["status"]["finishedAt"].is_string());
        let job = stage.await_job(&object, "finalize", |s| s["state"] == "Succeeded").await;
        assert_eq!(states(&job), ["Skipped", "Succeeded"]);
        assert!(job["status"]["steps"][0]["message"].as_str().unwrap().starts_with("NetworkNotConfigurable"));
        let told = events(stage.client(), "road").await;
        let of = |reason: &str| told.iter().filter(|(_, r)| r == reason).count();
        assert_eq!((of("Enabling"), of("Protected")), (1, 1), "{told:?}");
    });
}

// DESIGN 5, 9
#[test]
fn a_host_is_given_just_enough_and_side_is_copied() {
    stage(async |stage| {
        let vm = stage.protected("sas", json!({})).await;
        let secret = vm.await_sas(|_| true).await;
        assert_eq!(secret.metadata.owner_references.as_ref().unwrap()[0].kind, "ReplicationRelationship");
        let endpoint = || Endpoint::parse(stage.world.blobs().endpoint()).unwrap();
        let with = |key: &str, container: &str| {
            let credential = Credential::Sas(Sas::new(&text(&secret, key)));
            let service =
                farshore_azure::BlobService::new(endpoint(), credential, &HttpOptions::default()).unwrap();
            service.container(container)
        };
        let up = with("up", &names::up_container(vm.id));
        let put = async |name: &str| up.put_new(name, "x".into(), crc64(b"x")).await.unwrap();
        assert!(matches!(put("probe/1").await, PutNew::Created(_)));
        assert!(!matches!(put("probe/1").await, PutNew::Created(_)), "nothing is overwritten");
        assert_eq!(up.get("probe/1", 10).await.unwrap_err().kind, BlobErrorKind::NotAuthorized);
        let down = with("down", &names::down_container(vm.id));
        let side = down.get(names::SIDE, 1 << 16).await.unwrap().unwrap();
        let (side, ledger) = (SideRecord::decode(&side.bytes).unwrap(), vm.ledger().await);
        assert_eq!((side.seq, side.term, side.stream), (ledger.seq, ledger.term, ledger.stream));
        assert!(down.put_if("x", "x".into(), &farshore_azure::Condition::None).await.is_err());
        for key in ["up", "down"] {
            let replica = with(key, &names::replica_container(vm.id));
            assert_eq!(
                replica.get(names::LEDGER, 1 << 20).await.unwrap_err().kind,
                BlobErrorKind::NotAuthorized,
                "{key}"
            );
        }
        // Renewed at half of its life, which is short here.
        let first = text(&secret, "expiresAt");
        vm.await_sas(|s| text(s, "expiresAt") != first).await;
    });
}

async fn ends_protected(stage: &crate::stage::Stage, vm: &Vm) {
    let rel = vm.relationship(|_| true).await;
    vm.take_up(json!({})).await;
    vm.point(rel.spec.stream, 2).await;
    let name = &vm.name;
    stage.await_status(name, "Protected", |s| s["state"] == "Protected").await;
    let ledger = vm.ledger().await;
    assert_eq!((ledger.stream, ledger.state), (Stream(1), LedgerState::Protected), "nothing was done twice");
    assert_eq!(ledger.history.iter().filter(|h| h.note.starts_with("protection begins")).count(), 1);
    let notes: Vec<_> = ledger.history.iter().map(|h| h.note.as_str()).collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn a_controller_killed_again_and_again_ends_at_the_same() {
    stage_alone(async |stage| {
        let vm = stage.report("killed").await;
        stage.protect_as("killed", json!({})).await;
        // Each life is a little longer than the one before, so that it is killed at other points of the road.
        for life in 0..6_u64 {
            tokio::time::sleep(std::time::Duration::from_millis(life * 120)).await;
            stage.kill_controller().await;
            stage.start_controller().await.unwrap();
        }
        ends_protected(stage, &vm).await;
    });
}

#[test]
fn an_api_server_killed_in_between_is_waited_for() {
    stage_alone(async |stage| {
        let vm = stage.report("no-api").await;
        stage.protect_as("no-api", json!({})).await;
        vm.relationship(|_| true).await;
        stage.world.plane().kill_apiserver().unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        stage.world.plane().start_apiserver().await.unwrap();
        ends_protected(stage, &vm).await;
        let status = stage.await_status("no-api", "Ready", |s| find(s, "Ready")["status"] == "True").await;
        assert_eq!(status["state"], "Protected");
    });
}

// Of two replicas one leads; the other goes on when that is killed, or ends in good order.
#[test]
fn another_replica_takes_over_from_one_that_is_killed_or_stopped() {
    stage_alone(async |stage| {
        let holder = async || {
            let lease = stage.leases().get("farshore-controller").await.unwrap();
            lease.spec.unwrap().holder_identity
        };
        let first = holder().await;
        let second = stage.another_controller().await.unwrap();
        let vm = stage.protected("two-replicas", json!({})).await;
        assert_eq!(holder().await, first, "the second waits");
        stage.take_controller().kill().await;
        vm.take_up(json!({"journalLost": true})).await;
        vm.relationship(|r| r.spec.stream == 2).await;
        let after_kill = holder().await;
        assert_ne!(after_kill, first);
        stage.start_controller().await.unwrap();
        second.end().await;
        vm.take_up(json!({"journalLost": true})).await;
        vm.relationship(|r| r.spec.stream == 3).await;
        assert_ne!(holder().await, after_kill);
        let ledger = vm.ledger().await;
        assert_eq!(ledger.stream, Stream(3));
        let seqs: Vec<u64> = ledger.history.iter().map(|h| h.seq).collect();
        assert_eq!(seqs, (1..=ledger.seq).collect::<Vec<_>>(), "no write was lost or doubled");
    });
}
