//! What every reconciler shares.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use farshore_core::host::Heartbeat;
use farshore_core::timing::Timing;
use jiff::Timestamp;
use kube::Client;

use crate::metrics::Metrics;
use crate::protected_vm::memory::Memories;
use crate::report::Report;
use crate::vault::Vaults;
use crate::watch::{Queues, Stores};

/// The clock; only `main` and tests make one.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What every reconciler shares.
pub struct Context {
    /// With the controller's own rights.
    pub client: Client,
    /// Farshore's own namespace.
    pub namespace: String,
    /// Uid of kube-system: this management cluster.
    pub cluster_id: String,
    /// The controller's own user name.
    pub user: String,
    /// All periods.
    pub timing: Timing,
    /// Now.
    pub clock: Clock,
    /// What the API holds.
    pub stores: Stores,
    /// Who is woken.
    pub queues: Queues,
    /// Vaults that are connected to.
    pub vaults: Vaults,
    /// What is remembered of each ProtectedVM.
    pub memories: Memories,
    /// Heartbeats, by namespace and name of the Lease.
    pub heartbeats: Mutex<HashMap<(String, String), Heartbeat>>,
    /// Bootstrap tokens that are known to be gone.
    pub spent: Mutex<HashSet<String>>,
    /// Events.
    pub report: Report,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

impl Context {
    /// The only clock.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }
}
