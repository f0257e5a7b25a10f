//! Kubeconfig files for the lab's users, and clients made from them.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use super::error::{Error, Result};

/// How a user shows who it is.
pub(super) enum Credential<'a> {
    /// By certificate and key, as PEM.
    Certificate(&'a str, &'a str),
    /// By bearer token.
    Token(&'a str),
}

/// A kubeconfig as text (JSON, which is YAML too); everything in it inline, so that the file can be moved.
pub(super) fn text(server: &str, ca: &str, credential: &Credential<'_>) -> String {
    let user = match credential {
        Credential::Certificate(certificate, key) => json!({
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        }),
        Credential::Token(token) => json!({ "token": token }),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "lab",
            "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(ca) },
        }],
        "users": [{ "name": "user", "user": user }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "user" } }],
        "current-context": "lab",
    });
    format!("{config:#}\n")
}

/// The `kube::Config` of a kubeconfig file.
pub async fn config(path: &Path) -> Result<kube::Config> {
    let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
    let kubeconfig = Kubeconfig::from_yaml(&text)?;
    Ok(kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

/// A client for a kubeconfig file.
pub async fn client(path: &Path) -> Result<kube::Client> {
    install_crypto();
    kube::Client::try_from(config(path).await?).map_err(Error::kubernetes("client from kubeconfig"))
}

/// Tells rustls to use ring; again is fine.
pub fn install_crypto() {
    drop(rustls::crypto::ring::default_provider().install_default());
}
