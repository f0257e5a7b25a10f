//! What the measured processes do: the agent's engine, its transfer alone, the replica server's work on one VM.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use farshore_agent::crash::Crash;
use farshore_agent::engine::{Assignment, Clock, Context, Engine, Goal};
use farshore_agent::journal::{JournalStore, Part};
use farshore_agent::store::{SasPair, SasStore};
use farshore_agent::transfer::{Budget, ChainSource, DiskPlan, Plan, Transfer};
use farshore_azure::{BlobService, Credential, Endpoint, Http, HttpOptions, Sas, SharedKey};
use farshore_core::cycle;
use farshore_core::ids::{CycleId, DiskId, VmId};
use farshore_core::names;
use farshore_core::timing::Timing;
use farshore_disk::segment::Compression;
use farshore_hyperv::sim::SimHost;
use farshore_replica_server as replica_server;
use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::relationship::{STREAM, TERM};

/// As the API's default.
const PARALLELISM: u32 = 4;
/// As the agent's.
const ZSTD_LEVEL: i32 = 1;
/// Between cycles, and between points: longer than any run, so that each has one first cycle and one first point.
const INTERVAL: Duration = Duration::from_secs(900);

/// What the agent's process is told.
#[derive(Serialize, Deserialize)]
pub(crate) struct AgentJob {
    /// The simulated host.
    pub(crate) socket: PathBuf,
    /// Storage.
    pub(crate) endpoint: String,
    /// The VM.
    pub(crate) vm: VmId,
    /// Its disk.
    pub(crate) disk: DiskId,
    /// Create-only signature.
    pub(crate) up: String,
    /// Read-only signature.
    pub(crate) down: String,
    /// Folder of the journal.
    pub(crate) journal: PathBuf,
}

/// Runs the engine until it is killed.
pub(crate) async fn agent(job: &Path) -> anyhow::Result<()> {
    let job: AgentJob = serde_json::from_slice(&std::fs::read(job)?)?;
    std::fs::create_dir_all(&job.journal)?;
    let store = SasStore::new(
        Http::new(&HttpOptions::default())?,
        Endpoint::parse(&job.endpoint)?,
        &names::up_container(job.vm),
        &names::down_container(job.vm),
        SasPair { up: Sas::new(&job.up), down: Sas::new(&job.down) },
    );
    let context = Context {
        journals: JournalStore::open(&job.journal)?,
        budget: Budget::default(),
        timing: Timing::lab(),
        clock: Clock::new(Timestamp::now),
        crash: Crash::default(),
    };
    let assignment = Assignment {
        vm: job.vm,
        goal: Goal::Replicate,
        term: TERM,
        stream: STREAM,
        disks: vec![job.disk],
        interval: INTERVAL,
        paused: false,
        compress: true,
        parallelism: PARALLELISM,
        reserve: 0,
        base: None,
        observed: None,
        generation: 1,
    };
    let (_goal, goals) = watch::channel(assignment);
    let host = Arc::new(SimHost::new(job.socket));
    let (engine, _report) = Engine::new(host, Arc::new(store), context, goals);
    engine.run(CancellationToken::new()).await;
    Ok(())
}

/// What the transfer's process is told.
#[derive(Serialize, Deserialize)]
pub(crate) struct TransferJob {
    /// Storage.
    pub(crate) endpoint: String,
    /// The disk's file.
    pub(crate) vhdx: PathBuf,
    /// Name of the upload container belongs to this.
    pub(crate) vm: VmId,
    /// Create-only signature.
    pub(crate) up: String,
    /// Pack with zstd?
    pub(crate) compress: bool,
    /// Where the outcome goes.
    pub(crate) outcome: PathBuf,
}

/// What a transfer moved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// Bytes of the disk in segments.
    pub(crate) disk_bytes: u64,
    /// Bytes that were read to find them.
    pub(crate) allocated: u64,
    /// Bytes sent.
    pub(crate) sent: u64,
}

/// Sends one disk as segments, and ends.
pub(crate) async fn transfer(job: &Path) -> anyhow::Result<()> {
    let job: TransferJob = serde_json::from_slice(&std::fs::read(job)?)?;
    let store = SasStore::new(
        Http::new(&HttpOptions::default())?,
        Endpoint::parse(&job.endpoint)?,
        &names::up_container(job.vm),
        &names::down_container(job.vm),
        SasPair { up: Sas::new(&job.up), down: Sas::new(&job.up) },
    );
    let source = ChainSource::open(&job.vhdx).map_err(|fault| anyhow::anyhow!(fault.message))?;
    let size = source.0.size();
    let allocated = source.0.allocated()?.clip(size);
    let plan = DiskPlan {
        disk: DiskId(job.vm.0),
        part: Part::Copy,
        source: Arc::new(source),
        ranges: allocated.iter().map(|e| (e.offset, e.len)).collect(),
        end: size,
    };
    let plan = Plan { parts: vec![plan], segments: BTreeMap::new(), stop: Arc::new(AtomicBool::new(false)) };
    let transfer = Arc::new(Transfer {
        vm: job.vm,
        cycle: CycleId::first(TERM, STREAM),
        store: Arc::new(store),
        budget: Budget::default(),
        compression: if job.compress { Compression::Zstd(ZSTD_LEVEL) } else { Compression::None },
        parallelism: PARALLELISM,
        segment_bytes: cycle::segment_bytes(PARALLELISM),
        second: Duration::from_secs(1),
        crash: Crash::default(),
        bytes_sent: 0.into(),
    });
    let mut moved = Moved { disk_bytes: 0, allocated: allocated.total(), sent: 0 };
    let mut results = std::pin::pin!(transfer.run(plan));
    while let Some(sent) = results.next().await {
        let sent = sent.map_err(|fault| anyhow::anyhow!(fault.message))?;
        if let Some(entry) = sent.entry {
            moved.sent += entry.stored;
            moved.disk_bytes += entry.ranges.iter().map(|(_, len)| len).sum::<u64>();
        }
    }
    std::fs::write(&job.outcome, serde_json::to_vec(&moved)?)?;
    Ok(())
}

/// What the replica server's process is told.
#[derive(Serialize, Deserialize)]
pub(crate) struct ReplicaJob {
    /// Storage of cycles and cursor.
    pub(crate) cycles: String,
    /// Storage of the replica.
    pub(crate) replica: String,
    /// The VM.
    pub(crate) vm: VmId,
}

/// Works on the VM until it is killed.
pub(crate) async fn replica(job: &Path) -> anyhow::Result<()> {
    let job: ReplicaJob = serde_json::from_slice(&std::fs::read(job)?)?;
    let http = Http::new(&HttpOptions::default())?;
    let service = |endpoint: &str| -> anyhow::Result<BlobService> {
        let owner = Credential::SharedKey(SharedKey::emulator());
        Ok(BlobService::with_http(&http, Endpoint::parse(endpoint)?, owner))
    };
    let cycles = replica_server::Store::new(&service(&job.cycles)?, job.vm);
    let replica = replica_server::Store::new(&service(&job.replica)?, job.vm).replica;
    let store = replica_server::Store { replica, ..cycles };
    let context = replica_server::Context::new(job.vm, store, Timing::lab(), "bench");
    let policy = replica_server::Policy { interval: INTERVAL, spacing: INTERVAL, retention: INTERVAL * 96 };
    let (_policy, policies) = watch::channel(policy);
    replica_server::replicate_vm(context, policies).await;
    Ok(())
}
