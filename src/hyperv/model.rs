//! What a host reports, in Hyper-V's words. Also the JSON of [`crate::wire`].

use std::fmt;

use farshore_core::ids::{DiskId, VmId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

name! {
    /// InstanceID of a checkpoint.
    CheckpointId
}
name! {
    /// InstanceID of a reference point.
    ReferencePointId
}
name! {
    /// A resilient change tracking id: stands for one instant of one disk. Opaque.
    RctId
}

/// A Hyper-V host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostInfo {
    /// Computer name.
    pub name: String,
    /// Version of the operating system, `10.0.20348` for Windows Server 2022.
    pub version: String,
    /// What it offers: `ResilientChangeTracking`, `ReferencePoints`, …
    pub features: Vec<String>,
    /// Failover cluster that it is a node of.
    pub failover_cluster: Option<String>,
    /// Volumes that hold virtual machines.
    pub volumes: Vec<Volume>,
    /// Names of the virtual switches.
    pub virtual_switches: Vec<String>,
    /// The host's clock.
    pub time: Timestamp,
}

/// A volume of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Root path.
    pub path: String,
    /// Capacity in bytes.
    pub total: u64,
    /// Free bytes.
    pub free: u64,
}

/// Power state of a machine, by Hyper-V's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PowerState {
    /// Running.
    Running,
    /// Off.
    Off,
    /// Its memory is saved on disk.
    Saved,
    /// Paused by a person.
    Paused,
    /// Paused by the host: its storage is full or lost.
    PausedCritical,
    /// On its way to Running.
    Starting,
    /// On its way to Off.
    Stopping,
    /// On its way to Saved.
    Saving,
    /// On its way to Paused.
    Pausing,
    /// On its way from Paused or Saved to Running.
    Resuming,
}

/// What boots the machine: generation 1 is BIOS, generation 2 UEFI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Firmware {
    /// Generation 1.
    Bios,
    /// Generation 2.
    Uefi,
}

/// Format of a virtual disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DiskFormat {
    /// VHDX, also AVHDX.
    Vhdx,
    /// Legacy VHD.
    Vhd,
    /// VHD set: shared.
    Vhds,
}

/// How a virtual disk file is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskType {
    /// All space is allocated.
    Fixed,
    /// Space is allocated as it is written.
    Dynamic,
    /// Holds only what differs from its parent.
    Differencing,
}

/// A virtual disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskInfo {
    /// VirtualDiskId. Two disks of one machine may carry the same one: a failed prerequisite.
    pub disk_id: DiskId,
    /// The file that the machine writes to now. Changes with every checkpoint.
    pub path: String,
    /// Format.
    pub format: DiskFormat,
    /// Allocation.
    pub disk_type: DiskType,
    /// Virtual size in bytes.
    pub size: u64,
    /// `SCSI` or `IDE`.
    pub controller_type: String,
    /// Number of the controller.
    pub controller: u32,
    /// Location on the controller; unique in a machine of the lab.
    pub slot: u32,
    /// Shared with other machines (VHD set, persistent reservations): cannot be protected.
    pub shared: bool,
    /// A physical disk of the host: cannot be protected.
    pub pass_through: bool,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// Root path of the volume that holds the file.
    pub volume: String,
}

/// A network adapter of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NicInfo {
    /// InstanceID.
    pub id: String,
    /// Display name.
    pub name: String,
    /// `00-15-5D-xx-xx-xx`.
    pub mac: String,
    /// VLAN in access mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Virtual switch that it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<String>,
    /// Addresses that the guest reports.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// Kind of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckpointKind {
    /// Made by a person; stays in the chain until a person deletes it.
    Standard,
    /// Made for backup or replication.
    Recovery,
}

/// A checkpoint as the machine lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointInfo {
    /// InstanceID.
    pub id: CheckpointId,
    /// Display name.
    pub name: String,
    /// Kind.
    pub kind: CheckpointKind,
    /// When, by the host's clock.
    pub created: Timestamp,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmInfo {
    /// GUID.
    pub id: VmId,
    /// Display name: not unique, can change.
    pub name: String,
    /// 1 or 2.
    pub generation: u8,
    /// Power state.
    pub state: PowerState,
    /// `8.0` and above can be tracked.
    pub configuration_version: String,
    /// Folder of the configuration.
    pub configuration_path: String,
    /// Firmware.
    pub firmware: Firmware,
    /// Secure boot is on (generation 2).
    pub secure_boot: bool,
    /// Virtual processors.
    pub processors: u32,
    /// Startup memory in bytes.
    pub memory: u64,
    /// Dynamic memory is on.
    pub dynamic_memory: bool,
    /// 0 none, 1 primary, 2 replica, 3 test replica, 4 extended replica (Hyper-V Replica's, not ours).
    pub replication_mode: u16,
    /// Checkpoints are allowed.
    pub checkpoints_enabled: bool,
    /// Disks in order of slot.
    pub disks: Vec<DiskInfo>,
    /// Network adapters.
    pub nics: Vec<NicInfo>,
    /// Checkpoints, oldest first.
    pub checkpoints: Vec<CheckpointInfo>,
    /// Since when it is running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_since: Option<Timestamp>,
}

/// How consistent a checkpoint is for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// As after a power failure (ConsistencyLevel 2).
    Crash,
    /// VSS, or file system freeze, ran in the guest (ConsistencyLevel 1).
    Application,
}

/// One disk as a checkpoint froze it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrozenDisk {
    /// VirtualDiskId.
    pub disk_id: DiskId,
    /// The frozen file to read, through its chain of parents.
    pub path: String,
    /// Stands for this instant of this disk.
    pub rct_id: RctId,
    /// The file that takes the writes since.
    pub avhdx_path: String,
    /// Virtual size in bytes.
    pub size: u64,
    /// 512 or 4096.
    pub logical_sector_size: u32,
}

/// A recovery checkpoint: all disks at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// InstanceID.
    pub id: CheckpointId,
    /// Name as given.
    pub name: String,
    /// The consistency reached.
    pub consistency: Consistency,
    /// The instant, by the host's clock.
    pub time: Timestamp,
    /// Disks in order of slot.
    pub disks: Vec<FrozenDisk>,
}

/// The id of one disk at a reference point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrackedDisk {
    /// VirtualDiskId.
    pub disk_id: DiskId,
    /// Ask [`crate::Hypervisor::query_changes`] from here.
    pub rct_id: RctId,
}

/// A point that changes can be asked from; holds no data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferencePoint {
    /// InstanceID.
    pub id: ReferencePointId,
    /// The checkpoint that it was converted from.
    pub checkpoint: CheckpointId,
    /// Name of that checkpoint.
    pub name: String,
    /// The instant, by the host's clock.
    pub created: Timestamp,
    /// Disks in order of slot.
    pub disks: Vec<TrackedDisk>,
}

impl ReferencePoint {
    /// The RCT id of a disk, if it was there.
    #[must_use]
    pub fn rct_id(&self, disk: DiskId) -> Option<&RctId> {
        self.disks.iter().find(|d| d.disk_id == disk).map(|d| &d.rct_id)
    }
}

impl Checkpoint {
    /// The frozen state of a disk, if it was there.
    #[must_use]
    pub fn disk(&self, disk: DiskId) -> Option<&FrozenDisk> {
        self.disks.iter().find(|d| d.disk_id == disk)
    }
}
