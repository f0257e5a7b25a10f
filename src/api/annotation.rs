//! Annotations and labels that have a meaning, and the identities of hosts.

/// On a ProtectedVM: deletion with policy `Purge` removes the containers only if this is the VM's id.
pub const CONFIRM_PURGE: &str = "farshore.dev/confirm-purge";
/// On a ProtectedVM: deletion away from `Protected` is admitted only if this is the VM's id.
pub const CONFIRM_DELETE: &str = "farshore.dev/confirm-delete";
/// On a ProtectedVM that is being deleted: let go of a host or a storage account that cannot be reached.
pub const ABANDON: &str = "farshore.dev/abandon";
/// On a ProtectedVM: the host whose report of the VM is believed when two hosts claim it.
pub const OWNER_HOST: &str = "farshore.dev/owner-host";

/// Label: the VM's id, on everything that is made for one VM.
pub const VM_ID: &str = "farshore.dev/vm-id";
/// Label: name of the HyperVHost, on its namespace and what is made in it.
pub const HOST: &str = "farshore.dev/host";
/// Label: name of the HyperVSite.
pub const SITE: &str = "farshore.dev/site";
/// Label: namespace of the ProtectedVM, on objects in a host's namespace.
pub const PROTECTED_VM_NAMESPACE: &str = "farshore.dev/protected-vm-namespace";
/// Label: name of the ProtectedVM.
pub const PROTECTED_VM: &str = "farshore.dev/protected-vm";

/// Finalizer of the controller, only on what is in users' namespaces.
pub const FINALIZER: &str = "farshore.dev/controller";

/// User name of a host: this prefix and the name of its HyperVHost.
pub const HOST_USER_PREFIX: &str = "farshore:host:";
/// Group (certificate organization) of all hosts.
pub const HOSTS_GROUP: &str = "farshore:hosts";
/// Group of one-time bootstrap tokens.
pub const BOOTSTRAPPERS_GROUP: &str = "system:bootstrappers:farshore";
/// ClusterRole of the chart that the controller binds to an accepted host in its namespace.
pub const HOST_CLUSTER_ROLE: &str = "farshore-host";
