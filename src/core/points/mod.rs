//! What a replica server decides about one VM: which commit comes next and when to look for it, whether it
//! continues the chain, how far to apply, which bytes win, when a snapshot set is due, what may be removed,
//! and which worker does it.
//!
//! ```text
//!  next commit ──check──▶ verified ──batch──▶ applied ──set due──▶ snapshot set ──prune──▶ gone
//!              (chain.rs)           (batch.rs, plan.rs)            (batch.rs)   (prune.rs)
//! ```
//! Everything here is total: no I/O, no clock, no failure but the ones it returns as values.

mod batch;
mod chain;
mod due;
mod plan;
mod prune;
mod rendezvous;

pub use batch::{
    BacklogLimits, Claim, LastSet, Pending, backlog_lost, batch_end, claim, set_backlog_lost, set_claim,
    set_due,
};
pub use chain::{MAX_DISKS, MAX_REPLICA_DISK, Verdict, Waiting, check, expected, follows, may_apply};
pub use due::{Look, look, poll_interval};
pub use plan::{Piece, RangePlan, newest_wins};
pub use prune::{KeptSet, Pruning, prune};
pub use rendezvous::owner;
