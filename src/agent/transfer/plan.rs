//! What is to be read from which disk, and its cut into jobs of one segment each.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farshore_core::ids::DiskId;
use tokio::sync::oneshot;

use super::source::Source;
use crate::journal::Part;

/// One part of one disk.
#[derive(Clone)]
pub struct DiskPlan {
    /// Which disk.
    pub disk: DiskId,
    /// Which part of it.
    pub part: Part,
    /// Where its bytes come from.
    pub source: Arc<dyn Source>,
    /// `(offset, length)`, ascending, apart or touching.
    pub ranges: Vec<(u64, u64)>,
    /// The part is done up to here when the last range is.
    pub end: u64,
}

impl fmt::Debug for DiskPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskPlan({}, {:?}, {} ranges up to {})", self.disk, self.part, self.ranges.len(), self.end)
    }
}

/// All parts of a cycle, in order.
#[derive(Debug, Default)]
pub struct Plan {
    /// Parts, each begun when the one before is cut.
    pub parts: Vec<DiskPlan>,
    /// Segments that each disk has already.
    pub segments: BTreeMap<DiskId, u32>,
    /// Once true, nothing more is copied for the first time; changes are always sent in full.
    pub stop: Arc<AtomicBool>,
}

/// The most ranges of one job: bounds its entry in the list whatever the disk looks like.
const MAX_JOB_RANGES: usize = 16_384;

/// One segment's worth of reading.
pub(super) struct Job {
    pub(super) disk: DiskId,
    pub(super) part: Part,
    pub(super) source: Arc<dyn Source>,
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) up_to: u64,
    /// Zeros need not be sent: the replica holds none but zeros there.
    pub(super) skip_zero: bool,
    /// How many segments of the disk come before.
    pub(super) before: oneshot::Receiver<u32>,
    /// Told to the next job.
    pub(super) after: oneshot::Sender<u32>,
}

/// Cuts a plan.
pub(super) struct Jobs {
    parts: VecDeque<DiskPlan>,
    /// Range of the first part that is next, and how much of it is done.
    at: (usize, u64),
    rows: BTreeMap<DiskId, oneshot::Receiver<u32>>,
    segments: BTreeMap<DiskId, u32>,
    stop: Arc<AtomicBool>,
    segment_bytes: u64,
}

impl Plan {
    pub(super) fn jobs(self, segment_bytes: u64) -> Jobs {
        Jobs {
            parts: self.parts.into(),
            at: (0, 0),
            rows: BTreeMap::new(),
            segments: self.segments,
            stop: self.stop,
            segment_bytes,
        }
    }
}

impl Jobs {
    /// The next job; `None` at the end, or when it is time to stop.
    pub(super) fn next(&mut self) -> Option<Job> {
        let (part, ranges, up_to) = loop {
            let part = self.parts.front()?;
            if part.part == Part::Copy && self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let (ranges, at) = cut(&part.ranges, self.at, self.segment_bytes);
            let Some((offset, len)) = ranges.last().copied() else {
                self.parts.pop_front();
                self.at = (0, 0);
                continue;
            };
            self.at = at;
            let up_to = if at.0 >= part.ranges.len() { part.end } else { offset + len };
            break (part.clone_head(), ranges, up_to);
        };
        let (after, next) = oneshot::channel();
        let before = self.rows.insert(part.disk, next).unwrap_or_else(|| {
            let (first, before) = oneshot::channel();
            let _ = first.send(self.segments.get(&part.disk).copied().unwrap_or(0));
            before
        });
        let skip_zero = part.part == Part::Copy;
        Some(Job {
            disk: part.disk,
            part: part.part,
            source: part.source,
            ranges,
            up_to,
            skip_zero,
            before,
            after,
        })
    }
}

/// A part without its ranges.
struct Head {
    disk: DiskId,
    part: Part,
    source: Arc<dyn Source>,
}

impl DiskPlan {
    fn clone_head(&self) -> Head {
        Head { disk: self.disk, part: self.part, source: Arc::clone(&self.source) }
    }
}

/// The next ranges of at most `max` bytes from position `at` on, and the position after them.
fn cut(ranges: &[(u64, u64)], at: (usize, u64), max: u64) -> (Vec<(u64, u64)>, (usize, u64)) {
    let (mut out, mut room) = (Vec::new(), max.max(512));
    let (mut index, mut done) = at;
    while let Some(&(offset, len)) = ranges.get(index) {
        if room == 0 || out.len() >= MAX_JOB_RANGES {
            break;
        }
        let take = (len - done).min(room);
        if take > 0 {
            out.push((offset + done, take));
            room -= take;
        }
        (index, done) = if done + take == len { (index + 1, 0) } else { (index, done + take) };
    }
    (out, (index, done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_size_of_a_segment_and_nothing_is_lost() {
        let ranges = [(0, 100), (200, 50), (300, 1000)].map(|(o, l)| (o * 512, l * 512));
        let (mut at, mut all, mut jobs) = ((0, 0), vec![], 0);
        loop {
            let (some, next) = cut(&ranges, at, 120 * 512);
            if some.is_empty() {
                break;
            }
            assert!(some.iter().map(|r| r.1).sum::<u64>() <= 120 * 512);
            all.extend(some);
            (at, jobs) = (next, jobs + 1);
        }
        assert_eq!(jobs, 10);
        let mut joined: Vec<(u64, u64)> = vec![];
        for (offset, len) in all {
            match joined.last_mut() {
                Some(last) if last.0 + last.1 == offset => last.1 += len,
                _ => joined.push((offset, len)),
            }
        }
        assert_eq!(joined, ranges);
    }
}
