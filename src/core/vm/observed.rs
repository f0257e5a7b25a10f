//! What is known about one ProtectedVM at one moment: filled by the controller, judged by [`super::plan`].
//!
//! Own plain types, because this crate knows no Kubernetes. Whatever could not be parsed never gets here.

use jiff::Timestamp;

use super::status::Status;
use super::transition::Place;
use crate::fault::{Code, Fault};
use crate::format::commit::Consistency;
use crate::format::cursor::Cursor;
use crate::format::ledger::{DeletionPolicy, Ledger};
use crate::format::side::SideRecord;
use crate::ids::{CycleId, DiskId, Stream, Term, VmId};
use crate::intent::Intent;
use crate::retry::Failures;

/// All facts about one ProtectedVM.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The object itself.
    pub me: Me,
    /// Management cluster: uid of its kube-system namespace.
    pub cluster_id: String,
    /// The HyperVSite that it names, if that exists.
    pub site: Option<Site>,
    /// The ReplicationPolicy that it names, if that exists.
    pub policy: Option<Policy>,
    /// The RecoveryVault that it names, if that exists.
    pub vault: Option<Vault>,
    /// VMs of the site's accepted hosts that have the name or the id, whichever the source gives.
    pub reports: Vec<Report>,
    /// Other ProtectedVMs of this cluster that mean the same VM.
    pub rivals: Vec<Rival>,
    /// Relationships made for this object, in any host's namespace.
    pub relationships: Vec<Relationship>,
    /// Relationships of the same VM that were made for another object.
    pub leftovers: Vec<Relationship>,
    /// The VM's containers.
    pub storage: Storage,
    /// Failures in a row of this object's reconciles, for the ladder.
    pub failures: Option<Failures>,
}

/// The ProtectedVM itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Me {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// Since when it is being deleted.
    pub deleting_since: Option<Timestamp>,
    /// It has the controller's finalizer.
    pub finalizer: bool,
    /// `farshore.dev/abandon` is set.
    pub abandon: bool,
    /// Value of `farshore.dev/confirm-purge`.
    pub confirm_purge: Option<String>,
    /// Value of `farshore.dev/owner-host`.
    pub owner_host: Option<String>,
    /// `spec.source.site`.
    pub site: String,
    /// `spec.source.vmName`.
    pub vm_name: Option<String>,
    /// `spec.source.vmID`.
    pub vm_id: Option<VmId>,
    /// `spec.policy`.
    pub policy: String,
    /// `spec.vault`.
    pub vault: String,
    /// `spec.disks.exclude`.
    pub exclude: Vec<String>,
    /// `spec.desiredState`.
    pub desired: Place,
    /// The intent with its epoch and source.
    pub intent: Intent,
    /// `spec.paused`.
    pub paused: bool,
    /// `spec.deletionPolicy`.
    pub deletion_policy: DeletionPolicy,
    /// The status as it was last written.
    pub written: Status,
}

impl Me {
    /// The VM's id as far as it is settled: once resolved, the id counts and no longer the name.
    #[must_use]
    pub fn settled_vm(&self) -> Option<VmId> {
        self.vm_id.or(self.written.vm_id)
    }

    /// True if protection of it ever began, as far as its own status says.
    #[must_use]
    pub const fn began(&self) -> bool {
        self.written.state.is_some()
    }
}

/// A HyperVSite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// This object's namespace may name it.
    pub allowed: bool,
    /// Segments of one VM uploaded at the same time.
    pub upload_parallelism: u32,
    /// Bytes on each volume that are never eaten into.
    pub reserve_bytes: u64,
}

/// A ReplicationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// This object's namespace may name it.
    pub allowed: bool,
    /// Seconds between cycles.
    pub interval_seconds: u32,
    /// Seconds between snapshot sets.
    pub spacing_seconds: u32,
    /// Seconds for which points are kept.
    pub retention_seconds: u32,
    /// Segments are compressed.
    pub compress: bool,
}

/// A RecoveryVault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vault {
    /// This object's namespace may name it.
    pub allowed: bool,
    /// Its storage accounts in the order of preference for a new VM.
    pub accounts: Vec<Account>,
    /// Why it cannot be used now.
    pub unusable: Option<String>,
    /// Certificates that its endpoints are trusted by.
    pub ca_bundle: Option<String>,
    /// Changes with the credentials that SAS are signed with.
    pub signer: String,
}

/// A storage account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Base URL of its blob service.
    pub endpoint: String,
}

/// A VM as an accepted host reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The host.
    pub host: Host,
    /// The VM's id.
    pub vm_id: VmId,
    /// Its name in Hyper-V.
    pub vm_name: String,
    /// Its disks, in the order of their slots.
    pub disks: Vec<ReportedDisk>,
    /// Prerequisites that the agent finds unmet.
    pub unmet: Vec<Finding>,
}

/// An accepted host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name of its HyperVHost.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its failover cluster.
    pub failover_cluster: Option<String>,
    /// Its heartbeat is fresh.
    pub connected: bool,
}

impl Host {
    /// Who a VM on this host belongs to: the failover cluster, or the host itself.
    #[must_use]
    pub fn claim(&self) -> String {
        match &self.failover_cluster {
            Some(cluster) => format!("cluster/{cluster}"),
            None => format!("host/{}", self.name),
        }
    }
}

/// A virtual disk as the host reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedDisk {
    /// VirtualDiskId, if the disk has one.
    pub id: Option<DiskId>,
    /// Path on the host.
    pub path: String,
    /// Size that the guest sees.
    pub virtual_size: u64,
    /// Shared with other VMs (shared VHDX or VHD set).
    pub shared: bool,
    /// A physical disk of the host.
    pub pass_through: bool,
}

/// Something found wrong, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Code of the catalogue.
    pub code: Code,
    /// What is found, on what.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Fault> for Finding {
    fn from(fault: Fault) -> Self {
        Self { code: fault.code, message: fault.message }
    }
}

/// Another ProtectedVM that means the same VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// `namespace/name`.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A ReplicationRelationship.
#[derive(Clone, Debug, PartialEq)]
pub struct Relationship {
    /// Name of the host in whose namespace it is.
    pub host: String,
    /// That namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// What the agent must bring about.
    pub wish: Wish,
    /// What the agent reports, if it has taken up this term and stream.
    pub report: AgentReport,
    /// The SAS that it was given.
    pub sas: Option<Sas>,
}

/// The spec of a relationship, as the controller wishes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Which VM.
    pub vm_id: VmId,
    /// Namespace, name and uid of the ProtectedVM that it was first made for.
    pub protected_vm: (String, String, String),
    /// What to bring about.
    pub goal: Goal,
    /// Ledger's term.
    pub term: Term,
    /// Ledger's stream.
    pub stream: Stream,
    /// Disks to replicate.
    pub disks: Vec<DiskId>,
    /// When cycles run and points are made.
    pub schedule: Schedule,
    /// Base URL of the blob service.
    pub blob: String,
    /// Certificates that it is trusted by.
    pub ca_bundle: Option<String>,
    /// Name of the RecoveryVault.
    pub vault: String,
    /// Name of the storage account.
    pub account: String,
    /// Segments are compressed.
    pub compress: bool,
    /// Segments uploaded at the same time.
    pub upload_parallelism: u32,
    /// Bytes on each volume that are never eaten into.
    pub reserve_bytes: u64,
    /// What a new stream goes on from.
    pub base: Option<Base>,
}

/// What an agent must bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Initial replication, then cycles on schedule.
    Replicate,
    /// Nothing of ours is left on the host; own reference points only until then.
    StopReplicating {
        /// Absent: destroyed at once.
        keep_points_until: Option<Timestamp>,
    },
}

/// When cycles run and points are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Seconds between cycles.
    pub interval_seconds: u32,
    /// No cycles while true.
    pub paused: bool,
    /// Seconds between snapshot sets.
    pub spacing_seconds: u32,
    /// Seconds for which points are kept.
    pub retention_seconds: u32,
}

/// The verified commit that a new stream continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Which commit.
    pub commit: crate::format::commit::CommitRef,
    /// Its reference point on the host.
    pub reference_point_id: String,
    /// Its tracking id per disk.
    pub rct_ids: Vec<(DiskId, String)>,
    /// How far initial replication was, per disk not wholly copied.
    pub copied_up_to: Vec<(DiskId, u64)>,
    /// Our reference points on the host.
    pub own_point_ids: Vec<String>,
}

/// What an agent reports, relevant only for the term and stream that it has taken up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentReport {
    /// Term and stream that it has taken up.
    pub observed: Option<(Term, Stream)>,
    /// True if it has taken up the goal of the spec, too.
    pub goal_observed: bool,
    /// What it does now, in Hyper-V's words.
    pub state: Option<ReplicationState>,
    /// Step, for a person.
    pub step: Option<String>,
    /// Bytes of disk data to send, and how many of them are safe.
    pub progress: Option<(u64, u64)>,
    /// What tracking takes on the host.
    pub tracking: Option<Tracking>,
    /// Prerequisites that are not met.
    pub unmet: Vec<Finding>,
    /// The error that holds it up.
    pub error: Option<AgentError>,
    /// Nothing of ours is left on the host.
    pub released: bool,
    /// It has no journal for this term and stream.
    pub journal_lost: bool,
}

/// An error that holds the agent up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentError {
    /// Code of the catalogue.
    pub code: Code,
    /// What failed, on what.
    pub message: String,
    /// First seen.
    pub since: Timestamp,
    /// Attempts since then.
    pub attempts: u32,
}

/// What change tracking takes on the host (R5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracking {
    /// Bytes in differencing files of our checkpoints.
    pub avhdx_bytes: u64,
    /// Bytes in `.hrl` logs.
    pub log_bytes: u64,
    /// Free bytes on the fullest volume with the VM's disks.
    pub volume_free_bytes: u64,
}

/// `Msvm_ReplicationRelationship.ReplicationState`: those that exist before any failover does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationState {
    /// Not replicated (0).
    Disabled,
    /// Prerequisites met, initial replication not started (1).
    ReadyForReplication,
    /// Initial replication is running (2).
    WaitingToCompleteInitialReplication,
    /// Delta replication is running (3).
    Replicating,
    /// Paused (7).
    Suspended,
    /// Stopped by an error that a person must clear (8).
    Critical,
    /// Resynchronization waits (9).
    WaitingToStartResynchronization,
    /// Resynchronization is running (10).
    Resynchronizing,
}

/// The SAS that an agent was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sas {
    /// When it was made.
    pub issued_at: Timestamp,
    /// [`Vault::signer`] at that time.
    pub signer: String,
}

/// The VM's containers.
#[derive(Clone, Debug, PartialEq)]
pub enum Storage {
    /// Nobody knows yet where to look: VM or vault are unknown.
    NotLookedAt,
    /// It did not answer.
    Failed(Fault),
    /// It was read.
    Seen(Box<Stored>),
}

/// What is in the VM's containers.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Account that holds them, or that they will be made in.
    pub account: Account,
    /// Whose the replica container is; absent if there is none.
    pub replica: Option<Owner>,
    /// The ledger.
    pub ledger: Record<Ledger>,
    /// side.json.
    pub side: Record<SideRecord>,
    /// cursor.json.
    pub cursor: Record<Cursor>,
    /// Recovery points with a snapshot set, newest first; capped.
    pub points: Vec<PointSeen>,
}

/// A durable record as it was found.
#[derive(Clone, Debug, PartialEq)]
pub enum Record<T> {
    /// There is none.
    Absent,
    /// Read and checked.
    Read(Box<T>),
    /// There is one that cannot be used.
    Unreadable(String),
}

impl<T> Record<T> {
    /// The record, if it was read.
    #[must_use]
    pub fn read(&self) -> Option<&T> {
        match self {
            Self::Read(record) => Some(record),
            Self::Absent | Self::Unreadable(_) => None,
        }
    }
}

/// A container's metadata: for whom it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Namespace of the ProtectedVM.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// HyperVSite.
    pub site: String,
    /// The VM's name then.
    pub vm_name: String,
    /// The VM's id.
    pub vm_id: String,
    /// Management cluster that made it.
    pub cluster_id: String,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointSeen {
    /// Its name.
    pub name: String,
    /// The instant that its disks are of.
    pub time: Timestamp,
    /// Its cycle.
    pub cycle: CycleId,
    /// What it promises.
    pub consistency: Consistency,
}

impl Observed {
    /// What was read from storage.
    #[must_use]
    pub fn stored(&self) -> Option<&Stored> {
        match &self.storage {
            Storage::Seen(stored) => Some(stored),
            Storage::NotLookedAt | Storage::Failed(_) => None,
        }
    }

    /// The ledger, whoever's.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        self.stored().and_then(|s| s.ledger.read())
    }
}
