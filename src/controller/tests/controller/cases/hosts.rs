//! How a host comes in: token, certificate request, acceptance, namespace, heartbeat; and how it loses its rights.

use std::time::Duration;

use farshore_api::HyperVHost;
use farshore_controller::host::token;
use farshore_lab::launch::{Seen, until};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

use crate::stage::{LIMIT, SITE, Stage, beat, find, stage};

/// A client of the same cluster that logs in otherwise.
async fn client_as(stage: &Stage, login: AuthInfo) -> Client {
    let mut kubeconfig = Kubeconfig::read_from(stage.world.plane().kubeconfig()).unwrap();
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(login.clone());
    }
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn bootstrap(stage: &Stage, token: &str) -> Client {
    let login: AuthInfo = serde_json::from_value(json!({"token": token})).unwrap();
    client_as(stage, login).await
}

fn pem(name: &str, key: &KeyPair, organization: &str) -> String {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, format!("farshore:host:{name}"));
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.serialize_request(key).unwrap().pem().unwrap()
}

async fn ask(client: &Client, name: &str, request: &str) -> CertificateSigningRequest {
    use base64::Engine as _;
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": format!("{name}-")},
        "spec": {
            "request": base64::engine::general_purpose::STANDARD.encode(request),
            "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth", "digital signature"],
        },
    });
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

async fn answer(client: &Client, name: &str) -> (String, Option<Vec<u8>>) {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    until(&format!("answer to {name}"), LIMIT, async || {
        let found = match api.get(name).await {
            Ok(found) => found.status.unwrap_or_default(),
            Err(error) => return Ok(Seen::NotYet(error.to_string())),
        };
        let kind = found.conditions.iter().flatten().map(|c| c.type_.clone()).next();
        Ok(match (kind.as_deref(), found.certificate) {
            (Some("Approved"), Some(pem)) => Seen::Yes(("Approved".to_owned(), Some(pem.0))),
            (Some("Denied"), _) => Seen::Yes(("Denied".to_owned(), None)),
            other => Seen::NotYet(format!("{other:?}")),
        })
    })
    .await
    .unwrap()
}

async fn await_host(stage: &Stage, name: &str, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
    let api: Api<HyperVHost> = Api::all(stage.client());
    until(&format!("{what} of host {name}"), LIMIT, async || {
        Ok(match api.get_opt(name).await.unwrap().map(|h| serde_json::to_value(h).unwrap()) {
            Some(host) if seen(&host) => Seen::Yes(host),
            other => Seen::NotYet(format!("{other:?}")),
        })
    })
    .await
    .unwrap()
}

async fn accept(stage: &Stage, name: &str, accepted: bool) {
    let api: Api<HyperVHost> = Api::all(stage.client());
    let patch = json!({"spec": {"accepted": accepted}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

// R1.2, R1.3, DESIGN 9
#[test]
fn a_host_enrols_with_a_one_time_token_and_waits_for_acceptance() {
    stage(async |stage| {
        let made =
            token::make(stage.client(), SITE, Duration::from_secs(600), Timestamp::now()).await.unwrap();
        let newcomer = bootstrap(stage, &made).await;
        let key = KeyPair::generate().unwrap();
        let csr = ask(&newcomer, "enrol-", &pem("enrol", &key, "farshore:hosts")).await;
        let name = csr.metadata.name.unwrap();
        let host = await_host(stage, "enrol", "introduction", |h| {
            find(&h["status"], "Ready")["reason"] == "NotAccepted"
        })
        .await;
        assert_eq!((&host["spec"]["site"], &host["spec"]["accepted"]), (&json!(SITE), &json!(false)));
        let message = find(&host["status"], "Ready")["message"].as_str().unwrap();
        assert!(message.contains("kubectl patch hypervhost enrol"), "{message}");

        // The token is this host's: another gets nothing with it.
        let other =
            ask(&newcomer, "other-", &pem("other", &KeyPair::generate().unwrap(), "farshore:hosts")).await;
        assert_eq!(answer(&newcomer, &other.metadata.name.unwrap()).await.0, "Denied");
        let greedy = ask(&newcomer, "greedy-", &pem("enrol", &key, "system:nodes")).await;
        assert_eq!(answer(&newcomer, &greedy.metadata.name.unwrap()).await.0, "Denied");

        accept(stage, "enrol", true).await;
        let (kind, certificate) = answer(&newcomer, &name).await;
        assert_eq!(kind, "Approved");
        let login: AuthInfo = serde_json::from_value(json!({
            "client-certificate-data": base64_of(&certificate.unwrap()),
            "client-key-data": base64_of(key.serialize_pem().as_bytes()),
        }))
        .unwrap();
        let agent = client_as(stage, login).await;
        let namespace = farshore_core::host::namespace("enrol");
        let beating = tokio::spawn(async move { beat(agent, &namespace, "lease").await });
        let host =
            await_host(stage, "enrol", "connection", |h| find(&h["status"], "Ready")["status"] == "True")
                .await;
        assert_eq!(host["status"]["namespace"], farshore_core::host::namespace("enrol"));
        assert!(host["status"]["lastSeen"].is_string());

        let secrets: Api<Secret> = Api::namespaced(stage.client(), "kube-system");
        let secret = format!("bootstrap-token-{}", made.split('.').next().unwrap());
        until("end of the token", LIMIT, async || {
            Ok(match secrets.get_opt(&secret).await.unwrap() {
                None => Seen::Yes(()),
                Some(_) => Seen::NotYet("it is there".into()),
            })
        })
        .await
        .unwrap();

        // Silence is noticed, by our clock.
        beating.abort();
        let lost =
            await_host(stage, "enrol", "loss", |h| find(&h["status"], "Connected")["status"] == "False")
                .await;
        assert_eq!(find(&lost["status"], "Connected")["reason"], "HeartbeatLost");

        // No longer accepted: it may do nothing any more.
        accept(stage, "enrol", false).await;
        let bindings: Api<RoleBinding> =
            Api::namespaced(stage.client(), &farshore_core::host::namespace("enrol"));
        until("end of the host's rights", LIMIT, async || {
            Ok(match bindings.get_opt("farshore-host").await.unwrap() {
                None => Seen::Yes(()),
                Some(_) => Seen::NotYet("it is there".into()),
            })
        })
        .await
        .unwrap();
    });
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn a_host_with_another_key_than_the_accepted_one_waits_for_a_person() {
    stage(async |stage| {
        let made =
            token::make(stage.client(), SITE, Duration::from_secs(600), Timestamp::now()).await.unwrap();
        stage
            .create_cluster::<HyperVHost>(json!({
                "metadata": {"name": "rekeyed"},
                "spec": {"site": SITE, "accepted": true, "keyFingerprint": "b".repeat(64)},
            }))
            .await
            .unwrap();
        let newcomer = bootstrap(stage, &made).await;
        let key = KeyPair::generate().unwrap();
        let csr = ask(&newcomer, "rekeyed-", &pem("rekeyed", &key, "farshore:hosts")).await;
        await_host(stage, "rekeyed", "mismatch", |h| find(&h["status"], "Ready")["reason"] == "KeyMismatch")
            .await;
        let fingerprint: String = {
            use rcgen::PublicKeyData as _;
            use sha2::Digest as _;
            sha2::Sha256::digest(key.subject_public_key_info()).iter().map(|b| format!("{b:02x}")).collect()
        };
        let api: Api<HyperVHost> = Api::all(stage.client());
        let patch = json!({"spec": {"keyFingerprint": fingerprint}});
        api.patch("rekeyed", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        assert_eq!(answer(&newcomer, &csr.metadata.name.unwrap()).await.0, "Approved");
    });
}

#[test]
fn a_token_is_made_only_for_a_site_that_exists() {
    stage(async |stage| {
        let made = token::make(stage.client(), "nowhere", Duration::from_secs(60), Timestamp::now()).await;
        assert!(made.unwrap_err().to_string().contains("create it first"));
    });
}
