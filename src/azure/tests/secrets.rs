//! No error, in no way of printing it, shows a signature.

use std::{error::Error, sync::Arc};

use bytes::Bytes;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::AsyncWriteExt;
use tokio_rustls::rustls::{ServerConfig, pki_types::PrivateKeyDer};

use super::{
    SAS, container, options,
    server::{Server, answer_with},
};
use crate::{BlobError, BlobErrorKind, HttpOptions, Include, NetworkFault, crc64};

fn printed(error: &BlobError) -> String {
    let mut out = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(inner) = source {
        out.push_str(&format!(" {inner} {inner:?}"));
        source = inner.source();
    }
    out
}

async fn errors(base: &str, options: &HttpOptions) -> Vec<BlobError> {
    let container = container(base, options);
    let put = container.put_new("a", Bytes::from_static(b"x"), crc64(b"x")).await;
    let list = container.list("", Include::default()).await;
    [
        put.map(drop),
        container.get("a", 9).await.map(drop),
        container.head("a").await.map(drop),
        list.map(drop),
    ]
    .into_iter()
    .filter_map(Result::err)
    .collect()
}

#[tokio::test]
async fn no_error_shows_a_signature() {
    let echo = Server::answering_each(|_, seen| {
        // A service or a man in the middle that repeats the URL in its message and headers.
        let body = format!("<Error><Code>X</Code><Message>{}</Message></Error>", seen.line());
        answer_with("400 Bad Request", &[("x-ms-error-code", "InvalidUri"), ("location", seen.line())], &body)
    })
    .await;
    let lost = Server::start(|mut connection| async move {
        connection.request().await;
    })
    .await;
    let rubbish = Server::answering("RUBBISH\r\n\r\n").await;
    let no_xml = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n<a>").await;
    let mut all = Vec::new();
    for base in [&echo.base, &lost.base, &rubbish.base, &no_xml.base] {
        all.extend(errors(base, &options()).await);
    }
    all.extend(errors("http://127.0.0.1:1/devstoreaccount1", &options()).await);
    all.extend(errors("http://no-such-host.invalid/devstoreaccount1", &options()).await);
    assert!(all.len() > 18, "{}", all.len());
    let signature = SAS.split("sig=").nth(1).unwrap();
    for error in &all {
        let text = printed(error);
        for secret in ["sig=", signature, "VERYSECRET", "sv=2022"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

/// A TLS server with a certificate of its own; answers every request with 404.
async fn tls_server() -> (String, String) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}/devstoreaccount1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    (base, cert.pem())
}

#[tokio::test]
async fn a_certificate_counts_only_if_it_is_in_the_bundle() {
    let (base, pem) = tls_server().await;
    for error in errors(&base, &options()).await {
        assert_eq!(error.kind, BlobErrorKind::Network(NetworkFault::Tls), "{error:?}");
        assert!(!printed(&error).contains("sig="));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, pem).unwrap();
    let trusting = HttpOptions { ca_bundle: Some(path), ..options() };
    assert_eq!(container(&base, &trusting).head("a").await.unwrap(), None);
}

#[tokio::test]
async fn a_bundle_without_certificates_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, "nothing").unwrap();
    let error = crate::Http::new(&HttpOptions { ca_bundle: Some(path), ..options() }).unwrap_err();
    assert!(matches!(error, crate::HttpError::NotPem(_)), "{error}");
}
