//! What the API holds, kept in memory: one watch per kind, whose changes wake the reconcilers that they concern.
//!
//! ```text
//! watch of a kind --> store          read by everybody
//!        `----------> keys           into the queue of each reconciler that a change concerns
//! ```
//! Queues are bounded; a full one holds up its watch, not the memory. A reconciler takes keys quickly, since
//! it holds each object at most once.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use farshore_api::{
    HyperVHost, HyperVSite, HyperVVM, ProtectedVM, RecoveryJob, RecoveryVault, ReplicationPolicy,
    ReplicationRelationship,
};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, applier};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// An object as it was read, or why it could not be.
pub type Guarded<K> = DeserializeGuard<K>;
/// All objects of a kind.
pub type Objects<K> = Store<Guarded<K>>;

/// Length of a queue: a relist of one host's VMs fits without waiting.
const QUEUE: usize = 1024;

/// Everything that is watched.
#[derive(Clone)]
pub struct Stores {
    /// ProtectedVMs.
    pub vms: Objects<ProtectedVM>,
    /// Relationships.
    pub relationships: Objects<ReplicationRelationship>,
    /// VMs as hosts report them.
    pub reports: Objects<HyperVVM>,
    /// Hosts.
    pub hosts: Objects<HyperVHost>,
    /// Sites.
    pub sites: Objects<HyperVSite>,
    /// Policies.
    pub policies: Objects<ReplicationPolicy>,
    /// Vaults.
    pub vaults: Objects<RecoveryVault>,
    /// Jobs.
    pub jobs: Objects<RecoveryJob>,
    /// Certificate requests.
    pub requests: Objects<CertificateSigningRequest>,
}

/// Readable objects of a store.
pub fn all<K>(objects: &Objects<K>) -> Vec<Arc<Guarded<K>>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    objects.state_filter(|o| o.0.is_ok())
}

/// A cluster-scoped object by name, if it is there and can be read.
pub fn named<K>(objects: &Objects<K>, name: &str) -> Option<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    objects.get(&ObjectRef::new(name)).and_then(|o| o.0.as_ref().ok().cloned())
}

/// Keys of one reconciler.
pub struct Queue<K: Resource>(mpsc::Sender<ObjectRef<Guarded<K>>>);

impl<K: Resource> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What waits in a queue.
pub type Waiting<K> = mpsc::Receiver<ObjectRef<Guarded<K>>>;

impl<K> Queue<K>
where
    K: Resource + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    fn new() -> (Self, Waiting<K>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Wakes the reconciler for an object. A reconciler that has ended needs no key.
    pub async fn wake(&self, key: ObjectRef<Guarded<K>>) {
        if self.0.send(key).await.is_err() {
            debug!("a key came after its reconciler ended");
        }
    }

    /// Wakes it for several.
    pub async fn wake_all(&self, keys: impl IntoIterator<Item = ObjectRef<Guarded<K>>> + Send)
    where
        <Vec<ObjectRef<Guarded<K>>> as IntoIterator>::IntoIter: Send,
        K::DynamicType: Send + Sync,
    {
        let keys: Vec<_> = keys.into_iter().collect();
        for key in keys {
            self.wake(key).await;
        }
    }
}

/// The queues of all reconcilers.
#[derive(Clone)]
pub struct Queues {
    /// ProtectedVMs.
    pub vms: Queue<ProtectedVM>,
    /// Hosts.
    pub hosts: Queue<HyperVHost>,
    /// Certificate requests.
    pub requests: Queue<CertificateSigningRequest>,
    /// Vaults.
    pub vaults: Queue<RecoveryVault>,
    /// Sites.
    pub sites: Queue<HyperVSite>,
    /// Policies.
    pub policies: Queue<ReplicationPolicy>,
}

/// The other ends.
pub struct AllWaiting {
    /// ProtectedVMs.
    pub vms: Waiting<ProtectedVM>,
    /// Hosts.
    pub hosts: Waiting<HyperVHost>,
    /// Certificate requests.
    pub requests: Waiting<CertificateSigningRequest>,
    /// Vaults.
    pub vaults: Waiting<RecoveryVault>,
    /// Sites.
    pub sites: Waiting<HyperVSite>,
    /// Policies.
    pub policies: Waiting<ReplicationPolicy>,
}

/// Makes all queues.
pub fn queues() -> (Queues, AllWaiting) {
    let (vms, vms_waiting) = Queue::new();
    let (hosts, hosts_waiting) = Queue::new();
    let (requests, requests_waiting) = Queue::new();
    let (vaults, vaults_waiting) = Queue::new();
    let (sites, sites_waiting) = Queue::new();
    let (policies, policies_waiting) = Queue::new();
    (
        Queues { vms, hosts, requests, vaults, sites, policies },
        AllWaiting {
            vms: vms_waiting,
            hosts: hosts_waiting,
            requests: requests_waiting,
            vaults: vaults_waiting,
            sites: sites_waiting,
            policies: policies_waiting,
        },
    )
}

/// Watches a kind into a store. Nothing is kept up to date before [`follow`] runs.
pub fn watch<K>(
    api: Api<Guarded<K>>,
    config: watcher::Config,
) -> (Objects<K>, impl Stream<Item = Result<Guarded<K>, watcher::Error>> + Send + 'static)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default + Send + Sync + Debug + Unpin,
{
    let (reader, writer) = store();
    let changes = watcher(api, config).default_backoff().reflect(writer).touched_objects();
    (reader, changes)
}

/// Keeps a store up to date and tells `changed` of every change, until the process ends.
pub fn follow<K, F>(
    tasks: &mut JoinSet<()>,
    changes: impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
    changed: impl Fn(K) -> F + Send + Sync + 'static,
) where
    K: Send + 'static,
    F: Future<Output = ()> + Send,
{
    tasks.spawn(async move {
        let mut changes = std::pin::pin!(changes);
        while let Some(change) = changes.next().await {
            match change {
                Ok(object) => changed(object).await,
                // The watcher starts again by itself.
                Err(error) => warn!(%error, "watch interrupted"),
            }
        }
    });
}

/// Runs a reconciler over its queue, `concurrency` objects at a time, each object at most once at a time.
pub fn run<K, Ctx, F>(
    tasks: &mut JoinSet<()>,
    objects: Objects<K>,
    waiting: Waiting<K>,
    concurrency: u16,
    context: Arc<Ctx>,
    reconcile: impl Fn(Arc<Guarded<K>>, Arc<Ctx>) -> F + Send + Sync + 'static,
) where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default + Send + Sync + Debug + Unpin,
    Ctx: Send + Sync + 'static,
    F: Future<Output = Action> + Send + 'static,
{
    let queue = futures::stream::unfold(waiting, |mut waiting| async move {
        waiting.recv().await.map(|key| (Ok::<_, Infallible>(key), waiting))
    });
    let reconcile = move |object, context| {
        let done = reconcile(object, context);
        Box::pin(async move { Ok::<_, Infallible>(done.await) })
    };
    let never = |_: Arc<Guarded<K>>, error: &Infallible, _: Arc<Ctx>| match *error {};
    let config = Config::default().concurrency(concurrency);
    let done = applier(reconcile, never, context, objects, Box::pin(queue), config);
    tasks.spawn(async move {
        let mut done = std::pin::pin!(done);
        while let Some(result) = done.next().await {
            if let Err(error) = result {
                // An object that was removed meanwhile.
                debug!(%error, "not reconciled");
            }
        }
    });
}
