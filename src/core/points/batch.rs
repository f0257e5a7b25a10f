//! How far to apply, when a snapshot set is due, and the claim that makes an interrupted apply end where it
//! was meant to.
//!
//! Verified cycles wait until one of them is a recovery-point boundary; then all of them up to it are merged,
//! so that a page written ten times is put once. What waits costs recovery time, so a long backlog is applied
//! without a boundary too.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::format::commit::{CommitRef, Kind};
use crate::format::cursor::Cursor;
use crate::ids::CycleId;

/// A verified cycle that is not in the replica yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Which.
    pub commit: CommitRef,
    /// What it carries.
    pub kind: Kind,
    /// The instant of its checkpoint.
    pub point_time: Timestamp,
    /// When the cycle after it was planned.
    pub next_cycle_at: Timestamp,
    /// Ranges in its lists, all disks together.
    pub ranges: u64,
    /// Bytes of its segments.
    pub stored: u64,
}

/// The newest snapshot set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSet {
    /// Its cycle.
    pub id: CycleId,
    /// Its instant.
    pub time: Timestamp,
}

/// What may wait before it is applied without a boundary, and what one apply may merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BacklogLimits {
    /// Ranges: their plan is held in memory.
    pub ranges: u64,
    /// Bytes of segments: reading them again is what a failover would wait for.
    pub stored: u64,
}

impl Default for BacklogLimits {
    fn default() -> Self {
        // 600,000 ranges make a plan of about 30 MiB; 2 GiB are applied in about half a minute.
        Self { ranges: 600_000, stored: 2 << 30 }
    }
}

/// True if the state after `cycle` is to become a snapshot set.
///
/// Always for the first point, for Application and Final cycles; otherwise `spacing` after the last set. A
/// cycle that is nearer to the boundary than the cycle after it would be counts as on it, so that ticks a
/// little early do not stretch the spacing by a whole interval. A host clock that went back is due at once.
#[must_use]
pub fn set_due(cycle: &Pending, last: Option<LastSet>, spacing: Duration) -> bool {
    if !cycle.kind.is_point() {
        return false;
    }
    let Some(last) = last else { return true };
    if cycle.commit.id <= last.id {
        return false;
    }
    match cycle.kind {
        Kind::Application | Kind::Final => return true,
        Kind::Base | Kind::Delta | Kind::Resync | Kind::Failback => {}
    }
    let spacing = SignedDuration::try_from(spacing).unwrap_or(SignedDuration::MAX);
    let interval = cycle.next_cycle_at.duration_since(cycle.point_time).clamp(SignedDuration::ZERO, spacing);
    let elapsed = cycle.point_time.duration_since(last.time);
    elapsed.is_negative() || elapsed.saturating_add(interval / 2) >= spacing
}

/// How many of `pending` (oldest first) to apply now as one merge; `None`: let them wait.
///
/// `claimed` is where an interrupted apply was to end: the replica may hold bytes of any cycle up to it, so
/// nothing may be read from the replica before exactly that cycle, or a later one, is whole in it.
/// `flush` asks for all of them, boundary or not.
#[must_use]
pub fn batch_end(
    pending: &[Pending],
    claimed: Option<CycleId>,
    last: Option<LastSet>,
    spacing: Duration,
    limits: BacklogLimits,
    flush: bool,
) -> Option<usize> {
    if let Some(at) = claimed.and_then(|target| pending.iter().position(|p| p.commit.id == target)) {
        return Some(at + 1);
    }
    let (mut ranges, mut stored) = (0_u64, 0_u64);
    for (at, cycle) in pending.iter().enumerate() {
        // A Base cycle may clear whole disks first: it is never merged with others.
        if cycle.kind == Kind::Base {
            return Some(at.max(1));
        }
        ranges = ranges.saturating_add(cycle.ranges);
        if ranges > limits.ranges && at > 0 {
            return Some(at);
        }
        if set_due(cycle, last, spacing) {
            return Some(at + 1);
        }
        stored = stored.saturating_add(cycle.stored);
    }
    let too_much = ranges > limits.ranges || stored > limits.stored;
    (!pending.is_empty() && (flush || too_much)).then_some(pending.len())
}

/// Noted in the cursor before the first byte of an apply, and taken back with its last.
///
/// It does two things. `target` survives a crash: the next worker completes the same merge before anybody
/// reads the replica. `token` is new for each holder of the leases: a worker that lost them and does not know
/// it finds another token when it writes the cursor, and stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The cycle that will be whole in the replica afterwards.
    #[serde(flatten)]
    pub target: CommitRef,
    /// Fresh random text.
    pub token: String,
}

const APPLYING: &str = "applying";

/// The claim in a cursor. One that cannot be read is an error for whoever wants to apply: it may hide a target.
///
/// # Errors
/// The parser's.
pub fn claim(cursor: &Cursor) -> Result<Option<Claim>, serde_json::Error> {
    cursor.extra.get(APPLYING).map(|value| serde_json::from_value(value.clone())).transpose()
}

/// Puts a claim into a cursor, or takes it out.
///
/// # Errors
/// None in practice: a claim is always valid JSON.
pub fn set_claim(cursor: &mut Cursor, claim: Option<&Claim>) -> Result<(), serde_json::Error> {
    match claim {
        Some(claim) => cursor.extra.insert(APPLYING.into(), serde_json::to_value(claim)?),
        None => cursor.extra.remove(APPLYING),
    };
    Ok(())
}

const BACKLOG_LOST: &str = "backlogLost";

/// True if a verified cycle can no longer be applied, because storage lost or changed it: nothing can follow it
/// in the replica but a full copy of every disk.
#[must_use]
pub fn backlog_lost(cursor: &Cursor) -> bool {
    cursor.extra.contains_key(BACKLOG_LOST)
}

/// Notes that, or takes the note back.
pub fn set_backlog_lost(cursor: &mut Cursor, lost: bool) {
    if lost {
        cursor.extra.insert(BACKLOG_LOST.into(), true.into());
    } else {
        cursor.extra.remove(BACKLOG_LOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Cycle, Hash, Stream, Term};
    use crate::points::chain::tests::cursor_at;

    const MINUTES_15: Duration = Duration::from_secs(900);

    fn id(cycle: u64) -> CycleId {
        CycleId { term: Term(1), stream: Stream(1), cycle: Cycle(cycle) }
    }

    fn start() -> Timestamp {
        "2026-01-02T03:00:00Z".parse().unwrap()
    }

    fn after(seconds: i64) -> Timestamp {
        start() + SignedDuration::from_secs(seconds)
    }

    /// A delta at `seconds` after the last set, one every five minutes.
    fn delta(cycle: u64, seconds: i64) -> Pending {
        Pending {
            commit: CommitRef { id: id(cycle), hash: Hash([0; 32]) },
            kind: Kind::Delta,
            point_time: after(seconds),
            next_cycle_at: after(seconds + 300),
            ranges: 10,
            stored: 1000,
        }
    }

    fn last() -> Option<LastSet> {
        Some(LastSet { id: id(1), time: start() })
    }

    #[test]
    fn sets_are_due_at_the_spacing_and_for_special_cycles() {
        let due = |p: &Pending, last| set_due(p, last, MINUTES_15);
        let application = Pending { kind: Kind::Application, ..delta(2, 60) };
        let base = Pending { kind: Kind::Base, ..delta(2, 5000) };
        for (name, got, want) in [
            ("the first point", due(&delta(2, 0), None), true),
            ("too early", due(&delta(2, 600), last()), false),
            ("on time", due(&delta(4, 900), last()), true),
            ("three seconds early", due(&delta(4, 897), last()), true),
            ("application", due(&application, last()), true),
            ("base", due(&base, None), false),
            ("the set's own cycle", due(&delta(1, 5000), last()), false),
            ("the clock went back", due(&delta(2, -86400), last()), true),
        ] {
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn an_interval_as_long_as_the_spacing_makes_each_cycle_a_set() {
        let mut hourly = delta(2, 290);
        hourly.next_cycle_at = after(290 + 3600);
        assert!(set_due(&hourly, last(), Duration::from_secs(300)));
        // Whatever the host says of its next cycle, a set never comes before half of the spacing.
        let mut liar = delta(2, 400);
        liar.next_cycle_at = after(1_000_000);
        assert!(!set_due(&liar, last(), MINUTES_15));
    }

    fn end(pending: &[Pending], claimed: Option<u64>, flush: bool) -> Option<usize> {
        batch_end(pending, claimed.map(id), last(), MINUTES_15, BacklogLimits::default(), flush)
    }

    #[test]
    fn cycles_wait_for_the_boundary_and_are_merged_up_to_it() {
        let all: Vec<_> = (0..6).map(|i| delta(i + 2, 300 * (i as i64 + 1))).collect();
        assert_eq!(end(&[], None, true), None);
        assert_eq!(end(&all[..2], None, false), None);
        assert_eq!(end(&all[..3], None, false), Some(3));
        assert_eq!(end(&all, None, false), Some(3), "not beyond the boundary");
        assert_eq!(end(&all[..2], None, true), Some(2), "flushed");
    }

    #[test]
    fn an_interrupted_apply_ends_where_it_was_to_end() {
        let all: Vec<_> = (0..6).map(|i| delta(i + 2, 300 * (i as i64 + 1))).collect();
        assert_eq!(end(&all, Some(3), false), Some(2), "before the boundary");
        assert_eq!(end(&all, Some(7), false), Some(6), "beyond the boundary");
        assert_eq!(end(&all, Some(99), false), Some(3), "a target that was never verified binds nobody");
    }

    #[test]
    fn a_long_backlog_does_not_wait_and_a_base_cycle_stands_alone() {
        let mut all = vec![delta(2, 100), delta(3, 200), delta(4, 250)];
        all[2].ranges = 600_000;
        assert_eq!(end(&all, None, false), Some(2));
        all.rotate_right(1);
        assert_eq!(end(&all[..1], None, false), None);
        assert_eq!(end(&all, None, false), Some(1), "a cycle that is too large alone goes alone");
        let big = [Pending { stored: 3 << 30, ..delta(2, 100) }];
        assert_eq!(end(&big, None, false), Some(1));
        let base = |cycle| Pending { kind: Kind::Base, ..delta(cycle, 100) };
        assert_eq!(end(&[base(2), base(3)], None, false), Some(1));
        assert_eq!(end(&[delta(2, 100), delta(3, 200), base(4)], None, false), Some(2));
    }

    #[test]
    fn a_claim_is_kept_in_the_cursor_and_taken_back() {
        let mut cursor = cursor_at(7);
        assert_eq!(claim(&cursor).unwrap(), None);
        let mine = Claim { target: CommitRef { id: id(9), hash: Hash([3; 32]) }, token: "t".into() };
        set_claim(&mut cursor, Some(&mine)).unwrap();
        let bytes = crate::format::Record::encode(&cursor).unwrap();
        let mut read: Cursor = crate::format::Record::decode(&bytes).unwrap();
        assert_eq!(claim(&read).unwrap(), Some(mine));
        set_claim(&mut read, None).unwrap();
        assert_eq!(read, cursor_at(7));
        read.extra.insert(APPLYING.into(), "nonsense".into());
        assert!(claim(&read).is_err());
    }
}
