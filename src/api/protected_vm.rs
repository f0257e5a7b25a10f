//! ProtectedVM: a VM that its owner wants protected, and where it should be.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Condition, Consistency, Duration, ReplicationState, ReportedError, Time, Tracking, rules, schema,
};

/// A VM that its owner wants protected, and where it should be.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "farshore.dev",
    version = "v1alpha1",
    kind = "ProtectedVM",
    plural = "protectedvms",
    shortname = "pvm",
    category = "farshore",
    namespaced,
    status = "ProtectedVMStatus",
    derive = "PartialEq",
    selectable = ".spec.policy",
    selectable = ".spec.vault",
    doc = "ProtectedVM says that a Hyper-V VM is to be protected with Azure, and where it should be.",
    validation = Rule::new(
        "(has(self.spec.disks) && has(self.spec.disks.exclude) ? self.spec.disks.exclude : []) == \
         (has(oldSelf.spec.disks) && has(oldSelf.spec.disks.exclude) ? oldSelf.spec.disks.exclude : []) || \
         !has(oldSelf.status) || !has(oldSelf.status.state)"
    )
    .message("disks.exclude is fixed once protection is enabled: put it back, or delete this ProtectedVM and create it again with the other disks")
    .field_path(".spec.disks"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Health", type_ = "string", json_path = ".status.health"),
    printcolumn(name = "Replication", type_ = "string", json_path = ".status.replicationState"),
    printcolumn(name = "RPO", type_ = "string", json_path = ".status.rpo"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Copied %", type_ = "integer", json_path = ".status.initialReplication.percent", priority = 1),
    printcolumn(name = "Desired", type_ = "string", json_path = ".spec.desiredState", priority = 1),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch", priority = 1),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = rules::epoch_never_decreases(), validation = rules::epoch_rises_with_intent())]
#[serde(rename_all = "camelCase")]
pub struct ProtectedVMSpec {
    /// Which VM. Resolved once, then its id counts. Immutable.
    #[x_kube(validation = rules::immutable(
        "source is immutable: create another ProtectedVM for another VM"
    ))]
    pub source: Source,
    /// Name of the ReplicationPolicy.
    #[schemars(schema_with = "schema::name")]
    pub policy: String,
    /// Name of the RecoveryVault. Immutable.
    #[schemars(schema_with = "schema::name")]
    #[x_kube(validation = rules::immutable(
        "vault is immutable: the replica is there. To use another vault, delete this ProtectedVM and create it again"
    ))]
    pub vault: String,
    /// Which disks are replicated; fixed once protection is enabled. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<Disks>,
    /// Where the VM should be. Default Protected. Every change needs a higher `epoch`.
    #[serde(default)]
    pub desired_state: DesiredState,
    /// Counts the changes of intent: raise it with every change of desiredState, to `status.effective.nextEpoch`.
    /// 1 to 2^53 - 1; never decreases.
    #[schemars(schema_with = "schema::epoch")]
    pub epoch: i64,
    /// Stops replication cycles and nothing else. Default false.
    #[serde(default)]
    pub paused: bool,
    /// What deletion of this object does. Default Retain.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

impl ProtectedVMSpec {
    /// What `epoch` counts: the intent's fields that differ from their default, keys sorted. Its canonical JSON is
    /// what ledgers hash.
    pub fn intent(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut intent = serde_json::Map::new();
        if self.desired_state != DesiredState::default() {
            intent.insert("desiredState".into(), self.desired_state.as_str().into());
        }
        intent
    }
}

/// Which VM: exactly one of `vmName` and `vmID`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.vmName) != has(self.vmID)")
    .message("set exactly one of vmName and vmID"))]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Name of the HyperVSite whose hosts run the VM.
    #[schemars(schema_with = "schema::name")]
    pub site: String,
    /// The VM's name in Hyper-V; must be the only one of that name in the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub vm_name: Option<String>,
    /// The VM's id.
    #[serde(default, rename = "vmID", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::guid")]
    pub vm_id: Option<String>,
}

/// Which disks are replicated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disks {
    /// Disks that are not replicated, each by its VirtualDiskId or its file name (`scratch.vhdx`), at most 64.
    /// One that matches no disk is an unmet prerequisite.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "excluded_disks")]
    pub exclude: Vec<String>,
}

fn excluded_disks(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": schema::MAX_DISKS, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 1, "maxLength": 255}})
}

/// Where the VM should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DesiredState {
    /// Runs on-premises, replicates to Azure.
    #[default]
    Protected,
    /// Runs in Azure, not committed.
    FailedOver,
    /// Runs in Azure, which is production.
    FailoverCommitted,
    /// Runs in Azure, the on-premises copy is kept in step.
    FailbackSynchronized,
    /// Runs on-premises, the Azure VM is held.
    FailedBack,
    /// Runs on-premises, the Azure VM is removed.
    FailbackCommitted,
}

impl DesiredState {
    /// All values, in the order of a full circle.
    pub const ALL: [Self; 6] = [
        Self::Protected,
        Self::FailedOver,
        Self::FailoverCommitted,
        Self::FailbackSynchronized,
        Self::FailedBack,
        Self::FailbackCommitted,
    ];

    /// The value's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protected => "Protected",
            Self::FailedOver => "FailedOver",
            Self::FailoverCommitted => "FailoverCommitted",
            Self::FailbackSynchronized => "FailbackSynchronized",
            Self::FailedBack => "FailedBack",
            Self::FailbackCommitted => "FailbackCommitted",
        }
    }
}

/// What deletion of a ProtectedVM does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Replication stops; ledger, replica and points stay, the host's reference point for 7 days. Creating it again adopts them.
    #[default]
    Retain,
    /// As Retain, and change tracking on the host is removed.
    StopReplication,
    /// As StopReplication, and the containers are removed; needs annotation `farshore.dev/confirm-purge: <vmID>`.
    Purge,
}

/// Where the VM is: a resting place, or an edge under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum State {
    /// Runs on-premises, replicates to Azure.
    Protected,
    /// Runs in Azure, not committed.
    FailedOver,
    /// Runs in Azure, which is production.
    FailoverCommitted,
    /// Runs in Azure, the on-premises copy is kept in step.
    FailbackSynchronized,
    /// Runs on-premises, the Azure VM is held.
    FailedBack,
    /// Runs on-premises, the Azure VM is removed.
    FailbackCommitted,
    /// On the way to the first Protected.
    Enabling,
    /// On the way to Azure.
    FailingOver,
    /// The recovery point is being changed.
    ChangingRecoveryPoint,
    /// A failover is being cancelled.
    Cancelling,
    /// A failover is being committed.
    Committing,
    /// The on-premises copy is being synchronized.
    Synchronizing,
    /// On the way home.
    FailingBack,
    /// A failback is being undone.
    Undoing,
    /// A failback is being committed.
    CommittingFailback,
    /// Replication to Azure is being set up again.
    Reversing,
}

impl From<DesiredState> for State {
    fn from(state: DesiredState) -> Self {
        match state {
            DesiredState::Protected => Self::Protected,
            DesiredState::FailedOver => Self::FailedOver,
            DesiredState::FailoverCommitted => Self::FailoverCommitted,
            DesiredState::FailbackSynchronized => Self::FailbackSynchronized,
            DesiredState::FailedBack => Self::FailedBack,
            DesiredState::FailbackCommitted => Self::FailbackCommitted,
        }
    }
}

/// Health as Site Recovery shows it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Health {
    /// Nothing to do.
    #[default]
    Normal,
    /// Look at it soon.
    Warning,
    /// A person must act.
    Critical,
}

/// Where a ProtectedVM is and how it fares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProtectedVMStatus {
    /// metadata.generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Where the VM is, or the edge under way. Absent until protection begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Normal, Warning or Critical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// State of the replication in Hyper-V's names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_state: Option<ReplicationState>,
    /// The intent in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// Values of desiredState that are accepted from here, at most 6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    pub allowed_transitions: Vec<DesiredState>,
    /// The VM's id, lower case, once resolved.
    #[serde(default, rename = "vmID", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::guid_lower")]
    pub vm_id: Option<String>,
    /// HyperVHost that runs the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub host: Option<String>,
    /// Storage account that holds the replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::account")]
    pub storage_account: Option<String>,
    /// Age of the newest recovery point when this was written (at most once a minute), for example `4m12s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Duration>,
    /// The newest recovery points, newest first, at most 32; all of them are in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub recovery_points: Vec<RecoveryPoint>,
    /// Progress of initial replication; absent when done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_replication: Option<InitialReplication>,
    /// What change tracking takes on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// The replicated disks, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub disks: Vec<ReplicatedDisk>,
    /// The newest error that is not resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ReportedError>,
    /// Ready, Reconciling, Stalled, Protected, FailoverReady, RecoveryPointsCurrent, LedgerReachable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The intent in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// Where the VM should be.
    pub state: DesiredState,
    /// The ledger's epoch.
    #[schemars(schema_with = "schema::epoch")]
    pub epoch: i64,
    /// The epoch to write with the next change of intent.
    #[schemars(schema_with = "schema::epoch")]
    pub next_epoch: i64,
    /// Who set it, as `kind/namespace/name`.
    #[schemars(length(max = 512))]
    pub set_by: String,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPoint {
    /// `<yyyymmddThhmmssZ>-<term>-<stream>-<cycle>`.
    #[schemars(schema_with = "schema::word")]
    pub name: String,
    /// The instant that all its disks are of.
    pub time: Time,
    /// What it promises.
    pub consistency: Consistency,
}

/// Progress of initial replication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InitialReplication {
    /// 0 to 100.
    #[schemars(range(min = 0, max = 100))]
    pub percent: u32,
    /// Bytes of all replicated disks that hold data.
    pub bytes_total: u64,
    /// Of those, bytes that are safe in storage.
    pub bytes_copied: u64,
    /// When it is expected to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<Time>,
}

/// A replicated disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatedDisk {
    /// VirtualDiskId, lower case.
    #[schemars(schema_with = "schema::guid_lower")]
    pub id: String,
    /// Path of its file on the host.
    #[schemars(schema_with = "schema::path")]
    pub path: String,
    /// Size that the guest sees, in bytes.
    pub virtual_size_bytes: u64,
    /// Name of its replica blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub blob: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ProtectedVMSpec {
        ProtectedVMSpec {
            source: Source { site: "ams".into(), vm_name: Some("sql01".into()), vm_id: None },
            policy: "gold".into(),
            vault: "we".into(),
            disks: None,
            desired_state: DesiredState::Protected,
            epoch: 1,
            paused: false,
            deletion_policy: DeletionPolicy::Retain,
        }
    }

    // FORMATS "Intent": fields at their default are left out.
    #[test]
    fn an_intent_at_its_defaults_is_empty_and_ignores_everything_else() {
        let mut s = spec();
        assert!(s.intent().is_empty());
        s.paused = true;
        s.epoch = 9;
        assert!(s.intent().is_empty());
    }

    #[test]
    fn every_guarded_field_shows_in_the_intent() {
        let s = ProtectedVMSpec { desired_state: DesiredState::FailedOver, ..spec() };
        assert_eq!(s.intent().keys().map(String::as_str).collect::<Vec<_>>(), rules::INTENT_FIELDS);
    }

    #[test]
    fn names_of_states_are_what_serde_writes() {
        for state in DesiredState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(serde_json::to_value(State::from(state)).unwrap(), state.as_str());
        }
    }
}
