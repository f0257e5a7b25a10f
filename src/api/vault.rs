//! RecoveryVault: where in Azure the replicas live.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, Time, rules, schema};

/// Where in Azure replicas live. Not an Azure Recovery Services vault: storage accounts of your own.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "farshore.dev",
    version = "v1alpha1",
    kind = "RecoveryVault",
    plural = "recoveryvaults",
    shortname = "rv",
    category = "farshore",
    status = "RecoveryVaultStatus",
    derive = "PartialEq",
    doc = "RecoveryVault says where in Azure replicas live. It is not an Azure Recovery Services vault: it names storage accounts of your own.",
    printcolumn(name = "Cloud", type_ = "string", json_path = ".spec.cloud"),
    printcolumn(name = "Location", type_ = "string", json_path = ".spec.location"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.cloud == 'Custom' || (has(self.subscriptionID) && has(self.resourceGroup) && has(self.location))")
        .message("AzurePublic and AzureUSGovernment need subscriptionID, resourceGroup and location: set all three"),
    validation = Rule::new("self.cloud != 'Custom' || self.storageAccounts.all(a, has(a.blobEndpoint))")
        .message("cloud Custom needs blobEndpoint for every storage account: set the URL of its blob service"),
    validation = Rule::new("self.cloud == 'Custom' || !has(self.authentication.sharedKey)")
        .message("sharedKey is for emulators only (cloud Custom): use workloadIdentity, managedIdentity or clientSecret"),
    validation = Rule::new("self.cloud == 'Custom' || !has(self.caBundle)")
        .message("caBundle is for cloud Custom only: remove it, Azure's certificates are trusted anyway"),
    validation = Rule::new("self.cloud == 'Custom' || self.storageAccounts.all(a, !has(a.blobEndpoint) || a.blobEndpoint.startsWith('https://'))")
        .message("blobEndpoint must be an https:// URL unless cloud is Custom")
)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryVaultSpec {
    /// AzurePublic, AzureUSGovernment, or Custom for emulators.
    #[x_kube(validation = rules::immutable("a vault's cloud cannot change: replicas stay where they are. Make another RecoveryVault"))]
    pub cloud: Cloud,
    /// Subscription of the recovered machines and their disks.
    #[serde(default, rename = "subscriptionID", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::guid")]
    pub subscription_id: Option<String>,
    /// Resource group of the recovered machines and their disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 90))]
    pub resource_group: Option<String>,
    /// Region, for example `westeurope`; the storage accounts are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9]+$"))]
    pub location: Option<String>,
    /// Storage accounts for replicas, 1 to 32: standard general-purpose v2 without hierarchical namespace. A VM is placed on one and stays there.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub storage_accounts: Vec<StorageAccount>,
    /// How the controller and the replica server log in.
    pub authentication: Authentication,
    /// PEM certificates that the endpoints of an emulator are trusted by; cloud Custom only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pem")]
    pub ca_bundle: Option<String>,
    /// Namespaces whose ProtectedVMs may name this vault; `*` is all. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::allowed_namespaces")]
    pub allowed_namespaces: Option<Vec<String>>,
}

/// Which Azure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Cloud {
    /// Commercial Azure: `blob.core.windows.net`.
    AzurePublic,
    /// Azure US Government: `blob.core.usgovcloudapi.net`.
    AzureUSGovernment,
    /// Endpoints as given; for emulators.
    Custom,
}

/// A storage account for replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageAccount {
    /// The account's name.
    #[schemars(schema_with = "schema::account")]
    pub name: String,
    /// URL of the blob service; for an emulator with the account in the path, `http://127.0.0.1:10000/devstoreaccount1`.
    /// Default: from the name and the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::url")]
    pub blob_endpoint: Option<String>,
}

/// How to log in to Azure: exactly one.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new(
    "[has(self.workloadIdentity), has(self.managedIdentity), has(self.clientSecret), has(self.sharedKey)].filter(x, x).size() == 1"
).message("set exactly one of workloadIdentity, managedIdentity, clientSecret, sharedKey"))]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// Microsoft Entra Workload ID of the pods' service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_identity: Option<WorkloadIdentity>,
    /// Managed identity of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_identity: Option<ManagedIdentity>,
    /// An app registration with a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<ClientSecret>,
    /// The accounts' keys; emulators only (cloud Custom).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_key: Option<SharedKey>,
}

/// Microsoft Entra Workload ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadIdentity {
    /// Application (client) id.
    #[serde(rename = "clientID")]
    #[schemars(schema_with = "schema::guid")]
    pub client_id: String,
    /// Directory (tenant) id.
    #[serde(rename = "tenantID")]
    #[schemars(schema_with = "schema::guid")]
    pub tenant_id: String,
}

/// A managed identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManagedIdentity {
    /// Client id of a user-assigned identity. Default: the system-assigned one.
    #[serde(default, rename = "clientID", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::guid")]
    pub client_id: Option<String>,
}

/// An app registration with a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientSecret {
    /// Directory (tenant) id.
    #[serde(rename = "tenantID")]
    #[schemars(schema_with = "schema::guid")]
    pub tenant_id: String,
    /// Application (client) id.
    #[serde(rename = "clientID")]
    #[schemars(schema_with = "schema::guid")]
    pub client_id: String,
    /// Secret in Farshore's own namespace; its key `clientSecret` holds the secret.
    pub secret_ref: SecretRef,
}

/// Keys of storage accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SharedKey {
    /// Secret in Farshore's own namespace; for each account a key of the account's name holds its base64 key.
    pub secret_ref: SecretRef,
}

/// Key of the Secret of [`ClientSecret`].
pub const CLIENT_SECRET_KEY: &str = "clientSecret";

/// A Secret in the namespace that Farshore runs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
}

/// What is known of a vault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryVaultStatus {
    /// The storage accounts as they were last seen, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub accounts: Vec<AccountStatus>,
    /// When reachability and rights were last checked and something had changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<Time>,
    /// Ready, Reconciling, Stalled, Reachable, Authorized.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A storage account as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccountStatus {
    /// The account's name.
    #[schemars(schema_with = "schema::account")]
    pub name: String,
    /// The blob endpoint in use.
    #[schemars(schema_with = "schema::url")]
    pub blob_endpoint: String,
    /// It answered and let us in.
    pub reachable: bool,
    /// Kind of the account as the service reports it, for example `StorageV2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub kind: Option<String>,
    /// SKU of the account, for example `Standard_LRS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub sku: Option<String>,
    /// Has a hierarchical namespace, and so cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hierarchical_namespace: Option<bool>,
    /// VMs placed on it.
    #[serde(default, rename = "protectedVMs")]
    pub protected_vms: u32,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::text")]
    pub message: Option<String>,
}
