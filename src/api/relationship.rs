//! ReplicationRelationship: what an agent must bring about for one VM.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Compression, Condition, CycleKind, ErrorClass, Finding, ReplicationState, Time, Tracking, rules, schema,
};

/// What the agent of a host must bring about for one VM: `spec` by the controller, `status` by the agent.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "farshore.dev",
    version = "v1alpha1",
    kind = "ReplicationRelationship",
    plural = "replicationrelationships",
    shortname = "rrel",
    category = "farshore",
    namespaced,
    status = "ReplicationRelationshipStatus",
    derive = "PartialEq",
    selectable = ".spec.vmID",
    doc = "ReplicationRelationship is what the agent of a host must bring about for one VM. The controller writes its spec, the agent its status.",
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.protectedVM.name"),
    printcolumn(name = "Goal", type_ = "string", json_path = ".spec.goal"),
    printcolumn(name = "Term", type_ = "integer", json_path = ".spec.term"),
    printcolumn(name = "Stream", type_ = "integer", json_path = ".spec.stream"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step"),
    printcolumn(name = "Cycle", type_ = "integer", json_path = ".status.lastCycle.cycle"),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.lastError.code"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self.term > oldSelf.term || (self.term == oldSelf.term && self.stream >= oldSelf.stream)")
    .message("term never decreases, nor stream within a term: read the ledger and write its term and stream"))]
#[serde(rename_all = "camelCase")]
pub struct ReplicationRelationshipSpec {
    /// The VM's id, lower case. Immutable.
    #[serde(rename = "vmID")]
    #[schemars(schema_with = "schema::guid_lower")]
    #[x_kube(validation = rules::immutable("vmID is immutable: delete the relationship and make another"))]
    pub vm_id: String,
    /// The ProtectedVM that it is made for. Immutable.
    #[serde(rename = "protectedVM")]
    pub protected_vm: ProtectedVMRef,
    /// What the agent must bring about.
    pub goal: Goal,
    /// Counts changes of side, 1 to 999999.
    #[schemars(schema_with = "schema::term")]
    pub term: u32,
    /// Counts changes of writer inside a term, 1 to 999999.
    #[schemars(schema_with = "schema::term")]
    pub stream: u32,
    /// VirtualDiskIds of the disks to replicate, lower case, at most 64.
    #[schemars(schema_with = "schema::disk_ids")]
    pub disks: Vec<String>,
    /// When cycles run.
    pub schedule: Schedule,
    /// Where data goes.
    pub endpoints: Endpoints,
    /// Name of the RecoveryVault.
    #[schemars(schema_with = "schema::name")]
    pub vault: String,
    /// Name of the storage account.
    #[schemars(schema_with = "schema::account")]
    pub storage_account: String,
    /// Secret in the same namespace with the keys `up`, `down` and `expiresAt`.
    #[schemars(schema_with = "schema::name")]
    pub sas_secret: String,
    /// How segments are packed.
    #[serde(default)]
    pub compression: Compression,
    /// Segments uploaded at the same time, 1 to 32. Default 4.
    #[serde(default = "default_upload_parallelism")]
    #[schemars(range(min = 1, max = 32))]
    pub upload_parallelism: u32,
    /// Bytes on each volume that tracking and logs never eat into. Default 0.
    #[serde(default)]
    pub reserve_bytes: u64,
    /// What is already safe and verified: where a new stream goes on from. Absent: from nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// With StopReplicating: own reference points are kept until then. Absent: destroyed at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_points_until: Option<Time>,
}

fn default_upload_parallelism() -> u32 {
    4
}

/// The ProtectedVM that a relationship is made for.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = rules::immutable("protectedVM is immutable: delete the relationship and make another"))]
#[serde(rename_all = "camelCase")]
pub struct ProtectedVMRef {
    /// Its namespace.
    #[schemars(schema_with = "schema::namespace")]
    pub namespace: String,
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// Its uid.
    #[schemars(length(max = 64))]
    pub uid: String,
}

/// What an agent must bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Goal {
    /// Initial replication, then cycles on schedule.
    Replicate,
    /// Nothing of ours is left on the host (reference points until `keepPointsUntil`); then `released`.
    StopReplicating,
}

/// When cycles run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Seconds between two cycles, at least 1.
    #[schemars(range(min = 1, max = 86_400))]
    pub interval_seconds: u32,
    /// No cycles while true.
    #[serde(default)]
    pub paused: bool,
    /// Seconds between two snapshot sets, at least 1. For the replica server.
    #[schemars(range(min = 1, max = 604_800))]
    pub recovery_point_spacing_seconds: u32,
    /// Seconds that recovery points are kept, at least 1. For the replica server.
    #[schemars(range(min = 1, max = 31_622_400))]
    pub recovery_point_retention_seconds: u32,
}

/// Where data goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// Base URL of the blob service, with the account in the path where an emulator wants it; no slash at the end.
    #[schemars(schema_with = "schema::url")]
    pub blob: String,
    /// `fs-<id>`: ledger, replica, points. No host may use it.
    #[schemars(schema_with = "schema::container")]
    pub replica_container: String,
    /// `fs-<id>-up`: the host may create.
    #[schemars(schema_with = "schema::container")]
    pub up_container: String,
    /// `fs-<id>-down`: the host may read.
    #[schemars(schema_with = "schema::container")]
    pub down_container: String,
    /// PEM certificates that the endpoint is trusted by; emulators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pem")]
    pub ca_bundle: Option<String>,
}

/// What is already safe and verified: the last commit that a new stream continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Base {
    /// Term of the commit.
    #[schemars(schema_with = "schema::term")]
    pub term: u32,
    /// Stream of the commit.
    #[schemars(schema_with = "schema::term")]
    pub stream: u32,
    /// Cycle of the commit.
    pub cycle: u64,
    /// Hash of the commit record, BLAKE3, 64 hex digits.
    #[schemars(schema_with = "schema::hash")]
    pub commit_hash: String,
    /// Reference point of the commit.
    #[serde(default, rename = "referencePointID", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::guid")]
    pub reference_point_id: Option<String>,
    /// RCT id per disk at that point.
    #[serde(default, rename = "rctIDs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub rct_ids: Vec<RctId>,
    /// How far initial replication was, per disk; empty when it was done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub copied_up_to: Vec<CopiedUpTo>,
    /// Reference points on the host that are ours, at most 8.
    #[serde(default, rename = "ownedPointIDs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::own_points")]
    pub owned_point_ids: Vec<String>,
}

/// RCT id of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RctId {
    /// VirtualDiskId, lower case.
    #[schemars(schema_with = "schema::guid_lower")]
    pub disk: String,
    /// The id as Hyper-V writes it, for example `rctX:...`.
    #[schemars(length(max = 256))]
    pub id: String,
}

/// How far one disk is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopiedUpTo {
    /// VirtualDiskId, lower case.
    #[schemars(schema_with = "schema::guid_lower")]
    pub disk: String,
    /// Every byte before this offset is copied.
    pub bytes: u64,
}

/// What the agent reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationRelationshipStatus {
    /// What the agent has taken up: an acknowledgement counts only if all of it matches the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Observed>,
    /// State of the replication in Hyper-V's names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ReplicationState>,
    /// What the agent does now, for example `CopyingDisks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub step: Option<String>,
    /// Bytes of the running copy or cycle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What change tracking takes on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// The last cycle that was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_cycle: Option<LastCycle>,
    /// Ticks that were skipped because the cycle before was not done.
    #[serde(default)]
    pub missed_cycles: u64,
    /// Prerequisites that are not met, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub unmet_prerequisites: Vec<Finding>,
    /// The error that holds the agent up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<AgentError>,
    /// StopReplicating is done: nothing of ours is left on the host.
    #[serde(default)]
    pub released: bool,
    /// The agent has no journal for this term and stream and uploads nothing until it gets a new stream.
    #[serde(default)]
    pub journal_lost: bool,
    /// Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What the agent has taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// The goal.
    pub goal: Goal,
    /// The term.
    #[schemars(schema_with = "schema::term")]
    pub term: u32,
    /// The stream.
    #[schemars(schema_with = "schema::term")]
    pub stream: u32,
    /// metadata.generation.
    #[schemars(range(min = 0))]
    pub generation: i64,
}

/// Bytes of the running copy or cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Bytes of disk data to send.
    pub bytes_total: u64,
    /// Of those, bytes that are safe in storage.
    pub bytes_copied: u64,
    /// Bytes that went over the wire for it.
    pub bytes_sent: u64,
}

/// A committed cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastCycle {
    /// Its term.
    #[schemars(schema_with = "schema::term")]
    pub term: u32,
    /// Its stream.
    #[schemars(schema_with = "schema::term")]
    pub stream: u32,
    /// Its number.
    pub cycle: u64,
    /// Its kind.
    pub kind: CycleKind,
    /// Hash of its commit record, BLAKE3, 64 hex digits.
    #[schemars(schema_with = "schema::hash")]
    pub commit_hash: String,
    /// When it was committed, by the host's clock.
    pub committed_at: Time,
}

/// An error of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentError {
    /// Code from the catalogue.
    #[schemars(schema_with = "schema::word")]
    pub code: String,
    /// What it asks for.
    pub class: ErrorClass,
    /// What failed, on what.
    #[schemars(schema_with = "schema::text")]
    pub message: String,
    /// When it was first seen.
    pub since: Time,
    /// Attempts since then.
    #[serde(default)]
    pub attempts: u32,
    /// When it is tried again; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_retry_at: Option<Time>,
}
