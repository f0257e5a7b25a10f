//! Opens storage accounts as RecoveryVaults say: endpoint, certificates, credential.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use azure_core::cloud::CloudConfiguration;
use azure_core::http::ClientOptions;
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};
use farshore_api::{CLIENT_SECRET_KEY, Cloud, RecoveryVault};
use farshore_azure::{BlobService, Credential, Endpoint, Http, HttpOptions, SharedKey, TokenCredential};
use farshore_core::ids::Hash;
use farshore_core::timing::Timing;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

/// An opened account; its version changes with anything that it was opened with.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) service: BlobService,
    pub(super) version: u64,
}

/// Opens accounts and keeps them open.
pub(super) struct Accounts {
    secrets: Api<Secret>,
    timing: Timing,
    ca_file: Option<PathBuf>,
    pools: BTreeMap<Option<PathBuf>, Http>,
    opened: BTreeMap<u64, BlobService>,
    /// Secrets by name and key, with the time when each was read.
    read: BTreeMap<(String, String), (Instant, String)>,
}

/// What is needed to open an account.
pub(super) struct Wanted<'a> {
    pub(super) vault: &'a RecoveryVault,
    pub(super) account: &'a str,
    pub(super) endpoint: &'a str,
    /// Certificates that the relationship names.
    pub(super) ca_bundle: Option<&'a str>,
}

impl Accounts {
    pub(super) fn new(client: Client, namespace: &str, timing: Timing, ca_file: Option<PathBuf>) -> Self {
        let secrets = Api::namespaced(client, namespace);
        Self {
            secrets,
            timing,
            ca_file,
            pools: BTreeMap::new(),
            opened: BTreeMap::new(),
            read: BTreeMap::new(),
        }
    }

    /// Opens an account, or finds it open.
    pub(super) async fn open(&mut self, wanted: &Wanted<'_>) -> anyhow::Result<Opened> {
        let spec = &wanted.vault.spec;
        if spec.cloud != Cloud::Custom && self.timing != Timing::default() {
            bail!("shortened periods are for emulators: against Azure only the defaults are accepted");
        }
        let secret = self.secret(wanted).await?;
        let ca = self.ca_file(wanted.ca_bundle.or(spec.ca_bundle.as_deref()))?;
        let what = (wanted.endpoint, wanted.account, &spec.authentication, &secret, &ca);
        let version = short(&format!("{} {what:?}", wanted.vault.uid().unwrap_or_default()));
        if let Some(service) = self.opened.get(&version) {
            return Ok(Opened { service: service.clone(), version });
        }
        let endpoint = Endpoint::parse(wanted.endpoint).context("endpoint of the blob service")?;
        let credential = credential(wanted, secret.as_deref())?;
        let service = BlobService::with_http(&self.pool(ca)?, endpoint, credential);
        self.opened.insert(version, service.clone());
        Ok(Opened { service, version })
    }

    /// The secret that the vault's authentication names: read again now and then, and as last read while it
    /// cannot be.
    async fn secret(&mut self, wanted: &Wanted<'_>) -> anyhow::Result<Option<String>> {
        let authentication = &wanted.vault.spec.authentication;
        let (name, key) = match (&authentication.shared_key, &authentication.client_secret) {
            (Some(shared), _) => (&shared.secret_ref.name, wanted.account),
            (None, Some(client)) => (&client.secret_ref.name, CLIENT_SECRET_KEY),
            (None, None) => return Ok(None),
        };
        let place = (name.clone(), key.to_owned());
        let known = self.read.get(&place);
        if let Some((_, text)) = known.filter(|(at, _)| at.elapsed() < self.timing.resync_all) {
            return Ok(Some(text.clone()));
        }
        match (self.fetch(name, key).await, known) {
            (Ok(text), _) => {
                self.read.insert(place, (Instant::now(), text.clone()));
                Ok(Some(text))
            }
            (Err(error), Some((_, text))) => {
                tracing::warn!(error = format!("{error:#}"), "the Secret as it was last read is used");
                let text = text.clone();
                self.read.insert(place, (Instant::now(), text.clone()));
                Ok(Some(text))
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn fetch(&self, name: &str, key: &str) -> anyhow::Result<String> {
        let secret = self.secrets.get(name).await.with_context(|| format!("Secret {name} of the vault"))?;
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        let value = value.with_context(|| format!("Secret {name} has no key {key}"))?;
        let text =
            String::from_utf8(value.0.clone()).with_context(|| format!("key {key} of Secret {name}"))?;
        Ok(text.trim().to_owned())
    }

    /// A file with the certificates: the one given on the command line, or the text in one of our own.
    fn ca_file(&self, text: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
        let Some(text) = text else { return Ok(self.ca_file.clone()) };
        let path =
            std::env::temp_dir().join(format!("farshore-ca-{}.pem", Hash::of(text.as_bytes()).short()));
        if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            let new = path.with_extension(uuid::Uuid::new_v4().simple().to_string());
            std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path)).context("certificates")?;
        }
        Ok(Some(path))
    }

    fn pool(&mut self, ca: Option<PathBuf>) -> anyhow::Result<Http> {
        if let Some(http) = self.pools.get(&ca) {
            return Ok(http.clone());
        }
        let options = HttpOptions {
            ca_bundle: ca.clone(),
            connect_timeout: self.timing.connect,
            stall_timeout: self.timing.stall,
            ..HttpOptions::default()
        };
        let http = Http::new(&options)?;
        self.pools.insert(ca, http.clone());
        Ok(http)
    }
}

fn short(text: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = Hash::of(text.as_bytes()).0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn credential(wanted: &Wanted<'_>, secret: Option<&str>) -> anyhow::Result<Credential> {
    let authentication = &wanted.vault.spec.authentication;
    let options = || ClientOptions { cloud: cloud(wanted.vault.spec.cloud), ..ClientOptions::default() };
    if authentication.shared_key.is_some() {
        let key = secret.and_then(|key| SharedKey::new(wanted.account, key));
        return Ok(Credential::SharedKey(key.context("the account's key is not base64")?));
    }
    let token: Arc<dyn TokenCredential> = if let Some(identity) = &authentication.workload_identity {
        let credential_options = ClientAssertionCredentialOptions { client_options: options() };
        WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
            credential_options,
            client_id: Some(identity.client_id.clone()),
            tenant_id: Some(identity.tenant_id.clone()),
            ..Default::default()
        }))?
    } else if let Some(identity) = &authentication.managed_identity {
        let user_assigned_id = identity.client_id.clone().map(UserAssignedId::ClientId);
        let client_options = options();
        ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
            user_assigned_id,
            client_options,
        }))?
    } else if let Some(client) = &authentication.client_secret {
        let secret = secret.context("the client's secret is missing")?.to_owned();
        let options = ClientSecretCredentialOptions { client_options: options() };
        ClientSecretCredential::new(
            &client.tenant_id,
            client.client_id.clone(),
            secret.into(),
            Some(options),
        )?
    } else {
        bail!("the vault names no authentication");
    };
    Ok(Credential::Token(token))
}

fn cloud(cloud: Cloud) -> Option<Arc<CloudConfiguration>> {
    match cloud {
        Cloud::AzurePublic => Some(Arc::new(CloudConfiguration::AzurePublic)),
        Cloud::AzureUSGovernment => Some(Arc::new(CloudConfiguration::AzureGovernment)),
        Cloud::Custom => None,
    }
}
