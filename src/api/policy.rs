//! ReplicationPolicy: how often and how long.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Compression, Condition, Duration, schema};

/// How often VMs are replicated and how long their recovery points are kept.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "farshore.dev",
    version = "v1alpha1",
    kind = "ReplicationPolicy",
    plural = "replicationpolicies",
    shortname = "rpol",
    category = "farshore",
    status = "ReplicationPolicyStatus",
    derive = "PartialEq",
    doc = "ReplicationPolicy says how often VMs are replicated and how long their recovery points are kept.",
    printcolumn(name = "Interval", type_ = "string", json_path = ".spec.replicationInterval"),
    printcolumn(name = "Retention", type_ = "string", json_path = ".spec.recoveryPointRetention"),
    printcolumn(name = "Spacing", type_ = "string", json_path = ".spec.recoveryPointSpacing"),
    printcolumn(name = "VMs", type_ = "integer", json_path = ".status.protectedVMs"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("duration(self.recoveryPointSpacing) <= duration(self.recoveryPointRetention)")
    .message("recoveryPointSpacing must not be longer than recoveryPointRetention: no snapshot would be kept. Raise the retention or lower the spacing"))]
#[serde(rename_all = "camelCase")]
pub struct ReplicationPolicySpec {
    /// Time between two cycles, 30s to 1h. Default 5m. Below 5m the status shows what is achieved.
    #[serde(default = "default_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('30s') && duration(self) <= duration('1h')")
        .message("replicationInterval must be from 30s to 1h, for example 5m"))]
    pub replication_interval: Duration,
    /// How long recovery points are kept, 1h to 720h. Default 24h. A shorter value prunes 24 h after it is set.
    #[serde(default = "default_retention")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h') && duration(self) <= duration('720h')")
        .message("recoveryPointRetention must be from 1h to 720h, for example 24h"))]
    pub recovery_point_retention: Duration,
    /// Time between two recovery points that are snapshots and so quick to use, 5m to 12h. Default 15m.
    /// The cycles between them are points too, rebuilt when asked for.
    #[serde(default = "default_spacing")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('5m') && duration(self) <= duration('12h')")
        .message("recoveryPointSpacing must be from 5m to 12h, for example 15m"))]
    pub recovery_point_spacing: Duration,
    /// How data is packed before it is sent: Zstd or None. Default Zstd.
    #[serde(default)]
    pub compression: Compression,
    /// Namespaces whose ProtectedVMs may name this policy; `*` is all. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::allowed_namespaces")]
    pub allowed_namespaces: Option<Vec<String>>,
}

impl Default for ReplicationPolicySpec {
    fn default() -> Self {
        Self {
            replication_interval: default_interval(),
            recovery_point_retention: default_retention(),
            recovery_point_spacing: default_spacing(),
            compression: Compression::default(),
            allowed_namespaces: None,
        }
    }
}

fn default_interval() -> Duration {
    Duration::from_mins(5)
}

fn default_retention() -> Duration {
    Duration::from_hours(24)
}

fn default_spacing() -> Duration {
    Duration::from_mins(15)
}

/// Who uses a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationPolicyStatus {
    /// ProtectedVMs that name it.
    #[serde(default, rename = "protectedVMs")]
    pub protected_vms: u32,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
