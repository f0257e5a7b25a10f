//! Two worker processes on a real control plane: they share VMs, take over from each other, and go on without
//! the API server.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use farshore_api::{RecoveryVault, ReplicationRelationship};
use farshore_core::points::owner;
use farshore_core::timing::Timing;
use farshore_lab::launch::{ControlPlane, Program, Seen, until};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::source::{Lab, Source};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const WORKERS: [&str; 2] = ["worker-1", "worker-2"];
const HOST: &str = "farshore-host-h1";

async fn namespace(client: &Client, name: &str) {
    let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
}

/// CRDs, namespaces, a vault of the double.
async fn furnish(client: &Client, lab: &Lab) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in farshore_api::crds() {
        crds.create(&PostParams::default(), &crd).await.unwrap();
    }
    namespace(client, "farshore-system").await;
    namespace(client, HOST).await;
    let key = farshore_lab::blob::Args::in_folder(std::path::Path::new("/")).key;
    let secret: Secret = serde_json::from_value(json!({
        "metadata": { "name": "lab-storage" }, "stringData": { "devstoreaccount1": key },
    }))
    .unwrap();
    Api::namespaced(client.clone(), "farshore-system").create(&PostParams::default(), &secret).await.unwrap();
    let vault: RecoveryVault = serde_json::from_value(json!({
        "apiVersion": "farshore.dev/v1alpha1", "kind": "RecoveryVault", "metadata": { "name": "lab" },
        "spec": {
            "cloud": "Custom",
            "storageAccounts": [{ "name": "devstoreaccount1", "blobEndpoint": lab.double.endpoint() }],
            "authentication": { "sharedKey": { "secretRef": { "name": "lab-storage" } } },
        },
    }))
    .unwrap();
    let vaults: Api<RecoveryVault> = Api::all(client.clone());
    until("the kind RecoveryVault", SOON, async || {
        Ok(match vaults.create(&PostParams::default(), &vault).await {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
}

async fn relate(client: &Client, lab: &Lab, vm: &Source) {
    let relationship: ReplicationRelationship = serde_json::from_value(json!({
        "apiVersion": "farshore.dev/v1alpha1", "kind": "ReplicationRelationship",
        "metadata": { "name": vm.vm.to_string(), "namespace": HOST },
        "spec": {
            "vmID": vm.vm, "protectedVM": { "namespace": "shop", "name": "sql01", "uid": "u" },
            "goal": "Replicate", "term": 1, "stream": 1,
            "disks": vm.disks.iter().map(|d| d.id).collect::<Vec<_>>(),
            "schedule": { "intervalSeconds": 300, "recoveryPointSpacingSeconds": 300,
                "recoveryPointRetentionSeconds": 86400 },
            "endpoints": { "blob": lab.double.endpoint(), "replicaContainer": vm.store.replica.name(),
                "upContainer": vm.store.up.name(), "downContainer": vm.store.down.name() },
            "vault": "lab", "storageAccount": "devstoreaccount1", "sasSecret": "sas",
        },
    }))
    .unwrap();
    let api: Api<ReplicationRelationship> = Api::namespaced(client.clone(), HOST);
    api.create(&PostParams::default(), &relationship).await.unwrap();
}

/// Waits until the last cycle of every VM is applied; says which workers did it.
async fn applied(vms: &[Source]) -> BTreeSet<String> {
    let mut workers = BTreeSet::new();
    for vm in vms {
        let worker = until("the last cycle is applied", SOON, async || {
            let found = vm.store.down.get(farshore_core::names::CURSOR, 1 << 20).await;
            if !matches!(found, Ok(Some(_))) {
                return Ok(Seen::NotYet("no cursor".into()));
            }
            let cursor = vm.cursor().await;
            Ok(if cursor.applied == vm.previous {
                Seen::Yes(cursor.worker)
            } else {
                Seen::NotYet(format!("applied {:?} of {:?}", cursor.applied, vm.previous))
            })
        });
        workers.insert(worker.await.unwrap());
    }
    workers
}

/// Every five minutes of the VMs' time a cycle, each of them a set.
async fn next_cycles(vms: &mut [Source], seed: u64) {
    for vm in vms {
        vm.scribble(seed);
        vm.delta().await;
    }
}

/// Cycles until two workers applied them.
async fn both_work(vms: &mut [Source], seed: u64) {
    let deadline = Instant::now() + SOON;
    loop {
        next_cycles(vms, seed).await;
        if applied(vms).await.len() == 2 {
            return;
        }
        assert!(Instant::now() < deadline, "one worker does all the work");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_vms_take_over_and_go_on_without_the_api_server() {
    let lab = Lab::start().await;
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(folder.path()).await.unwrap();
    let client = plane.client();
    furnish(&client, &lab).await;

    // Two VMs for each worker.
    let mut vms: Vec<Source> = Vec::new();
    while vms.len() < 4 {
        let vm = lab.vm(&[MIB]).await;
        let whose = owner(vm.vm, WORKERS);
        if vms.iter().filter(|other| owner(other.vm, WORKERS) == whose).count() < 2 {
            vms.push(vm);
        }
    }
    for vm in &mut vms {
        vm.protect().await;
        relate(&client, &lab, vm).await;
    }
    let timing = folder.path().join("timing.json");
    std::fs::write(&timing, serde_json::to_vec(&Timing::lab()).unwrap()).unwrap();
    let parts = plane.parts();
    for worker in WORKERS {
        let program = Program::new(env!("CARGO_BIN_EXE_farshore-replica-server"));
        let program =
            program.arg("run").arg("--kubeconfig").arg(plane.kubeconfig()).arg("--timing").arg(&timing);
        parts.start(worker, program.args(["--name", worker])).unwrap();
    }
    applied(&vms).await;
    // Both are there now: each goes on with its own.
    until("two Leases", SOON, async || {
        let leases: Api<Lease> = Api::namespaced(client.clone(), "farshore-system");
        let n = leases.list(&Default::default()).await.map_or(0, |l| l.items.len());
        Ok(if n == 2 { Seen::Yes(()) } else { Seen::NotYet(format!("{n}")) })
    })
    .await
    .unwrap();
    both_work(&mut vms, 5).await;

    // One dies. Its Lease runs out, the leases of its blobs too, and the other one goes on.
    parts.kill("worker-1").unwrap();
    next_cycles(&mut vms, 6).await;
    let workers = applied(&vms).await;
    assert!(workers.contains("worker-2"), "{workers:?}");
    next_cycles(&mut vms, 7).await;
    assert_eq!(applied(&vms).await, BTreeSet::from(["worker-2".to_owned()]));

    // It comes back and takes its share; told to end, it gives it back at once.
    parts.start_again("worker-1").unwrap();
    both_work(&mut vms, 8).await;

    // Without the API server both go on with what they know.
    plane.kill_apiserver().unwrap();
    next_cycles(&mut vms, 9).await;
    assert_eq!(applied(&vms).await.len(), 2);
    // For longer than a worker may be silent: nobody takes anybody's VMs.
    let end = Instant::now() + Timing::lab().worker_lost_after * 2;
    while Instant::now() < end {
        next_cycles(&mut vms, 10).await;
        assert_eq!(applied(&vms).await.len(), 2);
    }
    plane.start_apiserver().await.unwrap();

    let status = parts.stop("worker-1", Duration::from_secs(30)).await.unwrap();
    assert!(status.success(), "{status}");
    next_cycles(&mut vms, 11).await;
    assert_eq!(applied(&vms).await, BTreeSet::from(["worker-2".to_owned()]));

    // A relationship that is to stop is let go.
    let log = parts.log_path("worker-2");
    let line = format!("no longer ours vm.id={}", vms[0].vm);
    let times = || strip(&std::fs::read_to_string(&log).unwrap_or_default()).matches(&line).count();
    let before = times();
    let api: Api<ReplicationRelationship> = Api::namespaced(client.clone(), HOST);
    let stop = json!({ "spec": { "goal": "StopReplicating" } });
    api.patch(&vms[0].vm.to_string(), &PatchParams::default(), &Patch::Merge(&stop)).await.unwrap();
    until("it is let go", SOON, async || {
        Ok(if times() > before { Seen::Yes(()) } else { Seen::NotYet("still at work".into()) })
    })
    .await
    .unwrap();
    let before = vms[0].cursor().await;
    next_cycles(&mut vms, 12).await;
    applied(&vms[1..]).await;
    assert_eq!(vms[0].cursor().await, before);
    for vm in &vms {
        vm.prove_points().await;
    }
}

/// Without the colours of a terminal.
fn strip(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}
