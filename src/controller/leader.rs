//! Who leads. Leadership only saves work: what must not happen twice is guarded by ETags and the ledger.

use std::future::Future;
use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Name of the Lease, in Farshore's namespace.
pub const LEASE: &str = "farshore-controller";

/// Runs `work` whenever this replica leads; drops it when it no longer does, and gives the lease up at the end.
///
/// # Errors
/// The Lease cannot be made.
pub async fn lead<F>(
    client: Client,
    namespace: &str,
    identity: &str,
    lease: Duration,
    stop: &CancellationToken,
    mut work: impl FnMut() -> F,
) -> Result<(), LeaseManagerError>
where
    F: Future<Output = ()>,
{
    let seconds = lease.as_secs().max(3);
    let manager = LeaseManagerBuilder::new(client, LEASE)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(seconds)
        .with_grace((seconds / 3).max(1))
        .build()
        .await?;
    let (mut leads, task) = manager.watch().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = leads.wait_for(|leads| *leads) => if changed.is_err() { break },
        }
        info!(identity, "leading");
        tokio::select! {
            () = stop.cancelled() => break,
            changed = leads.wait_for(|leads| !*leads) => if changed.is_err() { break },
            () = work() => break,
        }
        info!(identity, "no longer leading");
    }
    // Without a receiver the manager gives the lease up.
    drop(leads);
    match task.await {
        Ok(ended) => ended.map(drop),
        Err(_) => Ok(()),
    }
}
