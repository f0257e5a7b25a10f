//! `farshore-lab`: starts and drives the parts of the lab.

use clap::{Parser, Subcommand};

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
    #[command(flatten)]
    Launch(farshore_lab::launch::Command),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Blob(args) => farshore_lab::blob::run(args).await,
        Command::Host(args) => farshore_lab::host::run(args).await,
        Command::Launch(command) => farshore_lab::launch::run(command).await,
    }
}
