//! The Lease by which the controller sees that the host lives. Its age is measured by when it is seen to
//! change, so the host's clock does not matter.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::MANAGER;
use super::connection::Connection;

/// Name of the Lease in the host's namespace.
const LEASE: &str = "farshore-agent";

/// Renews the Lease for ever.
pub(super) async fn run(connection: Connection, namespace: String, host: String, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let leases: Api<Lease> = Api::namespaced(connection.client(), &namespace);
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE},
            "spec": {
                "holderIdentity": host,
                "leaseDurationSeconds": every.as_secs().max(1).saturating_mul(3),
                "renewTime": now,
            },
        });
        let params = PatchParams::apply(MANAGER).force();
        // A renewal that hangs must not hold up the next.
        match tokio::time::timeout(
            every.max(Duration::from_secs(5)),
            leases.patch(LEASE, &params, &Patch::Apply(&lease)),
        )
        .await
        {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the heartbeat could not be written"),
            Err(_) => tracing::warn!("the heartbeat got no answer"),
        }
    }
}
