//! `farshore-lab`: starts and drives the parts of the lab.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// The lab: a whole world of Farshore on one machine.
#[derive(Parser)]
#[command(name = "farshore-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the blob double (file-backed pages and blocks, faults on demand, a null mode).
    Blob(farshore_lab::blob::Args),
    /// Run one simulated Hyper-V host.
    Host(farshore_lab::host::Args),
    /// Show a VM becoming protected, and prove every recovery point.
    Demo(farshore_lab::demo::Args),
    #[command(flatten)]
    Launch(farshore_lab::launch::Command),
}

/// What is logged unless RUST_LOG says otherwise: a control plane that is still starting is no error.
const LOG: &str = "info,kube_client=off";

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG)))
        .with_writer(std::io::stderr)
        .init();
    let result = match Cli::parse().command {
        Command::Blob(args) => farshore_lab::blob::run(args).await,
        Command::Host(args) => farshore_lab::host::run(args).await,
        Command::Demo(args) => farshore_lab::demo::run(args).await,
        Command::Launch(command) => farshore_lab::launch::run(command).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("farshore-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
