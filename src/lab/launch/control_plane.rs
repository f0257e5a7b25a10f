//! A real Kubernetes control plane on loopback: etcd, kube-apiserver, kube-controller-manager.
//!
//! ```text
//! <folder>/pki/                certificates (kept)
//!          etcd/               its data (kept: starting again in the same folder goes on)
//!          kubeconfig          of an administrator
//!          controller-manager.kubeconfig
//!          ports.json          taken again at the next start if they are free
//! ```
//! No scheduler and no kubelet: Pods stay pending. RBAC, admission policies, garbage collection, CSR
//! signing, bootstrap tokens and ServiceAccount tokens are as on any cluster.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{authentication::v1::TokenRequest, core::v1::ServiceAccount};
use kube::{Api, Client, api::PostParams};
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, Result},
    kubeconfig::{self, Credential},
    parts::{Parts, Program, Seen, until},
    pki::{Pki, write_private},
    port::Port,
    tools::Tools,
};

/// Names of the parts.
pub const ETCD: &str = "etcd";
/// See [`ETCD`].
pub const APISERVER: &str = "apiserver";
/// See [`ETCD`].
pub const CONTROLLER_MANAGER: &str = "controller-manager";

/// 3 s on an idle machine; tests share two cores with compilers.
const READY: Duration = Duration::from_secs(120);
/// kube-apiserver finishes requests under way and its watches first.
const GRACE: Duration = Duration::from_secs(20);
/// Validity of ServiceAccount tokens handed to the lab's programs: longer than any lab is up.
const TOKEN_SECONDS: i64 = 30 * 24 * 3600;

/// The controllers that have something to do without nodes.
const CONTROLLERS: &str = "serviceaccount-controller,serviceaccount-token-controller,\
    root-ca-certificate-publisher-controller,namespace-controller,garbage-collector-controller,\
    certificatesigningrequest-signing-controller,certificatesigningrequest-approving-controller,\
    certificatesigningrequest-cleaner-controller,bootstrap-signer-controller,token-cleaner-controller,\
    clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller,\
    deployment-controller,replicaset-controller,job-controller,ttl-after-finished-controller";

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Ports {
    etcd: Option<u16>,
    peer: Option<u16>,
    apiserver: Option<u16>,
}

/// A control plane that runs; ends when dropped.
pub struct ControlPlane {
    folder: PathBuf,
    pki: Pki,
    parts: Arc<Parts>,
    client: Client,
    url: String,
    /// Held so that no other lab takes a port while one of ours is down for a moment.
    _ports: [Port; 3],
}

impl ControlPlane {
    /// Starts one in `folder`, with logs beside its data, and waits until it serves.
    pub async fn start(folder: &Path) -> Result<Self> {
        let parts = Arc::new(Parts::new(folder.join("log"))?);
        Self::start_among(folder, parts).await
    }

    /// Starts one whose processes are among `parts` (a whole lab's).
    pub async fn start_among(folder: &Path, parts: Arc<Parts>) -> Result<Self> {
        let tools = Tools::of_this_machine()?;
        let binary = tokio::task::spawn_blocking(move || tools.control_plane())
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let folder = folder.canonicalize().map_err(Error::file(folder))?;
        let pki = Pki::open(&folder.join("pki"))?;
        let ports = choose_ports(&folder)?;
        let [etcd, peer, apiserver] = &ports;
        let url = format!("https://127.0.0.1:{}", apiserver.number());
        let ca = pki.read("ca.crt")?;
        for (file, user) in [("kubeconfig", "admin"), ("controller-manager.kubeconfig", "controller-manager")]
        {
            let (certificate, key) = (pki.read(&format!("{user}.crt"))?, pki.read(&format!("{user}.key"))?);
            let text = kubeconfig::text(&url, &ca, &Credential::Certificate(&certificate, &key));
            write_private(&folder.join(file), &text)?;
        }
        let client = kubeconfig::client(&folder.join("kubeconfig")).await?;

        parts.start(ETCD, etcd_program(&binary, &folder, etcd.number(), peer.number()))?;
        parts.start(APISERVER, apiserver_program(&binary, &pki, etcd.number(), apiserver.number()))?;
        parts.start(CONTROLLER_MANAGER, controller_manager_program(&binary, &folder, &pki))?;
        let plane = Self { folder, pki, parts, client, url, _ports: ports };
        plane.ready().await?;
        Ok(plane)
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where the API server listens, as `https://127.0.0.1:<port>`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file with the certificate that signs the API server's.
    pub fn ca_file(&self) -> PathBuf {
        self.pki.path("ca.crt")
    }

    /// The processes, to kill, stop and pause them one by one.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Kills the API server as a crash would.
    pub fn kill_apiserver(&self) -> Result<()> {
        self.parts.kill(APISERVER)
    }

    /// Starts the API server again at the same address and waits until it serves.
    pub async fn start_apiserver(&self) -> Result<()> {
        self.parts.start_again(APISERVER)?;
        self.ready().await
    }

    /// Stops the API server in good order and starts it again.
    pub async fn restart_apiserver(&self) -> Result<()> {
        self.parts.stop(APISERVER, GRACE).await?;
        self.start_apiserver().await
    }

    /// Writes a kubeconfig for a ServiceAccount, with exactly that account's rights.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str, path: &Path) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let mut request = TokenRequest::default();
        request.spec.expiration_seconds = Some(TOKEN_SECONDS);
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .map_err(Error::kubernetes("token of a ServiceAccount"))?;
        let token = answer.status.map(|status| status.token).unwrap_or_default();
        let text = kubeconfig::text(&self.url, &self.pki.read("ca.crt")?, &Credential::Token(&token));
        write_private(path, &text)
    }

    /// Writes a kubeconfig for a user by certificate, to try what RBAC and admission let it do.
    pub fn user_kubeconfig(&self, user: &str, group: Option<&str>, path: &Path) -> Result<()> {
        let (certificate, key) = self.pki.client(user, group)?;
        let credential = Credential::Certificate(&certificate, &key);
        write_private(path, &kubeconfig::text(&self.url, &self.pki.read("ca.crt")?, &credential))
    }

    /// Waits until the API server is ready and the controllers work.
    pub async fn ready(&self) -> Result<()> {
        until("ready API server", READY, async || {
            for part in [ETCD, APISERVER, CONTROLLER_MANAGER] {
                self.parts.check(part)?;
            }
            let request = http::Request::get("/readyz").body(Vec::new());
            let Ok(request) = request else { return Ok(Seen::NotYet("no request".to_owned())) };
            Ok(match self.client.request_text(request).await {
                Ok(_) => Seen::Yes(()),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        })
        .await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), "default");
        until("working controllers", READY, async || {
            self.parts.check(CONTROLLER_MANAGER)?;
            Ok(match accounts.get("default").await {
                Ok(_) => Seen::Yes(()),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        })
        .await
    }

    /// Stops all in good order, so that a later start in the same folder goes on.
    pub async fn stop(self) {
        for part in [CONTROLLER_MANAGER, APISERVER, ETCD] {
            if let Err(error) = self.parts.stop(part, GRACE).await {
                tracing::warn!(part, %error, "stop");
            }
        }
    }
}

/// The ports of the last start where they are free.
fn choose_ports(folder: &Path) -> Result<[Port; 3]> {
    let path = folder.join("ports.json");
    let last: Ports =
        std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let ports = [Port::prefer(last.etcd)?, Port::prefer(last.peer)?, Port::prefer(last.apiserver)?];
    let [etcd, peer, apiserver] = &ports;
    let now =
        Ports { etcd: Some(etcd.number()), peer: Some(peer.number()), apiserver: Some(apiserver.number()) };
    let text = serde_json::to_string(&now).map_err(Error::json("ports.json"))?;
    std::fs::write(&path, text).map_err(Error::file(&path))?;
    Ok(ports)
}

fn etcd_program(binary: &Path, folder: &Path, port: u16, peer: u16) -> Program {
    let peer = format!("http://127.0.0.1:{peer}");
    Program::new(binary)
        .args(["etcd", "--name=lab", "--unsafe-no-fsync", "--log-level=warn", "--force-new-cluster=false"])
        .arg(format!("--data-dir={}", folder.join("etcd").display()))
        .arg(format!("--listen-client-urls=http://127.0.0.1:{port}"))
        .arg(format!("--advertise-client-urls=http://127.0.0.1:{port}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=lab={peer}"))
}

fn apiserver_program(binary: &Path, pki: &Pki, etcd: u16, port: u16) -> Program {
    let path = |name: &str| pki.path(name).display().to_string();
    Program::new(binary)
        .args(["kube-apiserver", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
        // The address of the Service `kubernetes` may not be loopback; nothing here uses it.
        .arg("--endpoint-reconciler-type=none")
        .arg(format!("--etcd-servers=http://127.0.0.1:{etcd}"))
        .arg(format!("--secure-port={port}"))
        .arg(format!("--tls-cert-file={}", path("apiserver.crt")))
        .arg(format!("--tls-private-key-file={}", path("apiserver.key")))
        .arg(format!("--client-ca-file={}", path("ca.crt")))
        .arg(format!("--service-account-key-file={}", path("service-accounts.pub")))
        .arg(format!("--service-account-signing-key-file={}", path("service-accounts.key")))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg("--service-cluster-ip-range=10.96.0.0/16")
        .args(["--authorization-mode=RBAC", "--enable-bootstrap-token-auth", "--allow-privileged"])
        .args(["--profiling=false", "--v=1"])
}

fn controller_manager_program(binary: &Path, folder: &Path, pki: &Pki) -> Program {
    let path = |name: &str| pki.path(name).display().to_string();
    Program::new(binary)
        // Alone, so no election: it would end itself when the API server is away for a while.
        .args(["kube-controller-manager", "--leader-elect=false", "--use-service-account-credentials"])
        .args(["--secure-port=0", "--bind-address=127.0.0.1", "--profiling=false", "--v=1"])
        .arg(format!("--kubeconfig={}", folder.join("controller-manager.kubeconfig").display()))
        .arg(format!("--service-account-private-key-file={}", path("service-accounts.key")))
        .arg(format!("--root-ca-file={}", path("ca.crt")))
        .arg(format!("--cluster-signing-cert-file={}", path("ca.crt")))
        .arg(format!("--cluster-signing-key-file={}", path("ca.key")))
        .arg(format!("--controllers={CONTROLLERS}"))
}
