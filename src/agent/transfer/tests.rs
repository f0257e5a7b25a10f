#![expect(clippy::cast_possible_truncation, reason = "the disks of these tests are small")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32};

use bytes::Bytes;
use farshore_azure::{BlobError, BlobErrorKind};
use farshore_core::ids::{DiskId, Stream, Term};
use farshore_core::units::MIB;
use farshore_disk::segment::{Content, Decoder};
use tokio::sync::watch;
use uuid::Uuid;

use super::*;
use crate::journal::Part;

/// A disk whose every 64 KiB are zero or not.
struct Stripes(Vec<bool>);

const STRIPE: u64 = 64 << 10;

impl Stripes {
    fn byte(&self, at: u64) -> u8 {
        let full = self.0[(at / STRIPE) as usize];
        if full { 1 + (at / 512 % 250) as u8 } else { 0 }
    }

    fn bytes(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        for (sector, chunk) in bytes.chunks_mut(512).enumerate() {
            chunk.fill(self.byte(at + sector as u64 * 512));
        }
        bytes
    }

    fn size(&self) -> u64 {
        self.0.len() as u64 * STRIPE
    }
}

impl Source for Stripes {
    fn read(&self, offset: u64, len: u64, sink: source::Sink<'_>) -> Result<()> {
        let mut at = offset;
        while at < offset + len {
            let n = (MIB - at % MIB).min(offset + len - at);
            sink(at, &self.bytes(at, n))?;
            at += n;
        }
        Ok(())
    }
}

/// Keeps segments; fails from the n-th on; answers none before `gather` bytes have been under way together.
#[derive(Default)]
struct Kept {
    blobs: Mutex<BTreeMap<String, Bytes>>,
    fail_from: Option<u32>,
    calls: AtomicU32,
    in_flight: Mutex<u64>,
    most: watch::Sender<u64>,
    gather: u64,
}

impl Store for Kept {
    async fn put_new(&self, name: &str, bytes: Bytes, _: u64) -> std::result::Result<Put, BlobError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if self.fail_from.is_some_and(|from| call >= from) {
            return Err(crate::store::tests::blob_error(BlobErrorKind::NotAuthorized));
        }
        let len = bytes.len() as u64;
        {
            let mut flying = self.in_flight.lock().unwrap();
            *flying += len;
            self.most.send_modify(|most| *most = (*most).max(*flying));
        }
        self.most.subscribe().wait_for(|most| *most >= self.gather).await.unwrap();
        tokio::time::sleep(Duration::from_millis(u64::from(call % 3) * 4)).await;
        *self.in_flight.lock().unwrap() -= len;
        self.blobs.lock().unwrap().insert(name.to_owned(), bytes);
        Ok(Put::Created)
    }

    async fn get(&self, _: &str, _: u64) -> std::result::Result<Option<Bytes>, BlobError> {
        Ok(None)
    }
}

const VM: VmId = VmId(Uuid::from_u128(1));
const DISK: DiskId = DiskId(Uuid::from_u128(2));

fn transfer(store: Kept, segment_bytes: u64) -> Arc<Transfer<Kept>> {
    Arc::new(Transfer {
        vm: VM,
        cycle: CycleId::first(Term(1), Stream(1)),
        store: Arc::new(store),
        budget: Budget::default(),
        compression: Compression::None,
        parallelism: 8,
        segment_bytes,
        second: Duration::from_millis(1),
        crash: Crash::default(),
        bytes_sent: 0.into(),
    })
}

fn part(part: Part, disk: &Arc<Stripes>, ranges: Vec<(u64, u64)>) -> DiskPlan {
    DiskPlan { disk: DISK, part, source: Arc::clone(disk) as _, ranges, end: disk.size() }
}

async fn run(transfer: &Arc<Transfer<Kept>>, plan: Plan) -> Vec<Result<Sent>> {
    let all = Arc::clone(transfer).run(plan).collect();
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("it ends")
}

/// Replays what was sent over zeros.
fn replay(transfer: &Transfer<Kept>, sent: &[Sent], first: u32, size: u64) -> Vec<u8> {
    let mut image = vec![0; size as usize];
    for (index, entry) in (first..).zip(sent.iter().filter_map(|s| s.entry.as_ref())) {
        let name = names::segment(transfer.cycle, DISK, index, &entry.hash);
        let bytes = transfer.store.blobs.lock().unwrap().get(&name).cloned();
        let bytes = bytes.unwrap_or_else(|| panic!("segment {index} is not there: indexes have a gap"));
        for frame in Decoder::open(bytes, &transfer.segment_id(DISK.0, index)).unwrap() {
            let frame = frame.unwrap();
            let range = frame.offset as usize..(frame.offset + frame.len) as usize;
            match frame.content {
                Content::Zero => image[range].fill(0),
                Content::Data(data) => image[range].copy_from_slice(&data),
            }
        }
    }
    image
}

fn whole(disk: &Stripes) -> Vec<u8> {
    disk.bytes(0, disk.size())
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_make_no_segments_and_indexes_have_no_gaps() {
    // Long empty runs, longer than a segment, between short and long full ones.
    let stripes = (0..400).map(|n| matches!(n % 97, 0 | 5 | 6 | 60..=80)).collect();
    let disk = Arc::new(Stripes(stripes));
    let transfer = transfer(Kept::default(), MIB);
    let plan = || Plan { parts: vec![part(Part::Copy, &disk, vec![(0, disk.size())])], ..Plan::default() };
    let sent: Vec<Sent> = run(&transfer, plan()).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(sent.len() as u64, disk.size() / MIB);
    assert!(sent.windows(2).all(|pair| pair[0].up_to < pair[1].up_to), "in the order of the disk");
    assert_eq!(sent.last().unwrap().up_to, disk.size());
    let empty = sent.iter().filter(|s| s.entry.is_none()).count();
    assert!(empty > 5, "{empty}");
    assert!(replay(&transfer, &sent, 0, disk.size()) == whole(&disk));
    let bytes: u64 = sent.iter().filter_map(|s| s.entry.as_ref()).map(SegmentEntry::disk_bytes).sum();
    assert_eq!(bytes, disk.0.iter().filter(|full| **full).count() as u64 * STRIPE);

    // Going on after the first nine: the same, with the next index.
    let (done, rest) = sent.split_at(9);
    let at = done.last().unwrap().up_to;
    let first = done.iter().filter(|s| s.entry.is_some()).count() as u32;
    let again = Plan {
        parts: vec![part(Part::Copy, &disk, vec![(at, disk.size() - at)])],
        segments: [(DISK, first)].into(),
        ..Plan::default()
    };
    let again: Vec<Sent> = run(&transfer, again).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(again, rest);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_zeros_are_sent_and_a_stop_ends_the_copy_only() {
    let disk = Arc::new(Stripes(vec![false; 64]));
    let transfer = transfer(Kept::default(), MIB);
    let plan = Plan {
        parts: vec![
            part(Part::Changes, &disk, vec![(0, 3 * MIB)]),
            part(Part::Copy, &disk, vec![(3 * MIB, MIB)]),
        ],
        stop: Arc::new(AtomicBool::new(true)),
        ..Plan::default()
    };
    let sent: Vec<Sent> = run(&transfer, plan).await.into_iter().map(Result::unwrap).collect();
    assert!(sent.iter().all(|s| s.part == Part::Changes && s.entry.is_some()));
    assert_eq!(sent.len(), 3);
    assert!(transfer.bytes_sent.load(Ordering::Relaxed) < 1024, "a run of zeros is a marker");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_before_a_failure_is_handed_over_in_order_and_nothing_hangs() {
    let disk = Arc::new(Stripes(vec![true; 640]));
    for fail_from in [0, 1, 7, 20] {
        let transfer = transfer(Kept { fail_from: Some(fail_from), ..Kept::default() }, MIB);
        let plan = Plan { parts: vec![part(Part::Copy, &disk, vec![(0, disk.size())])], ..Plan::default() };
        let results = run(&transfer, plan).await;
        let good: Vec<Sent> = results.iter().map_while(|r| r.as_ref().ok()).cloned().collect();
        assert!(results.iter().any(Result::is_err));
        let done = good.last().map_or(0, |s| s.up_to);
        assert!(replay(&transfer, &good, 0, disk.size())[..done as usize] == whole(&disk)[..done as usize]);
    }
}

// Memory of the agent stays below 256 MiB whatever the parallelism.
#[tokio::test(flavor = "multi_thread")]
async fn segments_in_flight_of_all_vms_together_stay_within_the_budget() {
    let disk = Arc::new(Stripes(vec![true; 520]));
    // Were they sent one by one, the first would wait for the others for ever.
    let shared = transfer(Kept { gather: 48 * MIB, ..Kept::default() }, 16 * MIB);
    let plan = || Plan { parts: vec![part(Part::Copy, &disk, vec![(0, disk.size())])], ..Plan::default() };
    let all = futures::future::join_all((0..5).map(|_| run(&shared, plan()))).await;
    assert!(all.iter().flatten().all(Result::is_ok));
    let most = *shared.store.most.borrow();
    assert!(most <= budget::MEMORY + MIB, "{most}");
}
