//! The shared world: control plane, Azurite, chart, a controller inside this process, and a host that is played here.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use farshore_api::{
    HyperVHost, HyperVVM, ProtectedVM, RecoveryJob, RecoveryVault, ReplicationPolicy,
    ReplicationRelationship, annotation,
};
use farshore_azure::{Condition, ETag};
use farshore_controller::run::{self, Settings as ControllerSettings};
use farshore_core::format::commit::{CommitRef, Consistency};
use farshore_core::format::cursor::{Cursor, NewestPoint, Refused, Verified};
use farshore_core::format::ledger::Ledger;
use farshore_core::format::point::Point;
use farshore_core::format::{Extra, Record as _};
use farshore_core::ids::{Cycle, CycleId, DiskId, Hash, Stream, Term, VmId};
use farshore_core::names;
use farshore_core::timing::Timing;
use farshore_lab::launch::{self, Seen, Settings, World, install_crypto, until};
use farshore_lab::proof::Containers;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The host that is played here.
pub(crate) const HOST: &str = "hv01";
/// Its site.
pub(crate) const SITE: &str = "amsterdam";
/// Where ProtectedVMs are.
pub(crate) const NAMESPACE: &str = "shop";
/// How long anything may take before a test gives up on it.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
static STAGE: LazyLock<anyhow::Result<Stage>> = LazyLock::new(|| RUNTIME.block_on(Stage::set()));

/// Cases that break something that all share run alone.
static BREAKING: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

fn world() -> &'static Stage {
    install_crypto();
    match &*STAGE {
        Ok(stage) => stage,
        Err(error) => panic!("no world: {error:#}"),
    }
}

/// Runs a case in the shared world, beside others.
pub(crate) fn stage<F: Future>(case: impl FnOnce(&'static Stage) -> F) -> F::Output {
    let stage = world();
    RUNTIME.block_on(async {
        let _beside = BREAKING.read().await;
        case(stage).await
    })
}

/// Runs a case that kills or cuts something in the shared world.
pub(crate) fn stage_alone<F: Future>(case: impl FnOnce(&'static Stage) -> F) -> F::Output {
    let stage = world();
    RUNTIME.block_on(async {
        let _alone = BREAKING.write().await;
        case(stage).await
    })
}

/// Periods that let a test see renewals.
pub(crate) fn timing() -> Timing {
    Timing { upload_sas: Duration::from_secs(16), download_sas: Duration::from_secs(60), ..Timing::lab() }
}

/// What the controller logged, for the test that looks for secrets in it.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A controller in this process.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Ends where it stands, as by SIGKILL: nothing is given up.
    pub(crate) async fn kill(self) {
        self.task.abort();
        // The end of an aborted task is an error by design.
        drop(self.task.await);
    }

    /// Ends in good order, as by SIGTERM.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// The shared world.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) log: Log,
    kubeconfig: PathBuf,
    controller: Mutex<Option<Running>>,
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_env_filter("debug,hyper=info,h2=info,tower=info")
            .with_writer(move || writer.clone())
            .finish();
        // Another test of this process cannot have set one: all go through here.
        tracing::subscriber::set_global_default(subscriber)?;
        let folder = farshore_lab::scratch("controller")?;
        let world = World::start(Settings { timing: timing(), ..Settings::new(&folder) }).await?;
        let kubeconfig = world.folder().join("controller.kubeconfig");
        let stage = Self { world, log, kubeconfig, controller: Mutex::default() };
        stage.start_controller().await?;
        stage.furnish().await?;
        Ok(stage)
    }

    /// Site, policy, vault, and an accepted host that lives.
    async fn furnish(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client());
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        self.create_cluster::<farshore_api::HyperVSite>(json!({"metadata": {"name": SITE}, "spec": {}}))
            .await?;
        self.create_cluster::<ReplicationPolicy>(json!({"metadata": {"name": "gold"}, "spec": {}})).await?;
        self.create_cluster::<RecoveryVault>(self.world.vault().await?).await?;
        self.create_cluster::<HyperVHost>(json!({
            "metadata": {"name": HOST},
            "spec": {"site": SITE, "accepted": true, "keyFingerprint": "a".repeat(64)},
        }))
        .await?;
        let namespaces = namespaces.clone();
        until("namespace of the host", LIMIT, async || {
            Ok(match namespaces.get_opt(&host_namespace()).await {
                Ok(Some(_)) => Seen::Yes(()),
                other => Seen::NotYet(format!("{other:?}")),
            })
        })
        .await?;
        let client = self.client();
        tokio::spawn(async move { beat(client, &host_namespace(), "farshore-agent").await });
        Ok(())
    }

    pub(crate) fn client(&self) -> Client {
        self.world.client()
    }

    /// Starts another controller with the chart's rights.
    pub(crate) async fn another_controller(&self) -> anyhow::Result<Running> {
        let settings = ControllerSettings {
            client: launch::client(&self.kubeconfig).await?,
            namespace: launch_namespace(),
            identity: format!("test-{}", Uuid::new_v4().simple()),
            timing: timing(),
            blob_ca_file: None,
            metrics_listen: None,
            clock: Arc::new(Timestamp::now),
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = run::run(settings, stopped).await {
                tracing::error!(error = format!("{error:#}"), "the controller ended");
            }
        });
        Ok(Running { stop, task })
    }

    /// Starts the controller of the shared world.
    pub(crate) async fn start_controller(&self) -> anyhow::Result<()> {
        let running = self.another_controller().await?;
        *self.controller.lock().unwrap() = Some(running);
        Ok(())
    }

    /// The controller of the shared world, to be ended; somebody has to start one afterwards.
    pub(crate) fn take_controller(&self) -> Running {
        self.controller.lock().unwrap().take().unwrap()
    }

    /// Ends the controller where it stands; what it was doing is left as it is. Its Lease is not given up, so the test
    /// removes it, as nobody wants to wait for its end each time.
    pub(crate) async fn kill_controller(&self) {
        self.take_controller().kill().await;
        self.leases().delete("farshore-controller", &DeleteParams::default()).await.unwrap();
    }

    /// Leases in Farshore's namespace.
    pub(crate) fn leases(&self) -> Api<k8s_openapi::api::coordination::v1::Lease> {
        Api::namespaced(self.client(), &launch_namespace())
    }

    pub(crate) async fn create_cluster<K>(&self, object: Value) -> anyhow::Result<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + serde::Serialize
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(self.client());
        Ok(api.create(&PostParams::default(), &with_kind::<K>(object)?).await?)
    }

    pub(crate) fn protected_vms(&self) -> Api<ProtectedVM> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    pub(crate) fn relationships(&self) -> Api<ReplicationRelationship> {
        Api::namespaced(self.client(), &host_namespace())
    }

    pub(crate) fn jobs(&self) -> Api<RecoveryJob> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    /// A VM that the host reports.
    pub(crate) async fn report(&self, name: &str) -> Vm {
        let vm = Vm::new(self, name);
        self.report_as(&vm, json!({})).await;
        vm
    }

    /// The host's report of a VM, with these fields over the usual ones.
    pub(crate) async fn report_as(&self, vm: &Vm, more: Value) {
        let disk = |n: usize, id: &DiskId| {
            json!({"id": id.to_string(), "path": format!("D:\\{}\\disk{n}.vhdx", vm.name), "slot": format!("SCSI 0:{n}"),
                "format": "VHDX", "virtualSizeBytes": 8 << 20})
        };
        let disks: Vec<Value> = vm.disks.iter().enumerate().map(|(n, id)| disk(n, id)).collect();
        let mut spec = json!({"vmID": vm.id.to_string(), "vmName": vm.name, "generation": 2, "powerState": "Running",
            "disks": disks, "protectable": true});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        let object = json!({"apiVersion": "farshore.dev/v1alpha1", "kind": "HyperVVM",
            "metadata": {"name": vm.id.to_string()}, "spec": spec});
        let api: Api<HyperVVM> = Api::namespaced(self.client(), &host_namespace());
        let params = PatchParams::apply("test-agent").force();
        api.patch(&vm.id.to_string(), &params, &Patch::Apply(&object)).await.unwrap();
    }

    /// Creates a ProtectedVM with these fields over the usual ones.
    pub(crate) async fn protect_as(&self, name: &str, spec: Value) -> ProtectedVM {
        let mut whole =
            json!({"source": {"site": SITE, "vmName": name}, "policy": "gold", "vault": "lab", "epoch": 1});
        if let (Some(whole), Value::Object(spec)) = (whole.as_object_mut(), spec) {
            whole.extend(spec);
        }
        let object = json!({"metadata": {"name": name, "namespace": NAMESPACE}, "spec": whole});
        let object = with_kind::<ProtectedVM>(object).unwrap();
        self.protected_vms().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn patch(&self, name: &str, patch: Value) {
        self.protected_vms().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.protected_vms().delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub(crate) async fn await_gone(&self, name: &str) {
        let api = self.protected_vms();
        until(&format!("end of {name}"), LIMIT, async || {
            Ok(match api.get_opt(name).await {
                Ok(None) => Seen::Yes(()),
                other => Seen::NotYet(format!("{other:?}")),
            })
        })
        .await
        .unwrap();
    }

    /// Waits until the status of a ProtectedVM, as JSON, satisfies `seen`.
    pub(crate) async fn await_status(&self, name: &str, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        let api = self.protected_vms();
        until(&format!("{what} of {name}"), LIMIT, async || {
            let status = match api.get(name).await {
                Ok(vm) => serde_json::to_value(vm.status).unwrap(),
                Err(error) => return Ok(Seen::NotYet(error.to_string())),
            };
            Ok(if seen(&status) { Seen::Yes(status) } else { Seen::NotYet(status.to_string()) })
        })
        .await
        .unwrap()
    }

    /// Waits until a condition has this status; gives reason and message.
    pub(crate) async fn await_condition(
        &self,
        name: &str,
        condition: &str,
        status: &str,
    ) -> (String, String) {
        let what = format!("{condition}={status}");
        let found = self.await_status(name, &what, |s| find(s, condition)["status"] == status).await;
        let c = find(&found, condition);
        (c["reason"].as_str().unwrap().to_owned(), c["message"].as_str().unwrap().to_owned())
    }

    /// Waits until a ProtectedVM is stalled for this reason.
    pub(crate) async fn await_stalled(&self, name: &str, reason: &str) -> String {
        let what = format!("Stalled by {reason}");
        let stalled =
            |s: &Value| find(s, "Stalled")["status"] == "True" && find(s, "Stalled")["reason"] == reason;
        let found = self.await_status(name, &what, stalled).await;
        find(&found, "Stalled")["message"].as_str().unwrap().to_owned()
    }

    /// Waits until a job of the ProtectedVM satisfies `seen`.
    pub(crate) async fn await_job(
        &self,
        vm: &ProtectedVM,
        operation: &str,
        seen: impl Fn(&Value) -> bool,
    ) -> Value {
        let name = format!("{}-{operation}-{}", vm.name_any(), &vm.uid().unwrap()[..8]);
        let api = self.jobs();
        until(&format!("job {name}"), LIMIT, async || {
            let job = match api.get(&name).await {
                Ok(job) => serde_json::to_value(job).unwrap(),
                Err(error) => return Ok(Seen::NotYet(error.to_string())),
            };
            Ok(if seen(&job["status"]) { Seen::Yes(job) } else { Seen::NotYet(job["status"].to_string()) })
        })
        .await
        .unwrap()
    }

    /// A VM at Protected: the whole road, played.
    pub(crate) async fn protected(&self, name: &str, spec: Value) -> Vm {
        let vm = self.report(name).await;
        self.protect_as(name, spec).await;
        vm.relationship(|_| true).await;
        vm.take_up(json!({})).await;
        vm.point(1, 2).await;
        self.await_status(name, "Protected", |s| s["state"] == "Protected").await;
        vm
    }
}

/// Of a condition list; null if there is none of that type.
pub(crate) fn find<'a>(status: &'a Value, condition: &str) -> &'a Value {
    static NULL: Value = Value::Null;
    status["conditions"].as_array().and_then(|l| l.iter().find(|c| c["type"] == condition)).unwrap_or(&NULL)
}

pub(crate) fn launch_namespace() -> String {
    farshore_lab::launch::NAMESPACE.to_owned()
}

pub(crate) fn host_namespace() -> String {
    farshore_core::host::namespace(HOST)
}

/// A heartbeat, until the test ends.
pub(crate) async fn beat(client: Client, namespace: &str, name: &str) {
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(client, namespace);
    let mut tick = tokio::time::interval(timing().host_lease_renew);
    loop {
        tick.tick().await;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": "test", "renewTime": now}});
        // The API server may be away: that is what some tests are about.
        drop(leases.patch(name, &PatchParams::apply("test-agent").force(), &Patch::Apply(&lease)).await);
    }
}

fn with_kind<K>(mut object: Value) -> anyhow::Result<K>
where
    K: kube::Resource<DynamicType = ()> + serde::de::DeserializeOwned,
{
    let map = object.as_object_mut().expect("an object is a map");
    map.insert("apiVersion".into(), K::api_version(&()).into_owned().into());
    map.insert("kind".into(), K::kind(&()).into_owned().into());
    Ok(serde_json::from_value(object)?)
}

/// A VM of the host that is played here, with what its agent and the replica server do.
pub(crate) struct Vm {
    stage: &'static Stage,
    pub(crate) name: String,
    pub(crate) id: VmId,
    pub(crate) disks: Vec<DiskId>,
    pub(crate) containers: Containers,
}

impl Vm {
    fn new(stage: &Stage, name: &str) -> Self {
        let id = VmId(Uuid::new_v4());
        let disks = vec![DiskId(Uuid::new_v4()), DiskId(Uuid::new_v4())];
        let containers = Containers::of(&stage.world, id).unwrap();
        // Every stage is the one of this process, and lives as long.
        let stage: &'static Stage = STAGE.as_ref().unwrap();
        Self { stage, name: name.to_owned(), id, disks, containers }
    }

    /// Waits until the VM's relationship satisfies `seen`.
    pub(crate) async fn relationship(
        &self,
        seen: impl Fn(&ReplicationRelationship) -> bool,
    ) -> ReplicationRelationship {
        let api = self.stage.relationships();
        until(&format!("relationship of {}", self.name), LIMIT, async || {
            Ok(match api.get_opt(&self.id.to_string()).await {
                Ok(Some(found)) if seen(&found) => Seen::Yes(found),
                other => Seen::NotYet(format!("{other:?}")),
            })
        })
        .await
        .unwrap()
    }

    /// The agent takes up what it was given, and reports this besides.
    pub(crate) async fn take_up(&self, more: Value) {
        let found = self.relationship(|_| true).await;
        let mut status = json!({
            "observed": {"goal": found.spec.goal, "term": found.spec.term, "stream": found.spec.stream,
                "generation": found.metadata.generation},
            "state": "WaitingToCompleteInitialReplication", "step": "CopyingDisks",
            "journalLost": false, "lastError": null, "released": false,
        });
        if let (Some(status), Value::Object(more)) = (status.as_object_mut(), more) {
            status.extend(more);
        }
        let api = self.stage.relationships();
        let patch = json!({"status": status});
        api.patch_status(&self.id.to_string(), &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    pub(crate) async fn ledger(&self) -> Ledger {
        let found = self.containers.replica.get(names::LEDGER, Ledger::MAX as u64).await.unwrap();
        Ledger::decode(&found.expect("there is a ledger").bytes).unwrap()
    }

    /// Puts a ledger that somebody else wrote.
    pub(crate) async fn put_ledger(&self, ledger: &Ledger) {
        let bytes = Bytes::from(ledger.encode().unwrap());
        self.containers.replica.put_if(names::LEDGER, bytes, &Condition::None).await.unwrap();
    }

    async fn cursor(&self) -> Option<(Cursor, ETag)> {
        let found = self.containers.down.get(names::CURSOR, Cursor::MAX as u64).await.unwrap()?;
        Some((Cursor::decode(&found.bytes).unwrap(), found.etag))
    }

    /// The replica server has verified and applied that cycle.
    pub(crate) async fn verify(&self, stream: u32, cycle: u64) {
        self.write_cursor(stream, cycle, None, None).await;
    }

    /// The replica server has made a recovery point of that cycle.
    pub(crate) async fn point(&self, stream: u32, cycle: u64) -> String {
        let id = CycleId { term: Term(1), stream: Stream(stream), cycle: Cycle(cycle) };
        let time = Timestamp::now();
        let point = Point {
            format_version: 1,
            min_reader: 1,
            name: names::point(time, id),
            time,
            term: id.term,
            stream: id.stream,
            cycle: id.cycle,
            commit_hash: Hash::of(b"commit"),
            consistency: Consistency::Crash,
            snapshots: [].into(),
            verified: None,
            extra: Extra::new(),
        };
        let bytes = Bytes::from(point.encode().unwrap());
        let name = names::point_blob(&point.name);
        self.containers.replica.put_if(&name, bytes, &Condition::None).await.unwrap();
        let newest = NewestPoint { name: point.name.clone(), time };
        self.write_cursor(stream, cycle, Some(newest), None).await;
        point.name
    }

    /// The replica server refuses that cycle.
    pub(crate) async fn refuse(&self, stream: u32, cycle: u64, code: &str) {
        let id = CycleId { term: Term(1), stream: Stream(stream), cycle: Cycle(cycle) };
        let refused = Refused { id, code: code.into(), message: "its hash differs".into() };
        let (before, _) = self.cursor().await.unwrap();
        let verified = before.verified.unwrap().commit.id;
        self.write_cursor(verified.stream.0, verified.cycle.0, None, Some(refused)).await;
    }

    async fn write_cursor(
        &self,
        stream: u32,
        cycle: u64,
        newest: Option<NewestPoint>,
        refused: Option<Refused>,
    ) {
        let id = CycleId { term: Term(1), stream: Stream(stream), cycle: Cycle(cycle) };
        let commit = CommitRef { id, hash: Hash::of(id.to_string().as_bytes()) };
        let before = self.cursor().await;
        let now = Timestamp::now();
        let point_id = Uuid::from_u64_pair(u64::from(stream), cycle).to_string();
        let cursor = Cursor {
            format_version: 1,
            min_reader: 1,
            vm_id: self.id,
            term: id.term,
            stream: id.stream,
            verified: Some(Verified {
                commit,
                reference_point_id: point_id.clone(),
                rct_ids: self.disks.iter().map(|d| (*d, format!("rct-{cycle}"))).collect(),
                copied_up_to: [].into(),
                own_point_ids: vec![point_id],
                next_cycle_at: now,
            }),
            applied: Some(commit),
            newest_point: newest.or_else(|| before.as_ref().and_then(|(c, _)| c.newest_point.clone())),
            refused,
            received: None,
            worker: "test".into(),
            written_at: now,
            extra: Extra::new(),
        };
        let condition = before.map_or(Condition::IfNoneMatchAny, |(_, etag)| Condition::IfMatch(etag));
        let bytes = Bytes::from(cursor.encode().unwrap());
        self.containers.down.put_if(names::CURSOR, bytes, &condition).await.unwrap();
    }

    /// The SAS that the host was given.
    pub(crate) async fn sas(&self) -> Option<Secret> {
        let api: Api<Secret> = Api::namespaced(self.stage.client(), &host_namespace());
        api.get_opt(&format!("sas-{}", self.id)).await.unwrap()
    }

    /// Waits until the host has SAS that satisfy `seen`.
    pub(crate) async fn await_sas(&self, seen: impl Fn(&Secret) -> bool) -> Secret {
        until(&format!("SAS of {}", self.name), LIMIT, async || {
            Ok(match self.sas().await {
                Some(found) if seen(&found) => Seen::Yes(found),
                Some(_) => Seen::NotYet("other SAS".into()),
                None => Seen::NotYet("no SAS".into()),
            })
        })
        .await
        .unwrap()
    }

    pub(crate) async fn exists(&self) -> [bool; 3] {
        let c = &self.containers;
        let there =
            async |container: &farshore_azure::Container| container.metadata().await.unwrap().is_some();
        [there(&c.replica).await, there(&c.up).await, there(&c.down).await]
    }
}

/// Text of a key of a Secret.
pub(crate) fn text(secret: &Secret, key: &str) -> String {
    String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap()
}

/// Events about a ProtectedVM, oldest first: type, reason.
pub(crate) async fn events(client: Client, name: &str) -> Vec<(String, String)> {
    let api: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(client, NAMESPACE);
    let all = api.list(&ListParams::default()).await.unwrap();
    let mut mine: Vec<_> = all
        .into_iter()
        .filter(|e| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name))
        .collect();
    mine.sort_by_key(|e| e.event_time.as_ref().map(|t| t.0));
    mine.into_iter().map(|e| (e.type_.unwrap_or_default(), e.reason.unwrap_or_default())).collect()
}

/// The annotation that lets a deletion go.
pub(crate) fn abandon() -> Value {
    json!({"metadata": {"annotations": {annotation::ABANDON: "true"}}})
}
