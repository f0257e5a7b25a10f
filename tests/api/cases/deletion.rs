//! A prune must not delete the object of a VM that is not at home (DESIGN 4; GitOps scenario D).

use std::time::Duration;

use farshore_api::{DesiredState, State, annotation};
use farshore_lab::launch::{Seen, until};
use farshore_test_api::{Kubectl, VM_ID, dynamic, merged, refused, unique, valid, world};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

const REFUSED: &str = "deleting its ProtectedVM would leave it without anybody who knows where it runs";

/// Every state, and whether deletion is free there. A new state does not compile until it is here.
fn free(state: State) -> bool {
    match state {
        State::Protected | State::Enabling => true,
        State::FailedOver
        | State::FailoverCommitted
        | State::FailbackSynchronized
        | State::FailedBack
        | State::FailbackCommitted
        | State::FailingOver
        | State::ChangingRecoveryPoint
        | State::Cancelling
        | State::Committing
        | State::Synchronizing
        | State::FailingBack
        | State::Undoing
        | State::CommittingFailback
        | State::Reversing => false,
    }
}

const EDGES: [State; 10] = [
    State::Enabling,
    State::FailingOver,
    State::ChangingRecoveryPoint,
    State::Cancelling,
    State::Committing,
    State::Synchronizing,
    State::FailingBack,
    State::Undoing,
    State::CommittingFailback,
    State::Reversing,
];

fn delete(kubectl: &Kubectl, namespace: &str, name: &str) -> farshore_test_api::Output {
    kubectl.run(&["delete", "protectedvm", name, "-n", namespace, "--wait=false"])
}

#[test]
fn deletion_is_refused_unless_the_vm_is_at_home_or_its_id_is_given() {
    world(async |world| {
        let namespace = world.namespace("deletion").await;
        let api = dynamic(world.admin(), "ProtectedVM", Some(&namespace));
        let kubectl = world.kubectl();
        for state in DesiredState::ALL.into_iter().map(State::from).chain(EDGES) {
            println!("{state:?}");
            let name = unique("vm");
            let vm = merged(valid("ProtectedVM"), json!({"metadata": {"name": name}}));
            api.create(&PostParams::default(), &serde_json::from_value(vm).unwrap()).await.unwrap();
            let status = Patch::Merge(json!({"status": {"state": state, "vmID": VM_ID}}));
            api.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
            if free(state) {
                delete(&kubectl, &namespace, &name).accepted();
                continue;
            }
            delete(&kubectl, &namespace, &name).refused(REFUSED);
            annotate(&kubectl, &namespace, &name, "another-id");
            delete(&kubectl, &namespace, &name).refused(&format!("{}={VM_ID}", annotation::CONFIRM_DELETE));
            annotate(&kubectl, &namespace, &name, VM_ID);
            delete(&kubectl, &namespace, &name).accepted();
        }
    });
}

fn annotate(kubectl: &Kubectl, namespace: &str, name: &str, value: &str) {
    let pair = format!("{}={value}", annotation::CONFIRM_DELETE);
    kubectl.run(&["annotate", "--overwrite", "protectedvm", name, "-n", namespace, &pair]).accepted();
}

#[test]
fn an_object_without_a_state_is_free() {
    world(async |world| {
        let namespace = world.namespace("deletion").await;
        let api = dynamic(world.admin(), "ProtectedVM", Some(&namespace));
        for status in [Value::Null, json!({"health": "Normal"})] {
            let vm = merged(valid("ProtectedVM"), json!({"metadata": {"name": "vm"}}));
            api.create(&PostParams::default(), &serde_json::from_value(vm).unwrap()).await.unwrap();
            api.patch_status("vm", &PatchParams::default(), &Patch::Merge(json!({ "status": status })))
                .await
                .unwrap();
            delete(&world.kubectl(), &namespace, "vm").accepted();
        }
    });
}

/// `kubectl delete --all` and a deleted namespace go through the same gate.
#[test]
fn deleting_all_of_a_namespace_or_the_namespace_is_refused_too() {
    world(async |world| {
        let namespace = world.namespace("deletion").await;
        let api = dynamic(world.admin(), "ProtectedVM", Some(&namespace));
        let vm = merged(valid("ProtectedVM"), json!({"metadata": {"name": "vm"}}));
        api.create(&PostParams::default(), &serde_json::from_value(vm).unwrap()).await.unwrap();
        let status = Patch::Merge(json!({"status": {"state": "FailedOver", "vmID": VM_ID}}));
        api.patch_status("vm", &PatchParams::default(), &status).await.unwrap();
        let all = api.delete_collection(&Default::default(), &Default::default()).await;
        refused(all.map(|_| ()), REFUSED);

        let namespaces: Api<Namespace> = Api::all(world.admin());
        namespaces.delete(&namespace, &Default::default()).await.unwrap();
        until("the namespace to say why it stays", Duration::from_secs(60), async || {
            let status = namespaces.get(&namespace).await.unwrap().status.unwrap();
            let said = status.conditions.into_iter().flatten().filter_map(|c| c.message).collect::<Vec<_>>();
            Ok(if said.iter().any(|m| m.contains(REFUSED)) {
                Seen::Yes(())
            } else {
                Seen::NotYet(said.join("; "))
            })
        })
        .await
        .unwrap();
        assert!(api.get("vm").await.unwrap().metadata.deletion_timestamp.is_none());
        annotate(&world.kubectl(), &namespace, "vm", VM_ID);
        until("the namespace to go once confirmed", Duration::from_secs(60), async || {
            let left = namespaces.get_opt(&namespace).await.unwrap();
            Ok(if left.is_none() { Seen::Yes(()) } else { Seen::NotYet("still there".to_owned()) })
        })
        .await
        .unwrap();
    });
}
