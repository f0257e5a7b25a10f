//! From a RecoveryVault to its storage accounts: endpoints, credentials, SAS for hosts.

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use azure_core::credentials::Secret as AzureSecret;
use azure_identity::{
    ClientSecretCredential, ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use farshore_api::{Authentication, CLIENT_SECRET_KEY, Cloud, RecoveryVault, RecoveryVaultSpec};
use farshore_azure::sas::{self, DelegationKey, Grant, Permissions};
use farshore_azure::{
    BlobError, BlobService, Credential, Endpoint, Http, HttpOptions, Sas, SharedKey, TokenCredential,
};
use farshore_core::ids::{Hash, VmId};
use farshore_core::names;
use farshore_core::timing::Timing;
use farshore_core::vm::observed::Account;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};

/// Clocks may differ by this much; a SAS is valid from that long ago.
const SKEW: Duration = Duration::from_secs(15 * 60);
/// The service gives a delegation key for no longer.
const DELEGATION_KEY_LIFE: Duration = Duration::from_secs(7 * 24 * 3600 - 3600);

/// Why a vault cannot be used. For a person; never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The Secret is not there.
    #[error("Secret {0} does not exist in Farshore's namespace")]
    NoSecret(String),
    /// The Secret lacks a key.
    #[error("Secret {secret} has no key {key}, or it is not what it should be")]
    NoKey {
        /// Which Secret.
        secret: String,
        /// Which key.
        key: String,
    },
    /// The Secret could not be read.
    #[error("reading Secret {name} failed: {source}")]
    ReadSecret {
        /// Which Secret.
        name: String,
        /// What the API says.
        source: Box<kube::Error>,
    },
    /// The endpoint is not one.
    #[error("blobEndpoint of storage account {account} cannot be used: {why}")]
    Endpoint {
        /// Which account.
        account: String,
        /// What is wrong.
        why: String,
    },
    /// No connection pool can be made.
    #[error("caBundle cannot be used: {0}")]
    Http(String),
    /// The identity is not configured.
    #[error("the identity cannot be used: {0}")]
    Identity(String),
    /// Nothing to log in with.
    #[error("authentication names no method")]
    NoAuthentication,
}

/// How a vault logs in.
#[derive(Clone)]
enum Login {
    SharedKeys(Vec<SharedKey>),
    Token(Arc<dyn TokenCredential>),
}

/// One storage account that can be talked to.
#[derive(Clone)]
pub struct ConnectedAccount {
    /// Name and endpoint.
    pub account: Account,
    /// All rights.
    pub service: BlobService,
    endpoint: Endpoint,
    key: Option<SharedKey>,
    delegation: Arc<Mutex<Option<DelegationKey>>>,
}

impl fmt::Debug for ConnectedAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectedAccount({})", self.account.name)
    }
}

/// A vault that can be talked to.
#[derive(Clone, Debug)]
pub struct Connected {
    /// In the order of the spec.
    pub accounts: Vec<ConnectedAccount>,
    /// Changes with the credentials.
    pub signer: String,
}

/// SAS for one VM's host.
pub struct HostSas {
    /// Create on `-up`.
    pub up: Sas,
    /// Read on `-down`.
    pub down: Sas,
    /// End of the shorter.
    pub expires_at: Timestamp,
}

/// What connecting needs besides the vault.
#[derive(Clone)]
pub struct Connector {
    client: Client,
    namespace: String,
    ca_file: Option<PathBuf>,
    timing: Timing,
}

impl Connector {
    /// Secrets are read in `namespace`; `ca_file` is trusted besides the usual roots.
    pub fn new(client: Client, namespace: String, ca_file: Option<PathBuf>, timing: Timing) -> Self {
        Self { client, namespace, ca_file, timing }
    }

    /// Reads the vault's secrets and makes its clients. Talks to no storage account.
    ///
    /// # Errors
    /// [`VaultError`], for the vault's condition.
    pub async fn connect(&self, vault: &RecoveryVault) -> Result<Connected, VaultError> {
        let spec = &vault.spec;
        let (login, signer) = self.login(spec).await?;
        let http = self.http(spec)?;
        let mut accounts = Vec::new();
        for account in &spec.storage_accounts {
            let endpoint = endpoint(spec.cloud, &account.name, account.blob_endpoint.as_deref())?;
            let (credential, key) = match &login {
                Login::Token(token) => (Credential::Token(Arc::clone(token)), None),
                Login::SharedKeys(keys) => {
                    let key = keys.iter().find(|k| k.account() == account.name).cloned();
                    let key = key.ok_or_else(|| VaultError::NoKey {
                        secret: secret_name(&spec.authentication),
                        key: account.name.clone(),
                    })?;
                    (Credential::SharedKey(key.clone()), Some(key))
                }
            };
            let plain = endpoint.as_str().trim_end_matches('/').to_owned();
            accounts.push(ConnectedAccount {
                account: Account { name: account.name.clone(), endpoint: plain },
                service: BlobService::with_http(&http, endpoint.clone(), credential),
                endpoint,
                key,
                delegation: Arc::default(),
            });
        }
        Ok(Connected { accounts, signer })
    }

    fn http(&self, spec: &RecoveryVaultSpec) -> Result<Http, VaultError> {
        let bad = |e: &dyn fmt::Display| VaultError::Http(e.to_string());
        // The file only has to live while the pool is made.
        let file = match &spec.ca_bundle {
            Some(pem) => {
                let mut file = tempfile::NamedTempFile::new().map_err(|e| bad(&e))?;
                file.write_all(pem.as_bytes()).map_err(|e| bad(&e))?;
                Some(file)
            }
            None => None,
        };
        let ca_bundle = file.as_ref().map(|f| f.path().to_owned()).or_else(|| self.ca_file.clone());
        let options = HttpOptions {
            ca_bundle,
            connect_timeout: self.timing.connect,
            stall_timeout: self.timing.stall,
            ..HttpOptions::default()
        };
        Http::new(&options).map_err(|e| bad(&e))
    }

    async fn login(&self, spec: &RecoveryVaultSpec) -> Result<(Login, String), VaultError> {
        let identity = |e: azure_core::Error| VaultError::Identity(e.to_string());
        let Authentication { workload_identity, managed_identity, client_secret, shared_key } =
            &spec.authentication;
        if let Some(shared) = shared_key {
            let secret = self.secret(&shared.secret_ref.name).await?;
            let mut keys = Vec::new();
            let mut all = String::new();
            for account in &spec.storage_accounts {
                let text = text(&secret, &account.name)?;
                let bad = || VaultError::NoKey { secret: secret.name_any(), key: account.name.clone() };
                keys.push(SharedKey::new(&account.name, &text).ok_or_else(bad)?);
                all.push_str(&text);
            }
            return Ok((Login::SharedKeys(keys), Hash::of(all.as_bytes()).short()));
        }
        if let Some(client) = client_secret {
            let secret = self.secret(&client.secret_ref.name).await?;
            let text = text(&secret, CLIENT_SECRET_KEY)?;
            let credential = ClientSecretCredential::new(
                &client.tenant_id,
                client.client_id.clone(),
                AzureSecret::new(text),
                None,
            );
            let signer = format!("client/{}", client.client_id);
            return Ok((Login::Token(credential.map_err(identity)?), signer));
        }
        if let Some(workload) = workload_identity {
            let options = WorkloadIdentityCredentialOptions {
                client_id: Some(workload.client_id.clone()),
                tenant_id: Some(workload.tenant_id.clone()),
                ..Default::default()
            };
            let credential = WorkloadIdentityCredential::new(Some(options)).map_err(identity)?;
            return Ok((Login::Token(credential), format!("workload/{}", workload.client_id)));
        }
        if let Some(managed) = managed_identity {
            let options = ManagedIdentityCredentialOptions {
                user_assigned_id: managed.client_id.clone().map(UserAssignedId::ClientId),
                ..Default::default()
            };
            let credential = ManagedIdentityCredential::new(Some(options)).map_err(identity)?;
            let id = managed.client_id.as_deref().unwrap_or("system");
            return Ok((Login::Token(credential), format!("managed/{id}")));
        }
        Err(VaultError::NoAuthentication)
    }

    async fn secret(&self, name: &str) -> Result<Secret, VaultError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let failed = |source| VaultError::ReadSecret { name: name.to_owned(), source: Box::new(source) };
        secrets.get_opt(name).await.map_err(failed)?.ok_or_else(|| VaultError::NoSecret(name.to_owned()))
    }
}

fn text(secret: &Secret, key: &str) -> Result<String, VaultError> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    let text = bytes.and_then(|b| String::from_utf8(b.0.clone()).ok()).map(|t| t.trim().to_owned());
    text.ok_or_else(|| VaultError::NoKey { secret: secret.name_any(), key: key.to_owned() })
}

fn secret_name(authentication: &Authentication) -> String {
    authentication.shared_key.as_ref().map(|s| s.secret_ref.name.clone()).unwrap_or_default()
}

/// Where an account's blob service is.
fn endpoint(cloud: Cloud, account: &str, given: Option<&str>) -> Result<Endpoint, VaultError> {
    let bad = |why: String| VaultError::Endpoint { account: account.to_owned(), why };
    if let Some(url) = given {
        return Endpoint::parse(url).map_err(|e| bad(e.to_string()));
    }
    let name = match cloud {
        Cloud::AzurePublic => "AzurePublic",
        Cloud::AzureUSGovernment => "AzureUSGovernment",
        Cloud::Custom => return Err(bad("cloud Custom needs one".into())),
    };
    let cloud =
        farshore_azure::Cloud::by_name(name).ok_or_else(|| bad(format!("cloud {name} is not known")))?;
    cloud.blob_endpoint(account).map_err(|e| bad(e.to_string()))
}

impl ConnectedAccount {
    /// SAS for the host of one VM: create on `-up`, read on `-down`.
    ///
    /// # Errors
    /// The delegation key cannot be had.
    pub async fn host_sas(&self, vm: VmId, timing: &Timing, now: Timestamp) -> Result<HostSas, BlobError> {
        let starts = now.checked_sub(SKEW).unwrap_or(now);
        let until = |life: Duration| whole_seconds(now.checked_add(life).unwrap_or(Timestamp::MAX));
        let (up, down) = (names::up_container(vm), names::down_container(vm));
        let (up_expires, down_expires) = (until(timing.upload_sas), until(timing.download_sas));
        let create = Grant { permissions: Permissions::Create, starts, expires: up_expires };
        let read = Grant { permissions: Permissions::Read, starts, expires: down_expires };
        let expires_at = up_expires.min(down_expires);
        if let Some(key) = &self.key {
            let (up, down) = (sas::service_sas(key, &up, create), sas::service_sas(key, &down, read));
            return Ok(HostSas { up, down, expires_at });
        }
        let key = self.delegation_key(down_expires, now).await?;
        let up = sas::user_delegation_sas(&key, &self.endpoint, &up, create)?;
        let down = sas::user_delegation_sas(&key, &self.endpoint, &down, read)?;
        Ok(HostSas { up, down, expires_at })
    }

    /// One key signs the SAS of many VMs; a new one is asked for when it would not outlive them.
    async fn delegation_key(
        &self,
        needed_until: Timestamp,
        now: Timestamp,
    ) -> Result<DelegationKey, BlobError> {
        let kept = self.delegation.lock().ok().and_then(|k| k.clone());
        if let Some(key) = kept.filter(|k| k.expires() >= needed_until) {
            return Ok(key);
        }
        let expires =
            whole_seconds(now.checked_add(DELEGATION_KEY_LIFE).unwrap_or(Timestamp::MAX)).max(needed_until);
        let key = self.service.delegation_key(now.checked_sub(SKEW).unwrap_or(now), expires).await?;
        if let Ok(mut kept) = self.delegation.lock() {
            *kept = Some(key.clone());
        }
        Ok(key)
    }

    /// True if SAS are signed by a delegation key, so that the right to have one matters.
    pub fn needs_delegation(&self) -> bool {
        self.key.is_none()
    }

    /// Tries out reachability, credentials and, where needed, the right to sign SAS.
    ///
    /// # Errors
    /// What the account answers.
    pub async fn probe(&self, now: Timestamp) -> Result<(), BlobError> {
        self.service.container("farshore-probe").metadata().await?;
        if self.needs_delegation() {
            self.delegation_key(now, now).await?;
        }
        Ok(())
    }
}

fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}
