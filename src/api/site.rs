//! HyperVSite: gathers hosts and holds what their agents share.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, schema};

/// Gathers Hyper-V hosts under one name and holds the defaults of their agents.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "farshore.dev",
    version = "v1alpha1",
    kind = "HyperVSite",
    plural = "hypervsites",
    shortname = "hvs",
    category = "farshore",
    status = "HyperVSiteStatus",
    derive = "PartialEq",
    doc = "HyperVSite gathers Hyper-V hosts under one name and holds the defaults of their agents.",
    printcolumn(name = "Hosts", type_ = "integer", json_path = ".status.hosts"),
    printcolumn(name = "Connected", type_ = "integer", json_path = ".status.connectedHosts"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HyperVSiteSpec {
    /// How the hosts are managed. Default: stand-alone hosts and cluster nodes, each with its own agent.
    #[serde(default)]
    pub management: Management,
    /// Defaults of the agents on the site's hosts.
    #[serde(default)]
    pub agent: AgentDefaults,
    /// Namespaces whose ProtectedVMs may name this site; `*` is all. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::allowed_namespaces")]
    pub allowed_namespaces: Option<Vec<String>>,
}

/// How the hosts of a site are managed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Management {
    /// Stand-alone hosts and nodes of failover clusters; each runs its own agent.
    #[serde(default)]
    pub standalone: Standalone,
}

impl Default for Management {
    fn default() -> Self {
        Self { standalone: Standalone {} }
    }
}

/// Nothing to set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Standalone {}

/// Defaults of the agents on a site's hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentDefaults {
    /// Segments of one VM that are uploaded at the same time, 1 to 32. Default 4.
    #[serde(default = "default_upload_parallelism", rename = "uploadParallelismPerVM")]
    #[schemars(range(min = 1, max = 32))]
    pub upload_parallelism_per_vm: u32,
    /// Space on every volume with protected disks that tracking and logs never eat into, in MiB,
    /// 0 to 16777216. Default 10240 (10 GiB).
    #[serde(default = "default_reserve", rename = "reserveMiB")]
    #[schemars(range(min = 0, max = 16_777_216))]
    pub reserve_mib: u64,
}

impl Default for AgentDefaults {
    fn default() -> Self {
        Self { upload_parallelism_per_vm: default_upload_parallelism(), reserve_mib: default_reserve() }
    }
}

fn default_upload_parallelism() -> u32 {
    4
}

fn default_reserve() -> u64 {
    10_240
}

/// What is known of a site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperVSiteStatus {
    /// Accepted hosts.
    #[serde(default)]
    pub hosts: u32,
    /// Accepted hosts whose heartbeat is fresh.
    #[serde(default)]
    pub connected_hosts: u32,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
