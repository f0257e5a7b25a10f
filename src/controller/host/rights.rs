//! A host's namespace and what it may do there. Made at acceptance, before its certificate is signed; taken back
//! when it is no longer accepted.

use farshore_api::annotation;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tracing::info;

use crate::context::Context;
use crate::write;

/// ClusterRole of what the controller may do in a host's namespace; it binds that to itself.
const CONTROLLER_ROLE: &str = "farshore-controller-host";
/// Name of the binding by which a host is let in.
const HOST_BINDING: &str = "farshore-host";
/// Name of the controller's own binding.
const CONTROLLER_BINDING: &str = "farshore-controller";

/// Makes namespace and bindings, the controller's own first: it hands out secrets there.
///
/// # Errors
/// The API refuses or cannot be reached.
pub async fn give(ctx: &Context, host: &str) -> kube::Result<()> {
    let name = farshore_core::host::namespace(host);
    let namespaces: Api<Namespace> = Api::all(ctx.client.clone());
    if namespaces.get_opt(&name).await?.is_none() {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {annotation::HOST: host}},
        });
        create(&namespaces, namespace).await?;
        info!(host, namespace = name, "namespace of a host made");
    }
    bind(ctx, &name, CONTROLLER_BINDING, CONTROLLER_ROLE, &ctx.user).await?;
    let user = format!("{}{host}", annotation::HOST_USER_PREFIX);
    bind(ctx, &name, HOST_BINDING, annotation::HOST_CLUSTER_ROLE, &user).await
}

async fn bind(ctx: &Context, namespace: &str, name: &str, role: &str, user: &str) -> kube::Result<()> {
    let bindings: Api<RoleBinding> = Api::namespaced(ctx.client.clone(), namespace);
    if let Some(there) = bindings.get_opt(name).await? {
        let subject = there.subjects.iter().flatten().next();
        if there.role_ref.name == role && subject.is_some_and(|s| s.kind == "User" && s.name == user) {
            return Ok(());
        }
        // A binding's role cannot be changed.
        bindings.delete(name, &DeleteParams::default()).await?;
    }
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    create(&bindings, binding).await?;
    info!(namespace, binding = name, "rights given");
    Ok(())
}

async fn create<K>(api: &Api<K>, object: Value) -> kube::Result<()>
where
    K: Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(error) if write::exists(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes a host's rights back. Its namespace stays, so that what it reported can still be seen.
///
/// # Errors
/// The API refuses or cannot be reached.
pub async fn take(ctx: &Context, host: &str) -> kube::Result<()> {
    let namespace = farshore_core::host::namespace(host);
    let bindings: Api<RoleBinding> = Api::namespaced(ctx.client.clone(), &namespace);
    match bindings.delete(HOST_BINDING, &DeleteParams::default()).await {
        Ok(_) => {
            info!(host, "rights taken back");
            Ok(())
        }
        Err(error) if write::is_missing(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
