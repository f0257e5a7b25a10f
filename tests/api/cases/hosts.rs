//! What a host may do: its own objects, and only forward (R1.3; DESIGN 9).

use std::time::Duration;

use farshore_api::{HyperVHost, annotation};
use farshore_lab::launch::{Seen, until};
use farshore_test_api::{VM_ID, World, dynamic, merged, refused, unique, valid, world};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret, rbac::v1::RoleBinding};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// An accepted host: its HyperVHost, its namespace, its rights there.
struct Host {
    name: String,
    namespace: String,
    client: Client,
}

async fn host(world: &World) -> Host {
    let name = unique("hv");
    let labels = [(annotation::HOST, name.as_str())];
    let namespace = world.namespace_labelled(&format!("farshore-host-{name}"), &labels).await;
    let object = merged(valid("HyperVHost"), json!({"metadata": {"name": name}, "spec": {"accepted": true}}));
    let hosts = dynamic(world.admin(), "HyperVHost", None);
    hosts.create(&PostParams::default(), &object_of(object)).await.unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "farshore-host"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": annotation::HOST_CLUSTER_ROLE},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User",
                      "name": format!("{}{name}", annotation::HOST_USER_PREFIX)}],
    }))
    .unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(world.admin(), &namespace);
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    let client = world.as_host(&name).await;
    let vms = dynamic(client.clone(), "HyperVVM", Some(&namespace));
    until("the host's rights", Duration::from_secs(10), async || {
        Ok(match vms.list(&ListParams::default()).await {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
    Host { name, namespace, client }
}

fn object_of(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn status(value: Value) -> Patch<Value> {
    Patch::Merge(json!({ "status": value }))
}

fn params() -> PatchParams {
    PatchParams::default()
}

fn vm() -> DynamicObject {
    object_of(merged(valid("HyperVVM"), json!({"metadata": {"name": VM_ID}})))
}

#[test]
fn a_host_reports_on_itself_and_on_no_other() {
    world(async |world| {
        let (a, b) = (host(world).await, host(world).await);
        let hosts: Api<HyperVHost> = Api::all(a.client.clone());
        let facts = status(json!({"agentVersion": "0.1.0", "features": ["Replicate"]}));
        let seen = hosts.patch_status(&a.name, &params(), &facts).await.unwrap();
        assert_eq!(seen.status.unwrap().agent_version.as_deref(), Some("0.1.0"));
        let why = format!("may write only to the status of HyperVHost {}", a.name);
        refused(hosts.patch_status(&b.name, &params(), &facts).await, &why);
        let accept = Patch::Merge(json!({"spec": {"accepted": true}}));
        refused(hosts.patch(&a.name, &params(), &accept).await, "forbidden");
    });
}

#[test]
fn where_a_host_is_put_is_not_for_it_to_say() {
    world(async |world| {
        let host = host(world).await;
        let hosts: Api<HyperVHost> = Api::all(host.client.clone());
        let ours: Api<HyperVHost> = Api::all(world.admin());
        let condition = json!([{"type": "Connected", "status": "True", "reason": "HeartbeatFresh", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        for (field, value) in [
            ("namespace", json!("kube-system")),
            ("conditions", condition.clone()),
            ("lastSeen", json!("2026-01-01T00:00:00Z")),
        ] {
            let claim = status(json!({ field: value }));
            let why = format!("status.{field} is the controller's");
            refused(hosts.patch_status(&host.name, &params(), &claim).await, &why);
            ours.patch_status(&host.name, &params(), &claim).await.unwrap();
            let removal = status(json!({ field: null }));
            refused(hosts.patch_status(&host.name, &params(), &removal).await, &why);
        }
        // With the controller's part in place, the host's own part still goes through, also by server-side apply.
        let apply = Patch::Apply(json!({"apiVersion": "farshore.dev/v1alpha1", "kind": "HyperVHost",
            "status": {"agentVersion": "0.2.0"}}));
        let seen = hosts.patch_status(&host.name, &PatchParams::apply("agent"), &apply).await.unwrap();
        let seen = seen.status.unwrap();
        assert_eq!(
            (seen.agent_version.as_deref(), seen.namespace.as_deref()),
            (Some("0.2.0"), Some("kube-system"))
        );
        assert_eq!(seen.conditions.len(), 1);
    });
}

#[test]
fn a_host_publishes_vms_and_a_heartbeat_in_its_own_namespace_only() {
    world(async |world| {
        let (a, b) = (host(world).await, host(world).await);
        let create = PostParams::default();
        let vms = dynamic(a.client.clone(), "HyperVVM", Some(&a.namespace));
        vms.create(&create, &vm()).await.unwrap();
        let off = Patch::Merge(json!({"spec": {"powerState": "Off"}}));
        vms.patch(VM_ID, &params(), &off).await.unwrap();
        vms.delete(VM_ID, &Default::default()).await.unwrap();
        let lease: Lease = serde_json::from_value(
            json!({"metadata": {"name": "agent"}, "spec": {"holderIdentity": a.name}}),
        )
        .unwrap();
        Api::<Lease>::namespaced(a.client.clone(), &a.namespace).create(&create, &lease).await.unwrap();

        let elsewhere = dynamic(a.client.clone(), "HyperVVM", Some(&b.namespace));
        refused(elsewhere.create(&create, &vm()).await, "forbidden");
        let elsewhere: Api<Lease> = Api::namespaced(a.client.clone(), &b.namespace);
        refused(elsewhere.create(&create, &lease).await, "forbidden");
    });
}

/// Even a binding made by mistake in another host's namespace opens nothing: the label decides.
#[test]
fn a_binding_by_mistake_does_not_let_a_host_write_elsewhere() {
    world(async |world| {
        let (a, b) = (host(world).await, host(world).await);
        let bindings: Api<RoleBinding> = Api::namespaced(world.admin(), &b.namespace);
        let mut binding = bindings.get("farshore-host").await.unwrap();
        let mine: Api<RoleBinding> = Api::namespaced(world.admin(), &a.namespace);
        binding.subjects = mine.get("farshore-host").await.unwrap().subjects;
        bindings.replace("farshore-host", &PostParams::default(), &binding).await.unwrap();

        let elsewhere = dynamic(a.client.clone(), "HyperVVM", Some(&b.namespace));
        let why =
            format!("may write only in its own namespace: the one labelled farshore.dev/host: {}", a.name);
        refused(elsewhere.create(&PostParams::default(), &vm()).await, &why);
    });
}

async fn relationship(world: &World, host: &Host) -> Api<DynamicObject> {
    let object = merged(valid("ReplicationRelationship"), json!({"metadata": {"name": "vm"}}));
    let ours = dynamic(world.admin(), "ReplicationRelationship", Some(&host.namespace));
    ours.create(&PostParams::default(), &object_of(object)).await.unwrap();
    dynamic(host.client.clone(), "ReplicationRelationship", Some(&host.namespace))
}

#[test]
fn a_host_may_not_change_what_it_must_bring_about() {
    world(async |world| {
        let host = host(world).await;
        let relationships = relationship(world, &host).await;
        assert_eq!(relationships.list(&Default::default()).await.unwrap().items.len(), 1);
        let change = Patch::Merge(json!({"spec": {"goal": "StopReplicating"}}));
        refused(relationships.patch("vm", &params(), &change).await, "forbidden");
        refused(relationships.delete("vm", &Default::default()).await, "forbidden");
    });
}

#[test]
fn what_a_host_has_acknowledged_it_cannot_take_back() {
    world(async |world| {
        let host = host(world).await;
        let relationships = relationship(world, &host).await;
        let observed = |term, stream| {
            status(
                json!({"observed": {"goal": "Replicate", "term": term, "stream": stream, "generation": 1}}),
            )
        };
        const OBSERVED: &str = "the term never decreases, nor the stream within a term";
        for (term, stream, ok) in [
            (2, 3, true),
            (2, 3, true),
            (2, 2, false),
            (1, 9, false),
            (2, 4, true),
            (3, 1, true),
            (2, 4, false),
        ] {
            let answer = relationships.patch_status("vm", &params(), &observed(term, stream)).await;
            println!("{term}-{stream}");
            if ok { drop(answer.unwrap()) } else { refused(answer, OBSERVED) }
        }
        refused(
            relationships.patch_status("vm", &params(), &status(json!({"observed": null}))).await,
            OBSERVED,
        );

        let cycle = |term, stream, cycle| {
            status(json!({"lastCycle": {"term": term, "stream": stream, "cycle": cycle, "kind": "Delta",
                "commitHash": "0".repeat(64), "committedAt": "2026-01-01T00:00:00Z"}}))
        };
        for (t, s, c, ok) in [
            (2, 3, 7, true),
            (2, 3, 6, false),
            (2, 3, 8, true),
            (2, 2, 9, false),
            (2, 4, 1, true),
            (1, 9, 9, false),
            (3, 1, 1, true),
        ] {
            let answer = relationships.patch_status("vm", &params(), &cycle(t, s, c)).await;
            println!("{t}-{s}/{c}");
            if ok { drop(answer.unwrap()) } else { refused(answer, "status.lastCycle never goes back") }
        }
        // What has no order may change freely.
        relationships
            .patch_status("vm", &params(), &status(json!({"step": "Idle", "missedCycles": 3})))
            .await
            .unwrap();
        relationships.patch_status("vm", &params(), &status(json!({"missedCycles": 0}))).await.unwrap();
    });
}

/// R1.3: a host reads its own SAS by name and cannot look around.
#[test]
fn a_host_reads_a_secret_of_its_own_by_name_and_lists_none() {
    world(async |world| {
        let (a, b) = (host(world).await, host(world).await);
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "sas-x"}, "stringData": {"up": "x"}}))
                .unwrap();
        for host in [&a, &b] {
            let ours: Api<Secret> = Api::namespaced(world.admin(), &host.namespace);
            ours.create(&PostParams::default(), &secret).await.unwrap();
        }
        let mine: Api<Secret> = Api::namespaced(a.client.clone(), &a.namespace);
        mine.get("sas-x").await.unwrap();
        refused(mine.list(&Default::default()).await, "forbidden");
        refused(mine.create(&PostParams::default(), &secret).await, "forbidden");
        let others: Api<Secret> = Api::namespaced(a.client.clone(), &b.namespace);
        refused(others.get("sas-x").await, "forbidden");
    });
}

/// The same by a real client certificate, as agents have it.
#[test]
fn a_certificate_is_as_good_as_the_name_in_it() {
    world(async |world| {
        let (a, b) = (host(world).await, host(world).await);
        let file = std::env::temp_dir().join(format!("farshore-test-{}.kubeconfig", a.name));
        let user = format!("{}{}", annotation::HOST_USER_PREFIX, a.name);
        world.plane().user_kubeconfig(&user, Some(annotation::HOSTS_GROUP), &file).unwrap();
        let client = farshore_lab::launch::client(&file).await;
        std::fs::remove_file(&file).unwrap();
        let hosts: Api<HyperVHost> = Api::all(client.unwrap());
        let facts = status(json!({"agentVersion": "0.1.0"}));
        hosts.patch_status(&a.name, &params(), &facts).await.unwrap();
        refused(
            hosts.patch_status(&b.name, &params(), &facts).await,
            "may write only to the status of HyperVHost",
        );
    });
}

#[test]
fn in_the_group_without_a_hosts_name_is_nobody() {
    world(async |world| {
        let host = host(world).await;
        let nobody = world.as_user("mallory", &[annotation::HOSTS_GROUP]).await;
        let hosts: Api<HyperVHost> = Api::all(nobody);
        let claim = status(json!({"agentVersion": "6.6.6"}));
        refused(
            hosts.patch_status(&host.name, &params(), &claim).await,
            "a host's user name is farshore:host:",
        );
    });
}
