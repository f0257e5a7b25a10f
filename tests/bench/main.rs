//! `farshore-bench`: what replication costs, beside what the usual tool costs, on one machine.
//!
//! ```text
//! farshore-bench data ──┬─ farshore-bench blob      the double: referee by its own clock, counts bytes
//!                       ├─ farshore-bench host      the simulated host with the VM
//!                       ├─ farshore-bench agent     the engine           ┐ each a process of its own, so that
//!                       ├─ farshore-bench transfer  the transfer alone   │ the operating system accounts for
//!                       ├─ farshore-bench replica   the replica server   │ its CPU and memory
//!                       └─ azcopy                   the peer             ┘
//! ```
#![forbid(unsafe_code)]

mod azcopy;
mod data;
mod double;
mod image;
mod process;
mod relationship;
mod sides;
mod table;
mod usage;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Measures Farshore.
#[derive(Parser)]
#[command(name = "farshore-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Initial replication of a real disk against azcopy; ceilings; resume; memory.
    Data(data::Args),
    #[command(hide = true)]
    Blob(farshore_lab::blob::Args),
    #[command(hide = true)]
    Host(farshore_lab::host::Args),
    #[command(hide = true)]
    Agent { job: PathBuf },
    #[command(hide = true)]
    Transfer { job: PathBuf },
    #[command(hide = true)]
    Replica { job: PathBuf },
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    let result = match Cli::parse().command {
        Command::Data(args) => data::run(args).await,
        Command::Blob(args) => farshore_lab::blob::run(args).await,
        Command::Host(args) => farshore_lab::host::run(args).await,
        Command::Agent { job } => sides::agent(&job).await,
        Command::Transfer { job } => sides::transfer(&job).await,
        Command::Replica { job } => sides::replica(&job).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("farshore-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
