//! What the controller prepares before a host may replicate: containers, ledger, side, signatures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farshore_azure::{Metadata, SharedKey, sas};
use farshore_core::format::commit::Commit;
use farshore_core::format::cursor::Cursor;
use farshore_core::format::ledger::{DeletionPolicy, Ledger, LedgerState, PolicySettings};
use farshore_core::format::side::Side;
use farshore_core::format::{Extra, FORMAT_VERSION, Record};
use farshore_core::ids::{Cycle, CycleId, DiskId, Epoch, Stream, Term, VmId};
use farshore_core::names;
use jiff::Timestamp;

use crate::double::{self, Double};
use crate::sides::{AgentJob, ReplicaJob};

/// Under which everything is written.
pub(crate) const TERM: Term = Term(1);
/// The first writer.
pub(crate) const STREAM: Stream = Stream(1);

/// Makes the containers with what must be in them.
pub(crate) async fn prepare(double: &Double, vm: VmId, disk: DiskId) -> anyhow::Result<()> {
    let ledger = ledger(vm, disk);
    let [replica, up, down] =
        [names::replica_container(vm), names::up_container(vm), names::down_container(vm)]
            .map(|name| double.service.container(&name));
    for container in [&replica, &up, &down] {
        container.create(&Metadata::new()).await?;
    }
    double::put(&replica, names::LEDGER, ledger.encode()?).await?;
    double::put(&down, names::SIDE, ledger.side().encode()?).await
}

/// A signature for one container.
pub(crate) fn signature(container: &str, permissions: sas::Permissions) -> anyhow::Result<String> {
    let now = Timestamp::now();
    let starts = now.checked_sub(Duration::from_secs(900))?;
    let expires = now.checked_add(Duration::from_secs(24 * 3600))?;
    let grant = sas::Grant { permissions, starts, expires };
    Ok(sas::service_sas(&SharedKey::emulator(), container, grant).expose().to_owned())
}

/// What the agent's process is told, as a file in `folder`.
pub(crate) fn agent_job(
    folder: &Path,
    double: &Double,
    socket: &Path,
    vm: VmId,
    disk: DiskId,
) -> anyhow::Result<PathBuf> {
    let job = AgentJob {
        socket: socket.to_owned(),
        endpoint: double.endpoint.clone(),
        vm,
        disk,
        up: signature(&names::up_container(vm), sas::Permissions::Create)?,
        down: signature(&names::down_container(vm), sas::Permissions::Read)?,
        journal: folder.join("journal"),
    };
    let path = folder.join("agent.json");
    std::fs::write(&path, serde_json::to_vec(&job)?)?;
    Ok(path)
}

/// What the replica server's process is told, as a file in `folder`. Cycles come from one double, the replica
/// may be on another.
pub(crate) fn replica_job(
    folder: &Path,
    cycles: &Double,
    replica: &Double,
    vm: VmId,
) -> anyhow::Result<PathBuf> {
    let job = ReplicaJob { cycles: cycles.endpoint.clone(), replica: replica.endpoint.clone(), vm };
    let path = folder.join("replica.json");
    std::fs::write(&path, serde_json::to_vec(&job)?)?;
    Ok(path)
}

/// The cycle whose commit says that all disks are copied, once it is in storage.
pub(crate) async fn copied(double: &Double, vm: VmId) -> anyhow::Result<Option<CycleId>> {
    let up = double.service.container(&names::up_container(vm));
    for cycle in 1.. {
        let id = CycleId { cycle: Cycle(cycle), ..CycleId::first(TERM, STREAM) };
        let Some(found) = up.get(&names::commit(id), Commit::MAX as u64).await? else { break };
        if Commit::decode(&found.bytes)?.disks.iter().all(|disk| disk.copied_up_to.is_none()) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The replica server's word.
pub(crate) async fn cursor(double: &Double, vm: VmId) -> anyhow::Result<Option<Cursor>> {
    let down = double.service.container(&names::down_container(vm));
    let found = down.get(names::CURSOR, Cursor::MAX as u64).await?;
    Ok(found.map(|found| Cursor::decode(&found.bytes)).transpose()?)
}

fn ledger(vm_id: VmId, disk: DiskId) -> Ledger {
    let now = Timestamp::now();
    Ledger {
        format_version: FORMAT_VERSION,
        min_reader: FORMAT_VERSION,
        seq: 1,
        nonce: "bench".into(),
        vm_id,
        state: LedgerState::Enabling,
        epoch: Epoch::FIRST,
        intents: BTreeMap::new(),
        term: TERM,
        stream: STREAM,
        attempt: 0,
        cut: None,
        owner: Side::OnPremises,
        claim: "host/bench".into(),
        cluster_id: "bench".into(),
        configuration: None,
        policy: PolicySettings {
            name: "bench".into(),
            replication_interval_seconds: 300,
            recovery_point_spacing_seconds: 300,
            recovery_point_retention_seconds: 86_400,
        },
        deletion_policy: DeletionPolicy::Retain,
        disks: vec![disk],
        storage_account: "devstoreaccount1".into(),
        last_contact: None,
        last_move_at: None,
        handled_tokens: BTreeMap::new(),
        actor: "bench".into(),
        created_at: now,
        written_at: now,
        history: Vec::new(),
        extra: Extra::default(),
    }
}
