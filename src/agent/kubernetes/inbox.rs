//! Relationships of the host's namespace, each with an engine of its own: started, told of changes, ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use farshore_api as api;
use farshore_api::ReplicationRelationship;
use farshore_azure::{Endpoint, Http, HttpOptions, Sas};
use farshore_core::ids::{Hash, Stream, Term, VmId};
use farshore_hyperv::Hypervisor;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use std::pin::pin;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::spec;
use super::status::{self, Place};
use crate::engine::{Assignment, Context, Engine, Goal};
use crate::store::{SasPair, SasSource, SasStore};

/// How long reference points stay after their relationship was deleted without a word (DESIGN 4: Retain).
const KEEP_POINTS: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

/// The signatures of one VM's Secret.
#[derive(Clone)]
struct SecretSource {
    connection: Connection,
    namespace: String,
    name: String,
}

impl SasSource for SecretSource {
    async fn read(&self) -> Option<SasPair> {
        let secrets: Api<Secret> = Api::namespaced(self.connection.client(), &self.namespace);
        // An engine must not hang because Kubernetes is away.
        let found = match tokio::time::timeout(Duration::from_secs(15), secrets.get_opt(&self.name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(secret = %self.name, %error, "the SAS secret could not be read");
                None
            }
            Err(_) => {
                tracing::warn!(secret = %self.name, "the SAS secret could not be read: no answer");
                None
            }
        };
        let data = found?.data?;
        let sas = |key: &str| data.get(key).and_then(|v| std::str::from_utf8(&v.0).ok()).map(Sas::new);
        Some(SasPair { up: sas("up")?, down: sas("down")? })
    }
}

/// What an engine's store is made from: another one needs another engine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Where {
    endpoints: api::Endpoints,
    sas_secret: String,
}

/// One engine under supervision.
struct Task {
    vm: VmId,
    uid: Option<String>,
    place: Option<Where>,
    goal: watch::Sender<Assignment>,
    stop: CancellationToken,
    running: JoinSet<()>,
}

/// All engines of the host.
pub(super) struct Inbox<H> {
    connection: Connection,
    namespace: String,
    host: Arc<H>,
    context: Context,
    state_dir: PathBuf,
    blob_ca_file: Option<PathBuf>,
    /// A connection pool per CA bundle.
    pools: BTreeMap<Option<Hash>, Http>,
    /// By name of the relationship; orphans by their VM's id.
    tasks: BTreeMap<String, Task>,
    orphans_seen: bool,
}

impl<H: Hypervisor + 'static> Inbox<H> {
    pub(super) fn new(
        connection: Connection,
        namespace: String,
        host: Arc<H>,
        context: Context,
        state_dir: &Path,
        blob_ca_file: Option<PathBuf>,
    ) -> Self {
        Self {
            connection,
            namespace,
            host,
            context,
            state_dir: state_dir.to_owned(),
            blob_ca_file,
            pools: BTreeMap::new(),
            tasks: BTreeMap::new(),
            orphans_seen: false,
        }
    }

    /// Follows the relationships until `stop`, then ends all engines.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let mut connection = self.connection.clone();
            tokio::select! {
                ended = self.follow() => if let Err(error) = ended {
                    tracing::warn!(error = %format!("{error:#}"), "watching relationships failed, starting again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                },
                () = connection.renewed() => {}
                () = stop.cancelled() => {}
            }
        }
        for (_, mut task) in std::mem::take(&mut self.tasks) {
            task.stop.cancel();
            while task.running.join_next().await.is_some() {}
        }
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        let relationships: Api<ReplicationRelationship> =
            Api::namespaced(self.connection.client(), &self.namespace);
        let mut events = pin!(watcher(relationships, watcher::Config::default()).default_backoff());
        let mut listed: BTreeSet<String> = BTreeSet::new();
        loop {
            let event = match events.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // The watcher goes on by itself; engines run with what they know.
                    tracing::warn!(%error, "the watch of relationships was interrupted");
                    continue;
                }
            };
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(relationship) => {
                    listed.insert(relationship.name_any());
                    self.apply(&relationship).await;
                }
                Event::InitDone => {
                    let gone: Vec<String> = self
                        .tasks
                        .iter()
                        .filter(|(name, task)| task.place.is_some() && !listed.contains(*name))
                        .map(|(name, _)| name.clone())
                        .collect();
                    for name in gone {
                        self.delete(&name).await;
                    }
                    self.adopt_orphans();
                }
                Event::Apply(relationship) => self.apply(&relationship).await,
                Event::Delete(relationship) => self.delete(&relationship.name_any()).await,
            }
        }
    }

    async fn apply(&mut self, relationship: &ReplicationRelationship) {
        let name = relationship.name_any();
        if let Err(error) = self.take(&name, relationship).await {
            tracing::error!(relationship = %name, error = %format!("{error:#}"), "the relationship cannot be used");
        }
    }

    async fn take(&mut self, name: &str, relationship: &ReplicationRelationship) -> anyhow::Result<()> {
        let assignment = spec::assignment(relationship, &self.context.timing)?;
        let place = Where {
            endpoints: relationship.spec.endpoints.clone(),
            sas_secret: relationship.spec.sas_secret.clone(),
        };
        let uid = relationship.uid();
        if let Some(task) = self.tasks.get(name)
            && task.place.as_ref() == Some(&place)
            && task.uid == uid
        {
            task.goal.send_if_modified(|known| {
                // What the status says changes by our own writes; that is no news.
                let news = Assignment { observed: known.observed, ..assignment.clone() } != *known;
                *known = assignment;
                news
            });
            return Ok(());
        }
        // One engine per VM: of another relationship, an orphan's, or one with other endpoints.
        let others: Vec<String> = self
            .tasks
            .iter()
            .filter(|(other, task)| task.vm == assignment.vm || *other == name)
            .map(|(other, _)| other.clone())
            .collect();
        for other in others {
            self.end(&other).await;
        }
        let store = self.store(&place)?;
        let written = relationship.status.clone().unwrap_or_default();
        let (goal, told) = watch::channel(assignment);
        let vm = goal.borrow().vm;
        let stop = CancellationToken::new();
        let (engine, reports) =
            Engine::new(Arc::clone(&self.host), Arc::new(store), self.context.clone(), told);
        let mut running = JoinSet::new();
        running.spawn(engine.run(stop.clone()));
        let writer = status::run(
            self.connection.clone(),
            Place { namespace: self.namespace.clone(), name: name.to_owned(), uid: uid.clone() },
            written,
            reports,
            // The controller writes into the ProtectedVM as seldom: together one write per VM and refresh.
            self.context.timing.status_refresh.saturating_mul(2),
        );
        running.spawn(writer);
        self.tasks.insert(name.to_owned(), Task { vm, uid, place: Some(place), goal, stop, running });
        Ok(())
    }

    fn store(&mut self, place: &Where) -> anyhow::Result<SasStore<SecretSource>> {
        let http = self.pool(place.endpoints.ca_bundle.as_deref())?;
        let endpoint = Endpoint::parse(&place.endpoints.blob).context("spec.endpoints.blob")?;
        let source = SecretSource {
            connection: self.connection.clone(),
            namespace: self.namespace.clone(),
            name: place.sas_secret.clone(),
        };
        Ok(SasStore::new(
            http,
            endpoint,
            &place.endpoints.up_container,
            &place.endpoints.down_container,
            source,
        ))
    }

    fn pool(&mut self, ca_bundle: Option<&str>) -> anyhow::Result<Http> {
        let key = ca_bundle.map(|pem| Hash::of(pem.as_bytes()));
        if let Some(pool) = self.pools.get(&key) {
            return Ok(pool.clone());
        }
        let ca_file = match (ca_bundle, key) {
            (Some(pem), Some(hash)) => {
                let path = self.state_dir.join(format!("ca-{}.pem", hash.short()));
                crate::journal::replace(&path, pem.as_bytes(), 0o600).context("write the CA bundle")?;
                Some(path)
            }
            _ => self.blob_ca_file.clone(),
        };
        let options = HttpOptions {
            ca_bundle: ca_file,
            connect_timeout: self.context.timing.connect,
            stall_timeout: self.context.timing.stall,
            proxy: None,
        };
        let pool = Http::new(&options)?;
        self.pools.insert(key, pool.clone());
        Ok(pool)
    }

    /// The relationship is gone without a goal of its own: what grows on the host is let go of at once, the
    /// reference points later, so that a relationship made again can go on from them.
    async fn delete(&mut self, name: &str) {
        let Some(vm) = self.tasks.get(name).map(|task| task.vm) else { return };
        tracing::info!(relationship = %name, vm.id = %vm, "the relationship is gone");
        self.end(name).await;
        self.orphan(vm);
    }

    async fn end(&mut self, name: &str) {
        let Some(mut task) = self.tasks.remove(name) else { return };
        task.stop.cancel();
        // The writer ends with the engine.
        while task.running.join_next().await.is_some() {}
    }

    /// Journals of VMs that no relationship names: left behind while the agent was not running.
    fn adopt_orphans(&mut self) {
        if std::mem::replace(&mut self.orphans_seen, true) {
            return;
        }
        let journals = self.context.journals.vms().unwrap_or_default();
        for vm in journals {
            if self.tasks.values().all(|task| task.vm != vm) {
                self.orphan(vm);
            }
        }
    }

    fn orphan(&mut self, vm: VmId) {
        let Ok(Some(journal)) = self.context.journals.load(vm) else { return };
        let until = self.context.clock.now().checked_add(KEEP_POINTS).ok();
        let assignment = Assignment {
            vm,
            goal: Goal::StopReplicating { keep_points_until: until },
            term: journal.term,
            stream: journal.stream,
            disks: Vec::new(),
            interval: Duration::from_secs(300),
            paused: false,
            compress: true,
            parallelism: 1,
            reserve: 0,
            base: None,
            observed: Some((Term(journal.term.0), Stream(journal.stream.0))),
            generation: 0,
        };
        let (goal, told) = watch::channel(assignment);
        let stop = CancellationToken::new();
        let (engine, _) = Engine::new(Arc::clone(&self.host), Arc::new(Nowhere), self.context.clone(), told);
        let mut running = JoinSet::new();
        running.spawn(engine.run(stop.clone()));
        self.tasks.insert(vm.to_string(), Task { vm, uid: None, place: None, goal, stop, running });
    }
}

/// Orphans send nothing.
struct Nowhere;

impl crate::store::Store for Nowhere {
    async fn put_new(
        &self,
        name: &str,
        _: bytes::Bytes,
        _: u64,
    ) -> Result<crate::store::Put, farshore_azure::BlobError> {
        Err(crate::store::no_sas(name))
    }

    async fn get(&self, name: &str, _: u64) -> Result<Option<bytes::Bytes>, farshore_azure::BlobError> {
        Err(crate::store::no_sas(name))
    }
}

impl crate::journal::JournalStore {
    /// The VMs that have a journal.
    fn vms(&self) -> std::io::Result<Vec<VmId>> {
        let mut vms = Vec::new();
        for entry in std::fs::read_dir(self.folder())? {
            let name = entry?.file_name();
            let vm = name.to_str().and_then(|n| n.strip_suffix(".journal")).map(VmId::from_str);
            vms.extend(vm.and_then(Result::ok));
        }
        Ok(vms)
    }
}
