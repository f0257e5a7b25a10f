//! Writes to the API: server-side apply under one field manager.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Field manager of everything that the controller applies.
pub const MANAGER: &str = "farshore-controller";

/// Makes an object what is given; fields that were applied before and are no longer given are removed.
///
/// # Errors
/// The API refuses or cannot be reached.
pub async fn apply<K>(api: &Api<K>, name: &str, object: &(impl Serialize + Debug)) -> kube::Result<K>
where
    K: Clone + DeserializeOwned + Debug,
{
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await
}

/// Makes the controller's part of a status what is given.
///
/// # Errors
/// The API refuses or cannot be reached.
pub async fn apply_status<K>(api: &Api<K>, name: &str, status: &impl Serialize) -> kube::Result<K>
where
    K: Clone + DeserializeOwned + Debug + Resource,
    K::DynamicType: Default,
{
    let dt = K::DynamicType::default();
    let object = json!({"apiVersion": K::api_version(&dt), "kind": K::kind(&dt), "status": status});
    api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await
}

/// Changes single fields of an object's metadata that nobody applies.
///
/// # Errors
/// The API refuses or cannot be reached; a conflict if `patch` names a resourceVersion that is no longer there.
pub async fn merge<K>(api: &Api<K>, name: &str, patch: &Value) -> kube::Result<K>
where
    K: Clone + DeserializeOwned + Debug,
{
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Merge(patch)).await
}

/// A failed call, as far as a person needs it: never an object's content.
pub fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// The object was changed or removed meanwhile: look again.
pub fn is_stale(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_not_found())
}

/// There is no such object.
pub fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// The object is there already.
pub fn exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}
