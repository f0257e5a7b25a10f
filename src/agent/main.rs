//! `farshore-agent`: see the library.

use std::process::ExitCode;

use clap::Parser;
use farshore_agent::config::Options;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Protects the VMs of a Hyper-V host with Azure.
#[derive(Debug, Parser)]
#[command(name = "farshore-agent", version)]
enum Cli {
    /// Enrols the host if need be, then works until stopped.
    Run(Box<Options>),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let Cli::Run(options) = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(run(*options));
        // Blocking work under way is left as after a crash.
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        result
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    // Loses only against an earlier, equal choice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = options.resolve()?;
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("told to stop");
        told.cancel();
    });
    farshore_agent::run(config, stop).await
}
