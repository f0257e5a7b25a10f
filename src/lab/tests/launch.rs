//! The control plane of the lab: real, restartable, and gone when its owner is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::{path::Path, process::Command, time::Duration};

use farshore_lab::launch::{self, ControlPlane, Error, Parts, Program, Seen, State};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace, ServiceAccount},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, PostParams},
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

/// One control plane for all cases: it is most of the time that they take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_serves_custom_resources_and_keeps_them_over_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(folder.path()).await.unwrap();

    applies_a_custom_resource(&plane.client()).await;
    admission_policies_are_enforced(&plane.client()).await;
    an_account_has_its_own_rights_only(&plane, folder.path()).await;

    plane.kill_apiserver().unwrap();
    let away = plane.client().apiserver_version().await;
    assert!(away.is_err(), "nobody answers while it is down");
    plane.start_apiserver().await.unwrap();
    let ships = ships(&plane.client());
    assert_eq!(ships.get("ferry").await.unwrap().data["spec"]["berth"], 3);

    plane.restart_apiserver().await.unwrap();
    assert_eq!(ships.get("ferry").await.unwrap().data["spec"]["berth"], 3);

    let pids: Vec<u32> = pids(plane.parts());
    assert_eq!(pids.len(), 3);
    let url = plane.url().to_owned();
    plane.stop().await;
    assert!(pids.iter().all(|pid| !alive(*pid)), "all ended");

    let again = ControlPlane::start(folder.path()).await.unwrap();
    assert_eq!(again.url(), url, "the same address as before");
    assert_eq!(self::ships(&again.client()).get("ferry").await.unwrap().data["spec"]["berth"], 3);
    let pids = self::pids(again.parts());
    drop(again);
    assert!(pids.iter().all(|pid| !alive(*pid)), "dropping ends all");
}

async fn applies_a_custom_resource(client: &Client) {
    let crd: CustomResourceDefinition = serde_json::from_value(json!({
        "metadata": { "name": "ships.lab.farshore.dev" },
        "spec": {
            "group": "lab.farshore.dev",
            "names": { "kind": "Ship", "plural": "ships" },
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "properties": { "spec": {
                        "type": "object",
                        "properties": { "berth": { "type": "integer" } },
                        "x-kubernetes-validations": [
                            { "rule": "self.berth >= oldSelf.berth", "message": "a berth never decreases" }
                        ],
                    }},
                }},
            }],
        },
    }))
    .unwrap();
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    crds.create(&PostParams::default(), &crd).await.unwrap();
    let ship: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "lab.farshore.dev/v1", "kind": "Ship",
        "metadata": { "name": "ferry" }, "spec": { "berth": 3 },
    }))
    .unwrap();
    let ships = ships(client);
    launch::until("served custom resource", SOON, async || {
        Ok(match ships.create(&PostParams::default(), &ship).await {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
    let mut lower = ships.get("ferry").await.unwrap();
    lower.data["spec"]["berth"] = json!(2);
    let refused = ships.replace("ferry", &PostParams::default(), &lower).await.unwrap_err();
    assert!(refused.to_string().contains("a berth never decreases"), "{refused}");
}

async fn admission_policies_are_enforced(client: &Client) {
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": "no-red" },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"],
            }]},
            "validations": [{ "expression": "object.metadata.name != 'red'", "message": "never red" }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": "no-red" },
        "spec": { "policyName": "no-red", "validationActions": ["Deny"] },
    });
    for object in [policy, binding] {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let types = object.types.clone().unwrap();
        let gvk = GroupVersionKind::try_from(types).unwrap();
        let resource = match gvk.kind.as_str() {
            "ValidatingAdmissionPolicy" => {
                ApiResource::from_gvk_with_plural(&gvk, "validatingadmissionpolicies")
            }
            _ => ApiResource::from_gvk(&gvk),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        api.create(&PostParams::default(), &object).await.unwrap();
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let red: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": "red" } })).unwrap();
    launch::until("enforced policy", SOON, async || {
        Ok(match maps.create(&PostParams::default(), &red).await {
            Err(error) if error.to_string().contains("never red") => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
            Ok(_) => {
                maps.delete("red", &kube::api::DeleteParams::default()).await.unwrap();
                Seen::NotYet("it was let through".to_owned())
            }
        })
    })
    .await
    .unwrap();
}

async fn an_account_has_its_own_rights_only(plane: &ControlPlane, folder: &Path) {
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.client(), "default");
    let account: ServiceAccount = serde_json::from_value(json!({ "metadata": { "name": "guest" } })).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let path = folder.join("guest.kubeconfig");
    plane.service_account_kubeconfig("default", "guest", &path).await.unwrap();
    let guest = launch::client(&path).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(guest);
    let refused = namespaces.list(&kube::api::ListParams::default()).await.unwrap_err();
    assert!(refused.to_string().contains("system:serviceaccount:default:guest"), "{refused}");

    let path = folder.join("admin2.kubeconfig");
    plane.user_kubeconfig("somebody", Some("system:masters"), &path).unwrap();
    let namespaces: Api<Namespace> = Api::all(launch::client(&path).await.unwrap());
    let names = namespaces.list(&kube::api::ListParams::default()).await.unwrap();
    assert!(names.items.iter().any(|namespace| namespace.name_any() == "default"));
}

fn ships(client: &Client) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("lab.farshore.dev", "v1", "Ship");
    Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&gvk))
}

fn pids(parts: &Parts) -> Vec<u32> {
    parts
        .states()
        .into_iter()
        .filter_map(|(_, state)| match state {
            State::Running(pid) => Some(pid),
            State::Ended(_) => None,
        })
        .collect()
}

fn alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[tokio::test]
async fn a_part_is_killed_stopped_paused_and_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let parts = Parts::new(folder.path()).unwrap();
    let sleeper = Program::new("/bin/sleep").arg("600");
    parts.start("sleeper", sleeper.clone()).unwrap();
    let State::Running(first) = parts.state("sleeper").unwrap() else { panic!("it runs") };
    assert!(
        matches!(parts.start("sleeper", sleeper), Err(Error::PartState { .. })),
        "one of a name at a time"
    );

    parts.pause("sleeper").await.unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    assert!(stat.contains("State:\tT"), "{stat}");
    parts.resume("sleeper").unwrap();

    parts.kill("sleeper").unwrap();
    assert!(!alive(first));
    assert!(matches!(parts.kill("sleeper"), Err(Error::PartState { .. })));

    parts.start_again("sleeper").unwrap();
    let State::Running(second) = parts.state("sleeper").unwrap() else { panic!("it runs again") };
    assert_ne!(first, second);
    parts.stop("sleeper", SOON).await.unwrap();
    assert!(!alive(second));
}

#[tokio::test]
async fn a_part_that_ended_shows_the_end_of_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let parts = Parts::new(folder.path()).unwrap();
    parts.start("speaker", Program::new("/bin/sh").args(["-c", "echo last words; exit 7"])).unwrap();
    let status = parts.ended("speaker", SOON).await.unwrap();
    assert_eq!(status.code(), Some(7));
    let message = parts.check("speaker").unwrap_err().to_string();
    assert!(message.contains("last words") && message.contains('7'), "{message}");
    assert!(matches!(parts.start("x", Program::new("/no/such/program")), Err(Error::Start { .. })));
}

/// This test binary, run again as a process of its own by the test below.
const OWNER: &str = "FARSHORE_TEST_OWNER_FOLDER";

#[test]
fn parts_end_when_their_owner_is_killed() {
    if let Some(folder) = std::env::var_os(OWNER) {
        own_a_part_until_killed(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parts_end_when_their_owner_is_killed", "--nocapture"])
        .env(OWNER, folder.path())
        .spawn()
        .unwrap();
    let pid = wait_for(|| std::fs::read_to_string(folder.path().join("pid")).ok()?.parse::<u32>().ok());
    assert!(alive(pid));
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for(|| (!alive(pid)).then_some(()));
}

/// Starts a part on a thread that ends at once: the part must outlive that thread, not the process.
fn own_a_part_until_killed(folder: &Path) -> ! {
    let parts = Parts::new(folder).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| parts.start("sleeper", Program::new("/bin/sleep").arg("600")).unwrap());
    });
    let State::Running(pid) = parts.state("sleeper").unwrap() else { panic!("it runs") };
    std::fs::write(folder.join("pid.tmp"), pid.to_string()).unwrap();
    std::fs::rename(folder.join("pid.tmp"), folder.join("pid")).unwrap();
    loop {
        std::thread::park();
    }
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < end, "not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}
