//! blob.

/// Arguments of `farshore-lab blob`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it until SIGTERM.
pub async fn run(_args: Args) -> anyhow::Result<()> {
    Ok(())
}
