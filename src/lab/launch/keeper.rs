//! The process that holds a background lab, and the protocol to it.
//!
//! `farshore-lab up` starts `farshore-lab keep`, which owns the [`World`], listens on
//! `<folder>/keeper.sock` and ends the world when it is told to or gets SIGTERM. One JSON line asks,
//! one answers. The lock on `<folder>/keeper.lock` says that a keeper lives.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use super::{
    blobs::{BLOBS, BlobsKind},
    error::{Error, Result},
    parts::State,
    world::{Settings, World, agent_part},
};

/// A site, a vault and a worker of the lab are called so.
pub const LAB: &str = "lab";
const WORKER: &str = "worker-1";
const GRACE: Duration = Duration::from_secs(20);

/// What the keeper is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// How are things?
    Status,
    /// SIGKILL.
    Kill {
        /// Which part.
        part: String,
    },
    /// SIGTERM, and wait.
    Stop {
        /// Which part.
        part: String,
    },
    /// Start a part that has ended.
    Start {
        /// Which part.
        part: String,
        /// Arguments on top of those it always has.
        args: Vec<String>,
    },
    /// SIGSTOP.
    Pause {
        /// Which part.
        part: String,
    },
    /// SIGCONT.
    Resume {
        /// Which part.
        part: String,
    },
    /// Pull the cable of the blob service.
    CutBlobs,
    /// Put it back.
    MendBlobs,
    /// End the lab.
    Down,
}

/// How far a lab is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// On its way up; what it is doing.
    Starting(String),
    /// All started.
    Up,
    /// On its way down.
    Stopping,
}

/// One part as a person sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartStatus {
    /// Its name.
    pub name: String,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// How it ended, if it did.
    pub ended: Option<String>,
    /// Its output.
    pub log: PathBuf,
}

/// A lab as a person sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// How far it is.
    pub phase: Phase,
    /// Its parts in the order of their start.
    pub parts: Vec<PartStatus>,
    /// Names of its hosts.
    pub hosts: Vec<String>,
    /// Whether the cable of the blob service is whole.
    pub blobs_linked: bool,
    /// What a person should know, such as programs left out.
    pub notes: Vec<String>,
}

/// What a background lab is made of.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Names of the simulated hosts.
    #[arg(long, value_delimiter = ',', default_value = "h1,h2")]
    pub hosts: Vec<String>,
    /// Which blob service.
    #[arg(long, value_enum, default_value = "azurite")]
    pub blobs: BlobsKind,
    /// Leave out controller, replica server and agents.
    #[arg(long)]
    pub bare: bool,
}

impl Plan {
    /// The same as arguments of a command line.
    pub(super) fn args(&self) -> Vec<String> {
        let blobs = match self.blobs {
            BlobsKind::Azurite => "azurite",
            BlobsKind::Double => "double",
        };
        let mut args = vec![format!("--hosts={}", self.hosts.join(",")), format!("--blobs={blobs}")];
        args.extend(self.bare.then(|| "--bare".to_owned()));
        args
    }
}

/// Where a keeper listens.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("keeper.sock")
}

/// Asks the keeper of the lab in `folder`.
pub async fn ask(folder: &Path, request: &Request) -> Result<Status> {
    let path = socket(folder);
    let away =
        |_| Error::Keeper(format!("no lab is up in {}: `cargo xtask lab up` starts one", folder.display()));
    let stream = UnixStream::connect(&path).await.map_err(away)?;
    let mut line = serde_json::to_string(request).map_err(Error::json("request to the keeper"))?;
    line.push('\n');
    let mut stream = BufReader::new(stream);
    stream.write_all(line.as_bytes()).await.map_err(Error::file(&path))?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await.map_err(Error::file(&path))?;
    let answer: std::result::Result<Status, String> =
        serde_json::from_str(&answer).map_err(Error::json("answer of the keeper"))?;
    answer.map_err(Error::Keeper)
}

/// Whether a keeper lives, however far it is.
pub fn lives(folder: &Path) -> bool {
    File::open(lock_path(folder)).is_ok_and(|lock| lock.try_lock_shared().is_err())
}

fn lock_path(folder: &Path) -> PathBuf {
    folder.join("keeper.lock")
}

/// Keeps a lab in `folder` until it is told to end it.
pub async fn keep(folder: &Path, plan: &Plan) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    let lock = File::create(lock_path(&folder))?;
    lock.try_lock().map_err(|_| Error::Keeper("another keeper has this lab".to_owned()))?;
    // Away from the terminal that started us; fails only if we are a session already.
    let _ = nix::unistd::setsid();
    match std::fs::remove_file(socket(&folder)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(socket(&folder))?;
    let hosts = plan.hosts.iter().filter(|host| !host.is_empty()).cloned().collect();
    let kept = Arc::new(Kept::new(hosts));
    let answering = tokio::spawn(answer_all(listener, Arc::clone(&kept)));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let result = tokio::select! {
        result = run(&folder, plan, &kept) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = kept.down.notified() => Ok(()),
    };
    kept.set(Phase::Stopping);
    if let Some(world) = kept.take_world() {
        world.parts().stop_all(GRACE).await;
    }
    answering.abort();
    std::fs::remove_file(socket(&folder))?;
    Ok(result?)
}

/// Starts everything; returns only on a failure.
async fn run(folder: &Path, plan: &Plan, kept: &Kept) -> Result<()> {
    let settings = Settings { blobs: plan.blobs, ..Settings::new(folder) };
    let world = Arc::new(World::start(settings).await?);
    kept.set_world(Arc::clone(&world));
    let bin = world.binaries().folder().display().to_string();
    let more = [("FARSHORE_HOSTS", kept.hosts().join(" ")), ("FARSHORE_BIN_DIR", bin)];
    world.write_env(&folder.join("env"), &more)?;
    for host in &kept.hosts() {
        kept.set(Phase::Starting(format!("host {host}")));
        world.start_host(host, &[]).await?;
    }
    if plan.bare {
        kept.note("controller, replica server and agents were left out (--bare)".to_owned());
    } else {
        start_ours(&world, kept).await?;
    }
    kept.set(Phase::Up);
    std::future::pending().await
}

async fn start_ours(world: &World, kept: &Kept) -> Result<()> {
    kept.set(Phase::Starting("site and vault".to_owned()));
    let site = json!({
        "apiVersion": "farshore.dev/v1alpha1", "kind": "HyperVSite",
        "metadata": { "name": LAB }, "spec": { "management": { "standalone": {} } },
    });
    apply(&world.client(), &site).await?;
    apply(&world.client(), &world.vault().await?).await?;
    kept.set(Phase::Starting("controller and replica server".to_owned()));
    world.start_controller(&[])?;
    world.start_replica_server(WORKER, &[])?;
    for host in &kept.hosts() {
        kept.set(Phase::Starting(format!("agent of host {host}")));
        let enrolled = world.folder().join(format!("agents/{host}.enrolled"));
        if enrolled.exists() {
            world.start_agent(host, None, &[])?;
        } else {
            world.enroll(host, LAB).await?;
            std::fs::write(&enrolled, "").map_err(Error::file(&enrolled))?;
        }
        world.parts().check(&agent_part(host))?;
    }
    Ok(())
}

/// Server-side apply of one of our cluster-scoped objects.
async fn apply(client: &Client, object: &Value) -> Result<()> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or_default();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind")));
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    api.patch(name, &PatchParams::apply("farshore-lab").force(), &Patch::Apply(object))
        .await
        .map(drop)
        .map_err(Error::kubernetes("site or vault of the lab"))
}

/// What the keeper knows.
struct Kept {
    inner: Mutex<Inner>,
    down: Notify,
}

struct Inner {
    phase: Phase,
    world: Option<Arc<World>>,
    hosts: Vec<String>,
    notes: Vec<String>,
}

impl Kept {
    fn new(hosts: Vec<String>) -> Self {
        let phase = Phase::Starting("control plane and blob service".to_owned());
        Self {
            inner: Mutex::new(Inner { phase, world: None, hosts, notes: Vec::new() }),
            down: Notify::new(),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, phase: Phase) {
        self.change(|inner| inner.phase = phase);
    }

    fn note(&self, note: String) {
        self.change(|inner| inner.notes.push(note));
    }

    fn set_world(&self, world: Arc<World>) {
        self.change(|inner| inner.world = Some(world));
    }

    fn take_world(&self) -> Option<Arc<World>> {
        self.change(|inner| inner.world.take())
    }

    fn hosts(&self) -> Vec<String> {
        self.change(|inner| inner.hosts.clone())
    }

    fn world(&self) -> Result<Arc<World>> {
        let world = self.change(|inner| inner.world.clone());
        world.ok_or_else(|| Error::Keeper("the lab is not up yet".to_owned()))
    }

    fn status(&self) -> Status {
        self.change(|inner| {
            let part = |world: &World, (name, state): (String, State)| {
                let (pid, ended) = match state {
                    State::Running(pid) => (Some(pid), None),
                    State::Ended(status) => (None, Some(status.to_string())),
                };
                PartStatus { log: world.parts().log_path(&name), name, pid, ended }
            };
            let world = inner.world.as_deref();
            let parts = world.map(|w| w.parts().states().into_iter().map(|p| part(w, p)).collect());
            Status {
                phase: inner.phase.clone(),
                parts: parts.unwrap_or_default(),
                hosts: inner.hosts.clone(),
                blobs_linked: world.is_some_and(|world| world.blobs().link().is_whole()),
                notes: inner.notes.clone(),
            }
        })
    }

    async fn act(&self, request: Request) -> Result<Status> {
        match request {
            Request::Status => {}
            Request::Kill { part } => self.world()?.parts().kill(&part)?,
            Request::Stop { part } => drop(self.world()?.parts().stop(&part, GRACE).await?),
            Request::Start { part, args } => start(&*self.world()?, &part, &args).await?,
            Request::Pause { part } => self.world()?.parts().pause(&part).await?,
            Request::Resume { part } => self.world()?.parts().resume(&part)?,
            Request::CutBlobs => self.world()?.blobs().link().cut(),
            Request::MendBlobs => self.world()?.blobs().link().mend(),
            Request::Down => self.down.notify_one(),
        }
        Ok(self.status())
    }
}

async fn start(world: &World, part: &str, args: &[String]) -> Result<()> {
    match part {
        super::APISERVER => world.plane().start_apiserver().await,
        BLOBS => world.blobs().start_again().await,
        part => {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            world.start_again_with(part, &args)
        }
    }
}

async fn answer_all(listener: UnixListener, kept: Arc<Kept>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let kept = Arc::clone(&kept);
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &kept).await {
                tracing::warn!(%error, "answer");
            }
        });
    }
}

async fn answer(stream: UnixStream, kept: &Kept) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => kept.act(request).await.map_err(|error| format!("{:#}", anyhow::Error::from(error))),
        Err(error) => Err(error.to_string()),
    };
    let mut answer = serde_json::to_string(&answer)?;
    answer.push('\n');
    stream.write_all(answer.as_bytes()).await
}
