//! RecoveryJob: one operation on a VM, step by step (the Jobs tab).

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, ReportedError, Time, rules, schema};

/// One operation on a ProtectedVM, step by step. Written by the controller, kept for some days.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "farshore.dev",
    version = "v1alpha1",
    kind = "RecoveryJob",
    plural = "recoveryjobs",
    shortname = "rjob",
    category = "farshore",
    namespaced,
    status = "RecoveryJobStatus",
    derive = "PartialEq",
    selectable = ".spec.protectedVM",
    doc = "RecoveryJob is one operation on a ProtectedVM, step by step. The controller writes it; editing it changes nothing.",
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.protectedVM"),
    printcolumn(name = "Operation", type_ = "string", json_path = ".spec.operation"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.currentStep"),
    printcolumn(name = "Progress", type_ = "integer", json_path = ".status.progress"),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.error.code", priority = 1),
    printcolumn(name = "Started", type_ = "date", json_path = ".status.startedAt"),
    printcolumn(name = "Finished", type_ = "date", json_path = ".status.finishedAt")
)]
#[x_kube(validation = rules::immutable("a RecoveryJob is a record of what the controller does: it cannot be changed"))]
#[serde(rename_all = "camelCase")]
pub struct RecoveryJobSpec {
    /// Name of the ProtectedVM, in the same namespace.
    #[serde(rename = "protectedVM")]
    #[schemars(schema_with = "schema::name")]
    pub protected_vm: String,
    /// What is done.
    pub operation: Operation,
    /// The VM's id, lower case, if it was known.
    #[serde(default, rename = "vmID", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::guid_lower")]
    pub vm_id: Option<String>,
    /// The epoch that asked for it.
    #[schemars(schema_with = "schema::epoch")]
    pub epoch: i64,
}

/// Operations, in Site Recovery's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Operation {
    /// Prerequisites, relationship, initial replication.
    EnableProtection,
    /// Network and the other settings after initial replication.
    FinalizeProtection,
    /// Replication is stopped.
    DisableProtection,
}

/// State of a job or of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum JobState {
    /// Not begun.
    #[default]
    NotStarted,
    /// Running.
    InProgress,
    /// Done.
    Succeeded,
    /// Ended by an error.
    Failed,
    /// Ended by a newer intent or by deletion.
    Cancelled,
    /// Waits for a person.
    Suspended,
    /// Was not necessary or does not exist here; the message says why.
    Skipped,
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryJobStatus {
    /// State of the whole job.
    #[serde(default)]
    pub state: JobState,
    /// Name of the step that runs or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub current_step: Option<String>,
    /// The steps in order, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub steps: Vec<Step>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Percent of the whole, 0 to 100.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub progress: u32,
    /// Why it failed or waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ReportedError>,
    /// Succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A step of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Site Recovery's name of the step, for example `Starting initial replication`.
    #[schemars(schema_with = "schema::word")]
    pub name: String,
    /// State of the step.
    #[serde(default)]
    pub state: JobState,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// What it does or why it ended so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::text")]
    pub message: Option<String>,
    /// Percent, 0 to 100, where it can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub progress: Option<u32>,
}

/// Names of steps, as Site Recovery shows them.
pub mod step {
    /// Every prerequisite of the VM is looked at (R4.1).
    pub const PREREQUISITES_CHECK: &str = "Prerequisites check for enabling protection";
    /// Storage account and containers.
    pub const IDENTIFYING_REPLICATION_TARGET: &str = "Identifying replication target";
    /// The relationship is created: CreateReplicationRelationship (R4.2).
    pub const ENABLE_REPLICATION: &str = "Enable replication";
    /// Initial replication: StartReplication (R4.2, R5).
    pub const STARTING_INITIAL_REPLICATION: &str = "Starting initial replication";
    /// The first recovery point is recorded.
    pub const UPDATING_PROVIDER_STATES: &str = "Updating the provider states";
    /// Network settings after initial replication (R6.1).
    pub const CONFIGURE_NETWORK: &str = "Configure network settings";
    /// The other settings after initial replication (R6.1).
    pub const FINALIZE_PROTECTION: &str = "Finalize protection on the virtual machine";
    /// The host stops replicating.
    pub const DISABLE_REPLICATION: &str = "Disable replication";
    /// Change tracking on the host is removed.
    pub const REMOVE_HOST_TRACKING: &str = "Remove change tracking from the host";
    /// Replica and points are removed.
    pub const REMOVE_REPLICA: &str = "Remove replica and recovery points";
}
