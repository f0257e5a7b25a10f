//! A valid object of every kind, to change one thing in, and access by kind.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

/// A VM's id that is as good as any.
pub const VM_ID: &str = "5f0d5c8e-6c1b-4c55-9d3a-0a1b2c3d4e5f";

/// A minimal valid object; the caller gives name and namespace.
pub fn valid(kind: &str) -> Value {
    let spec = match kind {
        "HyperVSite" => json!({}),
        "HyperVHost" => json!({"site": "ams", "keyFingerprint": "a".repeat(64)}),
        "RecoveryVault" => json!({
            "cloud": "AzurePublic", "subscriptionID": VM_ID, "resourceGroup": "dr", "location": "westeurope",
            "storageAccounts": [{"name": "drwesteurope1"}],
            "authentication": {"managedIdentity": {}},
        }),
        "ReplicationPolicy" => json!({}),
        "ProtectedVM" => json!({
            "source": {"site": "ams", "vmName": "sql01"}, "policy": "gold", "vault": "we", "epoch": 1,
        }),
        "RecoveryJob" => json!({"protectedVM": "sql01", "operation": "EnableProtection", "epoch": 1}),
        "HyperVVM" => json!({
            "vmID": VM_ID, "vmName": "sql01", "generation": 2, "powerState": "Running", "protectable": true,
        }),
        "ReplicationRelationship" => json!({
            "vmID": VM_ID,
            "protectedVM": {"namespace": "shop", "name": "sql01", "uid": "u"},
            "goal": "Replicate", "term": 2, "stream": 3, "disks": [VM_ID],
            "schedule": {
                "intervalSeconds": 300, "recoveryPointSpacingSeconds": 900, "recoveryPointRetentionSeconds": 86400,
            },
            "endpoints": {
                "blob": "https://drwesteurope1.blob.core.windows.net", "replicaContainer": "fs-x",
                "upContainer": "fs-x-up", "downContainer": "fs-x-down",
            },
            "vault": "we", "storageAccount": "drwesteurope1", "sasSecret": "sas-x",
        }),
        other => panic!("no such kind: {other}"),
    };
    json!({
        "apiVersion": format!("{}/{}", farshore_api::GROUP, farshore_api::VERSION),
        "kind": kind,
        "metadata": {},
        "spec": spec,
    })
}

/// `base` with `change` merged in; null removes.
pub fn merged(mut base: Value, change: Value) -> Value {
    merge(&mut base, change);
    base
}

pub(crate) fn merge(base: &mut Value, change: Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            for (key, value) in change {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, change) => *base = change,
    }
}

/// The resource of a kind, by the CRDs.
pub fn resource(kind: &str) -> ApiResource {
    let crd = farshore_api::crds().into_iter().find(|crd| crd.spec.names.kind == kind).expect("kind");
    let gvk = GroupVersionKind::gvk(farshore_api::GROUP, farshore_api::VERSION, kind);
    ApiResource::from_gvk_with_plural(&gvk, &crd.spec.names.plural)
}

/// Access to a kind without its types, so that invalid objects can be sent.
pub fn dynamic(client: Client, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource(kind)),
        None => Api::all_with(client, &resource(kind)),
    }
}
