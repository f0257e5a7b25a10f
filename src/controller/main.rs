//! `farshore-controller`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use farshore_controller::host::token;
use farshore_controller::run::{self, Settings};
use farshore_core::timing::Timing;
use jiff::Timestamp;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Reconciles Farshore's resources.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Reconciles until it is stopped (also without a command).
    Run(RunArgs),
    /// Makes a one-time token with which one host enrols, and prints it.
    HostToken(TokenArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Kubeconfig file; without it the pod's own account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Namespace that Farshore runs in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "farshore-system")]
    namespace: String,
    /// Name of this replica.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// JSON file with periods that differ from the default; emulators only.
    #[arg(long)]
    timing: Option<PathBuf>,
    /// PEM file of certificates that blob endpoints are trusted by, besides the system's.
    #[arg(long)]
    blob_ca_file: Option<PathBuf>,
    /// Address for /metrics and /healthz, for example 0.0.0.0:9090.
    #[arg(long)]
    metrics_listen: Option<SocketAddr>,
}

#[derive(Args)]
struct TokenArgs {
    /// Name of the HyperVSite that the host joins.
    #[arg(long)]
    site: String,
    /// How long the token may be used, for example 1h or 30m.
    #[arg(long, default_value = "1h")]
    ttl: farshore_api::Duration,
    /// Kubeconfig file; without it the pod's own account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Another part of the process may have been quicker; that is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => serve(args).await,
        Command::HostToken(args) => {
            let client = client(args.kubeconfig.as_deref()).await?;
            let ttl = Duration::from_secs(u64::from(args.ttl.as_secs()));
            let token = token::make(client, &args.site, ttl, Timestamp::now()).await?;
            print(&token)
        }
    }
}

/// The only thing that this program prints.
fn print(line: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{line}").context("printing the token")
}

async fn serve(args: RunArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_span_list(false)
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let settings = Settings {
        client: client(args.kubeconfig.as_deref()).await?,
        namespace: args.namespace,
        identity: args.identity.unwrap_or_else(|| format!("controller-{}", uuid::Uuid::new_v4().simple())),
        timing: timing(args.timing.as_deref())?,
        blob_ca_file: args.blob_ca_file,
        metrics_listen: args.metrics_listen,
        clock: Arc::new(Timestamp::now),
    };
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    tokio::spawn(async move {
        shutdown().await;
        signalled.cancel();
    });
    run::run(settings, stop).await
}

async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig =
                Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no kubeconfig, and not in a pod")?,
    };
    Client::try_from(config).context("connecting to the API")
}

fn timing(file: Option<&Path>) -> anyhow::Result<Timing> {
    let Some(path) = file else { return Ok(Timing::default()) };
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let timing: Timing =
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", path.display()))?;
    timing.check()?;
    Ok(timing)
}

/// Interrupt or, on Unix, SIGTERM.
async fn shutdown() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = tokio::signal::ctrl_c() => return,
            }
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
