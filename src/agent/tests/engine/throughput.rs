//! How fast one core turns disk data into segments, with storage that costs nothing. A figure, not a test:
//! `cargo test --release -p farshore-agent --test engine -- --ignored --nocapture throughput`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use farshore_agent::crash::Crash;
use farshore_agent::journal::Part;
use farshore_agent::store::{Put, Store};
use farshore_agent::transfer::{Budget, ChainSource, DiskPlan, Plan, Transfer};
use farshore_azure::BlobError;
use farshore_core::ids::{CycleId, DiskId, Stream, Term, VmId};
use farshore_disk::FileDisk;
use farshore_disk::segment::Compression;
use farshore_disk::vhdx::{Access, Chain, CreateOptions, Vhdx};
use futures::StreamExt as _;
use uuid::Uuid;

use crate::support::MIB;

struct Null;

impl Store for Null {
    async fn put_new(&self, _: &str, _: Bytes, _: u64) -> Result<Put, BlobError> {
        Ok(Put::Created)
    }

    async fn get(&self, _: &str, _: u64) -> Result<Option<Bytes>, BlobError> {
        Ok(None)
    }
}

/// A disk with the files of this machine, one after the other.
fn disk_of_files(path: &Path, size: u64) {
    let file = FileDisk::create_new(path).unwrap();
    Vhdx::create(&file, &CreateOptions::new(size, Uuid::new_v4(), Uuid::new_v4)).unwrap();
    drop(file);
    let chain = Chain::open(path, Access::ReadWrite(Uuid::new_v4)).unwrap();
    let (mut at, mut folders) = (0, vec![PathBuf::from("/usr/lib"), PathBuf::from("/usr/bin")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let mut bytes = std::fs::read(entry.path()).unwrap_or_default();
                bytes.resize(bytes.len().next_multiple_of(4096), 0);
                if at + bytes.len() as u64 > size {
                    return chain.close().unwrap();
                }
                chain.write_at(&bytes, at).unwrap();
                at += bytes.len() as u64;
            }
        }
    }
    chain.close().unwrap();
}

/// User and system seconds of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; needs a release build and a quiet machine"]
async fn disk_data_per_core_with_and_without_compression() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhdx");
    let size = 1024 * MIB;
    disk_of_files(&path, size);
    for compression in [Compression::Zstd(1), Compression::None, Compression::Zstd(1)] {
        let source = Arc::new(ChainSource::open(&path).unwrap());
        let allocated = source.0.allocated().unwrap();
        let transfer = Arc::new(Transfer {
            vm: VmId(Uuid::new_v4()),
            cycle: CycleId::first(Term(1), Stream(1)),
            store: Arc::new(Null),
            budget: Budget::default(),
            compression,
            parallelism: 4,
            segment_bytes: 16 * MIB,
            second: std::time::Duration::from_secs(1),
            crash: Crash::default(),
            bytes_sent: 0.into(),
        });
        let part = DiskPlan {
            disk: DiskId(Uuid::new_v4()),
            part: Part::Copy,
            source,
            ranges: allocated.iter().map(|e| (e.offset, e.len)).collect(),
            end: size,
        };
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let done: Vec<_> =
            Arc::clone(&transfer).run(Plan { parts: vec![part], ..Plan::default() }).collect().await;
        let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let mb = allocated.total() as f64 / 1e6;
        let sent = transfer.bytes_sent.load(std::sync::atomic::Ordering::Relaxed) as f64 / 1e6;
        assert!(done.iter().all(Result::is_ok));
        println!(
            "{compression:?}: {mb:.0} MB of disk, {sent:.0} MB sent, {:.0} MB/s, {:.0} MB/s per core",
            mb / wall,
            mb / cpu
        );
    }
}
