//! HyperVHost: one Hyper-V host or cluster node.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, Time, rules, schema};

/// One Hyper-V host. The controller makes it from the host's certificate request; its agent reports facts
/// in `status`; an administrator accepts it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "farshore.dev",
    version = "v1alpha1",
    kind = "HyperVHost",
    plural = "hypervhosts",
    shortname = "hvh",
    category = "farshore",
    status = "HyperVHostStatus",
    derive = "PartialEq",
    selectable = ".spec.site",
    doc = "HyperVHost is one Hyper-V host or cluster node. It may do nothing until an administrator sets spec.accepted.",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("a HyperVHost's name is a label of its namespace: at most 63 characters. Use the host's name without its domain"),
    printcolumn(name = "Site", type_ = "string", json_path = ".spec.site"),
    printcolumn(name = "Accepted", type_ = "boolean", json_path = ".spec.accepted"),
    printcolumn(
        name = "Connected",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Connected\")].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".status.namespace", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HyperVHostSpec {
    /// Name of the HyperVSite that the host belongs to.
    #[schemars(schema_with = "schema::name")]
    #[x_kube(validation = rules::immutable(
        "a host stays in its site: to move it, delete this HyperVHost and enrol the host again with a token of the other site"
    ))]
    pub site: String,
    /// An administrator has compared `keyFingerprint` with what the agent shows and lets the host in. Default false.
    #[serde(default)]
    pub accepted: bool,
    /// SHA-256 of the agent's public key (SubjectPublicKeyInfo), 64 hex digits in lower case. A certificate is signed only for this key.
    #[schemars(length(max = 64), regex(pattern = "^[0-9a-f]{64}$"))]
    pub key_fingerprint: String,
}

/// What is known of a host. Facts by its agent; `namespace`, `lastSeen` and `conditions` by the controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperVHostStatus {
    /// Namespace that holds what belongs to this host; set when it is accepted. By the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::namespace")]
    pub namespace: Option<String>,
    /// Version of Windows, for example `10.0.20348`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub version: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub agent_version: Option<String>,
    /// What the agent can do; the controller asks for nothing else. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::words")]
    pub features: Vec<String>,
    /// The failover cluster that the host is a node of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover_cluster: Option<FailoverCluster>,
    /// Volumes that hold VMs, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub volumes: Vec<Volume>,
    /// Virtual switches, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub virtual_switches: Vec<VirtualSwitch>,
    /// Endpoints that the agent needs, each tried from the host, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub endpoints: Vec<EndpointCheck>,
    /// When the controller last saw the host's heartbeat change, refreshed only when Connected changes. By the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,
    /// Ready, Connected. By the controller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A failover cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailoverCluster {
    /// The cluster's name.
    #[schemars(schema_with = "schema::word")]
    pub name: String,
    /// Names of all nodes as the cluster has them, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::words")]
    pub nodes: Vec<String>,
}

/// A volume of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Where it is mounted, for example `D:\` or `C:\ClusterStorage\Volume1`.
    #[schemars(schema_with = "schema::path")]
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Free bytes, rounded so that small changes cause no write.
    pub free_bytes: u64,
}

/// A virtual switch of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualSwitch {
    /// The switch's id.
    #[schemars(schema_with = "schema::word")]
    pub id: String,
    /// The switch's name.
    #[schemars(schema_with = "schema::word")]
    pub name: String,
    /// Connects to a physical network.
    #[serde(default)]
    pub external: bool,
}

/// One endpoint that the agent needs, tried from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCheck {
    /// What it is for: `Kubernetes`, `Storage`, `Identity`, ...
    #[schemars(schema_with = "schema::word")]
    pub name: String,
    /// What was tried, without query.
    #[schemars(schema_with = "schema::url")]
    pub url: String,
    /// It answered.
    pub reachable: bool,
    /// Code of the obstacle, for example `AuthenticatingProxy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub code: Option<String>,
    /// What was seen and what to open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::text")]
    pub message: Option<String>,
}
