//! What an agent knows about one VM, and what it does next with it: journal, restart table, prerequisites.
//!
//! ```text
//!  Intent -> Frozen -> Ready -> Converted -> Committing -> (committed: the journal's `since`)
//!            checkpoint  logs    reference     commit        its point is destroyed when a newer
//!            exists      sealed  point exists  bytes fixed   cycle is verified
//!                        or slice copied
//! ```
//! Before `Committing` a cycle can be dropped and made again under the same number: nothing outside the
//! host refers to it. From `Committing` on only exactly those bytes may ever be put under its name.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cycle;
use crate::fault::{Code, Fault};
use crate::format::commit::{CommitRef, Configuration, Consistency, Kind};
use crate::format::cursor::Cursor;
use crate::format::side::{Side, SideRecord};
use crate::format::{FORMAT_VERSION, Record};
use crate::ids::{CycleId, DiskId, Stream, Term, VmId};
use crate::names;
use crate::retry::Failures;
use crate::units::{Bytes, MIB};

/// The agent's durable memory of one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// See [`crate::format`].
    pub format_version: u32,
    /// See [`crate::format`].
    pub min_reader: u32,
    /// Whose.
    #[serde(rename = "vmID")]
    pub vm_id: VmId,
    /// Term that is worked under.
    pub term: Term,
    /// Stream that is written.
    pub stream: Stream,
    /// Highest `seq` ever seen in side.json.
    pub side_seq: u64,
    /// The commit that the next one continues.
    pub previous: Option<CommitRef>,
    /// The last committed cycle: changes are asked for since then. Absent: everything is to be copied.
    pub since: Option<Anchor>,
    /// The newest cycle that the replica server has verified.
    pub verified: Option<Anchor>,
    /// Committed cycles above it, oldest first; the last is `since`.
    pub unverified: Vec<Anchor>,
    /// Every reference point of ours that may exist on the host.
    pub own_points: BTreeSet<String>,
    /// The cycle under way.
    pub running: Option<Running>,
    /// The tick that is served next; absent: at once.
    pub next_tick: Option<Timestamp>,
    /// Ticks that passed without a cycle.
    pub missed_cycles: u64,
    /// The last log of each disk, which the next one names.
    #[serde(default)]
    pub last_logs: BTreeMap<DiskId, Uuid>,
    /// Failures in a row of what is tried now.
    pub failures: Option<Failures>,
    /// The last of them.
    pub fault: Option<Fault>,
    /// The last commit, for status.
    pub last: Option<LastCommit>,
}

/// The last commit as status shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastCommit {
    /// Which.
    pub commit: CommitRef,
    /// Its kind.
    pub kind: Kind,
    /// When, by the host's clock.
    pub at: Timestamp,
}

/// A committed cycle with what is needed to go on from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Anchor {
    /// Which commit.
    pub commit: CommitRef,
    /// Its reference point on the host.
    #[serde(rename = "referencePointID")]
    pub reference_point_id: String,
    /// Its tracking id per disk.
    #[serde(rename = "rctIDs")]
    pub rct_ids: BTreeMap<DiskId, String>,
    /// Per disk not wholly copied yet: everything below this offset was.
    #[serde(default)]
    pub copied_up_to: BTreeMap<DiskId, u64>,
}

/// How far the cycle under way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// It has a number; a checkpoint of its name may exist.
    Intent,
    /// The checkpoint exists; data is read from it.
    Frozen,
    /// Everything is read: logs are sealed, or the slice is copied.
    Ready,
    /// The checkpoint is a reference point now.
    Converted,
    /// The commit's bytes are fixed; it may have been put.
    Committing,
}

/// The cycle under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Which cycle.
    pub id: CycleId,
    /// What it carries.
    pub kind: Kind,
    /// How far it is.
    pub stage: Stage,
    /// The tick that it serves.
    pub tick: Timestamp,
    /// From `Frozen` on.
    pub instant: Option<Instant>,
    /// From `Ready` on, in cycles of kind Base: what will not be wholly copied after it.
    #[serde(default)]
    pub copied_up_to: BTreeMap<DiskId, u64>,
    /// From `Converted` on.
    #[serde(rename = "referencePointID")]
    pub reference_point_id: Option<String>,
    /// From `Committing` on: the exact bytes, JSON.
    pub commit: Option<String>,
}

/// The instant that a cycle stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instant {
    /// InstanceID of the checkpoint.
    #[serde(rename = "checkpointID")]
    pub checkpoint_id: String,
    /// By the host's clock.
    pub time: Timestamp,
    /// What was reached.
    pub consistency: Consistency,
    /// Replicated disks in order of slot.
    pub disks: Vec<FrozenDisk>,
    /// The VM at that instant.
    pub configuration: Configuration,
}

/// A disk at that instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrozenDisk {
    /// Which.
    #[serde(rename = "diskID")]
    pub disk_id: DiskId,
    /// The frozen file.
    pub path: String,
    /// Bytes, as the guest sees it.
    pub virtual_size: u64,
    /// Stands for the instant.
    #[serde(rename = "rctID")]
    pub rct_id: String,
    /// Its log, in a delta: the path, beside the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

impl Record for Journal {
    const KIND: &'static str = "journal";
    const MAX: usize = 16 << 20;

    fn check(&self) -> Result<(), &'static str> {
        let Some(running) = &self.running else { return Ok(()) };
        if !running.id.is_of(self.term, self.stream) {
            return Err("its cycle is of another stream");
        }
        if running.stage >= Stage::Frozen && running.instant.is_none() {
            return Err("its cycle has no instant");
        }
        if running.stage >= Stage::Converted && running.reference_point_id.is_none() {
            return Err("its cycle has no reference point");
        }
        if running.stage >= Stage::Committing && running.commit.is_none() {
            return Err("its cycle has no commit");
        }
        Ok(())
    }
}

/// Where a new stream goes on from, as the controller read it in cursor.json.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// The verified commit.
    pub commit: CommitRef,
    /// Its point and ids; absent if only the chain goes on and every disk is copied anew.
    pub anchor: Option<Anchor>,
    /// Our reference points on the host.
    pub owned_points: Vec<String>,
}

/// What a goal means to an agent with this journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeUp {
    /// The journal's own stream: go on.
    Continue,
    /// A higher term or stream, or the first: drop what is uncommitted and begin there.
    Begin,
    /// The status says that the stream was taken up before, but there is no journal of it.
    JournalLost,
    /// Below the journal: never acted on.
    Stale,
}

/// Reads a goal's term and stream against what is known. `observed` is the relationship's own status.
#[must_use]
pub fn take_up(
    journal: Option<(Term, Stream)>,
    goal: (Term, Stream),
    observed: Option<(Term, Stream)>,
) -> TakeUp {
    match (journal, observed) {
        (Some(known), _) if goal < known => TakeUp::Stale,
        (Some(known), _) if goal == known => TakeUp::Continue,
        (Some(_), _) => TakeUp::Begin,
        (None, Some(seen)) if goal <= seen => TakeUp::JournalLost,
        (None, _) => TakeUp::Begin,
    }
}

impl Journal {
    /// The journal of a stream that begins. `before` is that of the stream before, if there is one;
    /// `previous` is the verified commit that the stream continues when there is no base.
    #[must_use]
    pub fn begin(
        vm_id: VmId,
        (term, stream): (Term, Stream),
        base: Option<&Base>,
        previous: Option<CommitRef>,
        before: Option<&Self>,
    ) -> Self {
        let anchor = base.and_then(|b| b.anchor.clone());
        let mut own_points = before.map(|b| b.own_points.clone()).unwrap_or_default();
        own_points.extend(base.into_iter().flat_map(|b| b.owned_points.iter().cloned()));
        own_points.extend(anchor.iter().map(|a| a.reference_point_id.clone()));
        Self {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            vm_id,
            term,
            stream,
            side_seq: before.map_or(0, |b| b.side_seq),
            previous: base.map(|b| b.commit).or(previous),
            since: anchor.clone(),
            verified: anchor,
            unverified: Vec::new(),
            own_points,
            running: None,
            next_tick: None,
            missed_cycles: before.map_or(0, |b| b.missed_cycles),
            last_logs: BTreeMap::new(),
            failures: None,
            fault: None,
            last: before.and_then(|b| b.last),
        }
    }

    /// Number and kind of the next cycle.
    #[must_use]
    pub fn next_cycle(&self) -> (CycleId, Kind) {
        let id = match self.previous {
            Some(previous) if previous.id.is_of(self.term, self.stream) => previous.id.next(),
            _ => CycleId::first(self.term, self.stream),
        };
        let copying = self.since.as_ref().is_none_or(|since| !since.copied_up_to.is_empty());
        (id, if copying { Kind::Base } else { Kind::Delta })
    }

    /// Offset from which a disk is still to be copied; `None` if it was wholly copied.
    #[must_use]
    pub fn copied_up_to(&self, disk: DiskId) -> Option<u64> {
        self.since.as_ref().map_or(Some(0), |since| since.copied_up_to.get(&disk).copied())
    }

    /// Notes the running cycle as committed; the next one is due at `next_tick`, or at once.
    #[must_use]
    pub fn committed(&self, commit: CommitRef, next_tick: Option<Timestamp>, now: Timestamp) -> Self {
        let mut next = self.clone();
        let Some(running) = next.running.take() else { return next };
        let instant = running.instant.as_ref();
        let anchor = Anchor {
            commit,
            reference_point_id: running.reference_point_id.unwrap_or_default(),
            rct_ids: instant
                .map(|i| i.disks.iter().map(|d| (d.disk_id, d.rct_id.clone())).collect())
                .unwrap_or_default(),
            copied_up_to: running.copied_up_to,
        };
        next.previous = Some(commit);
        next.unverified.push(anchor.clone());
        next.since = Some(anchor);
        next.next_tick = next_tick;
        next.failures = None;
        next.fault = None;
        next.last = Some(LastCommit { commit, kind: running.kind, at: now });
        next
    }

    /// Reference points that are no longer needed: ours, and older than the verified cycle's.
    #[must_use]
    pub fn obsolete_points(&self) -> Vec<String> {
        // While nothing of this stream is verified, what came before may still be needed by another node.
        let Some(verified) = &self.verified else { return Vec::new() };
        let needed: BTreeSet<&str> = std::iter::once(verified)
            .chain(&self.unverified)
            .chain(&self.since)
            .map(|anchor| anchor.reference_point_id.as_str())
            .chain(self.running.iter().filter_map(|r| r.reference_point_id.as_deref()))
            .collect();
        self.own_points.iter().filter(|id| !needed.contains(id.as_str())).cloned().collect()
    }
}

/// What cursor.json means to a journal.
#[derive(Clone, Debug, PartialEq)]
pub struct CursorNews {
    /// Index in `unverified` of the newest one that is verified now.
    pub verified: Option<usize>,
    /// The cycle whose commit is being put: `Some(true)` if the cursor shows our bytes, `Some(false)` if it
    /// shows other bytes under its name.
    pub commit_is_ours: Option<bool>,
    /// Something of this stream was refused, or belongs to another writer.
    pub fault: Option<Fault>,
}

/// Compares the cursor with what was committed. `putting` is the commit whose outcome is not known.
#[must_use]
pub fn read_cursor(journal: &Journal, cursor: &Cursor, putting: Option<CommitRef>) -> CursorNews {
    let mut news = CursorNews { verified: None, commit_is_ours: None, fault: None };
    if let Some(verified) = cursor.verified.as_ref().map(|v| v.commit) {
        let mine = journal.unverified.iter().map(|a| a.commit).chain(putting);
        match mine.clone().find(|commit| commit.id == verified.id) {
            Some(commit) if commit.hash == verified.hash => {
                news.verified = journal.unverified.iter().position(|a| a.commit == verified);
                news.commit_is_ours = (putting == Some(verified)).then_some(true);
            }
            Some(commit) => {
                news.commit_is_ours = (putting == Some(commit)).then_some(false);
                news.fault = Some(taken(verified.id));
            }
            // The cursor is past all we know of in this very stream: somebody else writes it.
            None if verified.id.is_of(journal.term, journal.stream)
                && mine.clone().all(|commit| commit.id < verified.id)
                && journal.verified.as_ref().map(|a| a.commit) != Some(verified) =>
            {
                news.commit_is_ours = putting.map(|_| false);
                news.fault = Some(taken(verified.id));
            }
            None => {}
        }
    }
    if let Some(refused) = cursor.refused.as_ref().filter(|r| r.id.is_of(journal.term, journal.stream)) {
        let code = refused.code.parse().unwrap_or(Code::Unknown);
        news.fault = Some(Fault::new(code, format!("cycle {} was refused: {}", refused.id, refused.message)));
    }
    news
}

fn taken(id: CycleId) -> Fault {
    Fault::new(Code::CommitNameTaken, format!("cycle {id} was committed by another writer"))
}

/// What side.json allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SideSays {
    /// Cycles of this term and stream may be committed.
    GoOn,
    /// A higher term or stream is on its way: wait for the goal.
    Superseded,
    /// The VM does not belong to this side, or the record went back in time.
    Refuse(Fault),
}

/// Reads side.json against the journal.
#[must_use]
pub fn read_side(journal: &Journal, side: &SideRecord) -> SideSays {
    let mine = (journal.term, journal.stream);
    if side.seq < journal.side_seq || (side.term, side.stream) < mine {
        let message = format!(
            "side.json went back: it has seq {}, term {}, stream {}, this host has seen seq {}, term {}, stream {}",
            side.seq, side.term, side.stream, journal.side_seq, mine.0, mine.1
        );
        return SideSays::Refuse(Fault::new(Code::LedgerBehind, message));
    }
    if side.side != Side::OnPremises {
        let message = format!("side.json says that Azure owns the VM in term {}", side.term);
        return SideSays::Refuse(Fault::new(Code::StaleDesiredState, message));
    }
    if (side.term, side.stream) > mine { SideSays::Superseded } else { SideSays::GoOn }
}

/// What of ours was found on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnHost {
    /// Recovery checkpoints: id and name.
    pub checkpoints: Vec<(String, String)>,
    /// Reference points, also those of others: id and the id of the checkpoint that each was made from.
    pub reference_points: Vec<(String, String)>,
    /// The logs of the running cycle are all there, sealed and as long as they should be.
    pub logs_sealed: bool,
}

/// What to do with the running cycle (HYPERV 4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// No cycle is under way.
    Idle,
    /// Delete its checkpoint and logs, forget it, and make it again.
    Redo,
    /// Go on reading under this checkpoint.
    Read,
    /// Everything is read: convert the checkpoint.
    Convert {
        /// Its id.
        checkpoint: String,
    },
    /// The checkpoint was converted to this point, which is not noted yet.
    NotePoint {
        /// Its id.
        reference_point: String,
    },
    /// Upload what is missing, then commit.
    Upload,
    /// Put the commit, or find out whether it was put.
    Commit,
    /// The point that changes are asked from is gone.
    Lost(Fault),
}

/// The restart table, also used between steps: nothing is remembered that cannot be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Checkpoints with our name that no cycle needs: delete them.
    pub leftovers: Vec<String>,
    /// What to do with the running cycle.
    pub step: NextStep,
}

/// Decides from the journal and what is found on the host.
#[must_use]
pub fn restart(journal: &Journal, found: &OnHost) -> Restart {
    let step = next_step(journal, found);
    let needed = match (&journal.running, &step) {
        (Some(running), NextStep::Read | NextStep::Convert { .. }) => {
            running.instant.as_ref().map(|i| i.checkpoint_id.as_str())
        }
        _ => None,
    };
    let leftovers = found
        .checkpoints
        .iter()
        .filter(|(id, name)| name.starts_with(names::CHECKPOINT_PREFIX) && Some(id.as_str()) != needed)
        .map(|(id, _)| id.clone())
        .collect();
    Restart { leftovers, step }
}

fn next_step(journal: &Journal, found: &OnHost) -> NextStep {
    let point_exists = |id: &str| found.reference_points.iter().any(|(point, _)| point == id);
    // By id, not by name: a cycle that was made again has the name of its first try.
    let converted = |checkpoint: &str| {
        let mut points = found.reference_points.iter();
        points.find(|(_, of)| of == checkpoint).map(|(id, _)| id.clone())
    };
    let lost = || {
        let since = journal.since.as_ref().filter(|since| !point_exists(&since.reference_point_id))?;
        let message =
            format!("reference point {} of cycle {} is gone", since.reference_point_id, since.commit.id);
        Some(NextStep::Lost(Fault::new(Code::ChangeTrackingLost, message)))
    };
    let Some(running) = &journal.running else { return lost().unwrap_or(NextStep::Idle) };
    let checkpoint = running.instant.as_ref().map(|i| i.checkpoint_id.as_str());
    let frozen = checkpoint.filter(|id| found.checkpoints.iter().any(|(found, _)| found == id));
    match (running.stage, frozen) {
        (Stage::Intent, _) => NextStep::Redo,
        // A log may have been sealed after the last note; a half-read slice needs the point it asks from.
        (Stage::Frozen, Some(id)) if running.kind != Kind::Base && found.logs_sealed => {
            NextStep::Convert { checkpoint: id.to_owned() }
        }
        (Stage::Frozen, Some(_)) if running.kind == Kind::Base => lost().unwrap_or(NextStep::Read),
        (Stage::Frozen, _) => lost().unwrap_or(NextStep::Redo),
        (Stage::Ready, Some(id)) if running.kind == Kind::Base || found.logs_sealed => {
            NextStep::Convert { checkpoint: id.to_owned() }
        }
        (Stage::Ready, _) => match checkpoint.and_then(converted) {
            Some(reference_point) => NextStep::NotePoint { reference_point },
            None => lost().unwrap_or(NextStep::Redo),
        },
        // The new point is there, but a log was damaged: the changes can be asked for again from the old one.
        (Stage::Converted, _) if running.kind != Kind::Base && !found.logs_sealed => {
            lost().unwrap_or(NextStep::Redo)
        }
        (Stage::Converted, _) => NextStep::Upload,
        (Stage::Committing, _) => NextStep::Commit,
    }
}

/// A VM's disk as the prerequisites see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// VirtualDiskId; nil if it has none.
    pub id: DiskId,
    /// Path on the host.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Used by several VMs.
    pub shared: bool,
    /// A physical disk.
    pub pass_through: bool,
    /// VHDX (or AVHDX), the only format whose changes can be tracked and read.
    pub vhdx: bool,
    /// 512 or 4096.
    pub logical_sector_size: u32,
}

/// A VM as the prerequisites see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmFacts {
    /// `9.0`.
    pub configuration_version: String,
    /// Another product replicates it (Hyper-V Replica's mode is not 0).
    pub replicated_by_other: bool,
    /// Checkpoints are allowed.
    pub checkpoints_enabled: bool,
    /// Disks that are to be replicated.
    pub disks: Vec<DiskFacts>,
    /// Ids of disks that are to be replicated and are not attached.
    pub missing: Vec<DiskId>,
}

/// The largest disk that fits into a page blob of 8 TiB beside its footer.
pub const MAX_DISK: u64 = (8 << 40) - MIB;

/// Every prerequisite that is not met (R4.1). Each says what to do.
#[must_use]
pub fn unmet(vm: &VmFacts) -> Vec<Fault> {
    let mut unmet = Vec::new();
    let mut no = |code, message: String| unmet.push(Fault::new(code, message));
    let major = vm.configuration_version.split('.').next().and_then(|v| v.parse::<u32>().ok());
    if major.is_none_or(|major| major < 8) {
        no(
            Code::OldConfigurationVersion,
            format!("the VM has configuration version {}, 8.0 is needed", vm.configuration_version),
        );
    }
    if vm.replicated_by_other {
        no(Code::AlreadyReplicating, "Hyper-V Replica is enabled for the VM".into());
    }
    if !vm.checkpoints_enabled {
        no(Code::CheckpointsDisabled, "checkpoints are disabled for the VM".into());
    }
    if vm.disks.is_empty() && vm.missing.is_empty() {
        no(Code::NoDisks, "the VM has no disk to replicate".into());
    }
    for disk in &vm.missing {
        no(Code::DiskMissing, format!("disk {disk} is no longer attached to the VM"));
    }
    let mut seen = BTreeSet::new();
    for disk in &vm.disks {
        let at = &disk.path;
        if disk.pass_through {
            no(Code::PassThroughDisk, format!("{at} is passed through from the host"));
            continue;
        }
        if disk.shared {
            no(Code::SharedDisk, format!("{at} is shared between VMs"));
            continue;
        }
        if !disk.vhdx {
            no(Code::PassThroughDisk, format!("{at} is not a VHDX file: convert it (Convert-VHD)"));
            continue;
        }
        if !seen.insert(disk.id) {
            no(Code::DuplicateDiskID, format!("{at} has the same VirtualDiskId {} as another disk", disk.id));
        }
        if disk.size > MAX_DISK {
            no(Code::DiskTooLarge, format!("{at} has {}, at most {} fit", Bytes(disk.size), Bytes(MAX_DISK)));
        }
        if disk.logical_sector_size != 512 {
            let sector = disk.logical_sector_size;
            no(Code::UnsupportedSectorSize, format!("{at} has logical sectors of {sector} bytes"));
        }
    }
    unmet
}

/// Refuses a checkpoint when the volume could not take what the last cycle took.
///
/// # Errors
/// [`Code::LowDiskSpace`], with the volume and the figures.
pub fn check_space(volume: &str, need: u64, free: u64, reserve: u64) -> Result<(), Fault> {
    cycle::fits(need, free, reserve).map_err(|no| {
        let (need, free, reserve) = (Bytes(no.need), Bytes(no.free), Bytes(no.reserve));
        let message =
            format!("volume {volume} has {free} free; {need} are needed and {reserve} stay in reserve");
        Fault::new(Code::LowDiskSpace, message)
    })
}

#[cfg(test)]
mod tests;
