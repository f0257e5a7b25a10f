//! What people see and may do: columns, categories, aggregated roles, the quickstart (R0.4).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use farshore_lab::launch::{Seen, until};
use farshore_test_api::{VM_ID, dynamic, merged, resource, valid, world};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::json;

#[test]
fn the_columns_answer_the_first_question() {
    world(async |world| {
        let namespace = world.namespace("columns").await;
        let api = dynamic(world.admin(), "ProtectedVM", Some(&namespace));
        let vm = merged(valid("ProtectedVM"), json!({"metadata": {"name": "sql01"}}));
        api.create(&PostParams::default(), &serde_json::from_value(vm).unwrap()).await.unwrap();
        let status = json!({"state": "Protected", "health": "Warning", "replicationState": "Replicating", "rpo": "4m12s",
            "vmID": VM_ID, "conditions": [{"type": "Ready", "status": "False", "reason": "Retrying", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        api.patch_status("sql01", &PatchParams::default(), &Patch::Merge(json!({ "status": status })))
            .await
            .unwrap();
        let kubectl = world.kubectl();
        for names in ["protectedvms", "pvm", "farshore"] {
            let seen = kubectl.run(&["get", names, "-n", &namespace]).accepted();
            let row = seen.lines().find(|line| line.contains("sql01")).unwrap_or_else(|| panic!("{seen}"));
            for word in ["Protected", "Warning", "Replicating", "4m12s", "False", "Retrying"] {
                assert!(row.contains(word), "{word}: {seen}");
            }
        }
        // kstatus tools and people wait by condition.
        let wait = ["wait", "pvm/sql01", "-n", &namespace, "--for=condition=Ready=false", "--timeout=5s"];
        kubectl.run(&wait).accepted();
        let explained = kubectl.run(&["explain", "protectedvm.spec.epoch"]).accepted();
        assert!(explained.contains("never decreases"), "{explained}");
    });
}

/// Every kind has columns that print without an error for an object that nobody has looked at yet.
#[test]
fn every_kind_prints() {
    world(async |world| {
        let namespace = world.namespace("columns").await;
        let kubectl = world.kubectl();
        for crd in farshore_api::crds() {
            let kind = &crd.spec.names.kind;
            let scope = (crd.spec.scope == "Namespaced").then_some(namespace.as_str());
            let name = if kind == "HyperVVM" { VM_ID } else { "printed" };
            let object = merged(valid(kind), json!({"metadata": {"name": name}}));
            let api = dynamic(world.admin(), kind, scope);
            api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
            for short in crd.spec.names.short_names.iter().flatten() {
                let seen = kubectl.run(&["get", short, name, "-n", &namespace, "-o", "wide"]).accepted();
                assert!(
                    seen.starts_with("NAME") && (seen.contains("AGE") || seen.contains("STARTED")),
                    "{seen}"
                );
            }
            api.delete(name, &Default::default()).await.unwrap();
        }
    });
}

#[test]
fn an_editor_of_a_namespace_protects_vms_and_leaves_administrators_kinds_alone() {
    world(async |world| {
        let namespace = world.namespace("people").await;
        for (user, role) in [("ed", "edit"), ("vi", "view")] {
            let binding: RoleBinding = serde_json::from_value(json!({
                "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            }))
            .unwrap();
            let api: Api<RoleBinding> = Api::namespaced(world.admin(), &namespace);
            api.create(&PostParams::default(), &binding).await.unwrap();
        }
        let vm = |name: &str| -> DynamicObject {
            serde_json::from_value(merged(valid("ProtectedVM"), json!({"metadata": {"name": name}}))).unwrap()
        };
        let editor = dynamic(world.as_user("ed", &[]).await, "ProtectedVM", Some(&namespace));
        aggregated(&editor, &vm("vm")).await;
        let status = Patch::Merge(json!({"status": {"state": "FailedOver"}}));
        let forbidden = "forbidden";
        let answer = editor.patch_status("vm", &PatchParams::default(), &status).await;
        farshore_test_api::refused(answer, forbidden);
        let viewer = dynamic(world.as_user("vi", &[]).await, "ProtectedVM", Some(&namespace));
        viewer.get("vm").await.unwrap();
        farshore_test_api::refused(viewer.create(&PostParams::default(), &vm("vm2")).await, forbidden);
        let vaults = dynamic(world.as_user("ed", &[]).await, "RecoveryVault", None);
        farshore_test_api::refused(vaults.list(&Default::default()).await, forbidden);
    });
}

/// kube-controller-manager aggregates roles in its own time.
async fn aggregated(api: &Api<DynamicObject>, object: &DynamicObject) {
    until("aggregated roles", Duration::from_secs(20), async || {
        Ok(match api.create(&PostParams::default(), object).await {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Every manifest of every example, strictly: an unknown field is an error.
#[test]
fn the_examples_are_accepted_as_they_are() {
    world(async |world| {
        let kubectl = world.kubectl();
        let mut folders: Vec<_> =
            std::fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.retain(|path| path.is_dir());
        folders.sort();
        assert!(!folders.is_empty());
        for folder in folders {
            let path = folder.to_str().unwrap();
            // The namespaces that an example names must exist before its objects are tried.
            let made = kubectl.run(&["apply", "-f", &format!("{path}/namespace.yaml")]);
            assert!(made.ok || made.text.contains("does not exist"), "{}", made.text);
            let said =
                kubectl.run(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", path]);
            let said = said.accepted();
            println!("{said}");
            assert!(said.contains("serverside-applied"), "{said}");
        }
    });
}

#[test]
fn the_quickstart_names_only_what_it_brings() {
    let folder = examples().join("quickstart");
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            for document in text.split("\n---\n") {
                objects.push(serde_saphyr::from_str::<serde_json::Value>(document).unwrap());
            }
        }
    }
    let has = |kind: &str, name: &serde_json::Value| {
        objects.iter().any(|o| o["kind"] == kind && &o["metadata"]["name"] == name)
    };
    let of = |kind: &str| objects.iter().filter(|o| o["kind"] == kind).collect::<Vec<_>>();
    let vms = of("ProtectedVM");
    assert!(!vms.is_empty());
    for vm in vms {
        assert!(has("HyperVSite", &vm["spec"]["source"]["site"]));
        assert!(has("ReplicationPolicy", &vm["spec"]["policy"]));
        assert!(has("RecoveryVault", &vm["spec"]["vault"]));
        assert!(has("Namespace", &vm["metadata"]["namespace"]));
        assert_eq!(resource("ProtectedVM").api_version, vm["apiVersion"]);
    }
    for vault in of("RecoveryVault") {
        let key = &vault["spec"]["authentication"]["sharedKey"]["secretRef"]["name"];
        let secret = of("Secret").into_iter().find(|s| &s["metadata"]["name"] == key).unwrap();
        for account in vault["spec"]["storageAccounts"].as_array().unwrap() {
            assert!(secret["stringData"].get(account["name"].as_str().unwrap()).is_some());
        }
    }
}
