//! The shared control plane.

use std::{
    future::Future,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use farshore_lab::launch::{ControlPlane, Seen, install_crypto, tools::Tools, until};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::{
    Kubectl,
    objects::{dynamic, merge, valid},
};

/// Where the chart is installed.
pub const NAMESPACE: &str = "farshore-system";
/// Policies take about a second.
const READY: Duration = Duration::from_secs(30);

/// A control plane with the chart's CRDs, rights and policies.
pub struct World {
    plane: ControlPlane,
    kubectl: PathBuf,
    helm: PathBuf,
}

/// One for all tests: its tasks need a runtime that outlives each of them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
static WORLD: LazyLock<Result<World>> = LazyLock::new(|| RUNTIME.block_on(World::start()));

/// Runs a test in the shared world.
pub fn world<F: Future>(test: impl FnOnce(&'static World) -> F) -> F::Output {
    install_crypto();
    match &*WORLD {
        Ok(world) => RUNTIME.block_on(test(world)),
        Err(error) => panic!("no control plane with the chart: {error:#}"),
    }
}

impl World {
    async fn start() -> Result<Self> {
        let plane = ControlPlane::start(&fresh_folder()?).await?;
        let (kubectl, helm) = tokio::task::spawn_blocking(|| -> Result<_> {
            let tools = Tools::of_this_machine()?;
            Ok((tools.kubectl()?, tools.helm()?))
        })
        .await??;
        let world = Self { plane, kubectl, helm };
        world.install()?;
        world.policies_in_force().await?;
        Ok(world)
    }

    /// The API server compiles all policies together, in its own time: wait until one of them refuses something.
    async fn policies_in_force(&self) -> Result<()> {
        let mut host = valid("HyperVHost");
        merge(&mut host, json!({"metadata": {"name": "probe"}}));
        let hosts = dynamic(self.admin(), "HyperVHost", None);
        hosts.create(&PostParams::default(), &serde_json::from_value(host)?).await?;
        let other = dynamic(self.as_host("other").await, "HyperVHost", None);
        let status = Patch::Merge(json!({"status": {"agentVersion": "0"}}));
        until("a refusal by an admission policy", READY, async || {
            Ok(match other.patch_status("probe", &PatchParams::default(), &status).await {
                Err(kube::Error::Api(status)) if status.message.contains("denied request") => Seen::Yes(()),
                answer => Seen::NotYet(format!("{answer:?}")),
            })
        })
        .await?;
        hosts.delete("probe", &DeleteParams::default()).await?;
        Ok(())
    }

    fn install(&self) -> Result<()> {
        let chart = chart();
        let done = self
            .helm()
            .args(["install", "farshore"])
            .arg(&chart)
            .args(["--namespace", NAMESPACE, "--create-namespace", "--wait"])
            .args(["--set", "controller.enabled=false", "--set", "replicaServer.enabled=false"])
            .output()
            .context("helm install")?;
        ensure!(done.status.success(), "helm install: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// An administrator's client.
    pub fn admin(&self) -> Client {
        self.plane.client()
    }

    /// kubectl as administrator.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.kubectl, &self.plane.kubeconfig())
    }

    /// helm as administrator, with nothing of the machine's user.
    pub fn helm(&self) -> Command {
        let mut helm = Command::new(&self.helm);
        helm.env("KUBECONFIG", self.plane.kubeconfig()).env("HELM_PLUGINS", "/nonexistent");
        helm
    }

    /// A client that is somebody else, by impersonation.
    pub async fn as_user(&self, user: &str, groups: &[&str]) -> Client {
        let mut kubeconfig = Kubeconfig::read_from(self.plane.kubeconfig()).expect("kubeconfig");
        for named in &mut kubeconfig.auth_infos {
            if let Some(info) = &mut named.auth_info {
                info.impersonate = Some(user.to_owned());
                info.impersonate_groups = Some(groups.iter().map(|g| (*g).to_owned()).collect());
            }
        }
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("config")).expect("client")
    }

    /// A client that is the host of that name.
    pub async fn as_host(&self, host: &str) -> Client {
        let user = format!("{}{host}", farshore_api::annotation::HOST_USER_PREFIX);
        self.as_user(&user, &[farshore_api::annotation::HOSTS_GROUP]).await
    }

    /// A client that is a ServiceAccount of the chart.
    pub async fn as_account(&self, name: &str) -> Client {
        let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{NAMESPACE}")];
        self.as_user(&format!("system:serviceaccount:{NAMESPACE}:{name}"), &groups).await
    }

    /// A new namespace.
    pub async fn namespace(&self, prefix: &str) -> String {
        self.namespace_labelled(prefix, &[]).await
    }

    /// A new namespace with labels.
    pub async fn namespace_labelled(&self, prefix: &str, labels: &[(&str, &str)]) -> String {
        let name = unique(prefix);
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let api: Api<Namespace> = Api::all(self.admin());
        api.create(&PostParams::default(), &namespace).await.expect("namespace");
        name
    }
}

/// A name that no other test uses.
pub fn unique(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}-{}", id.get(..8).unwrap_or(&id))
}

/// The chart's folder.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/farshore")
}

/// A folder of this process. A static world has no end that removes it, so those of ended processes go here.
fn fresh_folder() -> Result<PathBuf> {
    const PREFIX: &str = "farshore-test-plane-";
    let parent = std::env::temp_dir();
    for entry in std::fs::read_dir(&parent)?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
    let folder = parent.join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
