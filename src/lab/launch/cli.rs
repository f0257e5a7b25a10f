//! The commands of `farshore-lab` that start, stop and drive the lab.

use super::tools::Tools;

/// Commands that start, stop and drive the lab.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Build or fetch all that is not ours (once per machine).
    Setup,
}

/// Runs one command.
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup => Ok(tokio::task::spawn_blocking(|| Tools::of_this_machine()?.set_up()).await??),
    }
}
