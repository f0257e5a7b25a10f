//! When a cycle runs, how much one slice of initial replication copies, and what fits on the host's volume.
//!
//! Every function here is total: what was measured comes in, a decision comes out. The agent acts on it.

use std::time::Duration;

use jiff::Timestamp;

use crate::units::{GIB, MIB};

/// What the schedule says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing to do before `at`.
    Later {
        /// The tick.
        at: Timestamp,
    },
    /// A cycle is due.
    Now {
        /// The tick that it stands for, at most one interval ago.
        tick: Timestamp,
        /// Ticks that passed without a cycle (missed cycles).
        missed: u64,
    },
}

/// Is a cycle due? `next_tick` is the tick that has not been served yet.
///
/// Ticks keep their phase: a late cycle does not shift those after it. A tick that is overdue by whole
/// intervals stands for all of them: change tracking has merged what they would have carried.
#[must_use]
pub fn due(next_tick: Timestamp, interval: Duration, now: Timestamp) -> Due {
    let Ok(late) = Duration::try_from(now.duration_since(next_tick)) else {
        return Due::Later { at: next_tick };
    };
    let interval = interval.max(Duration::from_millis(1));
    let missed = u64::try_from(late.as_millis() / interval.as_millis().max(1)).unwrap_or(u64::MAX);
    let skipped = interval.saturating_mul(u32::try_from(missed).unwrap_or(u32::MAX));
    Due::Now { tick: next_tick.checked_add(skipped).unwrap_or(now), missed }
}

/// The tick after `tick`.
#[must_use]
pub fn next_tick(tick: Timestamp, interval: Duration) -> Timestamp {
    tick.checked_add(interval.max(Duration::from_millis(1))).unwrap_or(Timestamp::MAX)
}

/// The most commits that may wait to be verified: with the verified one that makes three reference points.
pub const MAX_UNVERIFIED: usize = 2;

/// May one more cycle begin? Each committed cycle holds a reference point until a newer one is verified,
/// and a VM has at most three of ours.
#[must_use]
pub const fn may_begin(unverified: usize) -> bool {
    unverified < MAX_UNVERIFIED
}

/// A slice of initial replication as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Age of its checkpoint.
    pub age: Duration,
    /// Bytes of disk that it has copied for the first time.
    pub copied: u64,
    /// What the checkpoint's differencing files take.
    pub avhdx_bytes: u64,
    /// Virtual size of all replicated disks.
    pub disk_bytes: u64,
    /// Free bytes on the fullest volume concerned.
    pub free: u64,
    /// Bytes on that volume that are never eaten into.
    pub reserve: u64,
    /// The goal has changed or replication is paused.
    pub asked: bool,
}

/// Why a slice ends before everything is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SliceEnd {
    /// The volume nears its reserve.
    Space,
    /// Paused, or another goal.
    Asked,
    /// Its differencing files exceed [`SLICE_AVHDX_PERCENT`] of the disks.
    Avhdx,
    /// Its checkpoint is older than `Timing::slice_age`.
    Age,
    /// It has copied [`SLICE_BYTES`].
    Bytes,
}

/// The most that one slice copies (FORMATS: Base cycles).
pub const SLICE_BYTES: u64 = 16 * GIB;
/// Differencing files of a slice stay below this part of the disks.
pub const SLICE_AVHDX_PERCENT: u64 = 10;
/// A slice copies at least this much, or a VM that writes fast would never be done.
pub const SLICE_MIN: u64 = 16 * MIB;

/// Must the slice end? Asked after every segment of new ranges.
///
/// Only space and a person end one that has not yet made [`SLICE_MIN`] of progress. A small disk is done
/// before that, so its slices are bounded by its own size.
#[must_use]
pub fn slice_ends(slice: &Slice, max_age: Duration) -> Option<SliceEnd> {
    if near_reserve(slice.free, slice.reserve) {
        return Some(SliceEnd::Space);
    }
    if slice.asked {
        return Some(SliceEnd::Asked);
    }
    let enough = slice.copied >= SLICE_MIN.min(slice.disk_bytes / 16);
    if enough && slice.avhdx_bytes > slice.disk_bytes / 100 * SLICE_AVHDX_PERCENT {
        return Some(SliceEnd::Avhdx);
    }
    if enough && slice.age >= max_age {
        return Some(SliceEnd::Age);
    }
    (slice.copied >= SLICE_BYTES).then_some(SliceEnd::Bytes)
}

/// What must be free above the reserve before a checkpoint is made, and below which a running one is let go
/// of: a fifth of it, since merging takes a while and the VM goes on writing.
#[must_use]
pub const fn margin(reserve: u64) -> u64 {
    reserve / 5
}

/// Is the volume so full that a running copy must let go of its checkpoint?
#[must_use]
pub const fn near_reserve(free: u64, reserve: u64) -> bool {
    free < reserve.saturating_add(margin(reserve))
}

/// The most that the least reserve takes of a large volume.
pub const LEAST_RESERVE: u64 = GIB;

/// What is never eaten into on a volume of `total` bytes: what the site asks for, at least a twentieth of a
/// small volume or [`LEAST_RESERVE`] of a large one.
#[must_use]
pub fn reserve(total: u64, asked: u64) -> u64 {
    (total / 20).min(LEAST_RESERVE).max(asked)
}

/// A volume would be eaten into its reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSpace {
    /// What is needed.
    pub need: u64,
    /// What is free.
    pub free: u64,
    /// What must stay free.
    pub reserve: u64,
}

/// Bytes that a log takes for `bytes` changed in `ranges` pieces: data, an entry per 2 MiB piece, a
/// metadata block per 127 entries, header and trailer.
#[must_use]
pub const fn log_bytes(bytes: u64, ranges: u64) -> u64 {
    let entries = ranges.saturating_add(bytes.div_ceil(2 * MIB));
    bytes.saturating_add(entries.div_ceil(127).saturating_mul(4096)).saturating_add(3 * 4096)
}

/// May `need` more bytes be written to a volume?
///
/// # Errors
/// [`NoSpace`] if that would leave less than the reserve. Nothing must be written then.
pub const fn fits(need: u64, free: u64, reserve: u64) -> Result<(), NoSpace> {
    if need.saturating_add(reserve) <= free { Ok(()) } else { Err(NoSpace { need, free, reserve }) }
}

/// Disk data of one segment: together with what is in flight it stays below 96 MiB.
#[must_use]
pub fn segment_bytes(parallelism: u32) -> u64 {
    let share = (96 * MIB / u64::from(parallelism.clamp(1, 32))).min(16 * MIB);
    share / MIB * MIB
}

/// Joins neighbouring ranges until at most `max` are left, the smallest gaps first. Costs bytes, never
/// correctness: the ranges are sent as they are on the disk. `ranges` are `(offset, length)`, sorted, apart.
#[must_use]
pub fn coarsen(ranges: &[(u64, u64)], max: usize) -> Vec<(u64, u64)> {
    let max = max.max(1);
    if ranges.len() <= max {
        return ranges.to_vec();
    }
    let gap = |pair: &[(u64, u64)]| match pair {
        [(offset, len), (next, _)] => next.saturating_sub(offset.saturating_add(*len)),
        _ => 0,
    };
    let mut gaps: Vec<u64> = ranges.windows(2).map(gap).collect();
    let mut joins = ranges.len() - max;
    let (below, limit, _) = gaps.select_nth_unstable(joins - 1);
    let limit = *limit;
    // Gaps as large as the limit are closed only as far as needed, those below it all.
    joins -= below.iter().filter(|gap| **gap < limit).count();
    let mut out: Vec<(u64, u64)> = Vec::with_capacity(max);
    for &(offset, len) in ranges {
        if let Some(last) = out.last_mut() {
            let gap = offset.saturating_sub(last.0.saturating_add(last.1));
            if gap < limit || (gap == limit && joins > 0) {
                joins -= usize::from(gap == limit);
                last.1 = offset.saturating_add(len).saturating_sub(last.0);
                continue;
            }
        }
        out.push((offset, len));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    // R7.1
    #[test]
    fn ticks_keep_their_phase_and_late_ones_count_as_missed() {
        assert_eq!(due(at(100), MINUTE, at(99)), Due::Later { at: at(100) });
        assert_eq!(due(at(100), MINUTE, at(100)), Due::Now { tick: at(100), missed: 0 });
        assert_eq!(due(at(100), MINUTE, at(159)), Due::Now { tick: at(100), missed: 0 });
        assert_eq!(due(at(100), MINUTE, at(160)), Due::Now { tick: at(160), missed: 1 });
        assert_eq!(due(at(100), MINUTE, at(425)), Due::Now { tick: at(400), missed: 5 });
        assert_eq!(next_tick(at(400), MINUTE), at(460));
        assert!(matches!(due(Timestamp::MIN, Duration::ZERO, at(0)), Due::Now { .. }));
    }

    #[test]
    fn at_most_two_commits_wait_to_be_verified() {
        assert!(may_begin(0) && may_begin(1));
        assert!(!may_begin(2) && !may_begin(3));
    }

    fn slice() -> Slice {
        Slice {
            age: MINUTE,
            copied: GIB,
            avhdx_bytes: 0,
            disk_bytes: 100 * GIB,
            free: 500 * GIB,
            reserve: 10 * GIB,
            asked: false,
        }
    }

    // R5.3
    #[test]
    fn a_slice_ends_by_space_wish_differencing_files_age_and_bytes() {
        let age = Duration::from_secs(4 * 3600);
        for (name, given, want) in [
            ("young and small", slice(), None),
            ("whole slice", Slice { copied: 16 * GIB, ..slice() }, Some(SliceEnd::Bytes)),
            ("old", Slice { age, ..slice() }, Some(SliceEnd::Age)),
            ("AVHDX over a tenth", Slice { avhdx_bytes: 11 * GIB, ..slice() }, Some(SliceEnd::Avhdx)),
            ("AVHDX but no progress", Slice { avhdx_bytes: 11 * GIB, copied: 0, ..slice() }, None),
            ("old but no progress", Slice { age, copied: MIB, ..slice() }, None),
            (
                "space, even without progress",
                Slice { free: 11 * GIB, copied: 0, ..slice() },
                Some(SliceEnd::Space),
            ),
            ("asked", Slice { asked: true, copied: 0, ..slice() }, Some(SliceEnd::Asked)),
        ] {
            assert_eq!(slice_ends(&given, age), want, "{name}");
        }
    }

    #[test]
    fn slices_of_a_tiny_disk_make_progress_by_its_own_measure() {
        let tiny = Slice { disk_bytes: 8 * MIB, copied: MIB, avhdx_bytes: 2 * MIB, ..slice() };
        assert_eq!(slice_ends(&tiny, MINUTE * 2), Some(SliceEnd::Avhdx));
        assert_eq!(slice_ends(&Slice { copied: 0, ..tiny }, MINUTE * 2), None);
    }

    // R9.2
    #[test]
    fn the_reserve_of_a_volume_is_never_planned_for() {
        assert_eq!(reserve(10 * GIB, 0), GIB / 2);
        assert_eq!(reserve(64 << 40, 0), LEAST_RESERVE);
        assert_eq!(reserve(100 * GIB, 7 * GIB), 7 * GIB);
        // Where a cycle may begin, its slice does not end at once.
        let reserve = 10 * GIB;
        for free in [reserve, reserve + margin(reserve) - 1, reserve + margin(reserve), 2 * reserve] {
            assert_eq!(fits(margin(reserve), free, reserve).is_err(), near_reserve(free, reserve), "{free}");
        }
        assert_eq!(fits(5 * GIB, 10 * GIB, 5 * GIB), Ok(()));
        let refused = NoSpace { need: 5 * GIB + 1, free: 10 * GIB, reserve: 5 * GIB };
        assert_eq!(fits(5 * GIB + 1, 10 * GIB, 5 * GIB), Err(refused));
        assert!(fits(u64::MAX, 10, u64::MAX).is_err());
        assert!(log_bytes(10 * MIB, 1000) > 10 * MIB + 8 * 4096);
    }

    #[test]
    fn segments_in_flight_stay_within_their_budget_whatever_the_parallelism() {
        assert_eq!(segment_bytes(4), 16 * MIB);
        for parallelism in 1..=32 {
            let all = segment_bytes(parallelism) * u64::from(parallelism);
            assert!(all <= 96 * MIB && segment_bytes(parallelism) >= 3 * MIB, "{parallelism}");
        }
        assert_eq!((segment_bytes(0), segment_bytes(99)), (16 * MIB, 3 * MIB));
    }

    #[test]
    fn the_smallest_gaps_are_closed_first() {
        let ranges = [(0, 10), (12, 8), (100, 10), (115, 5), (300, 1)];
        assert_eq!(coarsen(&ranges, 5), ranges);
        assert_eq!(coarsen(&ranges, 4), [(0, 20), (100, 10), (115, 5), (300, 1)]);
        assert_eq!(coarsen(&ranges, 3), [(0, 20), (100, 20), (300, 1)]);
        assert_eq!(coarsen(&ranges, 1), [(0, 301)]);
        assert_eq!(coarsen(&[], 0), []);
    }

    proptest! {
        #[test]
        fn coarser_ranges_are_few_enough_and_cover_the_finer_ones(
            steps in proptest::collection::vec((1_u64..50, 1_u64..50), 0..300),
            max in 1_usize..50,
        ) {
            let mut at = 0;
            let ranges: Vec<(u64, u64)> = steps.iter().map(|(gap, len)| {
                let offset = at + gap;
                at = offset + len;
                (offset, *len)
            }).collect();
            let coarse = coarsen(&ranges, max);
            prop_assert!(coarse.len() <= max);
            prop_assert!(coarse.windows(2).all(|p| p[0].0 + p[0].1 < p[1].0));
            for (offset, len) in &ranges {
                prop_assert!(coarse.iter().any(|(o, l)| o <= offset && offset + len <= o + l));
            }
            if ranges.len() > max {
                prop_assert_eq!(coarse.len(), max);
            }
        }
    }
}
