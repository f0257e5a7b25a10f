//! Values that several kinds share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Hyper-V's names for the state of a replication, from `Msvm_ReplicationRelationship`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReplicationState {
    /// Not replicated (0).
    #[default]
    Disabled,
    /// Prerequisites met, initial replication not yet started (1).
    ReadyForReplication,
    /// Initial replication is running (2).
    WaitingToCompleteInitialReplication,
    /// Delta replication is running (3).
    Replicating,
    /// The last changes of a planned failover are sent (4).
    SyncedReplicationComplete,
    /// Failed over, not committed (5).
    Recovered,
    /// Failover committed (6).
    Committed,
    /// Paused by a person or out of disk space (7).
    Suspended,
    /// Stopped by an error that a person must clear (8).
    Critical,
    /// Resynchronization is required and waits for its window or a request (9).
    WaitingToStartResynchronization,
    /// Resynchronization is running (10).
    Resynchronizing,
    /// Resynchronization was interrupted (11).
    ResynchronizationSuspended,
    /// A failover is under way (12).
    FailoverInProgress,
    /// A failback is under way (13).
    FailbackInProgress,
    /// The VM runs on-premises again (14).
    FailbackComplete,
}

/// How the data of segments is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Compression {
    /// zstd per frame.
    #[default]
    Zstd,
    /// As it is.
    None,
}

/// Kind of a cycle's commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CycleKind {
    /// A part of initial replication; never a recovery point.
    Base,
    /// Changes since the cycle before.
    Delta,
    /// A delta whose point is application-consistent.
    Application,
    /// The differences that a resynchronization found.
    Resync,
    /// The last changes of a side.
    Final,
    /// Changes on their way home.
    Failback,
}

/// What a recovery point promises about the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Consistency {
    /// As if the power had been cut: all disks of one instant.
    Crash,
    /// Applications had flushed (VSS).
    Application,
    /// The machine was off.
    Final,
}

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ErrorClass {
    /// Tried again: after 1, 2, 4, 8, 10 minutes, then every 30.
    Recoverable,
    /// Not tried again until a person has acted.
    Unrecoverable,
    /// Overtaken by a newer goal; ends quietly.
    Superseded,
    /// Only a resynchronization helps.
    NeedsResync,
}

/// An error as a person reads it (Site Recovery's four fields).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportedError {
    /// Code from the catalogue, for example `LowDiskSpace`.
    #[schemars(schema_with = "schema::word")]
    pub code: String,
    /// What failed, on what.
    #[schemars(schema_with = "schema::text")]
    pub message: String,
    /// What may have caused it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(schema_with = "schema::text")]
    pub possible_causes: String,
    /// What to do now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(schema_with = "schema::text")]
    pub recommended_action: String,
}

/// A code with a sentence: an unmet prerequisite, a reason why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Code from the catalogue, for example `SharedDisk`.
    #[schemars(schema_with = "schema::word")]
    pub code: String,
    /// What is found and what to do.
    #[schemars(schema_with = "schema::text")]
    pub message: String,
}

/// What change tracking takes on the host now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tracking {
    /// Bytes in differencing files of our checkpoints.
    #[serde(default)]
    pub avhdx_bytes: u64,
    /// Bytes in `.hrl` logs.
    #[serde(default)]
    pub log_bytes: u64,
    /// Free bytes on the fullest of the volumes that hold the VM's disks.
    #[serde(default)]
    pub volume_free_bytes: u64,
}

/// May objects of `namespace` use a cluster-scoped object with these `allowedNamespaces`? Absent allows all.
pub fn namespace_allowed(allowed: Option<&[String]>, namespace: &str) -> bool {
    allowed.is_none_or(|list| list.iter().any(|a| a == "*" || a == namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_namespaces_are_allowed_and_absent_allows_all() {
        let list = ["shop".to_owned()];
        assert!(namespace_allowed(None, "shop"));
        assert!(namespace_allowed(Some(&list), "shop"));
        assert!(!namespace_allowed(Some(&list), "sho"));
        assert!(namespace_allowed(Some(&["*".to_owned()]), "x"));
    }
}
