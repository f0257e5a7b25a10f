//! Memory stays bounded whatever the disk's size, the segments' and the number of ranges.

use bytes::Bytes;
use farshore_azure::crc64;
use farshore_core::format::list::{MAX_RANGES, SegmentEntry, SegmentList};
use farshore_core::format::{Extra, Record};
use farshore_core::ids::Hash;
use farshore_core::names;
use farshore_disk::segment::{Compression, Encoder, SegmentId};
use serde_json::Value;

use crate::source::{Lab, Source};

const GIB: u64 = 1 << 30;
const SIZE: u64 = 64 * GIB;
const LIMIT: u64 = 256 << 20;

/// Noise that does not compress, made quickly.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes
}

/// Uploads segments of (offset, length) ranges full of noise; returns the list's hash.
async fn upload(vm: &Source, segments: &[Vec<(u64, usize)>]) -> Hash {
    let (id, disk) = (vm.next, vm.disks[0].id);
    let mut entries = Vec::new();
    for (ranges, index) in segments.iter().zip(0_u32..) {
        let segment = SegmentId {
            vm: vm.vm.0,
            disk: disk.0,
            term: id.term.0,
            stream: id.stream.0,
            cycle: id.cycle.0,
            index,
        };
        let mut encoder = Encoder::new(segment, Compression::None, 64 << 20).unwrap();
        let longest = ranges.iter().map(|(_, len)| *len).max().unwrap();
        let bytes = noise(longest + ranges.len(), u64::from(index));
        for (at, &(offset, len)) in ranges.iter().enumerate() {
            encoder.push(offset, &bytes[at..at + len]).unwrap();
        }
        let sealed = encoder.finish().unwrap();
        let hash = Hash(*sealed.blake3.as_bytes());
        vm.put(&names::segment(id, disk, index, &hash), sealed.bytes.clone()).await;
        let ranges = sealed.ranges.iter().map(|e| (e.offset, e.len)).collect();
        entries.push(SegmentEntry { hash, stored: sealed.bytes.len() as u64, ranges });
    }
    let list = SegmentList {
        format_version: 1,
        min_reader: 1,
        disk_id: disk,
        segments: entries,
        extra: Extra::new(),
    };
    let bytes: Bytes = list.encode().unwrap().into();
    let hash = Hash::of(&bytes);
    let crc = crc64(&bytes);
    vm.store.up.put_new(&names::list(id, disk, &hash), bytes, crc).await.unwrap();
    hash
}

/// The worker as a process of its own: what it took.
async fn settle(lab: &Lab, vm: &Source) -> Value {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_farshore-replica-server"));
    command.args(["settle", "--blob-endpoint", lab.double.endpoint(), "--vm", &vm.vm.to_string()]);
    let output = command.kill_on_drop(true).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

// DESIGN 6, issue: below 256 MiB with a disk of 64 GiB: the largest segments there may be, and the most ranges.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_64_gib_is_applied_in_less_than_256_mib() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[1 << 20]).await;
    // Initial replication: ten segments of nearly 64 MiB each.
    let large: Vec<Vec<(u64, usize)>> =
        (0..10).map(|i| vec![(i * 6 * GIB, (64 << 20) - (64 << 10))]).collect();
    let list = upload(&vm, &large).await;
    let change = move |c: &mut farshore_core::format::commit::Commit| {
        (c.disks[0].list, c.disks[0].virtual_size) = (list, SIZE);
    };
    vm.change_commit = Some(Box::new(change));
    vm.base(None).await;
    let took = settle(&lab, &vm).await;
    eprintln!("base: {took}");
    let peak = |took: &Value| took["peakMemoryBytes"].as_u64().unwrap();
    assert!(peak(&took) < LIMIT, "{took}");
    assert_eq!(vm.cursor().await.applied, vm.previous);

    // A first point of some thousand single sectors, and a cycle with as many ranges as a list may have. That
    // one is verified and waits: 500,000 requests to the double would take minutes, and their plan is 64 bytes
    // for each range.
    for (n, segments) in [(4000, 1), (MAX_RANGES as u64, 5)] {
        let each = n / segments;
        let range = |i: u64| (i * (SIZE / n) / 512 * 512, 512);
        let scattered: Vec<Vec<(u64, usize)>> =
            (0..segments).map(|s| (s * each..(s + 1) * each).map(range).collect()).collect();
        let list = upload(&vm, &scattered).await;
        vm.change_commit = Some(Box::new(move |c| {
            (c.disks[0].list, c.disks[0].virtual_size) = (list, SIZE);
        }));
        vm.delta().await;
    }
    let took = settle(&lab, &vm).await;
    eprintln!("deltas: {took}");
    assert!(peak(&took) < LIMIT, "{took}");
    let cursor = vm.cursor().await;
    assert_eq!((cursor.verified.map(|v| v.commit), cursor.refused), (vm.previous, None));
    assert_eq!(cursor.applied.unwrap().id.cycle.0, 2);
}
