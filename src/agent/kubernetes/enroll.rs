//! How a host gets its identity: a one-time token asks for a certificate for the host's own key; an administrator
//! compares the key and accepts the host; the certificate is renewed with the same key for ever after.
//!
//! In the state folder, for its owner only:
//! ```text
//! host.key      the key; never leaves the host, survives clusters
//! host.crt      the certificate
//! kubeconfig    both, the API's URL and its CA: made after the certificate, so that it is whole or absent
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use farshore_core::host::{ORGANIZATION, SIGNER, USER_PREFIX};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::crash::{Crash, CrashPoint};
use crate::journal::replace;

/// The host's key and where it is kept.
#[derive(Debug)]
pub struct Identity {
    key: KeyPair,
    folder: PathBuf,
    name: String,
}

/// From when to when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before: Timestamp,
    /// To.
    pub not_after: Timestamp,
}

impl Validity {
    /// When the certificate is renewed: after two thirds of its life.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        let third = self.not_after.duration_since(self.not_before) / 3;
        self.not_after.checked_sub(third).unwrap_or(self.not_after)
    }

    fn of(pem: &[u8]) -> anyhow::Result<Self> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).context("the host's certificate is not PEM")?;
        let certificate = pem.parse_x509().context("the host's certificate cannot be read")?;
        let at = |time: &x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp());
        let validity = certificate.validity();
        Ok(Self { not_before: at(&validity.not_before)?, not_after: at(&validity.not_after)? })
    }
}

impl Identity {
    /// The key of the state folder; made if there is none.
    ///
    /// # Errors
    /// The folder or the key cannot be used.
    pub fn open(config: &Config, crash: &Crash) -> anyhow::Result<Self> {
        let folder = &config.state_dir;
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let path = folder.join("host.key");
        let key = match std::fs::read_to_string(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).with_context(|| format!("key in {}", path.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate().context("generate a key")?;
                let written = replace(&path, key.serialize_pem().as_bytes(), 0o600);
                written.with_context(|| format!("write {}", path.display()))?;
                key
            }
            Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
        };
        crash.pass(CrashPoint::KeyWritten);
        Ok(Self { key, folder: folder.clone(), name: config.name.clone() })
    }

    /// SHA-256 of the public key: what an administrator compares with the HyperVHost's.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.key.subject_public_key_info());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The certificate's life; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn validity(&self) -> anyhow::Result<Option<Validity>> {
        if !self.kubeconfig().exists() {
            return Ok(None);
        }
        match std::fs::read(self.folder.join("host.crt")) {
            Ok(pem) => Validity::of(&pem).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).context("read host.crt"),
        }
    }

    /// A client with the certificate.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).context("read the host's kubeconfig")?;
        connect(kubeconfig).await
    }

    /// A PEM certificate request for the key.
    fn request(&self) -> anyhow::Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        params.distinguished_name.push(DnType::CommonName, format!("{USER_PREFIX}{}", self.name));
        params.serialize_request(&self.key)?.pem().context("certificate request")
    }

    /// Asks for a certificate and waits until it is there. `suffix` tells one renewal from the next; the same
    /// request is found again after a restart.
    ///
    /// # Errors
    /// The API refuses, or the request is denied.
    pub async fn certify(
        &self,
        client: &Client,
        config: &Config,
        suffix: &str,
        crash: &Crash,
    ) -> anyhow::Result<Validity> {
        let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
        let name = self.request_name(suffix);
        let mut told = false;
        loop {
            let found = match requests.get_opt(&name).await? {
                Some(found) => found,
                // The first time, or the request has aged out.
                None => self.ask(&requests, &name).await?,
            };
            crash.pass(CrashPoint::CertificateRequested);
            let status = found.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            if let Some(denied) = conditions.iter().find(|c| c.type_ == "Denied" || c.type_ == "Failed") {
                let why = denied.message.as_deref().unwrap_or("no reason given");
                bail!("the certificate request {name} was refused: {why}");
            }
            if let Some(ByteString(pem)) = status.certificate.filter(|c| !c.0.is_empty()) {
                return self.keep(config, &pem, crash);
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(
                    host = %self.name, fingerprint = %self.fingerprint(),
                    "waiting for the certificate: an administrator compares the fingerprint with spec.keyFingerprint \
                     of HyperVHost {} and sets spec.accepted", self.name
                );
            }
            tokio::time::sleep(config.timing.verify_poll).await;
        }
    }

    async fn ask(
        &self,
        requests: &Api<CertificateSigningRequest>,
        name: &str,
    ) -> anyhow::Result<CertificateSigningRequest> {
        let request = CertificateSigningRequest {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(self.request()?.into_bytes()),
                signer_name: SIGNER.to_owned(),
                usages: Some(vec!["client auth".to_owned(), "digital signature".to_owned()]),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        match requests.create(&PostParams::default(), &request).await {
            Ok(made) => Ok(made),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(requests.get(name).await?),
            Err(error) => Err(error).with_context(|| format!("make the certificate request {name}")),
        }
    }

    /// `farshore-host-<slug>-<first 8 of the fingerprint>[-<suffix>]`.
    fn request_name(&self, suffix: &str) -> String {
        let slug: String = self
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(40)
            .collect();
        let key: String = self.fingerprint().chars().take(8).collect();
        format!("farshore-host-{}-{key}{suffix}", slug.trim_matches('-'))
    }

    fn keep(&self, config: &Config, pem: &[u8], crash: &Crash) -> anyhow::Result<Validity> {
        let validity = Validity::of(pem)?;
        let certificate = self.folder.join("host.crt");
        replace(&certificate, pem, 0o600).context("write host.crt")?;
        let cluster = Cluster { certificate_authority: Some(text(&config.ca_file)?), ..server(config) };
        let user = AuthInfo {
            client_certificate: Some(text(&certificate)?),
            client_key: Some(text(&self.folder.join("host.key"))?),
            ..AuthInfo::default()
        };
        // JSON is YAML.
        let json = serde_json::to_vec_pretty(&kubeconfig(cluster, user))?;
        replace(&self.kubeconfig(), &json, 0o600).context("write the kubeconfig")?;
        crash.pass(CrashPoint::KubeconfigWritten);
        Ok(validity)
    }
}

/// A client that may only ask for a certificate.
///
/// # Errors
/// The CA file cannot be used.
pub async fn bootstrap_client(config: &Config, token: &str) -> anyhow::Result<Client> {
    let cluster = Cluster { certificate_authority: Some(text(&config.ca_file)?), ..server(config) };
    let user = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
    connect(kubeconfig(cluster, user)).await
}

async fn connect(kubeconfig: Kubeconfig) -> anyhow::Result<Client> {
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(15));
    Ok(Client::try_from(config)?)
}

fn server(config: &Config) -> Cluster {
    Cluster { server: Some(config.api_server.clone()), ..Cluster::default() }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path)?;
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not Unicode", path.display()))
}

fn kubeconfig(cluster: Cluster, user: AuthInfo) -> Kubeconfig {
    let name = || "farshore".to_owned();
    Kubeconfig {
        kind: Some("Config".to_owned()),
        api_version: Some("v1".to_owned()),
        clusters: vec![NamedCluster { name: name(), cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: name(), auth_info: Some(user), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext {
            name: name(),
            context: Some(Context { cluster: name(), user: Some(name()), ..Context::default() }),
            ..NamedContext::default()
        }],
        current_context: Some(name()),
        ..Kubeconfig::default()
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer as _;

    use super::*;

    fn config(dir: &Path) -> Config {
        Config {
            enroll_token: None,
            api_server: "https://k:6443".into(),
            ca_file: dir.join("ca.pem"),
            name: "Host.One".into(),
            state_dir: dir.join("state"),
            sim_socket: "s".into(),
            timing: farshore_core::timing::Timing::default(),
            blob_ca_file: None,
            crash_at: None,
        }
    }

    // DESIGN 9
    #[test]
    fn the_request_asks_for_exactly_the_hosts_identity_and_the_key_stays() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::open(&config(dir.path()), &Crash::default()).unwrap();
        let pem = identity.request().unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        let info = &request.certification_request_info;
        let subject: Vec<_> = info.subject.iter_attributes().map(|a| a.as_str().unwrap()).collect();
        assert_eq!(subject, ["farshore:hosts", "farshore:host:Host.One"]);
        assert_eq!(request.requested_extensions().map(Iterator::count), None);
        let digest = Sha256::digest(info.subject_pki.raw);
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(identity.fingerprint(), hex);
        assert_eq!(identity.request_name(""), format!("farshore-host-host-one-{}", &hex[..8]));

        let again = Identity::open(&config(dir.path()), &Crash::default()).unwrap();
        assert_eq!(again.fingerprint(), identity.fingerprint());
        assert_eq!(again.validity().unwrap(), None);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(dir.path().join("state/host.key")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(Validity { not_before: at(0), not_after: at(900) }.renew_at(), at(600));
    }
}
