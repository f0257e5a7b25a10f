//! The CustomResourceDefinitions, as they are written to `crds/` and installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

use crate::{
    HyperVHost, HyperVSite, HyperVVM, ProtectedVM, RecoveryJob, RecoveryVault, ReplicationPolicy,
    ReplicationRelationship,
};

/// All CRDs, administrators' kinds first.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [
        HyperVSite::crd(),
        HyperVHost::crd(),
        RecoveryVault::crd(),
        ReplicationPolicy::crd(),
        ProtectedVM::crd(),
        RecoveryJob::crd(),
        HyperVVM::crd(),
        ReplicationRelationship::crd(),
    ]
    .into_iter()
    .map(tidied)
    .collect()
}

fn tidied(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            tidy(schema);
            if let Some(status) = schema.properties.as_mut().and_then(|p| p.get_mut("status")) {
                visit(status, &mut |s| s.default = None);
            }
        }
    }
    crd
}

/// What the generator writes and the API server should not see: `nullable` (a null is then simply dropped, and
/// `has()` in rules means what it says), unsigned formats that Kubernetes does not know (it warns), and
/// empty defaults (the server would write them into people's objects).
fn tidy(schema: &mut JSONSchemaProps) {
    visit(schema, &mut |schema| {
        schema.nullable = None;
        if let Some(values) = &mut schema.enum_ {
            values.retain(|v| !v.0.is_null());
        }
        if schema.type_.as_deref() == Some("integer") {
            if schema.format.as_deref().is_some_and(|f| f.starts_with("uint")) {
                schema.minimum.get_or_insert(0.0);
            }
            schema.format = Some("int64".to_owned());
        }
        let empty = |v: &serde_json::Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
        schema.default.take_if(|d| empty(&d.0));
    });
}

/// Calls `change` for a schema and all below it.
fn visit(schema: &mut JSONSchemaProps, change: &mut impl FnMut(&mut JSONSchemaProps)) {
    change(schema);
    for child in schema.properties.iter_mut().flat_map(|p| p.values_mut()) {
        visit(child, change);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        visit(items, change);
    }
}

#[cfg(test)]
#[path = "crds_tests.rs"]
mod tests;
