//! What controller and replica server may do, and what they cannot even by mistake.

use std::time::Duration;

use farshore_lab::launch::{Seen, until};
use farshore_test_api::{NAMESPACE, World, dynamic, merged, refused, unique, valid, world};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicy,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    certificates::v1::CertificateSigningRequest,
    core::v1::{Namespace, Secret},
    rbac::v1::RoleBinding,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

/// Verb, group, resource with subresource, namespace (empty: everywhere), name (empty: any).
type Right = (&'static str, &'static str, &'static str, &'static str, &'static str);

async fn may(client: &Client, right: Right) -> bool {
    let (verb, group, resource, namespace, name) = right;
    let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: some(verb),
                group: some(group),
                resource: some(resource),
                subresource: some(sub),
                namespace: some(namespace),
                name: some(name),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    api.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
}

async fn check(client: &Client, yes: &[Right], no: &[Right]) {
    for (rights, want) in [(yes, true), (no, false)] {
        for right in rights {
            assert_eq!(may(client, *right).await, want, "{right:?}");
        }
    }
}

const OURS: &str = "farshore.dev";
const RBAC: &str = "rbac.authorization.k8s.io";
const CSR: &str = "certificates.k8s.io";

#[test]
fn the_controller_has_what_it_needs_and_no_secrets_of_others() {
    world(async |world| {
        let client = world.as_account("farshore-controller").await;
        let yes = [
            ("watch", OURS, "protectedvms", "", ""),
            ("patch", OURS, "protectedvms/status", "", ""),
            ("create", OURS, "replicationrelationships", "", ""),
            ("create", OURS, "recoveryjobs", "", ""),
            ("create", OURS, "hypervhosts", "", ""),
            ("patch", OURS, "recoveryvaults/status", "", ""),
            ("create", "", "namespaces", "", ""),
            ("bind", RBAC, "clusterroles", "", "farshore-host"),
            ("bind", RBAC, "clusterroles", "", "farshore-controller-host"),
            ("patch", CSR, "certificatesigningrequests/approval", "", ""),
            ("approve", CSR, "signers", "", "kubernetes.io/kube-apiserver-client"),
            ("get", "", "secrets", NAMESPACE, "azure"),
            ("create", "", "secrets", "kube-system", ""),
            ("create", "coordination.k8s.io", "leases", NAMESPACE, ""),
            ("create", "events.k8s.io", "events", "default", ""),
        ];
        let no = [
            ("list", "", "secrets", "", ""),
            ("list", "", "secrets", NAMESPACE, ""),
            ("list", "", "secrets", "kube-system", ""),
            ("get", "", "secrets", "default", ""),
            ("update", "", "secrets", NAMESPACE, ""),
            ("delete", OURS, "protectedvms", "", ""),
            ("create", OURS, "protectedvms", "", ""),
            ("patch", OURS, "replicationrelationships/status", "", ""),
            ("patch", OURS, "recoveryvaults", "", ""),
            ("patch", OURS, "hypervhosts", "", ""),
            ("bind", RBAC, "clusterroles", "", "cluster-admin"),
            ("escalate", RBAC, "clusterroles", "", ""),
            ("create", RBAC, "clusterrolebindings", "", ""),
            ("approve", CSR, "signers", "", "kubernetes.io/kubelet-serving"),
            ("sign", CSR, "signers", "", "kubernetes.io/kube-apiserver-client"),
            ("create", "", "pods", "", ""),
        ];
        check(&client, &yes, &no).await;
    });
}

#[test]
fn the_replica_server_reads_and_writes_nothing_but_its_lease() {
    world(async |world| {
        let client = world.as_account("farshore-replica-server").await;
        let yes = [
            ("watch", OURS, "replicationrelationships", "", ""),
            ("watch", OURS, "recoveryvaults", "", ""),
            ("watch", OURS, "replicationpolicies", "", ""),
            ("get", "", "secrets", NAMESPACE, "azure"),
            ("create", "coordination.k8s.io", "leases", NAMESPACE, ""),
            ("delete", "coordination.k8s.io", "leases", NAMESPACE, ""),
        ];
        let no = [
            ("patch", OURS, "replicationrelationships/status", "", ""),
            ("get", OURS, "protectedvms", "", ""),
            ("list", "", "secrets", NAMESPACE, ""),
            ("get", "", "secrets", "default", ""),
            ("create", "coordination.k8s.io", "leases", "default", ""),
            ("patch", OURS, "recoveryvaults/status", "", ""),
        ];
        check(&client, &yes, &no).await;
    });
}

fn namespace(name: &str) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

fn binding(name: &str, role: &str, subject: &str) -> RoleBinding {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": subject}],
    }))
    .unwrap()
}

fn secret(name: &str, type_: &str) -> Secret {
    serde_json::from_value(json!({"metadata": {"name": name}, "type": type_, "stringData": {"up": "x"}}))
        .unwrap()
}

/// What happens at acceptance, with exactly the chart's rights.
#[test]
fn the_controller_sets_up_a_hosts_namespace() {
    world(async |world| {
        let client = world.as_account("farshore-controller").await;
        let create = PostParams::default();
        let name = unique("farshore-host-a");
        Api::<Namespace>::all(client.clone()).create(&create, &namespace(&name)).await.unwrap();
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &name);
        let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), &name);
        refused(secrets.create(&create, &secret("sas-x", "Opaque")).await, "forbidden");

        let me = format!("system:serviceaccount:{NAMESPACE}:farshore-controller");
        let mine = binding("farshore-controller", "farshore-controller-host", &me);
        bindings.create(&create, &mine).await.unwrap();
        bindings
            .create(&create, &binding("farshore-host", "farshore-host", "farshore:host:a"))
            .await
            .unwrap();
        created_soon(&secrets, &secret("sas-x", "Opaque")).await;
        secrets.list(&Default::default()).await.unwrap();

        let admin = binding("admin", "cluster-admin", &me);
        refused(
            bindings.create(&create, &admin).await,
            "attempting to grant RBAC permissions not currently held",
        );
        Api::<Namespace>::all(client).delete(&name, &Default::default()).await.unwrap();
    });
}

/// A new binding takes the authorizer a moment to see.
async fn created_soon(secrets: &Api<Secret>, secret: &Secret) {
    until("the right to write Secrets", Duration::from_secs(10), async || {
        Ok(match secrets.create(&PostParams::default(), secret).await {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
}

#[test]
fn the_controller_is_confined_to_hosts_namespaces() {
    world(async |world| {
        let client = world.as_account("farshore-controller").await;
        let create = PostParams::default();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        refused(namespaces.create(&create, &namespace("shop-2")).await, "namespaces farshore-host-* only");
        let victim = world.namespace("victim").await;
        refused(namespaces.delete(&victim, &Default::default()).await, "namespaces farshore-host-* only");
        let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), &victim);
        let grab = binding("grab", "farshore-controller-host", "x");
        refused(bindings.create(&create, &grab).await, "role bindings in namespaces farshore-host-* only");
        let system: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
        let token = "bootstrap.kubernetes.io/token";
        refused(
            system.create(&create, &secret("other", token)).await,
            "bootstrap-token-* in kube-system, only",
        );
        let odd = secret("bootstrap-token-abcdef", "Opaque");
        refused(system.create(&create, &odd).await, "of type bootstrap.kubernetes.io/token only");
    });
}

#[test]
fn the_controller_makes_one_time_tokens() {
    world(async |world| {
        let client = world.as_account("farshore-controller").await;
        let system: Api<Secret> = Api::namespaced(client, "kube-system");
        let token: Secret = serde_json::from_value(json!({
            "metadata": {"name": "bootstrap-token-zxcvbn"},
            "type": "bootstrap.kubernetes.io/token",
            "stringData": {"token-id": "zxcvbn", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
                "auth-extra-groups": "system:bootstrappers:farshore"},
        }))
        .unwrap();
        system.create(&PostParams::default(), &token).await.unwrap();
        system.delete("bootstrap-token-zxcvbn", &Default::default()).await.unwrap();
    });
}

/// DESIGN 5: controllers never write a user's spec.
#[test]
fn the_controller_never_changes_the_spec_of_a_protected_vm() {
    world(async |world| {
        let client = world.as_account("farshore-controller").await;
        let namespace = world.namespace("spec").await;
        let vm = merged(valid("ProtectedVM"), json!({"metadata": {"name": "vm"}}));
        let ours = dynamic(world.admin(), "ProtectedVM", Some(&namespace));
        ours.create(&PostParams::default(), &serde_json::from_value(vm).unwrap()).await.unwrap();
        let vms = dynamic(client, "ProtectedVM", Some(&namespace));
        let params = PatchParams::default();
        let finalizer = Patch::Merge(json!({"metadata": {"finalizers": ["farshore.dev/controller"]}}));
        vms.patch("vm", &params, &finalizer).await.unwrap();
        let state = Patch::Merge(json!({"status": {"state": "Enabling"}}));
        vms.patch_status("vm", &params, &state).await.unwrap();
        let pause = Patch::Merge(json!({"spec": {"paused": true}}));
        refused(vms.patch("vm", &params, &pause).await, "never changes the spec of a ProtectedVM");
        let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        vms.patch("vm", &params, &release).await.unwrap();
    });
}

fn request(signer: &str, usages: &[&str]) -> CertificateSigningRequest {
    // The API server wants a request that parses; whose it is, is the controller's to judge.
    const PEM: &str = include_str!("request.pem");
    serde_json::from_value(json!({
        "metadata": {"generateName": "test-"},
        "spec": {"request": k8s_openapi::ByteString(PEM.as_bytes().to_vec()), "signerName": signer, "usages": usages},
    }))
    .unwrap()
}

/// R1.2: the way in.
#[test]
fn a_one_time_token_asks_for_a_client_certificate_and_for_nothing_else() {
    world(async |world| {
        let client = world.as_user("system:bootstrap:abcdef", &["system:bootstrappers:farshore"]).await;
        asks_for_certificates_only(world, &client).await;
        check(
            &client,
            &[],
            &[("get", OURS, "hypervhosts", "", ""), ("list", CSR, "certificatesigningrequests", "", "")],
        )
        .await;
    });
}

/// Renewal.
#[test]
fn a_host_asks_for_a_client_certificate_and_for_nothing_else() {
    world(async |world| {
        let client = world.as_host("renewing").await;
        asks_for_certificates_only(world, &client).await;
    });
}

async fn asks_for_certificates_only(world: &World, client: &Client) {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let create = PostParams::default();
    let signer = "kubernetes.io/kube-apiserver-client";
    let asked = requests.create(&create, &request(signer, &["client auth"])).await.unwrap();
    let name = asked.metadata.name.unwrap();
    requests.get(&name).await.unwrap();
    let kubelet = request("kubernetes.io/kube-apiserver-client-kubelet", &["client auth"]);
    refused(requests.create(&create, &kubelet).await, "signer kubernetes.io/kube-apiserver-client only");
    let server = request(signer, &["server auth"]);
    refused(requests.create(&create, &server).await, "for client auth only");
    let all: Api<CertificateSigningRequest> = Api::all(world.admin());
    all.delete(&name, &Default::default()).await.unwrap();
}

/// The API server checks the policies' expressions against the types: a misspelt field would show here.
#[test]
fn no_policy_has_a_type_warning() {
    world(async |world| {
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(world.admin());
        let list = until("checked policies", Duration::from_secs(30), async || {
            let list = policies.list(&Default::default()).await.unwrap();
            let checked =
                list.items.iter().all(|p| p.status.as_ref().is_some_and(|s| s.type_checking.is_some()));
            Ok(if checked { Seen::Yes(list) } else { Seen::NotYet("not yet checked".to_owned()) })
        })
        .await
        .unwrap();
        assert!(list.items.len() >= 6);
        for policy in list {
            let status = policy.status.unwrap();
            let warnings = status.type_checking.unwrap().expression_warnings;
            assert!(warnings.as_ref().is_none_or(Vec::is_empty), "{:?}: {warnings:#?}", policy.metadata.name);
        }
    });
}
