//! The chart, by the real helm and on a real API server (R0.4).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;

use farshore_test_api::{World, chart, dynamic, merged, unique, valid, world};
use farshore_test_chart::{NAMESPACE, helm, manifest, of, render};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// Values that switch every branch of every template at least once.
const VARIANTS: &[&[&str]] = &[
    &[],
    &["controller.enabled=false", "replicaServer.enabled=false"],
    &[
        "crds.install=false",
        "rbac.aggregate=false",
        "rbac.bootstrapTokens=false",
        "admissionPolicies.enabled=false",
    ],
    &["crds.keep=false", "controller.replicas=1", "replicaServer.replicas=1", "commonLabels.team=dr"],
    &[
        "image.registry=registry.example.com/dr",
        "image.pullSecrets={one,two}",
        "controller.image.tag=9.9.9",
        "controller.extraArgs={--verbose}",
        "controller.extraEnv[0].name=A",
        "controller.extraEnv[0].value=b",
        "controller.podLabels.azure\\.workload\\.identity/use=yes",
        "controller.podAnnotations.a=b",
        "controller.serviceAccount.annotations.azure\\.workload\\.identity/client-id=x",
        "replicaServer.serviceAccount.annotations.a=b",
        "controller.priorityClassName=system-cluster-critical",
        "controller.tolerations[0].key=dr",
        "controller.tolerations[0].operator=Exists",
        "controller.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey=zone",
        "controller.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector.matchLabels.a=b",
        "replicaServer.nodeSelector.disktype=ssd",
    ],
];

#[test]
fn it_lints() {
    let chart = chart();
    helm(&["lint", "--strict", chart.to_str().unwrap()]).unwrap();
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (value, said) in [
        ("controler.enabled=false", "controler"),
        ("controller.replicas=-1", "/controller/replicas"),
        ("controller.image.digest=sha256:abc", "/controller/image/digest"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.registry=registry.example.com/", "/image/registry"),
        ("crds.install=maybe", "/crds/install"),
        ("replicaServer.resource.limits.memory=1Gi", "resource"),
    ] {
        let error = format!("{:#}", manifest(&[value]).expect_err(value));
        assert!(error.contains(said), "{value}: {error}");
    }
}

#[test]
fn every_object_in_every_variant_is_accepted_by_the_api_server() {
    world(async |world| {
        for values in VARIANTS {
            let manifest = manifest(values).unwrap();
            let path = std::env::temp_dir().join(unique("farshore-chart"));
            std::fs::write(&path, manifest).unwrap();
            let flags = ["--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict"];
            let args = [&["apply", "-f", path.to_str().unwrap()][..], &flags].concat();
            let said = world.kubectl().run(&args);
            std::fs::remove_file(&path).unwrap();
            let said = said.accepted();
            assert_eq!(
                said.lines().filter(|l| l.contains("serverside-applied")).count(),
                render(values).unwrap().len()
            );
            assert!(!said.to_lowercase().contains("warning"), "{values:?}: {said}");
        }
    });
}

/// The CRDs of the types, of `crds/` and of the chart are one thing.
#[test]
fn the_crds_are_those_of_the_types() {
    let files = chart().join("files/crds");
    let mut names = BTreeSet::new();
    for crd in farshore_api::crds() {
        let name = format!("{}.yaml", crd.spec.names.singular.as_deref().unwrap());
        let [generated, charted] = [chart().join("../../crds"), files.clone()]
            .map(|folder| std::fs::read_to_string(folder.join(&name)).unwrap());
        assert_eq!(generated, charted, "{name}: run cargo xtask crds");
        let read: CustomResourceDefinition = serde_saphyr::from_str(&generated).unwrap();
        assert_eq!(read, crd, "{name}: run cargo xtask crds");
        names.insert(name);
    }
    for folder in [chart().join("../../crds"), files] {
        let found: BTreeSet<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(found, names, "{}", folder.display());
    }
    let rendered = render(&[]).unwrap();
    let rendered: BTreeSet<_> =
        of(&rendered, "CustomResourceDefinition").iter().map(|c| c["metadata"]["name"].to_string()).collect();
    assert_eq!(rendered.len(), names.len());
}

#[test]
fn crds_are_kept_unless_asked_otherwise() {
    for (value, want) in [("crds.keep=true", json!("keep")), ("crds.keep=false", Value::Null)] {
        for crd in of(&render(&[value]).unwrap(), "CustomResourceDefinition") {
            assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], want, "{value}");
        }
    }
    assert!(of(&render(&["crds.install=false"]).unwrap(), "CustomResourceDefinition").is_empty());
}

/// Least rights: nothing by wildcard, Secrets by name except where a host's SAS are made.
#[test]
fn no_right_is_given_by_wildcard_and_no_secret_can_be_listed() {
    let objects = render(&[]).unwrap();
    let roles = [of(&objects, "ClusterRole"), of(&objects, "Role")].concat();
    assert!(roles.len() > 8);
    for role in roles {
        let name = role["metadata"]["name"].as_str().unwrap();
        for rule in role["rules"].as_array().unwrap() {
            assert!(!rule.to_string().contains('*'), "{name}: {rule}");
            let secrets = rule["resources"].as_array().unwrap().contains(&json!("secrets"));
            let lists = rule["verbs"].as_array().unwrap().contains(&json!("list"));
            assert!(!secrets || !lists || name == "farshore-controller-host", "{name}: {rule}");
        }
    }
    for binding in of(&objects, "ClusterRoleBinding") {
        assert_ne!(
            binding["roleRef"]["name"], "farshore-controller-host",
            "only ever bound in a host's namespace"
        );
        assert_ne!(binding["roleRef"]["name"], "farshore-host", "only ever bound in a host's namespace");
    }
}

/// A policy without a binding, or a binding that only warns, guards nothing.
#[test]
fn every_policy_denies_and_fails_closed() {
    let objects = render(&[]).unwrap();
    let policies = of(&objects, "ValidatingAdmissionPolicy");
    assert_eq!(policies.len(), 6);
    for policy in policies {
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        let bound = of(&objects, "ValidatingAdmissionPolicyBinding").into_iter().any(|b| {
            b["spec"]["policyName"] == policy["metadata"]["name"]
                && b["spec"]["validationActions"] == json!(["Deny"])
        });
        assert!(bound, "{}", policy["metadata"]["name"]);
    }
}

#[test]
fn an_image_is_named_by_registry_tag_and_digest() {
    let image = |values: &[&str]| {
        let objects = render(values).unwrap();
        let controller = of(&objects, "Deployment")[0];
        assert_eq!(controller["metadata"]["name"], "farshore-controller");
        controller["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
    };
    let digest = format!("sha256:{}", "0".repeat(64));
    assert_eq!(image(&[]), "farshore-controller:0.1.0");
    assert_eq!(image(&["controller.image.tag=1.2.3"]), "farshore-controller:1.2.3");
    assert_eq!(image(&["image.registry=r.example.com/dr"]), "r.example.com/dr/farshore-controller:0.1.0");
    let pinned = format!("controller.image.digest={digest}");
    assert_eq!(image(&[&pinned, "controller.image.tag=1.2.3"]), format!("farshore-controller@{digest}"));
}

/// The pods run where Pod Security is restricted.
#[test]
fn the_pods_are_admitted_where_pod_security_is_restricted() {
    world(async |world| {
        let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
        let namespace = world.namespace_labelled("restricted", &labels).await;
        for deployment in of(&render(&[]).unwrap(), "Deployment") {
            let template = &deployment["spec"]["template"];
            let mut pod: Pod = serde_json::from_value(template.clone()).unwrap();
            pod.metadata.name = deployment["metadata"]["name"].as_str().map(str::to_owned);
            if let Some(spec) = &mut pod.spec {
                spec.service_account_name = None;
            }
            let api: Api<Pod> = Api::namespaced(world.admin(), &namespace);
            api.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await.unwrap();
        }
    });
}

fn helm_in(world: &World, args: &[&str]) -> String {
    let done = world.helm().args(args).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// A release's life: upgraded, uninstalled, installed again, and nobody's ProtectedVM is lost on the way.
#[test]
fn uninstalling_loses_no_protected_vm() {
    world(async |world| {
        let chart = chart();
        let path = chart.to_str().unwrap();
        let release = ["farshore", path, "--namespace", NAMESPACE];
        let notes = helm_in(world, &[&["upgrade", "--reset-values"][..], &release].concat());
        assert!(notes.contains("host-token --site"), "{notes}");
        let deployments: Api<Deployment> = Api::namespaced(world.admin(), NAMESPACE);
        let controller = deployments.get("farshore-controller").await.unwrap();
        assert_eq!(controller.spec.unwrap().replicas, Some(2));

        let namespace = world.namespace("kept").await;
        let vms = dynamic(world.admin(), "ProtectedVM", Some(&namespace));
        let vm = merged(valid("ProtectedVM"), json!({"metadata": {"name": "vm"}}));
        vms.create(&PostParams::default(), &serde_json::from_value(vm).unwrap()).await.unwrap();
        helm_in(world, &["uninstall", "farshore", "--namespace", NAMESPACE, "--wait"]);
        assert!(deployments.get_opt("farshore-controller").await.unwrap().is_none());
        vms.get("vm").await.unwrap();

        helm_in(world, &[&["install"][..], &release].concat());
        let paused = Patch::Merge(json!({"spec": {"paused": true}}));
        vms.patch("vm", &PatchParams::default(), &paused).await.unwrap();
    });
}
