//! The status of a ProtectedVM as values, and when it is worth a write.
//!
//! A cycle changes numbers; only a change of meaning is written at once (DESIGN 3, write budget).

use std::time::Duration;

use jiff::Timestamp;

use super::observed::{Finding, PointSeen, ReplicationState, Tracking};
use super::transition::Place;
use crate::fault::{Class, Fault, Health};
use crate::format::ledger::LedgerState;
use crate::ids::{DiskId, Epoch, VmId};

/// Most recovery points that are listed in a status.
pub const POINTS_CAP: usize = 32;

/// The whole status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Generation of the object that it speaks of.
    pub observed_generation: i64,
    /// Where the VM is, or the edge under way.
    pub state: Option<LedgerState>,
    /// How it fares.
    pub health: Option<Health>,
    /// In Hyper-V's words.
    pub replication_state: Option<ReplicationState>,
    /// The intent in force.
    pub effective: Option<Effective>,
    /// Where it may be asked to go.
    pub allowed: Vec<Place>,
    /// The VM's id, once resolved.
    pub vm_id: Option<VmId>,
    /// Host that runs it.
    pub host: Option<String>,
    /// Storage account that holds the replica.
    pub storage_account: Option<String>,
    /// Age of the newest recovery point, whole seconds.
    pub rpo_seconds: Option<u32>,
    /// Newest first, at most [`POINTS_CAP`].
    pub points: Vec<PointSeen>,
    /// Progress of initial replication; absent when done.
    pub initial: Option<InitialReplication>,
    /// What tracking takes on the host.
    pub tracking: Option<Tracking>,
    /// The replicated disks.
    pub disks: Vec<DiskStatus>,
    /// The newest error that is not resolved.
    pub last_error: Option<Finding>,
    /// Conditions, each kind at most once.
    pub conditions: Vec<Condition>,
}

/// The intent in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Where the VM should be.
    pub place: Place,
    /// The ledger's epoch.
    pub epoch: Epoch,
    /// Who set it.
    pub set_by: String,
}

/// Progress of initial replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialReplication {
    /// Bytes that hold data.
    pub total: u64,
    /// Of those, safe in storage.
    pub copied: u64,
    /// When it is expected to be done.
    pub eta: Option<Timestamp>,
}

impl InitialReplication {
    /// Whole percent; 100 only when all is copied.
    #[must_use]
    pub fn percent(&self) -> u32 {
        if self.copied >= self.total {
            return if self.total == 0 { 0 } else { 100 };
        }
        let percent = u128::from(self.copied) * 100 / u128::from(self.total);
        u32::try_from(percent).unwrap_or(99)
    }
}

/// A replicated disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Which.
    pub id: DiskId,
    /// Path on the host; empty if the host no longer reports it.
    pub path: String,
    /// Size that the guest sees.
    pub virtual_size: u64,
}

/// Types of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// As wished.
    Ready,
    /// Work is under way.
    Reconciling,
    /// A person must act.
    Stalled,
    /// A recovery point within policy exists.
    Protected,
    /// The newest recovery point is young enough.
    RecoveryPointsCurrent,
    /// The ledger can be read and written.
    LedgerReachable,
    /// The disks must be compared or copied again.
    ResynchronizationRequired,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Reconciling,
        Self::Stalled,
        Self::Protected,
        Self::RecoveryPointsCurrent,
        Self::LedgerReachable,
        Self::ResynchronizationRequired,
    ];

    /// As the API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Protected => "Protected",
            Self::RecoveryPointsCurrent => "RecoveryPointsCurrent",
            Self::LedgerReachable => "LedgerReachable",
            Self::ResynchronizationRequired => "ResynchronizationRequired",
        }
    }
}

/// Is it so?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// Yes.
    True,
    /// No.
    False,
    /// Not known.
    Unknown,
}

impl From<bool> for Is {
    fn from(is: bool) -> Self {
        if is { Self::True } else { Self::False }
    }
}

/// One condition, before times are filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: Kind,
    /// Is it so?
    pub is: Is,
    /// One word for programs: a code of the catalogue or one of [`reason`].
    pub reason: String,
    /// For a person: why, and what to do.
    pub message: String,
}

/// Reasons that are no faults. Each is one of the API's.
pub mod reason {
    /// As wished.
    pub const AS_DESIRED: &str = "AsDesired";
    /// Work on it is under way.
    pub const IN_PROGRESS: &str = "InProgress";
    /// Nothing is being done.
    pub const IDLE: &str = "Idle";
    /// Nobody needs to act.
    pub const NOT_STALLED: &str = "NotStalled";
    /// Stopped by `spec.paused`.
    pub const PAUSED: &str = "Paused";
    /// The object is being deleted.
    pub const DELETING: &str = "Deleting";
    /// Deletion waits for a storage account that cannot be reached.
    pub const DELETION_WAITS: &str = "DeletionWaits";
    /// Deletion with Purge waits for its annotation.
    pub const PURGE_NOT_CONFIRMED: &str = "PurgeNotConfirmed";
    /// Nothing is known yet.
    pub const NOT_CHECKED_YET: &str = "NotCheckedYet";
    /// Prerequisites of the VM are not met.
    pub const PREREQUISITES_NOT_MET: &str = "PrerequisitesNotMet";
    /// Initial replication is running.
    pub const INITIAL_REPLICATION: &str = "InitialReplication";
    /// A recovery point within policy exists.
    pub const REPLICATING: &str = "Replicating";
    /// No recovery point yet.
    pub const NO_RECOVERY_POINT: &str = "NoRecoveryPoint";
    /// The newest recovery point is too old.
    pub const RECOVERY_POINT_TOO_OLD: &str = "RecoveryPointTooOld";
    /// The newest recovery point is young enough.
    pub const RECOVERY_POINT_CURRENT: &str = "RecoveryPointCurrent";
    /// An error that is tried again.
    pub const RETRYING: &str = "Retrying";
    /// The ledger was read.
    pub const LEDGER_REACHABLE: &str = "LedgerReachable";
    /// The ledger cannot be reached.
    pub const LEDGER_UNREACHABLE: &str = "LedgerUnreachable";

    /// All of them.
    pub const ALL: [&str; 18] = [
        AS_DESIRED,
        IN_PROGRESS,
        IDLE,
        NOT_STALLED,
        PAUSED,
        DELETING,
        DELETION_WAITS,
        PURGE_NOT_CONFIRMED,
        NOT_CHECKED_YET,
        PREREQUISITES_NOT_MET,
        INITIAL_REPLICATION,
        REPLICATING,
        NO_RECOVERY_POINT,
        RECOVERY_POINT_TOO_OLD,
        RECOVERY_POINT_CURRENT,
        RETRYING,
        LEDGER_REACHABLE,
        LEDGER_UNREACHABLE,
    ];
}

impl Condition {
    /// A condition.
    pub fn new(kind: Kind, is: impl Into<Is>, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, is: is.into(), reason: reason.into(), message: message.into() }
    }
}

impl Status {
    /// The condition of that type.
    #[must_use]
    pub fn condition(&self, kind: Kind) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    /// Is the condition of that type True?
    #[must_use]
    pub fn is(&self, kind: Kind) -> bool {
        self.condition(kind).is_some_and(|c| c.is == Is::True)
    }

    /// The same after an action failed: what it says was not all carried out.
    #[must_use]
    pub fn with_failure(mut self, failed: &Fault) -> Self {
        let entry = failed.entry();
        let message = format!("{}: {}. {}", failed.code, failed.message, entry.remedy);
        let mut set = |kind: Kind, is: bool, why: &str| {
            self.conditions.retain(|c| c.kind != kind);
            self.conditions.push(Condition::new(kind, is, why, message.clone()));
        };
        let code = failed.code.to_string();
        if entry.class == Class::Unrecoverable {
            set(Kind::Stalled, true, &code);
            set(Kind::Ready, false, &code);
            set(Kind::Reconciling, false, reason::IDLE);
        } else {
            set(Kind::Reconciling, true, reason::RETRYING);
        }
        self.health = self.health.max(Some(entry.health));
        self.last_error = Some(Finding::from(failed.clone()));
        self
    }

    /// What makes two statuses say the same to a program or to a person who does not read numbers. Messages of
    /// conditions hold figures, so only their type, status and reason count; so does any message beside Stalled=True,
    /// which tells a person what to do.
    fn meaning(&self) -> impl PartialEq + '_ {
        let conditions: Vec<_> = self
            .conditions
            .iter()
            .map(|c| (c.kind, c.is, &c.reason, (c.kind == Kind::Stalled).then_some(&c.message)))
            .collect();
        (
            (self.observed_generation, self.state, self.health, self.replication_state, &self.effective),
            (&self.allowed, self.vm_id, &self.host, &self.storage_account, &self.disks),
            (
                self.last_error.as_ref().map(|e| e.code),
                self.initial.is_some(),
                self.points.is_empty(),
                conditions,
            ),
        )
    }

    /// Do both mean the same, whatever their numbers?
    #[must_use]
    pub fn means_the_same(&self, other: &Self) -> bool {
        self.meaning() == other.meaning()
    }
}

/// A write of mere numbers waits for this many times `Timing::status_refresh`: the agent writes its own
/// into the relationship once per refresh at most, and both together stay below one write per VM and minute
/// in the long run, since neither writes unless something changed.
pub const QUIET_FACTOR: u32 = 2;

/// When the new status should be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// At once.
    Now,
    /// Not before then.
    At(Timestamp),
    /// There is nothing to write.
    Never,
}

/// Should `next` be written over `written`, whose last write was at `last` (if this process knows)?
#[must_use]
pub fn due(
    written: &Status,
    next: &Status,
    last: Option<Timestamp>,
    refresh: Duration,
    now: Timestamp,
) -> Write {
    if !written.means_the_same(next) {
        return Write::Now;
    }
    if same_numbers(written, next) {
        return Write::Never;
    }
    let Some(last) = last else { return Write::Now };
    let at = last.checked_add(refresh.saturating_mul(QUIET_FACTOR)).unwrap_or(Timestamp::MAX);
    if at <= now { Write::Now } else { Write::At(at) }
}

/// The age of a point grows by itself; it counts only when it has grown by half since it was written, so that a
/// VM without new points is written ever more seldom, and one with new points when those are listed.
fn same_numbers(a: &Status, b: &Status) -> bool {
    let aged = match (a.rpo_seconds, b.rpo_seconds) {
        (Some(a), Some(b)) => b > a.saturating_add(a / 2).saturating_add(60),
        (a, b) => a != b,
    };
    let messages = |s: &Status| s.conditions.iter().map(|c| c.message.clone()).collect::<Vec<_>>();
    !aged
        && a.points == b.points
        && a.initial.map(|i| (i.total, i.copied)) == b.initial.map(|i| (i.total, i.copied))
        && same_tracking(a.tracking.as_ref(), b.tracking.as_ref())
        && a.last_error == b.last_error
        && messages(a) == messages(b)
}

/// Logs come and go with every cycle, and free space moves all the time: what tracking takes counts when it is
/// half as much again, or half, and by more than [`TRACKING_STEP`]. The relationship has the newest figures.
fn same_tracking(a: Option<&Tracking>, b: Option<&Tracking>) -> bool {
    let near = |a: u64, b: u64| a.abs_diff(b) <= TRACKING_STEP.max(a.min(b) / 2);
    match (a, b) {
        (Some(a), Some(b)) => {
            near(a.avhdx_bytes, b.avhdx_bytes)
                && near(a.log_bytes, b.log_bytes)
                && near(a.volume_free_bytes, b.volume_free_bytes)
        }
        (a, b) => a == b,
    }
}

/// Smaller changes of what tracking takes are no reason for a write.
const TRACKING_STEP: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn status() -> Status {
        Status {
            observed_generation: 1,
            state: Some(LedgerState::Protected),
            rpo_seconds: Some(200),
            conditions: vec![Condition::new(Kind::Ready, true, reason::AS_DESIRED, "fine")],
            ..Status::default()
        }
    }

    fn edited(edit: impl FnOnce(&mut Status)) -> Status {
        let mut s = status();
        edit(&mut s);
        s
    }

    fn tracking(log_bytes: u64) -> Option<Tracking> {
        Some(Tracking { log_bytes, ..Tracking::default() })
    }

    #[test]
    fn what_tracking_takes_counts_only_when_it_moved_a_lot() {
        const GIB: u64 = 1 << 30;
        for (before, after, counts) in [
            (0, 200 << 20, false),
            (0, 300 << 20, true),
            (10 * GIB, 14 * GIB, false),
            (10 * GIB, 16 * GIB, true),
        ] {
            let (a, b) =
                (edited(|s| s.tracking = tracking(before)), edited(|s| s.tracking = tracking(after)));
            assert_eq!(
                due(&a, &b, None, Duration::from_secs(60), at(0)) == Write::Now,
                counts,
                "{before} {after}"
            );
            assert_eq!(
                due(&b, &a, None, Duration::from_secs(60), at(0)) == Write::Now,
                counts,
                "{after} {before}"
            );
        }
    }

    // DESIGN 3, write budget
    #[test]
    fn numbers_wait_and_a_change_of_meaning_does_not() {
        let refresh = Duration::from_secs(60);
        let soon = at(120);
        for (name, next, last, want) in [
            ("nothing", status(), Some(at(0)), Write::Never),
            ("only older", edited(|s| s.rpo_seconds = Some(320)), Some(at(0)), Write::Never),
            ("much older", edited(|s| s.rpo_seconds = Some(500)), Some(at(0)), Write::At(soon)),
            ("bytes", edited(|s| s.tracking = Some(Tracking::default())), Some(at(0)), Write::At(soon)),
            (
                "bytes, long after",
                edited(|s| s.tracking = Some(Tracking::default())),
                Some(at(-90)),
                Write::Now,
            ),
            (
                "bytes, first since start",
                edited(|s| s.tracking = Some(Tracking::default())),
                None,
                Write::Now,
            ),
            ("a log more", edited(|s| s.tracking = tracking(100 << 20)), Some(at(0)), Write::At(soon)),
            ("message", edited(|s| s.conditions[0].message = "x".into()), Some(at(0)), Write::At(soon)),
            ("reason", edited(|s| s.conditions[0].reason = "Paused".into()), Some(at(0)), Write::Now),
            ("state", edited(|s| s.state = Some(LedgerState::Enabling)), Some(at(0)), Write::Now),
            ("generation", edited(|s| s.observed_generation = 2), Some(at(0)), Write::Now),
        ] {
            assert_eq!(due(&status(), &next, last, refresh, at(40)), want, "{name}");
        }
    }

    // R9.1, R9.2
    #[test]
    fn a_failed_action_shows_as_retried_or_stalled() {
        use crate::fault::Code;
        let passing = status().with_failure(&Fault::new(Code::NetworkError, "x"));
        assert!(passing.is(Kind::Reconciling) && passing.is(Kind::Ready) && !passing.is(Kind::Stalled));
        assert_eq!(passing.health, Some(Health::Warning));
        let lasting = status().with_failure(&Fault::new(Code::NotAuthorized, "x"));
        assert!(lasting.is(Kind::Stalled) && !lasting.is(Kind::Ready));
        assert_eq!(lasting.last_error.map(|e| e.code), Some(Code::NotAuthorized));
    }

    #[test]
    fn percent_is_100_only_when_all_is_copied() {
        let p = |copied, total| InitialReplication { total, copied, eta: None }.percent();
        assert_eq!((p(0, 0), p(999, 1000), p(1000, 1000), p(u64::MAX - 1, u64::MAX)), (0, 99, 100, 99));
    }
}
