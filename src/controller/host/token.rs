//! One-time bootstrap tokens: `farshore-controller host-token` makes one, the first host that logs in spends it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use farshore_api::{HyperVHost, HyperVSite, annotation};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rand::Rng as _;
use tracing::{info, warn};

use crate::context::Context;
use crate::watch::all;
use crate::write;

/// Annotation of a HyperVHost: id of the token that introduced it, and that may introduce no other.
pub const TOKEN: &str = "farshore.dev/bootstrap-token";
const KUBE_SYSTEM: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const USER_PREFIX: &str = "system:bootstrap:";
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Makes a token for one host of `site`.
///
/// # Errors
/// The site does not exist, its name does not fit a group, or the API refuses.
pub async fn make(client: Client, site: &str, ttl: Duration, now: Timestamp) -> anyhow::Result<String> {
    // Groups of bootstrap tokens are narrower than names of objects.
    if !site.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        bail!(
            "a site that hosts enrol in by token needs a name of lower-case letters, digits and hyphens: {site}"
        );
    }
    let sites: Api<HyperVSite> = Api::all(client.clone());
    if sites.get_opt(site).await.context("reading the HyperVSite")?.is_none() {
        bail!("HyperVSite {site} does not exist: create it first");
    }
    let (id, secret) = (random(6), random(16));
    let expiration = now.checked_add(ttl).context("--ttl is too long")?;
    let expiration = Timestamp::from_second(expiration.as_second())?;
    let text = |text: &str| ByteString(text.as_bytes().to_vec());
    let groups = format!("{0},{0}:{site}", annotation::BOOTSTRAPPERS_GROUP);
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(format!("bootstrap-token-{id}")),
            namespace: Some(KUBE_SYSTEM.into()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.into()),
        data: Some(
            [
                ("token-id".to_owned(), text(&id)),
                ("token-secret".to_owned(), text(&secret)),
                ("usage-bootstrap-authentication".to_owned(), text("true")),
                ("auth-extra-groups".to_owned(), text(&groups)),
                ("expiration".to_owned(), text(&expiration.to_string())),
                ("description".to_owned(), text(&format!("enrols one Hyper-V host in site {site}"))),
            ]
            .into(),
        ),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(client, KUBE_SYSTEM);
    secrets.create(&PostParams::default(), &object).await.context("creating the bootstrap token")?;
    Ok(format!("{id}.{secret}"))
}

/// From the operating system's generator: these are credentials.
fn random(len: usize) -> String {
    let mut rng = rand::rng();
    (0..len)
        .map(|_| char::from(*ALPHABET.get(rng.random_range(0..ALPHABET.len())).unwrap_or(&b'a')))
        .collect()
}

/// The host that the token of this user has introduced already.
pub fn bound_to(ctx: &Context, user: &str) -> Option<String> {
    let id = user.strip_prefix(USER_PREFIX)?;
    let hosts = all(&ctx.stores.hosts);
    let host = hosts.iter().filter_map(|h| h.0.as_ref().ok()).find(|h| token_of(h) == Some(id))?;
    Some(host.name_any())
}

fn token_of(host: &HyperVHost) -> Option<&str> {
    host.annotations().get(TOKEN).map(String::as_str)
}

/// Removes the token of a host that logs in by its own certificate now.
pub async fn spend(ctx: &Context, host: &HyperVHost) {
    let Some(id) = token_of(host) else { return };
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), KUBE_SYSTEM);
    let name = format!("bootstrap-token-{id}");
    if ctx.spent.lock().is_ok_and(|spent| spent.contains(&name)) {
        return;
    }
    match secrets.delete(&name, &DeleteParams::default()).await {
        Ok(_) => info!(host = host.name_any(), "bootstrap token removed: it was used"),
        Err(error) if write::is_missing(&error) => {}
        Err(error) => {
            warn!(host = host.name_any(), error = %write::brief(&error), "bootstrap token not removed");
            return;
        }
    }
    if let Ok(mut spent) = ctx.spent.lock() {
        spent.insert(name);
    }
}
