//! What the host keeps in JSON: one file per machine, replaced atomically, the only truth after a restart.

use std::fs::File;
use std::io;
use std::path::Path;

use farshore_core::ids::{DiskId, VmId};
use farshore_hyperv::{
    CheckpointId, CheckpointKind, Consistency, NicInfo, PowerState, RctId, ReferencePoint,
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Name of a machine's record in its folder.
pub(super) const FILE: &str = "vm.json";

/// A machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VmRecord {
    pub(super) id: VmId,
    pub(super) name: String,
    pub(super) generation: u8,
    /// Running, Off, Saved or Paused; nothing passing.
    pub(super) state: PowerState,
    pub(super) running_since: Option<Timestamp>,
    pub(super) configuration_version: String,
    pub(super) processors: u32,
    pub(super) memory: u64,
    pub(super) replication_mode: u16,
    pub(super) checkpoints_enabled: bool,
    pub(super) nics: Vec<NicInfo>,
    pub(super) disks: Vec<DiskRecord>,
    /// Oldest first.
    pub(super) checkpoints: Vec<CheckpointRecord>,
    /// Oldest first.
    pub(super) reference_points: Vec<ReferencePoint>,
    /// Raised with every checkpoint.
    pub(super) serial: u64,
}

impl VmRecord {
    /// True if a point of change tracking is still asked for by somebody.
    pub(super) fn holds(&self, id: &RctId) -> bool {
        let frozen = self.checkpoints.iter().filter(|c| !c.merging).flat_map(|c| &c.disks);
        frozen.filter_map(|d| d.rct_id.as_ref()).any(|held| held == id)
            || self.reference_points.iter().flat_map(|p| &p.disks).any(|d| d.rct_id == *id)
    }
}

/// A disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DiskRecord {
    pub(super) id: DiskId,
    pub(super) slot: u32,
    pub(super) size: u64,
    pub(super) logical_sector_size: u32,
    pub(super) dynamic: bool,
    pub(super) shared: bool,
    pub(super) pass_through: bool,
    /// File names in the machine's folder, base first; the last one takes the writes.
    pub(super) chain: Vec<String>,
    /// DataWriteGuid of the leaf when it was closed: another one at the next start means that somebody else wrote.
    pub(super) sealed: Option<Uuid>,
}

impl DiskRecord {
    /// The file that takes the writes.
    pub(super) fn leaf(&self) -> &str {
        self.chain.last().map_or("", String::as_str)
    }
}

/// A checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CheckpointRecord {
    pub(super) id: CheckpointId,
    pub(super) name: String,
    pub(super) kind: CheckpointKind,
    pub(super) consistency: Consistency,
    pub(super) time: Timestamp,
    /// Disks that are not merged yet.
    pub(super) disks: Vec<FrozenRecord>,
    /// It is deleted or converted; what is left is to merge its files.
    pub(super) merging: bool,
}

/// A disk of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FrozenRecord {
    pub(super) id: DiskId,
    /// Recovery checkpoints only.
    pub(super) rct_id: Option<RctId>,
    /// The frozen file.
    pub(super) frozen: String,
    /// The file made then, which is merged into `frozen` in the end.
    pub(super) avhdx: String,
}

/// Replaces a file: written beside it, made durable, renamed.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let mut file = File::create(beside)?;
    write(&mut file)?;
    file.sync_data()?;
    std::fs::rename(beside, path)
}

/// Replaces a JSON file.
pub(super) fn save(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(value)?;
    replace(path, |file| io::Write::write_all(file, &bytes))
}

/// Reads a JSON file; `None` if there is none.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
