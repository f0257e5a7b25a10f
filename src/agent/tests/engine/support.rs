//! A lab for one test: a host with recorded instants, the blob double, containers, a VM, an engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farshore_agent::crash::Crash;
use farshore_agent::engine::{Assignment, Clock, Context, Engine, Goal, Report};
use farshore_agent::journal::JournalStore;
use farshore_agent::store::{SasPair, SasStore};
use farshore_agent::transfer::Budget;
use farshore_azure::sas::{Grant, Permissions, service_sas};
use farshore_azure::{BlobService, Condition, Container, Credential, Endpoint, Http, HttpOptions, SharedKey};
use farshore_core::format::side::{Side, SideRecord};
use farshore_core::format::{Extra, FORMAT_VERSION, Record};
use farshore_core::ids::{DiskId, Stream, Term, VmId};
use farshore_core::names;
use farshore_core::timing::Timing;
use farshore_hyperv::VmInfo;
use farshore_hyperv::sim::SimHost;
use farshore_lab::blob::{Args as BlobArgs, Double};
use farshore_lab::host::admin::{Data, NewVm};
use farshore_lab::host::client::Admin;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::replay::Follower;

pub const MIB: u64 = 1 << 20;

/// How long anything in these tests may take at most.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Periods in which a cycle takes a fraction of a second.
pub fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing {
        policy_second: ms(10),
        retry_minute: ms(120),
        inventory_refresh: ms(100),
        verify_poll: ms(20),
        ..Timing::lab()
    }
}

/// A host and a blob service.
pub struct Lab {
    pub folder: tempfile::TempDir,
    pub admin: Admin,
    pub double: Double,
}

impl Lab {
    pub async fn start(volume_bytes: Option<u64>) -> Self {
        let folder = tempfile::Builder::new().prefix("fs-agent-").tempdir().unwrap();
        let socket = folder.path().join("h.sock");
        let args = farshore_lab::host::Args {
            name: "h1".into(),
            dir: folder.path().join("host"),
            socket: Some(socket.clone()),
            cluster: None,
            nbd_dir: None,
            switch: "External".into(),
            volume_bytes,
            record: true,
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(farshore_lab::host::run(args)).unwrap();
        });
        let admin = Admin::new(socket);
        admin.wait_ready(LIMIT).await.unwrap();
        let double = Double::start(BlobArgs::in_folder(&folder.path().join("blobs"))).await.unwrap();
        Self { folder, admin, double }
    }

    pub fn host(&self) -> SimHost {
        self.admin.hypervisor()
    }

    /// A running VM with its containers and side.json, and data on its disks.
    pub async fn vm(&self, name: &str, sizes: &[u64]) -> Vm {
        let made = self.admin.create(NewVm::with_disks(name, sizes)).await.unwrap();
        self.admin.start(name).await.unwrap();
        let vm = Vm::new(self, name, made.info).await;
        for (slot, size) in sizes.iter().enumerate() {
            vm.write(slot, 0, 64 << 10, 1 + slot as u64).await;
            vm.write(slot, size / 2, 256 << 10, 10 + slot as u64).await;
            vm.write(slot, size - 4096, 4096, 20 + slot as u64).await;
        }
        vm
    }
}

/// A VM under test.
pub struct Vm {
    pub name: String,
    pub info: VmInfo,
    pub admin: Admin,
    pub up: Container,
    pub down: Container,
    pub sas: SasPair,
    pub endpoint: String,
    pub state: PathBuf,
    pub socket: PathBuf,
}

impl Vm {
    async fn new(lab: &Lab, name: &str, info: VmInfo) -> Self {
        let endpoint = Endpoint::parse(lab.double.endpoint()).unwrap();
        let key = SharedKey::emulator();
        let service =
            BlobService::new(endpoint, Credential::SharedKey(key.clone()), &HttpOptions::default()).unwrap();
        let (up, down) = (names::up_container(info.id), names::down_container(info.id));
        let now = Timestamp::now();
        let sas = |container: &str, permissions| {
            let hour = jiff::SignedDuration::from_hours(1);
            service_sas(&key, container, Grant { permissions, starts: now - hour, expires: now + hour })
        };
        let sas = SasPair { up: sas(&up, Permissions::Create), down: sas(&down, Permissions::Read) };
        let (up, down) = (service.container(&up), service.container(&down));
        up.create(&BTreeMap::new()).await.unwrap();
        down.create(&BTreeMap::new()).await.unwrap();
        let vm = Self {
            name: name.into(),
            state: lab.folder.path().join("state").join(name),
            socket: lab.host().socket().to_owned(),
            endpoint: lab.double.endpoint().into(),
            admin: lab.admin.clone(),
            info,
            up,
            down,
            sas,
        };
        vm.side(1, Side::OnPremises, 1, 1).await;
        vm
    }

    pub async fn side(&self, seq: u64, side: Side, term: u32, stream: u32) {
        let record = SideRecord {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            seq,
            side,
            term: Term(term),
            stream: Stream(stream),
            cluster_id: "c".into(),
            written_at: Timestamp::now(),
            extra: Extra::new(),
        };
        self.down.put_if(names::SIDE, record.encode().unwrap().into(), &Condition::None).await.unwrap();
    }

    pub fn id(&self) -> VmId {
        self.info.id
    }

    pub fn disks(&self) -> Vec<DiskId> {
        self.info.disks.iter().map(|d| d.disk_id).collect()
    }

    /// The guest writes bytes that do not compress.
    pub async fn write(&self, slot: usize, offset: u64, len: u64, seed: u64) {
        self.admin.write(&self.name, &slot.to_string(), offset, Data::Random { seed, len }).await.unwrap();
    }

    pub async fn zero(&self, slot: usize, offset: u64, len: u64) {
        self.admin.write(&self.name, &slot.to_string(), offset, Data::Byte { value: 0, len }).await.unwrap();
    }

    pub fn assignment(&self) -> Assignment {
        Assignment {
            vm: self.id(),
            goal: Goal::Replicate,
            term: Term(1),
            stream: Stream(1),
            disks: self.disks(),
            interval: Duration::from_millis(100),
            paused: false,
            compress: true,
            parallelism: 4,
            reserve: 0,
            base: None,
            observed: None,
            generation: 1,
        }
    }

    pub fn journals(&self) -> JournalStore {
        JournalStore::open(&self.state).unwrap()
    }

    pub fn context(&self) -> Context {
        Context {
            journals: self.journals(),
            budget: Budget::default(),
            timing: timing(),
            clock: Clock::new(Timestamp::now),
            crash: Crash::default(),
        }
    }

    pub fn store(&self) -> Arc<SasStore<SasPair>> {
        let http = Http::new(&HttpOptions::default()).unwrap();
        let endpoint = Endpoint::parse(&self.endpoint).unwrap();
        Arc::new(SasStore::new(http, endpoint, self.up.name(), self.down.name(), self.sas.clone()))
    }

    /// An engine of this process.
    pub fn engine(&self, assignment: Assignment) -> Running {
        self.engine_with(assignment, self.context(), self.store())
    }

    pub fn engine_with<S: farshore_agent::store::Store>(
        &self,
        assignment: Assignment,
        context: Context,
        store: Arc<S>,
    ) -> Running {
        let (goal, told) = watch::channel(assignment);
        let host = Arc::new(SimHost::new(self.socket.clone()));
        let (engine, report) = Engine::new(host, store, context, told);
        let stop = CancellationToken::new();
        let task = tokio::spawn(engine.run(stop.clone()));
        Running { goal, report, stop, task }
    }

    /// A stand-in for the replica server, following the containers in the background.
    pub fn follower(&self) -> Follower {
        Follower::new(self.up.clone(), self.down.clone(), self.id())
    }

    /// Compares every point that was replayed with the disks at that instant. Returns how many there were.
    pub async fn check_points(&self, follower: &Follower) -> usize {
        let instants = self.admin.instants(&self.name).await.unwrap();
        let points = follower.points();
        for point in &points {
            let name = names::checkpoint(point.id);
            let instant = instants.iter().find(|i| i.name == name && i.time == point.time);
            let instant = instant.unwrap_or_else(|| panic!("{}: no instant of {}", self.name, point.id));
            assert_eq!(
                point.digests, instant.digests,
                "{}: point {} is no state of the disks",
                self.name, point.id
            );
        }
        points.len()
    }

    pub fn log_files(&self) -> Vec<PathBuf> {
        let folder = Path::new(&self.info.disks[0].path).parent().unwrap();
        let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        files.filter(|p| p.to_string_lossy().contains(".hrl")).collect()
    }
}

/// An engine under way in this process.
pub struct Running {
    pub goal: watch::Sender<Assignment>,
    pub report: watch::Receiver<Report>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Waits until a report is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl FnMut(&Report) -> bool) -> Report {
        let waited = tokio::time::timeout(LIMIT, self.report.wait_for(wanted)).await;
        let waited = waited.map(|found| found.map(|report| report.clone()));
        match waited {
            Ok(Ok(report)) => report,
            Ok(Err(_)) => panic!("{what}: the engine ended"),
            Err(_) => panic!("{what}: not within {LIMIT:?}; last report: {:?}", self.report.borrow().clone()),
        }
    }

    /// Waits until a cycle of at least this number is committed.
    pub async fn committed(&mut self, cycle: u64) -> Report {
        let wanted = |r: &Report| r.last.is_some_and(|l| l.commit.id.cycle.0 >= cycle);
        self.until(&format!("cycle {cycle}"), wanted).await
    }

    pub fn edit(&self, edit: impl FnOnce(&mut Assignment)) {
        self.goal.send_modify(|a| {
            edit(a);
            a.generation += 1;
        });
    }

    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let end = tokio::time::Instant::now() + LIMIT;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < end, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Vm {
    /// The VM as a child process knows it.
    pub fn of_child(info: VmInfo, socket: PathBuf, endpoint: &str, state: PathBuf, sas: SasPair) -> Self {
        let service = BlobService::new(
            Endpoint::parse(endpoint).unwrap(),
            Credential::Sas(sas.up.clone()),
            &HttpOptions::default(),
        );
        let service = service.unwrap();
        Self {
            name: info.name.clone(),
            up: service.container(&names::up_container(info.id)),
            down: service.container(&names::down_container(info.id)),
            admin: Admin::new(socket.clone()),
            endpoint: endpoint.into(),
            info,
            sas,
            state,
            socket,
        }
    }
}
