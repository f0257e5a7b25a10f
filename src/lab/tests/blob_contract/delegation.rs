//! The way of production, offline: an identity's token, a user delegation key, a SAS signed with it.
//! Azurite takes any well-formed token over https, and judges the SAS.

use std::{sync::Arc, time::Duration};

use azure_core::credentials::{AccessToken, TokenRequestOptions};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use farshore_azure::{
    BlobErrorKind, BlobService, Create, Credential, Endpoint, Http, HttpOptions, Metadata, PutNew,
    TokenCredential, crc64,
    sas::{self, Grant, Permissions},
};
use farshore_lab::launch::{self, Parts, Port};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::place::{grant, listening, random};

const NAME: &str = "azurite-https";

/// An identity of nobody's tenant.
#[derive(Debug)]
struct Identity;

fn token(now: Timestamp) -> String {
    let part = |text: String| BASE64_URL_SAFE_NO_PAD.encode(text);
    let tenant = "ab1f708d-50f6-404c-a006-d71b2ac7a606";
    let now = now.as_second();
    let claims = format!(
        r#"{{"aud":"https://storage.azure.com","iss":"https://sts.windows.net/{tenant}/","tid":"{tenant}",
        "oid":"23657296-5cd5-45b0-a809-d972a7f4dfe1","iat":{now},"nbf":{},"exp":{}}}"#,
        now - 60,
        now + 3600
    );
    format!(
        "{}.{}.{}",
        part(r#"{"alg":"RS256","typ":"JWT"}"#.to_owned()),
        part(claims),
        part("nobody".to_owned())
    )
}

type Answer<'t> = std::pin::Pin<Box<dyn Future<Output = azure_core::Result<AccessToken>> + Send + 't>>;

impl TokenCredential for Identity {
    fn get_token<'a, 'b, 'c, 'd, 't>(
        &'a self,
        scopes: &'b [&'c str],
        _: Option<TokenRequestOptions<'d>>,
    ) -> Answer<'t>
    where
        Self: 't,
        'a: 't,
        'b: 't,
        'c: 't,
        'd: 't,
    {
        assert_eq!(scopes, ["https://storage.azure.com/.default"]);
        let now = Timestamp::now();
        let expires = azure_core::time::OffsetDateTime::from_unix_timestamp(now.as_second() + 3600).unwrap();
        Box::pin(async move { Ok(AccessToken::new(token(now), expires)) })
    }
}

struct Azurite {
    http: Http,
    endpoint: Endpoint,
    _parts: Parts,
    _port: Port,
    _folder: tempfile::TempDir,
}

async fn azurite() -> Azurite {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(file("cert.pem"), cert.pem()).unwrap();
    std::fs::write(file("key.pem"), signing_key.serialize_pem()).unwrap();
    let parts = Parts::new(file("log")).unwrap();
    let port = Port::free().unwrap();
    let program = launch::azurite(&file("data"), port.number()).unwrap();
    let program = program.args(["--oauth", "basic", "--cert"]).arg(file("cert.pem"));
    parts.start(NAME, program.arg("--key").arg(file("key.pem"))).unwrap();
    listening(&parts, NAME, port.number()).await;
    let endpoint = Endpoint::parse(&format!("https://127.0.0.1:{}/devstoreaccount1", port.number())).unwrap();
    let options = HttpOptions {
        ca_bundle: Some(file("cert.pem")),
        stall_timeout: Duration::from_secs(30),
        ..Default::default()
    };
    let http = Http::new(&options).unwrap();
    Azurite { http, endpoint, _parts: parts, _port: port, _folder: folder }
}

#[tokio::test]
async fn an_identity_gets_a_delegation_key_and_its_sas_holds() {
    let at = azurite().await;
    let identity = Credential::Token(Arc::new(Identity));
    let owner = BlobService::with_http(&at.http, at.endpoint.clone(), identity);
    let container = owner.container("fs-1-up");
    assert_eq!(container.create(&Metadata::new()).await.unwrap(), Create::Created);
    let bytes = random(5 << 20);
    let put = container.put_new("by the identity", bytes.clone(), crc64(&bytes)).await.unwrap();
    assert!(matches!(put, PutNew::Created(_)), "{put:?}");

    let now = Timestamp::now();
    let key = owner
        .delegation_key(now - SignedDuration::from_mins(5), now + SignedDuration::from_hours(24 * 6))
        .await
        .unwrap();
    assert!(format!("{key:?}").starts_with("DelegationKey(redacted, "), "{key:?}");
    let through = |grant: Grant| {
        let sas = sas::user_delegation_sas(&key, &at.endpoint, "fs-1-up", grant).unwrap();
        BlobService::with_http(&at.http, at.endpoint.clone(), Credential::Sas(sas)).container("fs-1-up")
    };
    let agent = through(grant(Permissions::Create));
    let put = agent.put_new("segment", bytes.clone(), crc64(&bytes)).await.unwrap();
    assert!(matches!(put, PutNew::Created(_)), "{put:?}");
    assert_eq!(agent.put_new_probing("segment", bytes.clone(), crc64(&bytes)).await.unwrap(), PutNew::Taken);
    assert_eq!(agent.get("segment", 9 << 20).await.unwrap_err().kind, BlobErrorKind::NotAuthorized);

    let reader = through(grant(Permissions::Read));
    assert!(reader.get("segment", 9 << 20).await.unwrap().unwrap().bytes == bytes);
    let write = reader.put_new_probing("other", bytes.clone(), crc64(&bytes)).await.unwrap_err();
    assert_eq!(write.kind, BlobErrorKind::NotAuthorized);

    let over = Grant { expires: now - SignedDuration::from_secs(2), ..grant(Permissions::Read) };
    let late = through(over).get("segment", 9).await.unwrap_err();
    assert_eq!(late.kind, BlobErrorKind::CredentialExpired);
}
