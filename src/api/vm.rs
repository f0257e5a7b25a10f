//! HyperVVM: a VM as its host sees it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Finding, Time, schema};

/// A VM as its host sees it. `metadata.name` is the VM's id in lower case. Only agents write it, so
/// `spec` holds the facts: there is no `status`, and nothing changes on the host when somebody edits it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "farshore.dev",
    version = "v1alpha1",
    kind = "HyperVVM",
    plural = "hypervvms",
    shortname = "hvvm",
    category = "farshore",
    namespaced,
    derive = "PartialEq",
    selectable = ".spec.vmID",
    doc = "HyperVVM is one VM as its host reports it. Facts only: editing it changes nothing on the host.",
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vmName"),
    printcolumn(name = "Power", type_ = "string", json_path = ".spec.powerState"),
    printcolumn(name = "Gen", type_ = "integer", json_path = ".spec.generation"),
    printcolumn(name = "Protectable", type_ = "boolean", json_path = ".spec.protectable"),
    printcolumn(name = "Why not", type_ = "string", json_path = ".spec.findings[*].code"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HyperVVMSpec {
    /// The VM's id, lower case.
    #[serde(rename = "vmID")]
    #[schemars(schema_with = "schema::guid_lower")]
    pub vm_id: String,
    /// The VM's name in Hyper-V.
    #[schemars(schema_with = "schema::word")]
    pub vm_name: String,
    /// 1 or 2.
    #[schemars(range(min = 1, max = 2))]
    pub generation: u32,
    /// Configuration version, for example `10.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub configuration_version: Option<String>,
    /// Power state.
    pub power_state: PowerState,
    /// Virtual processors.
    #[serde(default)]
    pub processors: u32,
    /// Start-up memory in MiB.
    #[serde(default, rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Secure boot is on (generation 2).
    #[serde(default)]
    pub secure_boot: bool,
    /// A virtual TPM is present.
    #[serde(default)]
    pub tpm: bool,
    /// The VM is a role of the host's failover cluster.
    #[serde(default)]
    pub clustered: bool,
    /// Virtual disks, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub disks: Vec<VirtualDisk>,
    /// Network adapters, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub network_adapters: Vec<NetworkAdapter>,
    /// Checkpoints that are not ours, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub checkpoints: Vec<Checkpoint>,
    /// Every prerequisite is met.
    pub protectable: bool,
    /// Every unmet prerequisite, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub findings: Vec<Finding>,
}

/// Power state of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PowerState {
    /// Running.
    Running,
    /// Off.
    Off,
    /// Saved.
    Saved,
    /// Paused.
    Paused,
    /// Between two states.
    Transitional,
    /// The host does not say.
    #[default]
    Unknown,
}

/// A virtual disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualDisk {
    /// VirtualDiskId, lower case; empty if the disk has none.
    #[schemars(length(max = 36))]
    pub id: String,
    /// Path of the file that is attached.
    #[schemars(schema_with = "schema::path")]
    pub path: String,
    /// Where it is attached, for example `SCSI 0:1`.
    #[schemars(schema_with = "schema::word")]
    pub slot: String,
    /// What the file is.
    pub format: DiskFormat,
    /// Size that the guest sees, in bytes.
    pub virtual_size_bytes: u64,
    /// Size of the file, in bytes.
    #[serde(default)]
    pub file_size_bytes: u64,
    /// Shared with other VMs.
    #[serde(default)]
    pub shared: bool,
}

/// What a virtual disk's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DiskFormat {
    /// VHDX, fixed or dynamic.
    VHDX,
    /// VHDX or AVHDX with a parent.
    DifferencingVHDX,
    /// VHD of any kind.
    VHD,
    /// VHD set.
    VHDSet,
    /// A physical disk.
    PassThrough,
}

/// A network adapter of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAdapter {
    /// The adapter's id in the configuration.
    #[schemars(schema_with = "schema::word")]
    pub id: String,
    /// The adapter's name.
    #[schemars(schema_with = "schema::word")]
    pub name: String,
    /// MAC address, 12 hex digits.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// Name of the virtual switch it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub switch: Option<String>,
    /// VLAN of an access port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4094))]
    pub vlan: Option<u32>,
    /// Addresses that the guest reports, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::words")]
    pub addresses: Vec<String>,
}

/// A checkpoint of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The checkpoint's id.
    #[schemars(schema_with = "schema::word")]
    pub id: String,
    /// The checkpoint's name.
    #[schemars(schema_with = "schema::word")]
    pub name: String,
    /// When it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
}
