//! TLS of the double: certificates that are given, or an authority of its own.

use std::{
    fs,
    io::BufReader,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::{TlsAcceptor, rustls};

/// Files of certificate and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// PEM, the chain.
    pub cert: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Makes `ca.pem`, `tls.pem` and `tls.key` in a folder, unless they are there.
///
/// # Errors
/// They cannot be made or written.
pub(super) fn own(folder: &Path, names: &[String]) -> anyhow::Result<Files> {
    let files = Files { cert: folder.join("tls.pem"), key: folder.join("tls.key") };
    let ca_file = folder.join("ca.pem");
    if ca_file.exists() && files.cert.exists() && files.key.exists() {
        return Ok(files);
    }
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "farshore-lab blob double");
    let ca_cert = ca.self_signed(&ca_key)?;
    let key = KeyPair::generate()?;
    let cert = CertificateParams::new(names)?.signed_by(&key, &Issuer::new(ca, ca_key))?;
    fs::write(&files.key, key.serialize_pem())?;
    fs::write(&files.cert, cert.pem())?;
    // Last: whoever waits for it finds the others.
    fs::write(&ca_file, ca_cert.pem())?;
    Ok(files)
}

/// Ready to accept.
///
/// # Errors
/// The files are no certificate and its key.
pub(super) fn acceptor(files: &Files) -> anyhow::Result<TlsAcceptor> {
    let read =
        |path: &Path| fs::File::open(path).map(BufReader::new).with_context(|| path.display().to_string());
    let certs = rustls_pemfile::certs(&mut read(&files.cert)?).collect::<Result<Vec<_>, _>>()?;
    let key = rustls_pemfile::private_key(&mut read(&files.key)?)?.context("no private key in the file")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certs, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
