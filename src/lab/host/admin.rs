//! The admin protocol of a simulated host: what a person does at a console, and faults. `POST /admin`, JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use farshore_core::ids::{DiskId, Hash, VmId};
use farshore_hyperv::{CheckpointId, CheckpointKind, NicInfo, VmInfo};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Path of the admin calls.
pub const PATH: &str = "/admin";

/// One admin call. `vm` is a name or an id, `disk` a slot or an id.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "the client's methods document each call")]
pub enum AdminRequest {
    List,
    Create(NewVm),
    Delete { vm: String },
    Start { vm: String },
    Stop { vm: String },
    Shutdown { vm: String },
    Write { vm: String, disk: String, offset: u64, data: Data },
    Read { vm: String, disk: String, offset: u64, len: u32 },
    Digest { vm: String, range: Option<u64> },
    Instants { vm: String },
    StandardCheckpoint { vm: String, name: String },
    Configure { vm: String, settings: Settings },
    Fault { fault: Fault },
}

/// A machine to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewVm {
    /// Display name; also the name of its folder and of its NBD socket.
    pub name: String,
    /// Chosen id; by default a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VmId>,
    /// 1 or 2.
    #[serde(default = "two")]
    pub generation: u8,
    /// Virtual processors.
    #[serde(default = "processors")]
    pub processors: u32,
    /// Bytes of memory.
    #[serde(default = "memory")]
    pub memory: u64,
    /// Disks in order of slot.
    pub disks: Vec<NewDisk>,
    /// Network adapters.
    #[serde(default)]
    pub nics: Vec<NewNic>,
}

impl NewVm {
    /// A generation 2 machine with disks of these sizes and one adapter.
    #[must_use]
    pub fn with_disks(name: &str, sizes: &[u64]) -> Self {
        Self {
            name: name.to_owned(),
            id: None,
            generation: two(),
            processors: processors(),
            memory: memory(),
            disks: sizes.iter().map(|size| NewDisk { size: Some(*size), ..NewDisk::default() }).collect(),
            nics: vec![NewNic { name: "Network Adapter".into(), ..NewNic::default() }],
        }
    }
}

const fn two() -> u8 {
    2
}
const fn processors() -> u32 {
    2
}
const fn memory() -> u64 {
    2 << 30
}

/// A disk to be made: of a size, or from an image, or both if it shall be larger than the image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewDisk {
    /// Virtual size in bytes; rounded up to sectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Raw or qcow2 image that it begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// Chosen VirtualDiskId; by default a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DiskId>,
    /// Fixed instead of dynamic.
    #[serde(default)]
    pub fixed: bool,
    /// 512 (default) or 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_sector_size: Option<u32>,
}

/// A network adapter to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewNic {
    /// Display name.
    pub name: String,
    /// Virtual switch; by default the host's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<String>,
    /// VLAN in access mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Addresses that the guest reports.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// What to write.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Data {
    /// Bytes as base64.
    Base64(String),
    /// `len` bytes that follow from `seed` and do not compress.
    Random {
        /// Same seed, same bytes.
        seed: u64,
        /// How many.
        len: u64,
    },
    /// `len` times one byte.
    Byte {
        /// The byte.
        value: u8,
        /// How many.
        len: u64,
    },
}

/// A machine as the admin sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminVm {
    /// What the hypervisor reports.
    #[serde(flatten)]
    pub info: VmInfo,
    /// Socket of its NBD server: exports `0`, `1`, … by slot.
    pub nbd: PathBuf,
    /// Its folder.
    pub folder: PathBuf,
}

/// BLAKE3 of a virtual disk's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskDigest {
    /// VirtualDiskId.
    pub disk_id: DiskId,
    /// Slot.
    pub slot: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// Of the whole disk.
    pub blake3: Hash,
    /// Of each range of the asked length, the last one shorter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Hash>,
}

/// What all disks of a machine held at the instant of one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instant {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: CheckpointKind,
    /// Its time.
    pub time: Timestamp,
    /// BLAKE3 of each disk.
    pub digests: BTreeMap<DiskId, Hash>,
}

/// Settings of a machine that can be changed; what is `None` stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of VmInfo")]
pub struct Settings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_mode: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints_enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicInfo>>,
    #[serde(default)]
    pub disks: Vec<DiskSettings>,
}

/// Settings of a disk; what is `None` stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskSettings {
    /// Slot or id.
    pub disk: String,
    /// Shared with other machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// Said to be a physical disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_through: Option<bool>,
}

/// Something that goes wrong on request. Faults of a machine last until they are lifted or the host restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum Fault {
    /// Changes, or changes back, one digit of the parent link in a differencing disk of the machine. If it has
    /// no checkpoint, a standard one is taken first. The next recovery checkpoint finds the chain broken.
    BreakChain {
        /// Name or id.
        vm: String,
        /// Slot or id.
        disk: String,
    },
    /// Fills the volume until `free` bytes are left; `None` gives the space back.
    FillVolume {
        /// Bytes to leave.
        free: Option<u64>,
    },
    /// Makes application-consistent checkpoints fail.
    FailVss {
        /// Name or id.
        vm: String,
        /// Failing or healthy.
        on: bool,
    },
    /// Makes checkpoints fail as while the machine is in a passing state.
    RefuseCheckpoints {
        /// Name or id.
        vm: String,
        /// Refusing or not.
        on: bool,
    },
    /// Drops the change tracking of all disks: earlier ids answer with this code.
    LoseTracking {
        /// Name or id.
        vm: String,
        /// One of HYPERV's tracking codes; by default `VHD_INVALID_CHANGE_TRACKING_ID`.
        code: Option<u32>,
    },
    /// Makes every call of this name wait first; 0 lifts it.
    Delay {
        /// Name in [`farshore_hyperv::wire::Request`], or `*`.
        call: String,
        /// How long.
        millis: u64,
    },
}
