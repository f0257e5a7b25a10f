//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use farshore_azure::{BlobService, Credential, Endpoint, HttpOptions, SharedKey};
use farshore_core::ids::{DiskId, VmId};
use farshore_core::timing::Timing;
use farshore_disk::FileDisk;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, Policy};
use crate::crash::Crash;
use crate::kubernetes::{Settings, run};
use crate::point_reader::PointReader;
use crate::store::Store;
use crate::task::{Next, VmTask};

/// Applies what hosts upload to replica disks and makes recovery points.
#[derive(Debug, Parser)]
#[command(name = "farshore-replica-server", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Work until told to stop (the default).
    Run(Run),
    /// Work on one VM without Kubernetes until there is nothing to do, and print what it took.
    #[command(hide = true)]
    Settle(Settle),
    /// Read a recovery point: list, digest or export its disks.
    #[command(hide = true)]
    Point(Point),
}

#[derive(Debug, Args)]
struct Run {
    /// Kubeconfig; without it, the pod's own service account.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of Farshore.
    #[arg(long, env = "POD_NAMESPACE", default_value = "farshore-system")]
    namespace: String,
    /// Name among the workers.
    #[arg(long, env = "POD_NAME")]
    name: String,
    /// Periods as JSON; for emulators only.
    #[arg(long)]
    timing: Option<PathBuf>,
    /// Certificates (PEM) that storage is trusted by, besides the usual ones.
    #[arg(long)]
    blob_ca_file: Option<PathBuf>,
    /// Abort at a named point, `name` or `name:n`; for tests.
    #[arg(long, hide = true)]
    crash_at: Option<String>,
}

/// An account of an emulator.
#[derive(Debug, Args)]
struct Account {
    /// Base URL of the blob service, with the account in the path where an emulator wants it.
    #[arg(long, env = "FARSHORE_BLOB_ENDPOINT")]
    blob_endpoint: String,
    /// The account.
    #[arg(long, env = "FARSHORE_BLOB_ACCOUNT", default_value = "devstoreaccount1")]
    account: String,
    /// The account's key, base64; without it, the one that all emulators share.
    #[arg(long, env = "FARSHORE_BLOB_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Certificates (PEM) that storage is trusted by, besides the usual ones.
    #[arg(long)]
    blob_ca_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Settle {
    #[command(flatten)]
    account: Account,
    /// The VM.
    #[arg(long)]
    vm: VmId,
    /// Periods as JSON.
    #[arg(long)]
    timing: Option<PathBuf>,
    /// Seconds between cycles.
    #[arg(long, default_value_t = 300)]
    interval: u64,
    /// Seconds between snapshot sets.
    #[arg(long, default_value_t = 900)]
    spacing: u64,
    /// Seconds for which points are kept.
    #[arg(long, default_value_t = 86_400)]
    retention: u64,
    /// Abort at a named point, `name` or `name:n`.
    #[arg(long)]
    crash_at: Option<String>,
}

#[derive(Debug, Args)]
struct Point {
    #[command(flatten)]
    account: Account,
    /// The VM.
    #[arg(long)]
    vm: VmId,
    /// Name of the point; without it, the newest.
    #[arg(long)]
    point: Option<String>,
    /// Only list the names of points.
    #[arg(long)]
    list: bool,
    /// Write this disk into `--out`.
    #[arg(long, requires = "out")]
    disk: Option<DiskId>,
    /// A file that does not exist yet.
    #[arg(long, requires = "disk")]
    out: Option<PathBuf>,
    /// Bytes of the disk as the guest sees it; without it, the replica's whole MiB.
    #[arg(long)]
    size: Option<u64>,
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// It could not be done.
    pub async fn execute(self) -> anyhow::Result<()> {
        // Another part of the process may have chosen before: then it is chosen.
        drop(rustls::crypto::ring::default_provider().install_default());
        match self.command {
            Some(Command::Run(args)) => args.execute().await,
            Some(Command::Settle(args)) => args.execute().await,
            Some(Command::Point(args)) => args.execute().await,
            None => match Cli::try_parse_from(["farshore-replica-server", "run"])?.command {
                Some(Command::Run(args)) => args.execute().await,
                _ => bail!("no command"),
            },
        }
    }
}

impl Run {
    async fn execute(self) -> anyhow::Result<()> {
        let timing = timing(self.timing.as_deref())?;
        let crash = crash(self.crash_at.as_deref())?;
        let config = match &self.kubeconfig {
            Some(path) => {
                let file = kube::config::Kubeconfig::read_from(path)?;
                kube::Config::from_custom_kubeconfig(file, &Default::default()).await?
            }
            None => kube::Config::infer().await?,
        };
        let client = kube::Client::try_from(config)?;
        let settings = Settings {
            namespace: self.namespace,
            name: self.name,
            timing,
            blob_ca_file: self.blob_ca_file,
            crash,
        };
        let stop = CancellationToken::new();
        let told = stop.clone();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            told.cancel();
        });
        run(client, settings, stop).await
    }
}

fn timing(path: Option<&Path>) -> anyhow::Result<Timing> {
    let Some(path) = path else { return Ok(Timing::default()) };
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let timing: Timing = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    timing.check()?;
    Ok(timing)
}

fn crash(at: Option<&str>) -> anyhow::Result<Crash> {
    Ok(at.map(Crash::parse).transpose()?.unwrap_or_default())
}

impl Account {
    fn open(&self) -> anyhow::Result<BlobService> {
        let key = match &self.key {
            Some(key) => SharedKey::new(&self.account, key).context("the key is not base64")?,
            None => SharedKey::emulator(),
        };
        let endpoint = Endpoint::parse(&self.blob_endpoint)?;
        let options = HttpOptions { ca_bundle: self.blob_ca_file.clone(), ..HttpOptions::default() };
        Ok(BlobService::new(endpoint, Credential::SharedKey(key), &options)?)
    }
}

impl Settle {
    async fn execute(self) -> anyhow::Result<()> {
        let store = Store::new(&self.account.open()?, self.vm);
        let mut ctx = Context::new(self.vm, store, timing(self.timing.as_deref())?, "settle");
        ctx.crash = crash(self.crash_at.as_deref())?;
        let seconds = Duration::from_secs;
        let policy = Policy {
            interval: seconds(self.interval),
            spacing: seconds(self.spacing),
            retention: seconds(self.retention),
        };
        let started = std::time::Instant::now();
        let mut task = VmTask::new(ctx);
        while task.step(&policy).await? == Next::Now {}
        print(&serde_json::json!({
            "seconds": started.elapsed().as_secs_f64(),
            "cpuSeconds": cpu_seconds(),
            "peakMemoryBytes": peak_memory(),
        }))
    }
}

/// Most memory that this process ever had resident; Linux only.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Processor time of this process; Linux only, where clock ticks are hundredths of a second.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11);
    let (user, system): (u32, u32) = (ticks.next()?.parse().ok()?, ticks.next()?.parse().ok()?);
    Some(f64::from(user.saturating_add(system)) / 100.0)
}

impl Point {
    async fn execute(self) -> anyhow::Result<()> {
        let service = self.account.open()?;
        if self.list {
            return print(&serde_json::json!(PointReader::names(&service, self.vm).await?));
        }
        let point = match &self.point {
            Some(name) => PointReader::open(&service, self.vm, name).await?,
            None => PointReader::newest(&service, self.vm).await?,
        };
        if let (Some(disk), Some(out)) = (self.disk, &self.out) {
            let len = self.size.unwrap_or(point.size(disk).await?);
            let file = FileDisk::create_new(out).with_context(|| out.display().to_string())?;
            point.export(disk, len, &file).await?;
            return Ok(());
        }
        let mut disks = serde_json::Map::new();
        for disk in point.disks().collect::<Vec<_>>() {
            let len = self.size.unwrap_or(point.size(disk).await?);
            let digest = point.digest(disk, len).await?;
            disks.insert(disk.to_string(), serde_json::json!({ "bytes": len, "blake3": digest }));
        }
        print(&serde_json::json!({ "point": point.point(), "disks": disks }))
    }
}

fn print(value: &serde_json::Value) -> anyhow::Result<()> {
    use std::io::Write as _;
    let text = serde_json::to_string_pretty(value)?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
