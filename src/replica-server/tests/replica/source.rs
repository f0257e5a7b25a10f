//! A protected VM in miniature: disks as vectors of bytes, and a writer of cycles as an agent would upload them.
//! It remembers what the disks held at every cycle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use farshore_azure::{BlobService, Condition, Credential, Endpoint, HttpOptions, Metadata, SharedKey, crc64};
use farshore_core::format::commit::{Commit, CommitDisk, CommitRef, Configuration, Consistency, Kind};
use farshore_core::format::cursor::Cursor;
use farshore_core::format::ledger::Ledger;
use farshore_core::format::list::{SegmentEntry, SegmentList};
use farshore_core::format::{Extra, Record};
use farshore_core::ids::{CycleId, DiskId, Hash, Stream, Term, VmId};
use farshore_core::names;
use farshore_core::timing::Timing;
use farshore_disk::Extents;
use farshore_disk::segment::{Compression, Encoder, SegmentId};
use farshore_lab::blob::{Args, Double};
use farshore_replica_server::{Clock, Context, Crash, Next, PointReader, Policy, Store, VmTask};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use uuid::Uuid;

/// Disk data of one segment: small, so that a cycle has many.
const SEGMENT: u64 = 128 << 10;
pub const SECTOR: u64 = 512;

/// A blob service of our own.
pub struct Lab {
    pub double: Double,
    pub service: BlobService,
    _folder: tempfile::TempDir,
}

impl Lab {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let double = Double::start(Args::in_folder(folder.path())).await.unwrap();
        let service = connect(&double);
        Self { double, service, _folder: folder }
    }

    /// A connection pool of its own, for a runtime of its own.
    pub fn connect(&self) -> BlobService {
        connect(&self.double)
    }

    /// A VM of this service.
    pub async fn vm(&self, sizes: &[u64]) -> Source {
        Source::create(&self.service, sizes).await
    }
}

impl Source {
    /// A VM with its containers and a ledger.
    pub async fn create(service: &BlobService, sizes: &[u64]) -> Self {
        let vm = VmId(Uuid::new_v4());
        let store = Store::new(service, vm);
        for container in [&store.replica, &store.up, &store.down] {
            container.create(&Metadata::new()).await.unwrap();
        }
        let disks = sizes
            .iter()
            .map(|size| Disk {
                id: DiskId(Uuid::new_v4()),
                bytes: vec![0; usize::try_from(*size).unwrap()],
                changed: Extents::new(),
                copied: Some(0),
            })
            .collect();
        let mut source = Source {
            service: service.clone(),
            vm,
            store,
            disks,
            next: CycleId::first(Term(1), Stream(1)),
            previous: None,
            fresh: true,
            time: "2026-01-02T03:00:00Z".parse().unwrap(),
            held: BTreeMap::new(),
            now: Arc::new(AtomicI64::new(0)),
            seq: 0,
            change_commit: None,
            change_list: None,
        };
        source.write_ledger(1, 1, |_| ()).await;
        source
    }
}

fn connect(double: &Double) -> BlobService {
    let endpoint = Endpoint::parse(double.endpoint()).unwrap();
    BlobService::new(endpoint, Credential::SharedKey(SharedKey::emulator()), &HttpOptions::default()).unwrap()
}

/// A disk and what changed on it since the last cycle.
pub struct Disk {
    pub id: DiskId,
    pub bytes: Vec<u8>,
    changed: Extents,
    /// Copied up to here; `None`: whole.
    copied: Option<u64>,
}

type Change<T> = Option<Box<dyn FnOnce(&mut T) + Send>>;

pub struct Source {
    pub service: BlobService,
    pub vm: VmId,
    pub store: Store,
    pub disks: Vec<Disk>,
    /// The cycle to come.
    pub next: CycleId,
    /// The last commit of the chain.
    pub previous: Option<CommitRef>,
    /// The next commit starts a copy from nothing.
    fresh: bool,
    /// The instant of the next checkpoint.
    pub time: Timestamp,
    /// What each disk held at each cycle.
    pub held: BTreeMap<CycleId, Vec<Vec<u8>>>,
    /// Seconds that the workers' clock is ahead.
    pub now: Arc<AtomicI64>,
    seq: u64,
    /// To make the next commit or its lists wrong.
    pub change_commit: Change<Commit>,
    pub change_list: Change<SegmentList>,
}

impl Source {
    /// Replaces the ledger.
    pub async fn write_ledger(&mut self, term: u32, stream: u32, change: impl FnOnce(&mut Ledger)) {
        self.seq += 1;
        let at = "2026-01-02T03:04:05Z";
        let mut ledger: Ledger = serde_json::from_value(json!({
            "formatVersion": 1, "minReader": 1, "seq": self.seq, "nonce": "n", "vmID": self.vm,
            "state": "Protected", "epoch": 1, "intents": {}, "term": term, "stream": stream, "attempt": 0,
            "cut": null, "owner": "OnPremises", "claim": "host/h1", "clusterID": "c1", "configuration": null,
            "policy": { "name": "gold", "replicationIntervalSeconds": 300, "recoveryPointSpacingSeconds": 900,
                "recoveryPointRetentionSeconds": 86400 },
            "deletionPolicy": "Retain", "disks": [], "storageAccount": "acct", "lastContact": null,
            "lastMoveAt": null, "handledTokens": {}, "actor": "test", "createdAt": at, "writtenAt": at,
            "history": [],
        }))
        .unwrap();
        ledger.disks = self.disks.iter().map(|d| d.id).collect();
        change(&mut ledger);
        let bytes = ledger.encode().unwrap();
        self.store.replica.put_if(names::LEDGER, bytes.into(), &Condition::None).await.unwrap();
    }

    /// The guest writes.
    pub fn write(&mut self, disk: usize, offset: u64, bytes: &[u8]) {
        let disk = &mut self.disks[disk];
        let at = usize::try_from(offset).unwrap();
        disk.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        disk.changed.insert(offset, bytes.len() as u64);
    }

    pub fn fill(&mut self, disk: usize, offset: u64, len: u64, byte: u8) {
        self.write(disk, offset, &vec![byte; usize::try_from(len).unwrap()]);
    }

    /// Writes here and there, decided by `seed`, on every disk.
    pub fn scribble(&mut self, seed: u64) {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = |below: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % below
        };
        for disk in 0..self.disks.len() {
            let size = self.disks[disk].bytes.len() as u64;
            for _ in 0..12 {
                let len = SECTOR * (1 + roll(60));
                let offset = SECTOR * roll((size - len) / SECTOR);
                let byte = u8::try_from(roll(4) * 70 % 256).unwrap();
                if roll(3) == 0 {
                    let noise: Vec<u8> = (0..len).map(|_| u8::try_from(roll(256)).unwrap()).collect();
                    self.write(disk, offset, &noise);
                } else {
                    self.fill(disk, offset, len, byte);
                }
            }
        }
    }

    /// Initial replication from `up_to` bytes of every disk on: one Base cycle. `None`: the rest.
    pub async fn base(&mut self, up_to: Option<u64>) -> CommitRef {
        let mut ranges = Vec::new();
        for disk in &mut self.disks {
            let size = disk.bytes.len() as u64;
            let from = disk.copied.unwrap_or(size);
            let to = up_to.unwrap_or(size).min(size).max(from);
            let mut send = disk.changed.clip(from);
            // What was never written is not sent.
            let written: Extents = (from..to)
                .step_by(4096)
                .filter(|&at| {
                    let at = usize::try_from(at).unwrap();
                    disk.bytes[at..disk.bytes.len().min(at + 4096)].iter().any(|b| *b != 0)
                })
                .map(|at| farshore_disk::Extent::new(at, 4096.min(to - at)))
                .collect();
            send = send.union(&written);
            disk.copied = (to < size).then_some(to);
            ranges.push(send);
        }
        self.commit(Kind::Base, Consistency::Crash, ranges).await
    }

    pub async fn delta(&mut self) -> CommitRef {
        self.cycle(Kind::Delta).await
    }

    pub async fn cycle(&mut self, kind: Kind) -> CommitRef {
        let ranges = self.disks.iter().map(|d| d.changed.clone()).collect();
        let consistency =
            if kind == Kind::Application { Consistency::Application } else { Consistency::Crash };
        self.commit(kind, consistency, ranges).await
    }

    /// Initial replication in three cycles, with writes in between, and the first delta: the first point.
    pub async fn protect(&mut self) {
        for (seed, up_to) in [(1, Some(300 << 10)), (2, Some(700 << 10)), (3, None)] {
            self.scribble(seed);
            self.base(up_to).await;
        }
        self.scribble(4);
        self.delta().await;
    }

    async fn commit(&mut self, kind: Kind, consistency: Consistency, ranges: Vec<Extents>) -> CommitRef {
        let id = self.next;
        let mut disks = Vec::new();
        for (disk, ranges) in self.disks.iter().zip(&ranges) {
            let mut list = SegmentList {
                format_version: 1,
                min_reader: 1,
                disk_id: disk.id,
                segments: self.upload(id, disk, ranges).await,
                extra: Extra::new(),
            };
            if let Some(change) = self.change_list.take() {
                change(&mut list);
            }
            let bytes = serde_json::to_vec(&list).unwrap();
            let hash = Hash::of(&bytes);
            self.put(&names::list(id, disk.id, &hash), bytes.into()).await;
            disks.push(CommitDisk {
                disk_id: disk.id,
                virtual_size: disk.bytes.len() as u64,
                list: hash,
                rct_id: format!("rct-{id}"),
                copied_up_to: disk.copied,
            });
        }
        let mut commit = Commit {
            format_version: 1,
            min_reader: 1,
            vm_id: self.vm,
            term: id.term,
            stream: id.stream,
            cycle: id.cycle,
            kind,
            consistency,
            point_time: self.time,
            next_cycle_at: self.time,
            previous: self.previous,
            configuration: Configuration { generation: 2, ..Configuration::default() },
            reference_point_id: format!("rp-{id}"),
            own_point_ids: vec![format!("rp-{id}")],
            disks,
            full_copy: if self.fresh { self.disks.iter().map(|d| d.id).collect() } else { vec![] },
            extra: Extra::new(),
        };
        if let Some(change) = self.change_commit.take() {
            change(&mut commit);
        }
        let bytes = serde_json::to_vec(&commit).unwrap();
        let reference = CommitRef { id, hash: Hash::of(&bytes) };
        self.put(&names::commit(id), bytes.into()).await;
        self.held.insert(id, self.disks.iter().map(|d| d.bytes.clone()).collect());
        self.disks.iter_mut().for_each(|d| d.changed = Extents::new());
        (self.next, self.previous, self.fresh) = (id.next(), Some(reference), false);
        self.time += SignedDuration::from_mins(5);
        reference
    }

    async fn upload(&self, id: CycleId, disk: &Disk, ranges: &Extents) -> Vec<SegmentEntry> {
        let mut entries = Vec::new();
        let mut encoder: Option<Encoder> = None;
        let mut pieces: Vec<_> = ranges.split(SEGMENT / 2).collect();
        pieces.reverse();
        while let Some(piece) = pieces.pop() {
            let index = u32::try_from(entries.len()).unwrap();
            let segment = SegmentId {
                vm: self.vm.0,
                disk: disk.id.0,
                term: id.term.0,
                stream: id.stream.0,
                cycle: id.cycle.0,
                index,
            };
            let open =
                encoder.get_or_insert_with(|| Encoder::new(segment, Compression::Zstd(1), SEGMENT).unwrap());
            if open.disk_bytes() + piece.len > SEGMENT {
                entries.push(self.seal(id, disk, index, encoder.take().unwrap()).await);
                pieces.push(piece);
                continue;
            }
            let at = usize::try_from(piece.offset).unwrap();
            open.push(piece.offset, &disk.bytes[at..at + usize::try_from(piece.len).unwrap()]).unwrap();
        }
        if let Some(open) = encoder.filter(|e| !e.is_empty()) {
            let index = u32::try_from(entries.len()).unwrap();
            entries.push(self.seal(id, disk, index, open).await);
        }
        entries
    }

    async fn seal(&self, id: CycleId, disk: &Disk, index: u32, encoder: Encoder) -> SegmentEntry {
        let sealed = encoder.finish().unwrap();
        let hash = Hash(*sealed.blake3.as_bytes());
        self.put(&names::segment(id, disk.id, index, &hash), sealed.bytes.clone()).await;
        let ranges = sealed.ranges.iter().map(|e| (e.offset, e.len)).collect();
        SegmentEntry { hash, stored: sealed.bytes.len() as u64, ranges }
    }

    pub async fn put(&self, name: &str, bytes: Bytes) {
        let crc = crc64(&bytes);
        self.store.up.put_new(name, bytes, crc).await.unwrap();
    }

    /// Goes on as an agent with a new stream from what the cursor verified; with `anew`, from nothing.
    pub async fn new_stream(&mut self, stream: u32, anew: bool) {
        let cursor = self.cursor().await;
        let verified = cursor.verified.expect("something was verified");
        self.write_ledger(1, stream, |_| ()).await;
        self.previous = Some(verified.commit);
        self.next = CycleId::first(Term(1), Stream(stream));
        let base = self.held.get(&verified.commit.id).unwrap();
        for (disk, base) in self.disks.iter_mut().zip(base) {
            if anew {
                (disk.copied, disk.changed) = (Some(0), Extents::new());
            } else {
                disk.copied = verified.copied_up_to.get(&disk.id).copied();
                // All that differs from the base has changed since.
                disk.changed = (0..base.len())
                    .step_by(512)
                    .filter(|&at| base[at..at + 512] != disk.bytes[at..at + 512])
                    .map(|at| farshore_disk::Extent::new(at as u64, 512))
                    .collect();
            }
        }
        self.fresh = anew;
    }

    pub fn context(&self, worker: &str, crash: Crash) -> Context {
        let mut ctx = Context::new(self.vm, self.store.clone(), Timing::lab(), worker);
        let ahead = Arc::clone(&self.now);
        ctx.clock =
            Clock::new(move || Timestamp::now() + SignedDuration::from_secs(ahead.load(Ordering::SeqCst)));
        ctx.crash = crash;
        ctx
    }

    pub fn task(&self) -> VmTask {
        VmTask::new(self.context("worker-1", Crash::never()))
    }

    pub async fn cursor(&self) -> Cursor {
        let fetched = self.store.down.get(names::CURSOR, 1 << 20).await.unwrap().expect("there is a cursor");
        Cursor::decode(&fetched.bytes).unwrap()
    }

    /// What storage holds of the names below a prefix of the upload container.
    pub async fn uploaded(&self, prefix: &str) -> Vec<String> {
        let listed = self.store.up.list(prefix, Default::default()).await.unwrap();
        listed.into_iter().map(|b| b.name).collect()
    }

    /// Compares every point with what the disks held at its cycle; returns the points' cycles.
    pub async fn prove_points(&self) -> Vec<u64> {
        let mut cycles = Vec::new();
        for name in PointReader::names(&self.service, self.vm).await.unwrap() {
            let reader = PointReader::open(&self.service, self.vm, &name).await.unwrap();
            let held = &self.held[&reader.point().id()];
            for (disk, held) in self.disks.iter().zip(held) {
                let got = reader.read(disk.id, 0, held.len() as u64).await.unwrap();
                if got != held[..] {
                    let at = got.iter().zip(held).position(|(a, b)| a != b).unwrap();
                    panic!("point {name}, disk {}: {} instead of {} at {at}", disk.id, got[at], held[at]);
                }
                let hash = Hash(*blake3::hash(held).as_bytes());
                assert_eq!(reader.digest(disk.id, held.len() as u64).await.unwrap(), hash);
                assert_eq!(reader.size(disk.id).await.unwrap() % (1 << 20), 0);
            }
            cycles.push(reader.point().cycle.0);
        }
        cycles
    }

    /// What the replica blob of a disk holds now.
    pub async fn replica(&self, disk: usize) -> Vec<u8> {
        let disk = &self.disks[disk];
        let len = disk.bytes.len() as u64;
        self.store.replica.read_pages(&names::disk_blob(disk.id), None, 0, len).await.unwrap().bytes.to_vec()
    }

    /// Takes away the leases that a killed worker held.
    pub async fn break_leases(&self) {
        for disk in &self.disks {
            // There may be no lease, or no blob yet.
            drop(
                self.store
                    .replica
                    .break_lease(&names::disk_blob(disk.id), Some(std::time::Duration::ZERO))
                    .await,
            );
        }
    }
}

/// Every five minutes a cycle, every fifteen a set.
pub fn policy() -> Policy {
    let minutes = |n: u64| std::time::Duration::from_secs(60 * n);
    Policy { interval: minutes(5), spacing: minutes(15), retention: minutes(24 * 60) }
}

/// Every cycle is a set.
pub fn every_cycle() -> Policy {
    Policy { spacing: std::time::Duration::from_secs(60), ..policy() }
}

/// Steps until there is nothing to do.
pub async fn settle(task: &mut VmTask, policy: &Policy) {
    for _ in 0..1000 {
        match task.step(policy).await.expect("no fault") {
            Next::Now => {}
            Next::At(_) => return,
        }
    }
    panic!("1000 steps and still something to do");
}
