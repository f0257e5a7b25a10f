//! Reasons of conditions and events. A reason is one word for programs; the message beside it is for people.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)+) => {
        $($(#[$doc])* pub const $name: &str = $value;)+
        /// Every reason, for tests and documentation.
        pub const ALL: &[&str] = &[$($name),+];
    };
}

reasons! {
    // Ready, Reconciling, Stalled
    /// As wished.
    AS_DESIRED = "AsDesired";
    /// Work on it is under way.
    IN_PROGRESS = "InProgress";
    /// Nothing is being done.
    IDLE = "Idle";
    /// Nobody needs to act.
    NOT_STALLED = "NotStalled";
    /// Stopped by `spec.paused`.
    PAUSED = "Paused";
    /// The object is being deleted.
    DELETING = "Deleting";
    /// Deletion waits for a host or a storage account that cannot be reached.
    DELETION_WAITS = "DeletionWaits";
    /// Deletion with Purge waits for its annotation.
    PURGE_NOT_CONFIRMED = "PurgeNotConfirmed";
    /// Nothing is known yet.
    NOT_CHECKED_YET = "NotCheckedYet";
    /// The object cannot be read with this version's types.
    UNREADABLE = "Unreadable";

    // Intent
    /// The edge does not exist in this version.
    NOT_IMPLEMENTED_YET = "NotImplementedYet";
    /// From here that state cannot be reached.
    TRANSITION_NOT_ALLOWED = "TransitionNotAllowed";
    /// The intent is older than what the ledger holds.
    STALE_DESIRED_STATE = "StaleDesiredState";
    /// Without a ledger a VM enters with Protected only.
    PROTECT_FIRST = "ProtectFirst";

    // References
    /// The site does not exist.
    SITE_NOT_FOUND = "SiteNotFound";
    /// The policy does not exist.
    POLICY_NOT_FOUND = "PolicyNotFound";
    /// The vault does not exist.
    VAULT_NOT_FOUND = "VaultNotFound";
    /// The vault is not ready.
    VAULT_NOT_READY = "VaultNotReady";
    /// Its allowedNamespaces leave this namespace out.
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed";
    /// No host of the site reports such a VM.
    VM_NOT_FOUND = "VMNotFound";
    /// Several VMs of the site have that name.
    VM_NAME_AMBIGUOUS = "VMNameAmbiguous";
    /// Two hosts that are not of one cluster report the VM.
    VM_CLAIMED_TWICE = "VMClaimedTwice";
    /// A Secret or a key in it is missing.
    SECRET_NOT_FOUND = "SecretNotFound";

    // Ownership
    /// Another ProtectedVM protects the VM.
    ALREADY_PROTECTED = "AlreadyProtected";
    /// The ledger belongs to another management cluster.
    OWNED_BY_ANOTHER_CLUSTER = "OwnedByAnotherCluster";
    /// The ledger is older than what an agent or a blob carries.
    LEDGER_BEHIND = "LedgerBehind";
    /// The ledger was written by a newer version.
    LEDGER_TOO_NEW = "LedgerTooNew";
    /// The ledger cannot be reached.
    LEDGER_UNREACHABLE = "LedgerUnreachable";
    /// The ledger was read and written.
    LEDGER_REACHABLE = "LedgerReachable";

    // Replication
    /// A prerequisite of the VM is not met.
    PREREQUISITES_NOT_MET = "PrerequisitesNotMet";
    /// Initial replication is running.
    INITIAL_REPLICATION = "InitialReplication";
    /// A recovery point within policy exists.
    REPLICATING = "Replicating";
    /// No recovery point yet.
    NO_RECOVERY_POINT = "NoRecoveryPoint";
    /// The newest recovery point is too old.
    RECOVERY_POINT_TOO_OLD = "RecoveryPointTooOld";
    /// The newest recovery point is young enough.
    RECOVERY_POINT_CURRENT = "RecoveryPointCurrent";
    /// An error that is tried again.
    RETRYING = "Retrying";
    /// An error that a person must clear.
    REPLICATION_FAILED = "ReplicationFailed";
    /// Only a resynchronization helps.
    RESYNCHRONIZATION_REQUIRED = "ResynchronizationRequired";
    /// The agent lost its journal and gets a new stream.
    JOURNAL_LOST = "JournalLost";
    /// Another writer has committed in our name.
    ANOTHER_WRITER = "AnotherWriter";
    /// The chain of commits is broken.
    CHAIN_BROKEN = "ChainBroken";
    /// Network settings cannot be made in this version.
    NETWORK_NOT_CONFIGURABLE = "NetworkNotConfigurable";
    /// Failover is not possible yet; the message lists what is missing.
    NOT_READY_FOR_FAILOVER = "NotReadyForFailover";

    // Hosts
    /// The heartbeat is fresh.
    HEARTBEAT_FRESH = "HeartbeatFresh";
    /// The heartbeat stopped.
    HEARTBEAT_LOST = "HeartbeatLost";
    /// No heartbeat was seen yet.
    NO_HEARTBEAT_YET = "NoHeartbeatYet";
    /// An administrator has not accepted the host.
    NOT_ACCEPTED = "NotAccepted";
    /// The host is accepted.
    ACCEPTED = "Accepted";
    /// A certificate request does not match the host's key.
    KEY_MISMATCH = "KeyMismatch";
    /// An endpoint that the host needs is blocked.
    ENDPOINT_BLOCKED = "EndpointBlocked";
    /// The agent does not announce what is needed.
    AGENT_TOO_OLD = "AgentTooOld";
    /// The host is not connected.
    HOST_NOT_CONNECTED = "HostNotConnected";

    // Vaults
    /// Endpoints answer.
    REACHABLE = "Reachable";
    /// An endpoint does not answer.
    UNREACHABLE = "Unreachable";
    /// Credentials suffice.
    AUTHORIZED = "Authorized";
    /// Credentials do not suffice.
    NOT_AUTHORIZED = "NotAuthorized";
    /// Credentials are refused.
    AUTHENTICATION_FAILED = "AuthenticationFailed";
    /// A storage account is of the wrong kind.
    ACCOUNT_NOT_SUITABLE = "AccountNotSuitable";

    // Jobs
    /// It ended well.
    SUCCEEDED = "Succeeded";
    /// It failed.
    FAILED = "Failed";
    /// It was overtaken or deleted.
    CANCELLED = "Cancelled";
    /// It waits for a person.
    WAITING_FOR_ACTION = "WaitingForAction";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ALL;

    #[test]
    fn reasons_are_unique_and_fit_the_schema() {
        assert_eq!(ALL.iter().collect::<BTreeSet<_>>().len(), ALL.len());
        for reason in ALL {
            assert!(reason.len() <= 128 && reason.starts_with(|c: char| c.is_ascii_uppercase()), "{reason}");
            assert!(reason.chars().all(|c| c.is_ascii_alphanumeric()), "{reason}");
        }
    }
}
