//! host.

/// Arguments of `farshore-lab host`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it until SIGTERM.
pub async fn run(_args: Args) -> anyhow::Result<()> {
    Ok(())
}
