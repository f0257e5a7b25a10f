//! What may be removed: snapshot sets beyond retention and cycles that no point needs any more.
//!
//! A recovery point is any verified cycle that is not Base and lies inside the retention; it is rebuilt from
//! the newest snapshot set at or before it and the cycles between. So the newest set that is beyond retention
//! stays as the ground of the points after it, and with it the last good one always stays.

use std::time::Duration;

use jiff::Timestamp;

use crate::ids::CycleId;

/// A snapshot set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptSet {
    /// Its cycle.
    pub id: CycleId,
    /// When its last snapshot was taken, by the clock of storage. Never the host's: a host that lies about
    /// time must not be able to make good points old.
    pub taken: Timestamp,
    /// True if every snapshot of it is there.
    pub whole: bool,
}

/// What goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruning {
    /// Snapshot sets, oldest first.
    pub sets: Vec<CycleId>,
    /// Every cycle older than this one, with all its blobs.
    pub cycles_before: Option<CycleId>,
}

/// Decides from the sets that exist.
#[must_use]
pub fn prune(sets: &[KeptSet], applied: CycleId, retention: Duration, now: Timestamp) -> Pruning {
    let cutoff = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
    let ground = sets.iter().filter(|s| s.whole && s.taken <= cutoff).map(|s| s.id).max();
    let goes = |set: &KeptSet| set.taken <= cutoff && ground.is_some_and(|ground| set.id < ground);
    let mut gone: Vec<CycleId> = sets.iter().filter(|s| goes(s)).map(|s| s.id).collect();
    gone.sort_unstable();
    // The oldest set that stays needs no cycle before its own; its own holds the configuration of its point.
    let oldest = sets.iter().filter(|s| s.whole && !goes(s)).map(|s| s.id).min();
    Pruning { sets: gone, cycles_before: oldest.map(|id| id.min(applied)) }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{Cycle, Stream, Term};

    const DAY: Duration = Duration::from_secs(86400);

    fn id(cycle: u64) -> CycleId {
        CycleId { term: Term(1), stream: Stream(1), cycle: Cycle(cycle) }
    }

    fn now() -> Timestamp {
        "2026-01-10T00:00:00Z".parse().unwrap()
    }

    fn set(cycle: u64, hours_ago: i64) -> KeptSet {
        KeptSet { id: id(cycle), taken: now() - SignedDuration::from_hours(hours_ago), whole: true }
    }

    #[test]
    fn the_newest_set_beyond_retention_stays_as_ground() {
        let sets = [set(10, 40), set(20, 30), set(30, 20), set(40, 10)];
        let pruning = prune(&sets, id(45), DAY, now());
        assert_eq!(pruning, Pruning { sets: vec![id(10)], cycles_before: Some(id(20)) });
    }

    #[test]
    fn the_last_good_one_stays_however_old_it_is() {
        let mut sets = vec![set(10, 4000), set(20, 3000)];
        assert_eq!(prune(&sets, id(20), DAY, now()).sets, [id(10)]);
        // A set that lost a snapshot grounds nothing.
        sets[1].whole = false;
        let kept = prune(&sets, id(20), DAY, now());
        assert_eq!(kept, Pruning { sets: vec![], cycles_before: Some(id(10)) });
        assert_eq!(prune(&[], id(20), DAY, now()), Pruning::default());
    }

    proptest! {
        // Retention, restated: whatever point inside the retention could be rebuilt before can be afterwards.
        #[test]
        fn every_point_inside_retention_can_still_be_rebuilt(
            ages in vec((0_i64..100, any::<bool>()), 0..20), pick in 0_u64..200, hours in 1_u64..90
        ) {
            let mut ages = ages;
            ages.sort_by_key(|a| std::cmp::Reverse(a.0));
            let sets: Vec<KeptSet> = ages
                .iter()
                .enumerate()
                .map(|(i, &(age, whole))| KeptSet { whole, ..set(10 * (i as u64 + 1), age) })
                .collect();
            let applied = id(10 * sets.len() as u64);
            let retention = Duration::from_secs(3600 * hours);
            let pruning = prune(&sets, applied, retention, now());
            let newest_whole = sets.iter().filter(|s| s.whole).map(|s| s.id).max();
            if let Some(newest) = newest_whole {
                prop_assert!(!pruning.sets.contains(&newest), "the last good one");
            }
            if let Some(line) = pruning.cycles_before {
                prop_assert!(line <= applied);
            }
            // A cycle `pick` taken when the set at or after it was: is it inside the retention?
            let at_or_after = sets.iter().find(|s| s.id >= id(pick));
            let inside = at_or_after.is_none_or(|s| s.taken > now() - SignedDuration::try_from(retention).unwrap());
            let ground = |gone: &[CycleId]| {
                sets.iter().filter(|s| s.whole && s.id <= id(pick) && !gone.contains(&s.id)).map(|s| s.id).max()
            };
            if inside && let Some(before) = ground(&[]) {
                prop_assert_eq!(ground(&pruning.sets), Some(before), "its ground is gone");
                prop_assert!(pruning.cycles_before.is_none_or(|line| line <= before), "its cycles are gone");
            }
        }
    }
}
