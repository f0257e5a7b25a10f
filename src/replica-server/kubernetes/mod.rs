//! What Kubernetes says: which VMs there are, who shares them, where their containers are.
//!
//! Everything is kept as last known while the API server is away: the watches' stores, the members, the opened
//! accounts. Two workers that both believe a VM to be theirs cost time, never bytes: blob leases and the
//! cursor's tag see to that.

mod members;
mod vaults;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use farshore_api::{Goal, RecoveryVault, ReplicationRelationship};
use farshore_azure::Container;
use farshore_core::ids::VmId;
use farshore_core::points::owner;
use farshore_core::timing::Timing;
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, Lookup, Store as Reflection};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::{Clock, Policy};
use crate::crash::Crash;
use crate::store::Store;
use crate::worker::{Assignment, Worker};

use members::Members;
use vaults::{Accounts, Wanted};

/// Label and its value on the Leases of workers.
const COMPONENT: (&str, &str) = ("farshore.dev/component", "replica-server");
/// How long the work may take to end when the process is told to.
const GRACE: Duration = Duration::from_secs(20);

/// How a worker runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of Farshore: Leases of workers, Secrets of vaults.
    pub namespace: String,
    /// Our name among the workers.
    pub name: String,
    /// Periods.
    pub timing: Timing,
    /// Certificates that storage is trusted by, if not the usual ones.
    pub blob_ca_file: Option<PathBuf>,
    /// For tests.
    pub crash: Crash,
}

/// Works until `stop`.
///
/// # Errors
/// None: what Kubernetes or storage say is tried again.
pub async fn run(client: Client, settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let changed = Arc::new(Notify::new());
    let mut watches = JoinSet::new();
    let everything = watcher::Config::default();
    let ours = watcher::Config::default().labels(&format!("{}={}", COMPONENT.0, COMPONENT.1));
    let lease_api = Api::<Lease>::namespaced(client.clone(), &settings.namespace);
    let leases = watch(&mut watches, lease_api.clone(), ours, &changed);
    let relationships = watch(&mut watches, Api::all(client.clone()), everything.clone(), &changed);
    let vaults = watch(&mut watches, Api::all(client.clone()), everything, &changed);

    let accounts =
        Accounts::new(client, &settings.namespace, settings.timing.clone(), settings.blob_ca_file.clone());
    let worker =
        Worker::new(&settings.name, settings.timing.clone(), Clock::system(), settings.crash.clone());
    let members = Members::new(&settings.name, settings.timing.worker_lost_after);
    let mut server =
        Server { settings, accounts, worker, members, known: BTreeMap::new(), complained: BTreeMap::new() };

    let mut renewal = tokio::time::interval(server.settings.timing.worker_lease_renew);
    renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut listed = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = renewal.tick() => server.renew(&lease_api).await,
            // Statuses of thousands of relationships change all the time: looked at together, a few times
            // between two renewals.
            () = changed.notified() => tokio::time::sleep(server.settings.timing.worker_lease_renew / 5).await,
        }
        // Nothing is taken before all three lists were read once: VMs would change hands for nothing.
        if !listed {
            let all = async {
                (
                    leases.wait_until_ready().await,
                    relationships.wait_until_ready().await,
                    vaults.wait_until_ready().await,
                )
            };
            listed = tokio::time::timeout(Duration::ZERO, all).await.is_ok();
        }
        if listed {
            server.reconcile(&leases.state(), &relationships.state(), &vaults.state()).await;
        }
    }
    tracing::info!("ending");
    let Server { worker, settings, .. } = server;
    worker.shut_down(GRACE).await;
    // So that the others take over at once.
    if let Err(error) = lease_api.delete(&settings.name, &DeleteParams::default()).await {
        tracing::debug!(%error, "our Lease was not deleted and runs out");
    }
    Ok(())
}

/// Keeps a store up to date; a broken object is left out instead of stopping the watch.
fn watch<K>(
    tasks: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    changed: &Arc<Notify>,
) -> Reflection<K>
where
    K: Resource<DynamicType = ()>
        + Lookup<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + DeserializeOwned
        + 'static,
{
    let (reader, writer) = reflector::store();
    let changed = Arc::clone(changed);
    let stream = reflector::reflector(writer, watcher(api, config)).default_backoff();
    tasks.spawn(stream.for_each(move |event| {
        match event {
            Ok(_) => changed.notify_one(),
            Err(error) => tracing::debug!(%error, kind = %<K as Resource>::kind(&()), "watch"),
        }
        futures::future::ready(())
    }));
    reader
}

type Guarded<K> = Arc<DeserializeGuard<K>>;

/// A relationship and what was made of it.
struct Known {
    assignment: Assignment,
}

struct Server {
    settings: Settings,
    accounts: Accounts,
    worker: Worker,
    members: Members,
    /// By VM; kept while the relationship exists, also if its vault can no longer be read.
    known: BTreeMap<VmId, Known>,
    /// Complaints that were made, so that each is made once.
    complained: BTreeMap<VmId, String>,
}

impl Server {
    async fn renew(&mut self, leases: &Api<Lease>) {
        let name = &self.settings.name;
        let seconds = self.settings.timing.worker_lost_after.as_secs().max(1);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(BTreeMap::from([(COMPONENT.0.to_owned(), COMPONENT.1.to_owned())])),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: i32::try_from(seconds).ok(),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        };
        let params = PatchParams::apply("farshore-replica-server").force();
        let patch = Patch::Apply(&lease);
        let renewed = leases.patch(name, &params, &patch);
        match tokio::time::timeout(self.settings.timing.worker_lost_after / 2, renewed).await {
            Ok(Ok(_)) => self.members.renewed(Instant::now()),
            Ok(Err(error)) => tracing::warn!(%error, "our Lease was not renewed"),
            Err(_) => tracing::warn!("our Lease was not renewed: no answer"),
        }
    }

    async fn reconcile(
        &mut self,
        leases: &[Arc<Lease>],
        relationships: &[Guarded<ReplicationRelationship>],
        vaults: &[Guarded<RecoveryVault>],
    ) {
        let now = Instant::now();
        let renewal = |lease: &Lease| {
            let time = lease.spec.as_ref().and_then(|s| s.renew_time.as_ref()).map(|t| t.0.to_string());
            (lease.name_any(), time.unwrap_or_default())
        };
        self.members.observe(leases.iter().map(|lease| renewal(lease)), now);
        let all = current(relationships);
        let mut wanted = BTreeMap::new();
        self.known.retain(|vm, _| all.contains_key(vm));
        for (vm, relationship) in all {
            let mine = owner(vm, self.members.alive(now).iter().map(String::as_str));
            if mine != Some(self.settings.name.as_str()) {
                self.known.remove(&vm);
                continue;
            }
            match self.open(vm, relationship, vaults).await {
                Ok(assignment) => {
                    self.complained.remove(&vm);
                    self.known.insert(vm, Known { assignment });
                }
                Err(error) => self.complain(vm, &error),
            }
            if let Some(known) = self.known.get(&vm) {
                wanted.insert(vm, known.assignment.clone());
            }
        }
        self.worker.assign(&wanted);
    }

    fn complain(&mut self, vm: VmId, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.complained.get(&vm) != Some(&text) {
            let goes_on = self.known.contains_key(&vm);
            tracing::warn!(vm.id = %vm, error = text, goes_on, "the VM's storage account cannot be opened");
            self.complained.insert(vm, text);
        }
    }

    async fn open(
        &mut self,
        vm: VmId,
        relationship: &ReplicationRelationship,
        vaults: &[Guarded<RecoveryVault>],
    ) -> anyhow::Result<Assignment> {
        let spec = &relationship.spec;
        let vault = vaults.iter().filter_map(|v| v.0.as_ref().ok()).find(|v| v.name_any() == spec.vault);
        let vault = vault.ok_or_else(|| anyhow::anyhow!("there is no RecoveryVault {}", spec.vault))?;
        let opened = self
            .accounts
            .open(&Wanted {
                vault,
                account: &spec.storage_account,
                endpoint: &spec.endpoints.blob,
                ca_bundle: spec.endpoints.ca_bundle.as_deref(),
            })
            .await?;
        let container = |name: &str| -> Container { opened.service.container(name) };
        let store = Store {
            replica: container(&spec.endpoints.replica_container),
            up: container(&spec.endpoints.up_container),
            down: container(&spec.endpoints.down_container),
        };
        let timing = &self.settings.timing;
        let policy = Policy {
            interval: timing.policy(spec.schedule.interval_seconds),
            spacing: timing.policy(spec.schedule.recovery_point_spacing_seconds),
            retention: timing.policy(spec.schedule.recovery_point_retention_seconds),
        };
        tracing::trace!(vm.id = %vm, account = spec.storage_account, "open");
        Ok(Assignment { store, store_version: opened.version, policy })
    }
}

/// The relationship that counts of each VM: of several, while a VM changes hosts, the one with the highest
/// term and stream. Only those that replicate.
fn current(relationships: &[Guarded<ReplicationRelationship>]) -> BTreeMap<VmId, &ReplicationRelationship> {
    let mut all: BTreeMap<VmId, &ReplicationRelationship> = BTreeMap::new();
    for relationship in relationships.iter().filter_map(|guarded| guarded.0.as_ref().ok()) {
        let spec = &relationship.spec;
        let Ok(vm) = spec.vm_id.parse::<VmId>() else { continue };
        let replicates = match spec.goal {
            Goal::Replicate => true,
            Goal::StopReplicating => false,
        };
        let older = |other: &&ReplicationRelationship| {
            (other.spec.term, other.spec.stream) < (spec.term, spec.stream)
        };
        if replicates && all.get(&vm).is_none_or(older) {
            all.insert(vm, relationship);
        }
    }
    all
}
