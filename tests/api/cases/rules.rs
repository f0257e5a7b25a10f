//! Every rule of every schema, both ways.

use std::collections::BTreeSet;

use farshore_test_api::{VM_ID, World, dynamic, merged, refused, unique, valid, world};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// What a valid object becomes by `change`, and what the API server says when it is created.
struct Create {
    kind: &'static str,
    change: Value,
    /// Part of the refusal; empty: accepted.
    want: &'static str,
}

/// What is created, how it is changed, and what the API server says to the change.
struct Update {
    kind: &'static str,
    given: Value,
    /// Status that the object has before the change; null: none.
    status: Value,
    change: Value,
    want: &'static str,
}

fn creates() -> Vec<Create> {
    let case = |kind, change, want| Create { kind, change, want };
    let source = |source| json!({"spec": {"source": source}});
    let vault = |spec: Value| json!({ "spec": spec });
    let policy = |field: &str, text: &str| json!({"spec": {field: text}});
    let no_auth = json!({"managedIdentity": null});
    let custom = json!({"cloud": "Custom", "subscriptionID": null, "resourceGroup": null, "location": null,
        "storageAccounts": [{"name": "devstoreaccount1", "blobEndpoint": "http://127.0.0.1:10000/devstoreaccount1"}]});
    let with = |spec: Value| vault(merged(custom.clone(), spec));
    vec![
        // R0.1: exactly one of vmName and vmID
        case("ProtectedVM", source(json!({"vmID": VM_ID, "vmName": null})), ""),
        case("ProtectedVM", source(json!({"vmID": VM_ID})), "set exactly one of vmName and vmID"),
        case("ProtectedVM", source(json!({"vmName": null})), "set exactly one of vmName and vmID"),
        case("ProtectedVM", source(json!({"vmName": null, "vmID": "sql01"})), "spec.source.vmID"),
        // An epoch is required and at least 1.
        case("ProtectedVM", json!({"spec": {"epoch": null}}), "spec.epoch"),
        case("ProtectedVM", json!({"spec": {"epoch": 0}}), "spec.epoch"),
        case("ProtectedVM", json!({"spec": {"epoch": 9_007_199_254_740_991_i64}}), ""),
        case("ProtectedVM", json!({"spec": {"desiredState": "FailedOver"}}), ""),
        case("ProtectedVM", json!({"spec": {"desiredState": "Failover"}}), "spec.desiredState"),
        case(
            "ProtectedVM",
            json!({"spec": {"disks": {"exclude": ["a.vhdx", "a.vhdx"]}}}),
            "spec.disks.exclude[1]",
        ),
        // R7.1: durations
        case("ReplicationPolicy", policy("replicationInterval", "30s"), ""),
        case(
            "ReplicationPolicy",
            policy("replicationInterval", "29s"),
            "replicationInterval must be from 30s to 1h",
        ),
        case("ReplicationPolicy", policy("replicationInterval", "1h"), ""),
        case(
            "ReplicationPolicy",
            policy("replicationInterval", "1h1s"),
            "replicationInterval must be from 30s to 1h",
        ),
        case("ReplicationPolicy", policy("replicationInterval", "5 minutes"), "spec.replicationInterval"),
        case("ReplicationPolicy", policy("recoveryPointRetention", "720h"), ""),
        case(
            "ReplicationPolicy",
            policy("recoveryPointRetention", "59m"),
            "recoveryPointRetention must be from 1h to 720h",
        ),
        case("ReplicationPolicy", policy("recoveryPointSpacing", "12h"), ""),
        case(
            "ReplicationPolicy",
            policy("recoveryPointSpacing", "4m"),
            "recoveryPointSpacing must be from 5m to 12h",
        ),
        case(
            "ReplicationPolicy",
            json!({"spec": {"recoveryPointSpacing": "3h", "recoveryPointRetention": "2h"}}),
            "recoveryPointSpacing must not be longer than recoveryPointRetention",
        ),
        // R1.1, R1.3: vaults
        case(
            "RecoveryVault",
            vault(json!({"location": null})),
            "need subscriptionID, resourceGroup and location",
        ),
        case("RecoveryVault", vault(json!({"cloud": "AzureUSGovernment"})), ""),
        case("RecoveryVault", with(json!({})), ""),
        case(
            "RecoveryVault",
            with(json!({"storageAccounts": [{"name": "devstoreaccount1"}]})),
            "cloud Custom needs blobEndpoint for every storage account",
        ),
        case(
            "RecoveryVault",
            vault(json!({"storageAccounts": [{"name": "abc", "blobEndpoint": "http://abc.example.com"}]})),
            "blobEndpoint must be an https:// URL unless cloud is Custom",
        ),
        case(
            "RecoveryVault",
            vault(json!({"storageAccounts": [{"name": "abc"}, {"name": "abc"}]})),
            "Duplicate value",
        ),
        case("RecoveryVault", vault(json!({"storageAccounts": []})), "spec.storageAccounts"),
        case(
            "RecoveryVault",
            vault(json!({"authentication": no_auth})),
            "set exactly one of workloadIdentity",
        ),
        case(
            "RecoveryVault",
            vault(json!({"authentication": {"workloadIdentity": {"clientID": VM_ID, "tenantID": VM_ID}}})),
            "set exactly one of workloadIdentity",
        ),
        case(
            "RecoveryVault",
            vault(
                json!({"authentication": {"managedIdentity": null, "sharedKey": {"secretRef": {"name": "k"}}}}),
            ),
            "sharedKey is for emulators only",
        ),
        case(
            "RecoveryVault",
            with(
                json!({"authentication": {"managedIdentity": null, "sharedKey": {"secretRef": {"name": "k"}}}}),
            ),
            "",
        ),
        case(
            "RecoveryVault",
            vault(json!({"caBundle": "-----BEGIN CERTIFICATE-----\n"})),
            "caBundle is for cloud Custom only",
        ),
        case("RecoveryVault", with(json!({"caBundle": "-----BEGIN CERTIFICATE-----\n"})), ""),
        case("RecoveryVault", vault(json!({"allowedNamespaces": ["*"]})), ""),
        case("RecoveryVault", vault(json!({"allowedNamespaces": ["Shop"]})), "spec.allowedNamespaces[0]"),
        // Hosts and sites
        case("HyperVSite", json!({"spec": {"agent": {"uploadParallelismPerVM": 32}}}), ""),
        case(
            "HyperVSite",
            json!({"spec": {"agent": {"uploadParallelismPerVM": 33}}}),
            "spec.agent.uploadParallelismPerVM",
        ),
        case("HyperVHost", json!({"metadata": {"name": format!("h{}", "o".repeat(62))}}), ""),
        case(
            "HyperVHost",
            json!({"metadata": {"name": format!("h{}", "o".repeat(63))}}),
            "at most 63 characters",
        ),
        case("HyperVHost", json!({"spec": {"keyFingerprint": "abc"}}), "spec.keyFingerprint"),
        // Between controller and machines
        case("ReplicationRelationship", json!({"spec": {"term": 0}}), "spec.term"),
        case("ReplicationRelationship", json!({"spec": {"goal": "Fence"}}), "spec.goal"),
        case("ReplicationRelationship", json!({"spec": {"disks": [VM_ID, VM_ID]}}), "spec.disks[1]"),
        case("HyperVVM", json!({"spec": {"vmID": VM_ID.to_uppercase()}}), "spec.vmID"),
        case("RecoveryJob", json!({"spec": {"operation": "Reboot"}}), "spec.operation"),
    ]
}

fn updates() -> Vec<Update> {
    let case = |kind, given, change, want| Update { kind, given, status: Value::Null, change, want };
    let vm = |change: Value| json!({ "spec": change });
    let rel = |change: Value| json!({ "spec": change });
    let excluded = |names: &[&str]| json!({"spec": {"disks": {"exclude": names}}});
    let begun = json!({"state": "Enabling"});
    let begun_with =
        |given, change, want| Update { kind: "ProtectedVM", given, status: begun.clone(), change, want };
    vec![
        case("ProtectedVM", json!({}), vm(json!({"policy": "silver", "paused": true})), ""),
        case("ProtectedVM", json!({}), vm(json!({"source": {"site": "ber"}})), "source is immutable"),
        case(
            "ProtectedVM",
            json!({}),
            vm(json!({"source": {"vmName": null, "vmID": VM_ID}})),
            "source is immutable",
        ),
        case("ProtectedVM", json!({}), vm(json!({"vault": "ne"})), "vault is immutable"),
        // disks.exclude: a slip can be mended until protection begins.
        case("ProtectedVM", json!({}), excluded(&["swap.vhdx"]), ""),
        begun_with(json!({}), excluded(&["swap.vhdx"]), "disks.exclude is fixed once protection is enabled"),
        begun_with(excluded(&["swap.vhdx"]), vm(json!({"disks": null})), "disks.exclude is fixed"),
        begun_with(excluded(&["swap.vhdx"]), excluded(&["swap.vhdx"]), ""),
        begun_with(json!({}), vm(json!({"disks": {"exclude": []}})), ""),
        case(
            "RecoveryVault",
            json!({}),
            json!({"spec": {"cloud": "AzureUSGovernment"}}),
            "a vault's cloud cannot change",
        ),
        case(
            "RecoveryVault",
            json!({}),
            json!({"spec": {"storageAccounts": [{"name": "drwesteurope1"}, {"name": "two"}]}}),
            "",
        ),
        case("HyperVHost", json!({}), json!({"spec": {"accepted": true}}), ""),
        case("HyperVHost", json!({}), json!({"spec": {"site": "ber"}}), "a host stays in its site"),
        case(
            "RecoveryJob",
            json!({}),
            json!({"spec": {"operation": "DisableProtection"}}),
            "a record of what the controller does",
        ),
        case("ReplicationRelationship", json!({}), rel(json!({"goal": "StopReplicating"})), ""),
        case("ReplicationRelationship", json!({}), rel(json!({"stream": 4})), ""),
        case("ReplicationRelationship", json!({}), rel(json!({"term": 3, "stream": 1})), ""),
        case(
            "ReplicationRelationship",
            json!({}),
            rel(json!({"stream": 2})),
            "term never decreases, nor stream",
        ),
        case(
            "ReplicationRelationship",
            json!({}),
            rel(json!({"term": 1, "stream": 9})),
            "term never decreases, nor stream",
        ),
        case(
            "ReplicationRelationship",
            json!({}),
            rel(json!({"vmID": "00000000-0000-0000-0000-000000000000"})),
            "vmID is immutable",
        ),
        case(
            "ReplicationRelationship",
            json!({}),
            rel(json!({"protectedVM": {"uid": "v"}})),
            "protectedVM is immutable",
        ),
    ]
}

fn namespaced(kind: &str) -> bool {
    matches!(kind, "ProtectedVM" | "RecoveryJob" | "HyperVVM" | "ReplicationRelationship")
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_manifest_is_accepted_or_refused_with_a_sentence_that_helps() {
    world(async |world| {
        let namespace = world.namespace("rules").await;
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        for Create { kind, change, want } in creates() {
            let api = dynamic(world.admin(), kind, namespaced(kind).then_some(namespace.as_str()));
            let named = merged(valid(kind), json!({"metadata": {"name": unique("x")}}));
            let answer = api.create(&dry, &object(merged(named, change.clone()))).await;
            check(&format!("{kind} with {change}"), answer, want);
        }
    });
}

#[test]
fn a_change_is_accepted_or_refused_with_a_sentence_that_helps() {
    world(async |world| {
        let namespace = world.namespace("rules").await;
        for update in updates() {
            update_once(world, &namespace, update).await;
        }
    });
}

async fn update_once(world: &World, namespace: &str, update: Update) {
    let Update { kind, given, status, change, want } = update;
    let api = dynamic(world.admin(), kind, namespaced(kind).then_some(namespace));
    let name = unique("x");
    let start = merged(merged(valid(kind), json!({"metadata": {"name": name}})), given.clone());
    api.create(&PostParams::default(), &object(start)).await.unwrap();
    if !status.is_null() {
        let patch = Patch::Merge(json!({ "status": status }));
        api.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
    }
    let answer = api.patch(&name, &PatchParams::default(), &Patch::Merge(&change)).await;
    check(&format!("{kind} {given} changed by {change}"), answer, want);
    api.delete(&name, &Default::default()).await.unwrap();
}

#[track_caller]
fn check(case: &str, answer: Result<DynamicObject, kube::Error>, want: &str) {
    println!("{case}");
    if want.is_empty() {
        assert!(answer.is_ok(), "{case}: {:?}", answer.err());
    } else {
        refused(answer, want);
    }
}

/// No rule without a case that it refuses: a rule added to a schema fails here until it has one.
#[test]
fn every_rule_of_every_schema_has_a_refusal_here() {
    let wants: Vec<&str> = creates()
        .iter()
        .map(|c| c.want)
        .chain(updates().iter().map(|u| u.want))
        .chain(super::epoch::REFUSALS.iter().copied())
        .filter(|want| !want.is_empty())
        .collect();
    let mut messages = BTreeSet::new();
    for crd in farshore_api::crds() {
        let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        collect(schema, &mut messages);
    }
    assert!(messages.len() > 15);
    let untested: Vec<_> = messages.iter().filter(|m| !wants.iter().any(|want| m.contains(want))).collect();
    assert!(untested.is_empty(), "{untested:#?}");
}

fn collect(schema: &JSONSchemaProps, messages: &mut BTreeSet<String>) {
    let rules = schema.x_kubernetes_validations.iter().flatten();
    messages.extend(rules.filter_map(|rule| rule.message.clone()));
    for child in schema.properties.iter().flat_map(|p| p.values()) {
        collect(child, messages);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        collect(items, messages);
    }
}
