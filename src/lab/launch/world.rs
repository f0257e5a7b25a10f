//! A whole world of Farshore: control plane, blob service, the chart, hosts, and our own programs.
//!
//! ```text
//! <folder>/kubernetes/                 the control plane's (see `control_plane`)
//!          blobs/                      the blob service's data
//!          hosts/<host>/               a simulated host's disks and its socket
//!          agents/<host>/              an agent's own state
//!          controller.kubeconfig       with the rights of the chart's ServiceAccounts, no more
//!          replica-server.kubeconfig
//!          timing.json
//!          log/<part>.log
//! ```
//! Part names: `etcd`, `apiserver`, `controller-manager`, `blobs`, `host-<h>`, `controller`,
//! `replica-server-<worker>`, `agent-<h>`. All of them are in [`World::parts`].

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use farshore_core::timing::Timing;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
};
use serde_json::json;

use super::{
    binaries::Binaries,
    blobs::{Blobs, BlobsKind},
    control_plane::ControlPlane,
    error::{Error, Result},
    parts::{Parts, Program, Seen, until},
    pki::write_private,
    tools::Tools,
};
use crate::host::client::Admin;

/// The namespace of our own programs.
pub const NAMESPACE: &str = "farshore-system";
/// Name of the controller's part.
pub const CONTROLLER: &str = "controller";

const HOST_READY: Duration = Duration::from_secs(60);
const ENROLLED: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(20);

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it keeps everything; a world in the same folder goes on where the last one stopped.
    pub folder: PathBuf,
    /// The periods of our programs.
    pub timing: Timing,
    /// Which blob service.
    pub blobs: BlobsKind,
    /// The chart to install; `None` installs nothing, and then our programs have no accounts.
    pub chart: Option<PathBuf>,
}

impl Settings {
    /// Azurite, the lab's periods, this repository's chart.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            timing: Timing::lab(),
            blobs: BlobsKind::Azurite,
            chart: Some(repository().join("charts/farshore")),
        }
    }
}

/// A world that runs; everything in it ends when this is dropped.
pub struct World {
    folder: PathBuf,
    plane: ControlPlane,
    blobs: Blobs,
    parts: Arc<Parts>,
    binaries: Binaries,
}

impl World {
    /// Starts control plane and blob service and installs the chart; hosts and our programs come after.
    pub async fn start(settings: Settings) -> Result<Self> {
        let folder = settings.folder;
        std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
        let folder = folder.canonicalize().map_err(Error::file(&folder))?;
        let timing = serde_json::to_string_pretty(&settings.timing).map_err(Error::json("timing"))?;
        let path = folder.join("timing.json");
        std::fs::write(&path, timing).map_err(Error::file(path))?;

        let binaries = blocking(Binaries::find).await?;
        let parts = Arc::new(Parts::new(folder.join("log"))?);
        let (kubernetes, blobs) = (folder.join("kubernetes"), folder.join("blobs"));
        let (plane, blobs) = tokio::try_join!(
            ControlPlane::start_among(&kubernetes, Arc::clone(&parts)),
            Blobs::start(settings.blobs, &blobs, Arc::clone(&parts), &binaries),
        )?;
        let world = Self { folder, plane, blobs, parts, binaries };
        if let Some(chart) = settings.chart {
            world.install_chart(&chart).await?;
        }
        Ok(world)
    }

    /// The folder that it keeps everything in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.plane.client()
    }

    /// The blob service; its link can be cut.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Every process, to kill, stop, pause and start again by name.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Where our programs are.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The periods that our programs were given.
    pub fn timing_file(&self) -> PathBuf {
        self.folder.join("timing.json")
    }

    /// Installs or upgrades the chart: CRDs, RBAC, policies. Our programs run outside, as those accounts.
    pub async fn install_chart(&self, chart: &Path) -> Result<()> {
        let helm = blocking(|| Tools::of_this_machine()?.helm()).await?;
        let mut command = tokio::process::Command::new(helm);
        command.args(["upgrade", "--install", "farshore"]).arg(chart);
        command.args(["--namespace", NAMESPACE, "--create-namespace", "--wait"]);
        command.args(["--set", "controller.enabled=false", "--set", "replicaServer.enabled=false"]);
        command.arg("--kubeconfig").arg(self.plane.kubeconfig());
        // helm's own folders stay inside the world, and a person's settings outside.
        for (variable, folder) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(variable, self.folder.join("helm").join(folder));
        }
        let output =
            command.output().await.map_err(|source| Error::Start { program: "helm".into(), source })?;
        if !output.status.success() {
            let output_end = String::from_utf8_lossy(&output.stderr).into_owned();
            let step = format!("helm upgrade --install farshore {}", chart.display());
            return Err(Error::Step { step, status: output.status, output: output_end });
        }
        for account in ["controller", "replica-server"] {
            let path = self.account_file(account);
            self.plane.service_account_kubeconfig(NAMESPACE, &format!("farshore-{account}"), &path).await?;
        }
        Ok(())
    }

    /// Starts the controller, with further arguments.
    pub fn start_controller(&self, args: &[&str]) -> Result<()> {
        let program = self.ours("farshore-controller", "run", "controller");
        self.parts.start(CONTROLLER, program.args(["--namespace", NAMESPACE]).args(args))
    }

    /// Starts one worker of the replica server.
    pub fn start_replica_server(&self, worker: &str, args: &[&str]) -> Result<()> {
        let program = self.ours("farshore-replica-server", "run", "replica-server");
        self.parts.start(&replica_server_part(worker), program.args(["--name", worker]).args(args))
    }

    /// Starts one simulated host and waits until it answers.
    pub async fn start_host(&self, host: &str, args: &[&str]) -> Result<Admin> {
        let folder = self.host_folder(host);
        std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
        let program = self.binaries.program("farshore-lab").args(["host", "--name", host]);
        let part = host_part(host);
        self.parts.start(&part, program.arg("--dir").arg(folder).args(args))?;
        let admin = self.host(host);
        until(&format!("answer of host {host}"), HOST_READY, async || {
            self.parts.check(&part)?;
            Ok(match admin.list().await {
                Ok(_) => Seen::Yes(()),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        })
        .await?;
        Ok(admin)
    }

    /// A host as its administrator reaches it: machines, disks, faults.
    pub fn host(&self, host: &str) -> Admin {
        Admin::new(self.host_socket(host))
    }

    /// The socket of a host.
    pub fn host_socket(&self, host: &str) -> PathBuf {
        self.host_folder(host).join("host.sock")
    }

    /// A one-time token with which a host of `site` enrols.
    pub async fn host_token(&self, site: &str) -> Result<String> {
        let path = self.binaries.folder().join("farshore-controller");
        let mut command = tokio::process::Command::new(&path);
        command.args(["host-token", "--site", site, "--kubeconfig"]).arg(self.plane.kubeconfig());
        let output = command.output().await.map_err(|source| Error::Start { program: path, source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let output_end = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Step {
            step: "farshore-controller host-token".into(),
            status: output.status,
            output: output_end,
        })
    }

    /// Starts the agent of a host; `token` only until it is enrolled.
    pub fn start_agent(&self, host: &str, token: Option<&str>, args: &[&str]) -> Result<()> {
        let state = self.agent_folder(host);
        std::fs::create_dir_all(&state).map_err(Error::file(&state))?;
        let mut program = self.binaries.program("farshore-agent").arg("run");
        if let Some(token) = token {
            program = program.args(["--enroll-token", token]);
        }
        program = program.args(["--api-server", self.plane.url()]).arg("--ca-file").arg(self.plane.ca_file());
        program = program.args(["--name", host]).arg("--state-dir").arg(state);
        program = program.arg("--sim-socket").arg(self.host_socket(host));
        self.parts.start(&agent_part(host), program.arg("--timing").arg(self.timing_file()).args(args))
    }

    /// Starts the agent of a new host, accepts the host as an administrator does, and waits until it is
    /// connected. The site must exist and the controller must run.
    pub async fn enroll(&self, host: &str, site: &str) -> Result<()> {
        let token = self.host_token(site).await?;
        self.start_agent(host, Some(&token), &[])?;
        let hosts: Api<DynamicObject> = Api::all_with(self.client(), &host_resource());
        until(&format!("HyperVHost {host}"), ENROLLED, async || {
            self.parts.check(&agent_part(host))?;
            let accepted = json!({ "spec": { "accepted": true } });
            Ok(match hosts.patch(host, &PatchParams::default(), &Patch::Merge(&accepted)).await {
                Ok(_) => Seen::Yes(()),
                Err(error) if error.to_string().contains("not found") => Seen::NotYet(error.to_string()),
                Err(error) => return Err(Error::kubernetes("acceptance of a host")(error)),
            })
        })
        .await?;
        until(&format!("condition Connected of HyperVHost {host}"), ENROLLED, async || {
            self.parts.check(&agent_part(host))?;
            let found = hosts.get(host).await.map_err(Error::kubernetes("HyperVHost"))?;
            let conditions = found.data.pointer("/status/conditions").cloned().unwrap_or_default();
            let connected = conditions.as_array().into_iter().flatten().any(|condition| {
                condition.get("type").is_some_and(|t| t == "Connected")
                    && condition.get("status").is_some_and(|s| s == "True")
            });
            Ok(if connected { Seen::Yes(()) } else { Seen::NotYet(conditions.to_string()) })
        })
        .await
    }

    /// Starts a part again with other further arguments than before (a crash point, say); it must have ended.
    pub fn start_again_with(&self, part: &str, args: &[&str]) -> Result<()> {
        let program = self.parts.program(part)?;
        self.parts.start(part, program.args(args))
    }

    /// Applies manifests as a person does, by kubectl.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let kubectl = blocking(|| Tools::of_this_machine()?.kubectl()).await?;
        let output = tokio::process::Command::new(&kubectl)
            .args(args)
            .arg("--kubeconfig")
            .arg(self.plane.kubeconfig())
            .output()
            .await
            .map_err(|source| Error::Start { program: kubectl, source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Step { step: format!("kubectl {}", args.join(" ")), status: output.status, output: said })
    }

    /// Writes what a vault of this world needs: Secret `lab-storage` with the account's key, and returns the
    /// `RecoveryVault` named `lab` that uses it, as JSON to apply.
    pub async fn vault(&self) -> Result<serde_json::Value> {
        let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(self.client(), NAMESPACE);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "lab-storage" },
            "stringData": { self.blobs.account(): self.blobs.key() },
        });
        secrets
            .patch("lab-storage", &PatchParams::apply("farshore-lab").force(), &Patch::Apply(&secret))
            .await
            .map_err(Error::kubernetes("Secret lab-storage"))?;
        let spec = json!({
            "cloud": "Custom",
            "storageAccounts": [{ "name": self.blobs.account(), "blobEndpoint": self.blobs.endpoint() }],
            "authentication": { "sharedKey": { "secretRef": { "name": "lab-storage" } } },
        });
        Ok(json!({
            "apiVersion": "farshore.dev/v1alpha1", "kind": "RecoveryVault",
            "metadata": { "name": "lab" }, "spec": spec,
        }))
    }

    /// The shell lines of the lab's script contract.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("KUBECONFIG", self.plane.kubeconfig().display().to_string()),
            ("FARSHORE_LAB", self.folder.display().to_string()),
            ("FARSHORE_BLOB_ENDPOINT", self.blobs.endpoint().to_owned()),
            ("FARSHORE_BLOB_ACCOUNT", self.blobs.account().to_owned()),
            ("FARSHORE_BLOB_KEY", self.blobs.key().to_owned()),
            ("FARSHORE_API_SERVER", self.plane.url().to_owned()),
            ("FARSHORE_CA_FILE", self.plane.ca_file().display().to_string()),
            ("FARSHORE_TIMING", self.timing_file().display().to_string()),
        ]
    }

    /// Stops all in good order, ours first, so that a world in the same folder can go on.
    pub async fn stop(self) {
        self.parts.stop_all(GRACE).await;
    }

    fn ours(&self, program: &str, command: &str, account: &str) -> Program {
        let program = self.binaries.program(program).arg(command);
        let program = program.arg("--kubeconfig").arg(self.account_file(account));
        program.arg("--timing").arg(self.timing_file())
    }

    fn account_file(&self, account: &str) -> PathBuf {
        self.folder.join(format!("{account}.kubeconfig"))
    }

    fn host_folder(&self, host: &str) -> PathBuf {
        self.folder.join("hosts").join(host)
    }

    /// Where an agent keeps its key and its journals.
    pub fn agent_folder(&self, host: &str) -> PathBuf {
        self.folder.join("agents").join(host)
    }

    /// Writes the lines of [`World::env`] for `source`, readable by the owner only.
    pub fn write_env(&self, path: &Path, more: &[(&str, String)]) -> Result<()> {
        let env = self.env();
        let lines = env.iter().map(|(name, value)| (*name, value)).chain(more.iter().map(|(n, v)| (*n, v)));
        let text: String = lines.map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        write_private(path, &text)
    }
}

/// The part of a host.
pub fn host_part(host: &str) -> String {
    format!("host-{host}")
}

/// The part of a host's agent.
pub fn agent_part(host: &str) -> String {
    format!("agent-{host}")
}

/// The part of a worker of the replica server.
pub fn replica_server_part(worker: &str) -> String {
    format!("replica-server-{worker}")
}

fn host_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("farshore.dev", "v1alpha1", "HyperVHost"))
}

/// The checkout that this was built from.
fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(act)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
