//! The catalogue itself. A row a code; docs/reference/errors.md is generated from it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Class, Health};

/// One row of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in status, events and docs.
    pub code: Code,
    /// What is done about it.
    pub class: Class,
    /// The VM's health while it lasts.
    pub health: Health,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// What may have caused it.
    pub causes: &'static [&'static str],
    /// What a person does, and where.
    pub remedy: &'static str,
}

/// Names the faults. The text forms are API: they appear in status, cursor.json and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Code {
    // the source host and its disks (R9.1, HYPERV 2.4)
    /// The VM is not on its host.
    VMNotFound,
    /// A virtual disk's chain of parents is broken.
    BrokenVHDChain,
    /// A virtual disk's file is damaged.
    CorruptVirtualDisk,
    /// The changes since the last cycle are no longer known.
    ChangeTrackingLost,
    /// The agent's own record of this VM is gone.
    JournalLost,
    /// A recovery checkpoint could not be made.
    CheckpointFailed,
    /// Checkpoints are disabled for the VM.
    CheckpointsDisabled,
    /// A checkpoint could not be converted to a reference point.
    ConvertFailed,
    /// A virtual disk is held by another program.
    DiskInUse,
    /// The host volume has too little space for the next log.
    LowDiskSpace,
    /// The host has too little memory.
    LowMemory,
    /// Hyper-V on the host does not answer.
    HostFailure,
    /// The host has not been heard of.
    HostLost,
    /// Reading or writing a file on the host failed.
    LocalIo,
    // prerequisites of a VM (R4.1)
    /// A disk is shared between VMs.
    SharedDisk,
    /// A disk is passed through from the host.
    PassThroughDisk,
    /// Two disks of the VM have the same VirtualDiskId.
    DuplicateDiskID,
    /// A disk is larger than a page blob can be.
    DiskTooLarge,
    /// A disk has 4096-byte logical sectors.
    UnsupportedSectorSize,
    /// The VM's configuration version is below 8.0.
    OldConfigurationVersion,
    /// Another product replicates the VM.
    AlreadyReplicating,
    /// The VM has no disk to replicate.
    NoDisks,
    /// A replicated disk is no longer attached to the VM.
    DiskMissing,
    // storage and network (R9.1, R9.2, R3.3)
    /// Storage cannot be reached.
    NetworkError,
    /// Storage asked to slow down.
    Throttled,
    /// Storage answered with a server error.
    StorageUnavailable,
    /// The shared access signature is past its end.
    CredentialExpired,
    /// Storage refuses the credentials.
    NotAuthorized,
    /// A proxy asks for credentials (HTTP 407).
    ProxyAuthenticationRequired,
    /// A container of the VM is gone.
    ContainerMissing,
    // what travels (FORMATS, DESIGN 6)
    /// Another writer has committed this cycle.
    CommitNameTaken,
    /// A commit does not continue the one before.
    ForkedChain,
    /// A commit record or segment list is damaged or hostile.
    CorruptCommit,
    /// A committed segment is missing.
    MissingSegment,
    /// A segment is not what its commit says.
    CorruptSegment,
    /// A record was written by a newer version.
    UnreadableFormat,
    /// A log on the host is damaged and is made again.
    LogCorrupt,
    // what the resources ask for (R4.1)
    /// The HyperVSite does not exist.
    SiteNotFound,
    /// The ReplicationPolicy does not exist.
    PolicyNotFound,
    /// The RecoveryVault does not exist.
    VaultNotFound,
    /// This namespace may not use the resource.
    NamespaceNotAllowed,
    /// The RecoveryVault cannot be used now.
    VaultUnusable,
    /// Several VMs of the site have this name.
    VMAmbiguous,
    /// Another ProtectedVM protects this VM.
    DuplicateProtection,
    /// The VM's containers belong to another ProtectedVM.
    AlreadyProtected,
    /// Another management cluster owns this VM.
    OwnedByAnotherCluster,
    /// This change of desiredState is not available in this version.
    NotImplementedYet,
    /// The manifest is older than what is in force.
    StaleDesiredState,
    /// There is no such change of desiredState from here.
    TransitionNotAllowed,
    /// A VM that is not protected yet can only be protected.
    ProtectFirst,
    /// Two hosts that are not of one failover cluster report the VM.
    VMClaimedTwice,
    /// An entry of spec.disks.exclude matches no disk.
    ExcludedDiskNotFound,
    /// The ledger is older than what was derived from it.
    LedgerBehind,
    /// The VM's ledger cannot be read.
    LedgerUnreadable,
    /// Something unforeseen failed.
    Unknown,
}

impl Code {
    /// Its row.
    #[must_use]
    pub fn entry(self) -> &'static Entry {
        // Rows stand in the order of the enum; the fallback is there for the compiler, and a test.
        CATALOG.get(self as usize).unwrap_or(&FALLBACK)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Code {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        CATALOG.iter().map(|e| e.code).find(|code| code.to_string() == s).ok_or(())
    }
}

const FALLBACK: Entry = row(Code::Unknown, Class::Recoverable, Health::Warning, "unknown", &[], "");

const fn row(
    code: Code,
    class: Class,
    health: Health,
    summary: &'static str,
    causes: &'static [&'static str],
    remedy: &'static str,
) -> Entry {
    Entry { code, class, health, summary, causes, remedy }
}

use Class::{NeedsResync, Recoverable, Unrecoverable};
use Health::{Critical, Warning};

/// Every fault, in the order of [`Code`].
pub const CATALOG: &[Entry] = &[
    row(
        Code::VMNotFound,
        Unrecoverable,
        Critical,
        "the VM is not on its host",
        &["the VM was deleted or moved to a host that is not in the site"],
        "Bring the VM back to a host of its site, or delete the ProtectedVM.",
    ),
    row(
        Code::BrokenVHDChain,
        Unrecoverable,
        Critical,
        "a virtual disk's chain of parents is broken",
        &["a parent disk was moved, deleted or edited while its child was in use"],
        "Repair the chain on the host (Inspect Disk, Reconnect) or restore the disk; replication goes on by itself then.",
    ),
    row(
        Code::CorruptVirtualDisk,
        Unrecoverable,
        Critical,
        "a virtual disk's file is damaged",
        &["storage of the host returned wrong data", "the file was cut short"],
        "Restore the disk on the host; then request a resynchronization.",
    ),
    row(
        Code::ChangeTrackingLost,
        NeedsResync,
        Critical,
        "the changes since the last cycle are no longer known",
        &[
            "the reference point was removed by another program",
            "the disk was replaced, resized or edited while the VM was off",
        ],
        "Nothing to do: the disks are compared again and only differences are sent.",
    ),
    row(
        Code::JournalLost,
        Recoverable,
        Warning,
        "the agent's own record of this VM is gone",
        &["the agent's state folder was deleted or restored"],
        "Nothing to do: the controller starts a new stream from the last verified cycle.",
    ),
    row(
        Code::CheckpointFailed,
        Recoverable,
        Warning,
        "a recovery checkpoint could not be made",
        &["the VM is being saved, migrated or backed up", "another checkpoint is being merged"],
        "Nothing to do unless it lasts: then look at the Hyper-V VMMS log of the host.",
    ),
    row(
        Code::CheckpointsDisabled,
        Unrecoverable,
        Critical,
        "checkpoints are disabled for the VM",
        &["the VM's checkpoint type is Disabled"],
        "Enable checkpoints in the VM's settings (Set-VM -CheckpointType Production).",
    ),
    row(
        Code::ConvertFailed,
        Recoverable,
        Warning,
        "a checkpoint could not be converted to a reference point",
        &[
            "policy removed 'log on as a service' from NT VIRTUAL MACHINE\\Virtual Machines (0x80070569)",
            "a merge is under way",
        ],
        "If it lasts, give 'log on as a service' back to NT VIRTUAL MACHINE\\Virtual Machines.",
    ),
    row(
        Code::DiskInUse,
        Recoverable,
        Warning,
        "a virtual disk is held by another program",
        &["a backup program reads it"],
        "Nothing to do unless it lasts: then end the other program's work on the disk.",
    ),
    row(
        Code::LowDiskSpace,
        Recoverable,
        Warning,
        "the host volume has too little space for the next log",
        &["the volume is nearly full", "the VM writes more between two cycles than the reserve allows"],
        "Free space on the volume named in the message, or move disks off it; running VMs are not touched.",
    ),
    row(
        Code::LowMemory,
        Recoverable,
        Warning,
        "the host has too little memory",
        &["other workloads use it"],
        "Free memory on the host.",
    ),
    row(
        Code::HostFailure,
        Recoverable,
        Warning,
        "Hyper-V on the host does not answer",
        &["the Virtual Machine Management service is restarting"],
        "If it lasts, look at the vmms service of the host.",
    ),
    row(
        Code::HostLost,
        Recoverable,
        Critical,
        "the host has not been heard of",
        &["the host is down or cut off", "the agent service is stopped"],
        "Bring the host or its network back; check the farshore-agent service.",
    ),
    row(
        Code::LocalIo,
        Recoverable,
        Warning,
        "reading or writing a file on the host failed",
        &["storage of the host failed or was slow"],
        "If it lasts, look at the storage of the volume named in the message.",
    ),
    row(
        Code::SharedDisk,
        Unrecoverable,
        Critical,
        "a disk is shared between VMs",
        &["the VM uses a shared VHDX or VHD set"],
        "Exclude the disk (spec.disks.exclude) or stop sharing it.",
    ),
    row(
        Code::PassThroughDisk,
        Unrecoverable,
        Critical,
        "a disk is passed through from the host",
        &["the disk is not a VHDX or VHD file"],
        "Exclude the disk (spec.disks.exclude) or convert it to VHDX.",
    ),
    row(
        Code::DuplicateDiskID,
        Unrecoverable,
        Critical,
        "two disks of the VM have the same VirtualDiskId",
        &["one disk is a file copy of the other"],
        "Give one of them a new id (Set-VHD -ResetDiskIdentifier).",
    ),
    row(
        Code::DiskTooLarge,
        Unrecoverable,
        Critical,
        "a disk is larger than a page blob can be",
        &["the disk is over 8 TiB - 1 MiB"],
        "Exclude the disk (spec.disks.exclude) or shrink it.",
    ),
    row(
        Code::UnsupportedSectorSize,
        Unrecoverable,
        Critical,
        "a disk has 4096-byte logical sectors",
        &["the disk was made as 4K-native"],
        "Convert the disk to 512-byte logical sectors (Convert-VHD).",
    ),
    row(
        Code::OldConfigurationVersion,
        Unrecoverable,
        Critical,
        "the VM's configuration version is below 8.0",
        &["the VM was made on Windows Server 2012 R2"],
        "Shut the VM down and run Update-VMVersion.",
    ),
    row(
        Code::AlreadyReplicating,
        Unrecoverable,
        Critical,
        "another product replicates the VM",
        &["Hyper-V Replica or Site Recovery is enabled for it"],
        "Remove the other replication first (Remove-VMReplication).",
    ),
    row(
        Code::NoDisks,
        Unrecoverable,
        Critical,
        "the VM has no disk to replicate",
        &["all disks are excluded or the VM has none"],
        "Attach a VHDX disk or exclude fewer disks.",
    ),
    row(
        Code::DiskMissing,
        Unrecoverable,
        Critical,
        "a replicated disk is no longer attached to the VM",
        &["the disk was removed or replaced"],
        "Attach the disk again, or delete the ProtectedVM and create it anew for the disks that are left.",
    ),
    row(
        Code::NetworkError,
        Recoverable,
        Warning,
        "storage cannot be reached",
        &["a link is down or slow", "a firewall blocks the endpoint"],
        "If it lasts, check outbound HTTPS from the machine named in the message to the storage endpoint.",
    ),
    row(
        Code::Throttled,
        Recoverable,
        Warning,
        "storage asked to slow down",
        &["the account's limit is reached"],
        "If it lasts, spread VMs over more storage accounts.",
    ),
    row(
        Code::StorageUnavailable,
        Recoverable,
        Warning,
        "storage answered with a server error",
        &["the service has a passing fault"],
        "Nothing to do unless it lasts: then look at the health of the storage account.",
    ),
    row(
        Code::CredentialExpired,
        Recoverable,
        Warning,
        "the shared access signature is past its end",
        &["the controller was away for long", "a clock is wrong by more than 15 minutes"],
        "Nothing to do if the controller runs: it hands out a new one. Else check the clocks.",
    ),
    row(
        Code::NotAuthorized,
        Unrecoverable,
        Critical,
        "storage refuses the credentials",
        &["the storage account's key was changed", "a role assignment was removed"],
        "Repair the RecoveryVault's authentication or the identity's roles on the storage account.",
    ),
    row(
        Code::ProxyAuthenticationRequired,
        Unrecoverable,
        Critical,
        "a proxy asks for credentials (HTTP 407)",
        &["outbound traffic passes an authenticating proxy, which is not supported"],
        "Let the machine reach the storage endpoint without proxy authentication.",
    ),
    row(
        Code::ContainerMissing,
        Unrecoverable,
        Critical,
        "a container of the VM is gone",
        &["somebody deleted it"],
        "Undelete the container, or delete and re-create the ProtectedVM to start over.",
    ),
    row(
        Code::CommitNameTaken,
        Unrecoverable,
        Critical,
        "another writer has committed this cycle",
        &["two agents believe that they own the VM"],
        "Find out which host runs the VM; the controller gives the right one a new stream.",
    ),
    row(
        Code::ForkedChain,
        NeedsResync,
        Critical,
        "a commit does not continue the one before",
        &["a commit was replaced or written by another agent"],
        "Nothing to do: the disks are compared again.",
    ),
    row(
        Code::CorruptCommit,
        NeedsResync,
        Critical,
        "a commit record or segment list is damaged or hostile",
        &["storage was tampered with", "a part has a defect"],
        "Look into who can write to the container; the disks are compared again.",
    ),
    row(
        Code::MissingSegment,
        NeedsResync,
        Critical,
        "a committed segment is missing",
        &["somebody deleted it"],
        "Look into who can delete in the container; the disks are compared again.",
    ),
    row(
        Code::CorruptSegment,
        NeedsResync,
        Critical,
        "a segment is not what its commit says",
        &["storage was tampered with", "a part has a defect"],
        "Look into who can write to the container; the disks are compared again.",
    ),
    row(
        Code::UnreadableFormat,
        Unrecoverable,
        Critical,
        "a record was written by a newer version",
        &["agent, replica server and controller have different versions"],
        "Upgrade the part named in the message.",
    ),
    row(
        Code::LogCorrupt,
        Recoverable,
        Warning,
        "a log on the host is damaged and is made again",
        &["storage of the host failed"],
        "Nothing to do: the log is rebuilt from the last verified reference point.",
    ),
    row(
        Code::SiteNotFound,
        Unrecoverable,
        Critical,
        "the HyperVSite does not exist",
        &["spec.source.site is misspelt"],
        "Create the HyperVSite or correct spec.source.site in a new ProtectedVM.",
    ),
    row(
        Code::PolicyNotFound,
        Unrecoverable,
        Critical,
        "the ReplicationPolicy does not exist",
        &["spec.policy is misspelt"],
        "Create the ReplicationPolicy or correct spec.policy.",
    ),
    row(
        Code::VaultNotFound,
        Unrecoverable,
        Critical,
        "the RecoveryVault does not exist",
        &["spec.vault is misspelt"],
        "Create the RecoveryVault, or delete this ProtectedVM and create it with the right spec.vault.",
    ),
    row(
        Code::NamespaceNotAllowed,
        Unrecoverable,
        Critical,
        "this namespace may not use the resource",
        &["allowedNamespaces of the resource does not list it"],
        "Ask the administrator to add the namespace to allowedNamespaces.",
    ),
    row(
        Code::VaultUnusable,
        Recoverable,
        Critical,
        "the RecoveryVault cannot be used now",
        &["its secret is missing", "its storage account does not answer"],
        "Look at the conditions of the RecoveryVault.",
    ),
    row(
        Code::VMAmbiguous,
        Unrecoverable,
        Critical,
        "several VMs of the site have this name",
        &["two VMs are called the same"],
        "Name the VM by spec.source.vmID in a new ProtectedVM.",
    ),
    row(
        Code::DuplicateProtection,
        Unrecoverable,
        Critical,
        "another ProtectedVM protects this VM",
        &["two manifests name one VM"],
        "Delete one of the two ProtectedVMs; the older one stays in force.",
    ),
    row(
        Code::AlreadyProtected,
        Unrecoverable,
        Critical,
        "the VM's containers belong to another ProtectedVM",
        &["the VM was protected under another name or namespace"],
        "Re-create the ProtectedVM under the name in the message, or remove those containers.",
    ),
    row(
        Code::OwnedByAnotherCluster,
        Unrecoverable,
        Critical,
        "another management cluster owns this VM",
        &["a second cluster was given the same manifests"],
        "Delete the ProtectedVM in the cluster that is to give it up; taking over comes with spec.adopt.",
    ),
    row(
        Code::NotImplementedYet,
        Unrecoverable,
        Warning,
        "this change of desiredState is not available in this version",
        &["the edge comes with a later version"],
        "Set desiredState back to Protected with a higher epoch.",
    ),
    row(
        Code::StaleDesiredState,
        Unrecoverable,
        Warning,
        "the manifest is older than what is in force",
        &["an old manifest was applied again"],
        "Commit the state shown in status.effective with epoch status.effective.nextEpoch.",
    ),
    row(
        Code::TransitionNotAllowed,
        Unrecoverable,
        Warning,
        "there is no such change of desiredState from here",
        &["a step in between was left out"],
        "Set desiredState to a value of status.allowedTransitions, with epoch status.effective.nextEpoch.",
    ),
    row(
        Code::ProtectFirst,
        Unrecoverable,
        Warning,
        "a VM that is not protected yet can only be protected",
        &["the manifest was made for a VM that was protected before, and its ledger is gone"],
        "Set desiredState to Protected and wait for the first recovery point; or correct spec.vault in a new ProtectedVM.",
    ),
    row(
        Code::VMClaimedTwice,
        Unrecoverable,
        Critical,
        "two hosts that are not of one failover cluster report the VM",
        &[
            "the VM was moved or copied to a host outside its failover cluster",
            "a backup of it was restored on another host",
        ],
        "Remove the VM from all hosts but one; or set the annotation farshore.dev/owner-host to the host that is right.",
    ),
    row(
        Code::ExcludedDiskNotFound,
        Unrecoverable,
        Critical,
        "an entry of spec.disks.exclude matches no disk",
        &["the disk's file name or id is misspelt", "the disk was removed"],
        "Correct or remove the entry of spec.disks.exclude.",
    ),
    row(
        Code::LedgerBehind,
        Unrecoverable,
        Critical,
        "the ledger is older than what was derived from it",
        &["an old copy of ledger.json was put back"],
        "Put the newest ledger.json back (see ledger-history); nothing is moved until then.",
    ),
    row(
        Code::LedgerUnreadable,
        Unrecoverable,
        Critical,
        "the VM's ledger cannot be read",
        &["it was damaged or written by a newer version"],
        "Restore ledger.json from ledger-history, or upgrade the controller.",
    ),
    row(
        Code::Unknown,
        Recoverable,
        Warning,
        "something unforeseen failed",
        &["see the message"],
        "If it lasts, report it with the message and the parts' logs.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_row_with_a_remedy_and_is_read_back() {
        for (i, entry) in CATALOG.iter().enumerate() {
            assert_eq!(entry.code as usize, i, "{} stands out of order", entry.code);
            assert!(entry.remedy.ends_with('.') && !entry.causes.is_empty(), "{}", entry.code);
            assert_eq!(entry.code.to_string().parse(), Ok(entry.code));
        }
        assert_eq!(Code::Unknown as usize + 1, CATALOG.len());
    }

    // R9.1, R9.2: the examples that the requirements name.
    #[test]
    fn named_examples_have_their_class() {
        for code in
            [Code::BrokenVHDChain, Code::NotAuthorized, Code::ProxyAuthenticationRequired, Code::VMNotFound]
        {
            assert_eq!((code.entry().class, code.entry().health), (Unrecoverable, Critical), "{code}");
        }
        for code in [Code::NetworkError, Code::LowDiskSpace, Code::LowMemory, Code::CredentialExpired] {
            assert_eq!(code.entry().class, Recoverable, "{code}");
        }
    }
}
