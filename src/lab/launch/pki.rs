//! The lab's own certificate authority, and the keys and certificates of its control plane.
//!
//! ```text
//! pki/ca.crt ca.key          signs all below, and what hosts ask for by CSR
//!     apiserver.crt .key     serves on 127.0.0.1
//!     admin.crt .key         O=system:masters
//!     controller-manager.crt .key
//!     service-accounts.key .pub
//! ```

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::error::{Error, Result};

/// A folder of keys and certificates.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Opens the folder, and fills it the first time.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let pki = Self { folder: folder.to_owned() };
        // Written last: its presence says that all is there.
        if !pki.path("service-accounts.pub").exists() {
            pki.fill()?;
        }
        Ok(pki)
    }

    /// The path of one file.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The text of one file.
    pub(super) fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        std::fs::read_to_string(&path).map_err(Error::file(path))
    }

    /// A client certificate and its key, as PEM, for a user, in a group if one is given.
    pub(super) fn client(&self, user: &str, group: Option<&str>) -> Result<(String, String)> {
        let failed = |source| Error::Certificate { name: user.to_owned(), source };
        let authority = KeyPair::from_pem(&self.read("ca.key")?).map_err(failed)?;
        let mut params = named(user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = Issuer::new(authority_params(), authority);
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn fill(&self) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(Error::file(&self.folder))?;
        let failed = |source| Error::Certificate { name: AUTHORITY.to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let authority = authority_params().self_signed(&key).map_err(failed)?;
        self.write("ca.crt", &authority.pem())?;
        self.write("ca.key", &key.serialize_pem())?;
        self.write_server(&key)?;
        for (name, user, group) in [
            ("admin", "lab-admin", Some("system:masters")),
            ("controller-manager", "system:kube-controller-manager", None),
        ] {
            let (certificate, key) = self.client(user, group)?;
            self.write(&format!("{name}.crt"), &certificate)?;
            self.write(&format!("{name}.key"), &key)?;
        }
        let accounts = KeyPair::generate().map_err(failed)?;
        self.write("service-accounts.key", &accounts.serialize_pem())?;
        self.write("service-accounts.pub", &accounts.public_key_pem())
    }

    fn write_server(&self, authority: &KeyPair) -> Result<()> {
        let failed = |source| Error::Certificate { name: "kube-apiserver".to_owned(), source };
        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc", "10.96.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let ca = authority_params();
        let certificate = params.signed_by(&key, &Issuer::from_params(&ca, authority)).map_err(failed)?;
        self.write("apiserver.crt", &certificate.pem())?;
        self.write("apiserver.key", &key.serialize_pem())
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_private(&self.path(name), text)
    }
}

const AUTHORITY: &str = "farshore-lab";

/// The same each time: with the key from its file this makes the same issuer again.
fn authority_params() -> CertificateParams {
    let mut params = named(AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Error::file(path))
}
