//! What an engine is told, and what it tells: values, free of Kubernetes.

use std::time::Duration;

use farshore_core::fault::Fault;
use farshore_core::ids::{DiskId, Stream, Term, VmId};
use farshore_core::relationship::{Base, LastCommit};
use farshore_core::retry::Failures;
use jiff::Timestamp;

/// What must be brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Initial replication, then cycles on schedule.
    Replicate,
    /// Nothing of ours is left on the host.
    StopReplicating {
        /// Own reference points stay until then.
        keep_points_until: Option<Timestamp>,
    },
}

/// The relationship's spec, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Which VM.
    pub vm: VmId,
    /// What must be brought about.
    pub goal: Goal,
    /// Under which term.
    pub term: Term,
    /// As which writer.
    pub stream: Stream,
    /// Disks to replicate.
    pub disks: Vec<DiskId>,
    /// Between two cycles.
    pub interval: Duration,
    /// No cycles while true.
    pub paused: bool,
    /// Pack with zstd.
    pub compress: bool,
    /// Segments under way at the same time, 1 to 32.
    pub parallelism: u32,
    /// Bytes on each volume that are never eaten into, beside the default reserve.
    pub reserve: u64,
    /// What is safe and verified already.
    pub base: Option<Base>,
    /// Term and stream that the status says were taken up.
    pub observed: Option<(Term, Stream)>,
    /// Changes with every edit of the spec.
    pub generation: i64,
}

/// What was taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The goal.
    pub goal: Goal,
    /// The term.
    pub term: Term,
    /// The stream.
    pub stream: Stream,
    /// The spec's generation.
    pub generation: i64,
}

/// How the replication stands, in Hyper-V's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing is replicated.
    #[default]
    Disabled,
    /// Initial replication has not begun.
    Ready,
    /// Initial replication is running.
    Copying,
    /// Cycles are running.
    Replicating,
    /// Paused, or out of space.
    Suspended,
    /// A person must act.
    Critical,
    /// Only a resynchronization helps.
    ResynchronizationRequired,
}

/// Bytes of what is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Disk data to send.
    pub total: u64,
    /// Of it, in storage.
    pub copied: u64,
    /// Bytes sent for it.
    pub sent: u64,
}

/// What tracking takes on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracking {
    /// Differencing files of our checkpoint.
    pub avhdx: u64,
    /// Logs.
    pub logs: u64,
    /// Free bytes of the fullest volume concerned.
    pub free: u64,
}

/// What holds the engine up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What was seen.
    pub fault: Fault,
    /// How often, and since when.
    pub failures: Failures,
    /// It is tried again by itself.
    pub retried: bool,
}

/// What the status shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What was taken up.
    pub observed: Option<Observed>,
    /// How it stands.
    pub state: State,
    /// What is being done, one word.
    pub step: &'static str,
    /// Bytes of it.
    pub progress: Option<Progress>,
    /// What it takes on the host.
    pub tracking: Tracking,
    /// The last committed cycle.
    pub last: Option<LastCommit>,
    /// Ticks without a cycle.
    pub missed_cycles: u64,
    /// Prerequisites that are not met.
    pub unmet: Vec<Fault>,
    /// What holds it up.
    pub trouble: Option<Trouble>,
    /// StopReplicating is done.
    pub released: bool,
    /// There is no journal of this stream; nothing is uploaded.
    pub journal_lost: bool,
}
