//! launch.

/// Commands that start, stop and drive the lab.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Start the lab.
    Up,
}

/// Runs one command.
pub async fn run(_command: Command) -> anyhow::Result<()> {
    Ok(())
}
