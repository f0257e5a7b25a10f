//! The replica server in small: verifies the chain, replays it into flat images, answers by cursor.json. Written
//! from FORMATS, not from the replica server's code: an independent reader.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use farshore_azure::{Condition, Container};
use farshore_core::format::commit::{Commit, CommitRef, Kind};
use farshore_core::format::cursor::{Cursor, Verified};
use farshore_core::format::list::SegmentList;
use farshore_core::format::{Extra, FORMAT_VERSION, Record};
use farshore_core::ids::{CycleId, DiskId, Hash, Stream, Term, VmId};
use farshore_core::names;
use farshore_disk::segment::{Content, Decoder, SegmentId};
use jiff::Timestamp;

/// A state that the commits promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub id: CycleId,
    pub time: Timestamp,
    pub digests: BTreeMap<DiskId, Hash>,
}

#[derive(Default)]
struct State {
    images: BTreeMap<DiskId, Vec<u8>>,
    commits: Vec<(CommitRef, Commit)>,
    points: Vec<Point>,
    /// Disk bytes of all segments, per cycle.
    sent: Vec<u64>,
}

/// Follows one VM's cycles.
#[derive(Clone)]
pub struct Follower {
    up: Container,
    down: Container,
    vm: VmId,
    state: Arc<Mutex<State>>,
}

/// Ends a follower's loop with the value.
pub struct Following(tokio::task::JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Follower {
    pub fn new(up: Container, down: Container, vm: VmId) -> Self {
        Self { up, down, vm, state: Arc::default() }
    }

    /// Verifies and replays in the background from now on.
    pub fn follow(&self, term: u32, stream: u32) -> Following {
        let this = self.clone();
        Following(tokio::spawn(async move {
            loop {
                if !this.one(Term(term), Stream(stream)).await {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }))
    }

    /// Takes the next commit, if it is there.
    pub async fn one(&self, term: Term, stream: Stream) -> bool {
        let last = self.last();
        let next = match last {
            Some(last) if last.id.is_of(term, stream) => last.id.next(),
            _ => CycleId::first(term, stream),
        };
        let Some(found) = self.up.get(&names::commit(next), Commit::MAX as u64).await.unwrap() else {
            return false;
        };
        let commit = Commit::decode(&found.bytes).unwrap();
        assert_eq!((commit.id(), commit.vm_id), (next, self.vm));
        assert_eq!(commit.previous, last, "{next}: the chain is broken");
        self.replay(&commit).await;
        let own = CommitRef { id: next, hash: Hash::of(&found.bytes) };
        // Known to the test only once the agent can know it.
        self.answer(own, &commit).await;
        self.state.lock().unwrap().commits.push((own, commit));
        true
    }

    async fn replay(&self, commit: &Commit) {
        let id = commit.id();
        let mut sent = 0;
        for disk in &commit.disks {
            let name = names::list(id, disk.disk_id, &disk.list);
            let bytes = self.get(&name).await;
            assert_eq!(Hash::of(&bytes), disk.list, "{name}");
            let list = SegmentList::decode(&bytes).unwrap();
            assert!(list.fits(disk.virtual_size));
            let size = usize::try_from(disk.virtual_size).unwrap();
            if commit.full_copy.contains(&disk.disk_id) {
                self.state.lock().unwrap().images.insert(disk.disk_id, vec![0; size]);
            }
            for (index, entry) in list.segments.iter().enumerate() {
                let index = u32::try_from(index).unwrap();
                let bytes = self.get(&list.segment_name(id, index, entry)).await;
                assert_eq!((Hash::of(&bytes), bytes.len() as u64), (entry.hash, entry.stored));
                sent += entry.disk_bytes();
                let (term, stream, cycle) = (id.term.0, id.stream.0, id.cycle.0);
                let segment = SegmentId { vm: self.vm.0, disk: disk.disk_id.0, term, stream, cycle, index };
                let mut state = self.state.lock().unwrap();
                let image = state.images.get_mut(&disk.disk_id).unwrap();
                for frame in Decoder::open(bytes, &segment).unwrap() {
                    let frame = frame.unwrap();
                    let at = usize::try_from(frame.offset).unwrap();
                    let range = at..at + usize::try_from(frame.len).unwrap();
                    match frame.content {
                        Content::Zero => image[range].fill(0),
                        Content::Data(data) => image[range].copy_from_slice(&data),
                    }
                }
            }
        }
        let mut state = self.state.lock().unwrap();
        state.sent.push(sent);
        if commit.kind.is_point() {
            let digests = state.images.iter().map(|(disk, image)| (*disk, Hash::of(image))).collect();
            state.points.push(Point { id, time: commit.point_time, digests });
        }
    }

    async fn get(&self, name: &str) -> Bytes {
        let found = self.up.get(name, 64 << 20).await.unwrap();
        found.unwrap_or_else(|| panic!("{name} is committed and not there")).bytes
    }

    async fn answer(&self, own: CommitRef, commit: &Commit) {
        let cursor = self.cursor(own, commit);
        self.down.put_if(names::CURSOR, cursor.encode().unwrap().into(), &Condition::None).await.unwrap();
    }

    pub fn cursor(&self, own: CommitRef, commit: &Commit) -> Cursor {
        Cursor {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            vm_id: self.vm,
            term: own.id.term,
            stream: own.id.stream,
            verified: Some(Verified {
                commit: own,
                reference_point_id: commit.reference_point_id.clone(),
                rct_ids: commit.disks.iter().map(|d| (d.disk_id, d.rct_id.clone())).collect(),
                copied_up_to: commit
                    .disks
                    .iter()
                    .filter_map(|d| Some((d.disk_id, d.copied_up_to?)))
                    .collect(),
                own_point_ids: commit.own_point_ids.clone(),
                next_cycle_at: commit.next_cycle_at,
            }),
            applied: Some(own),
            newest_point: None,
            refused: None,
            received: None,
            worker: "test".into(),
            written_at: Timestamp::now(),
            extra: Extra::new(),
        }
    }

    pub async fn put_cursor(&self, cursor: &Cursor) {
        self.down.put_if(names::CURSOR, cursor.encode().unwrap().into(), &Condition::None).await.unwrap();
    }

    pub fn last(&self) -> Option<CommitRef> {
        self.state.lock().unwrap().commits.last().map(|(own, _)| *own)
    }

    pub fn commits(&self) -> Vec<Commit> {
        self.state.lock().unwrap().commits.iter().map(|(_, commit)| commit.clone()).collect()
    }

    pub fn points(&self) -> Vec<Point> {
        self.state.lock().unwrap().points.clone()
    }

    pub fn kinds(&self) -> Vec<Kind> {
        self.commits().iter().map(|c| c.kind).collect()
    }

    /// Disk bytes of the segments of each cycle.
    pub fn sent(&self) -> Vec<u64> {
        self.state.lock().unwrap().sent.clone()
    }
}
