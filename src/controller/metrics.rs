//! Prometheus metrics. Labels are bounded: one series per VM or host and no text from outside.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Every state that a VM can be in, for the one-hot gauge.
pub const STATES: [&str; 8] = [
    "None",
    "Enabling",
    "Protected",
    "FailedOver",
    "FailoverCommitted",
    "FailbackSynchronized",
    "FailedBack",
    "FailbackCommitted",
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Vm {
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VmState {
    namespace: String,
    name: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfClass {
    class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfHost {
    host: String,
}

/// All metrics of the controller.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    rpo: Family<Vm, Gauge<f64, AtomicU64>>,
    last_point: Family<Vm, Gauge<f64, AtomicU64>>,
    state: Family<VmState, Gauge>,
    stalled: Family<Vm, Gauge>,
    retries: Family<OfClass, Counter>,
    reconciles: Counter,
    status_writes: Counter,
    connected: Family<OfHost, Gauge>,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("farshore");
        let (rpo, last_point, state) = (Family::default(), Family::default(), Family::default());
        let (stalled, retries, reconciles) = (Family::default(), Family::default(), Counter::default());
        let (status_writes, connected, leader) = (Counter::default(), Family::default(), Gauge::default());
        registry.register("rpo_seconds", "Age of the newest recovery point", Family::clone(&rpo));
        registry.register(
            "last_recovery_point_timestamp_seconds",
            "Time of the newest recovery point",
            Family::clone(&last_point),
        );
        registry.register("protected_vm_state", "1 for the state that the VM is in", Family::clone(&state));
        registry.register("protected_vm_stalled", "1 while a person must act", Family::clone(&stalled));
        registry.register("retries", "Failed attempts by class of the fault", Family::clone(&retries));
        registry.register("reconciles", "ProtectedVMs looked at", Counter::clone(&reconciles));
        registry.register(
            "status_writes",
            "Statuses of ProtectedVMs written",
            Counter::clone(&status_writes),
        );
        registry.register(
            "host_connected",
            "1 while the host's heartbeat is fresh",
            Family::clone(&connected),
        );
        registry.register("leader", "1 while this replica leads", Gauge::clone(&leader));
        Self {
            registry,
            rpo,
            last_point,
            state,
            stalled,
            retries,
            reconciles,
            status_writes,
            connected,
            leader,
        }
    }
}

/// What is measured of one VM.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Age of the newest recovery point.
    pub rpo_seconds: Option<u32>,
    /// Time of the newest recovery point, seconds since 1970.
    pub last_point: Option<i64>,
    /// One of [`STATES`].
    pub state: &'static str,
    /// A person must act.
    pub stalled: bool,
}

impl Metrics {
    /// Sets the figures of one VM.
    pub fn vm(&self, namespace: &str, name: &str, measured: Measured) {
        let vm = || Vm { namespace: namespace.to_owned(), name: name.to_owned() };
        match measured.rpo_seconds {
            Some(rpo) => {
                self.rpo.get_or_create(&vm()).set(f64::from(rpo));
            }
            None => {
                self.rpo.remove(&vm());
            }
        }
        if let Some(at) = measured.last_point {
            self.last_point.get_or_create(&vm()).set(f64_of(at));
        }
        for state in STATES {
            let labels = VmState { namespace: namespace.to_owned(), name: name.to_owned(), state };
            self.state.get_or_create(&labels).set(i64::from(state == measured.state));
        }
        self.stalled.get_or_create(&vm()).set(i64::from(measured.stalled));
        self.reconciles.inc();
    }

    /// Forgets a VM that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let vm = Vm { namespace: namespace.to_owned(), name: name.to_owned() };
        self.rpo.remove(&vm);
        self.last_point.remove(&vm);
        self.stalled.remove(&vm);
        for state in STATES {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            self.state.remove(&VmState { namespace, name, state });
        }
    }

    /// Counts a failed attempt.
    pub fn retry(&self, class: &'static str) {
        self.retries.get_or_create(&OfClass { class }).inc();
    }

    /// Counts a write of a ProtectedVM's status.
    pub fn status_written(&self) {
        self.status_writes.inc();
    }

    /// Sets whether a host is heard of.
    pub fn host(&self, host: &str, connected: bool) {
        self.connected.get_or_create(&OfHost { host: host.to_owned() }).set(i64::from(connected));
    }

    /// Sets whether this replica leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Everything, in OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String does not fail.
            Err(std::fmt::Error) => String::new(),
        }
    }
}

/// Seconds since 1970 are exact in a double for some hundred million years.
#[expect(clippy::cast_precision_loss, reason = "see above")]
const fn f64_of(seconds: i64) -> f64 {
    seconds as f64
}

/// Serves `/metrics`, and `/healthz` while the process runs.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(address: std::net::SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<()> {
    use axum::http::header::CONTENT_TYPE;
    use axum::routing::get;
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = get(move || {
        let metrics = Arc::clone(&metrics);
        async move { ([(CONTENT_TYPE, OPEN_METRICS)], metrics.text()) }
    });
    let app = axum::Router::new().route("/metrics", text).route("/healthz", get(|| async { "ok" }));
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, app).await
}

#[cfg(test)]
mod tests {
    use super::*;

    // R7.3
    #[test]
    fn a_vm_has_one_state_at_a_time_and_leaves_nothing_behind() {
        let metrics = Metrics::default();
        let measured = |state| Measured { rpo_seconds: Some(42), last_point: Some(7), state, stalled: false };
        metrics.vm("shop", "sql01", measured("Enabling"));
        metrics.vm("shop", "sql01", measured("Protected"));
        let text = metrics.text();
        assert!(text.contains(r#"farshore_rpo_seconds{namespace="shop",name="sql01"} 42.0"#), "{text}");
        assert!(
            text.contains(r#"state="Protected"} 1"#) && text.contains(r#"state="Enabling"} 0"#),
            "{text}"
        );
        metrics.forget("shop", "sql01");
        assert!(!metrics.text().contains("sql01"));
    }
}
