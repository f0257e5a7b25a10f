//! Which bytes of which segment win when several cycles are merged: for each byte the newest one.

use std::collections::BinaryHeap;

/// A range of a disk and the source that wins there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// Index of the source, as handed in: a higher one is newer.
    pub source: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes, never 0.
    pub len: u64,
}

impl Piece {
    /// First byte after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// The winners of one disk, by source: 24 bytes for each piece, whatever the disk's size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangePlan {
    pieces: Vec<Piece>,
}

impl RangePlan {
    /// What wins of one source, in ascending order; empty if it is overwritten wholly.
    #[must_use]
    pub fn of(&self, source: u32) -> &[Piece] {
        let from = self.pieces.partition_point(|p| p.source < source);
        let to = self.pieces.partition_point(|p| p.source <= source);
        self.pieces.get(from..to).unwrap_or_default()
    }

    /// The sources that are needed at all, ascending.
    pub fn sources(&self) -> impl Iterator<Item = u32> + '_ {
        self.pieces.chunk_by(|a, b| a.source == b.source).filter_map(|c| c.first()).map(|p| p.source)
    }

    /// Bytes that will be written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|p| p.len).sum()
    }
}

/// Plans one disk. `ranges` are (source, offset, length) in any order and may overlap, also inside one
/// source; a higher source is newer. Empty ranges and ends beyond 64 bits are cut.
///
/// A sweep over all starts with a heap of the ranges that cover the current byte, newest on top.
#[must_use]
pub fn newest_wins(ranges: impl IntoIterator<Item = (u32, u64, u64)>) -> RangePlan {
    let mut starts: Vec<Piece> = ranges
        .into_iter()
        .map(|(source, offset, len)| Piece { source, offset, len: len.min(u64::MAX - offset) })
        .filter(|p| p.len > 0)
        .collect();
    starts.sort_unstable_by_key(|p| p.offset);

    let mut pieces: Vec<Piece> = Vec::with_capacity(starts.len());
    let mut covering: BinaryHeap<(u32, u64)> = BinaryHeap::new();
    let mut coming = starts.iter().peekable();
    let mut at = 0_u64;
    loop {
        while coming.peek().is_some_and(|p| p.offset <= at) {
            covering.extend(coming.next().map(|p| (p.source, p.end())));
        }
        while covering.peek().is_some_and(|&(_, end)| end <= at) {
            covering.pop();
        }
        let next = coming.peek().map(|p| p.offset);
        match (covering.peek(), next) {
            (None, None) => break,
            (None, Some(start)) => at = start,
            (Some(&(source, end)), next) => {
                let stop = next.map_or(end, |start| start.min(end));
                match pieces.last_mut() {
                    Some(last) if last.source == source && last.end() == at => last.len += stop - at,
                    _ => pieces.push(Piece { source, offset: at, len: stop - at }),
                }
                at = stop;
            }
        }
    }
    drop(starts);
    pieces.sort_unstable();
    pieces.shrink_to_fit();
    RangePlan { pieces }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_written_ten_times_comes_from_the_last_only() {
        let plan = newest_wins((0..10).map(|source| (source, 4096, 512)));
        assert_eq!(plan.sources().collect::<Vec<_>>(), [9]);
        assert_eq!(plan.of(9), [Piece { source: 9, offset: 4096, len: 512 }]);
        assert_eq!(plan.of(3), []);
    }

    #[test]
    fn a_newer_range_cuts_an_older_one_in_two() {
        let plan = newest_wins([(0, 0, 3000), (1, 1000, 1000)]);
        let piece = |source, offset, len| Piece { source, offset, len };
        assert_eq!(plan.of(0), [piece(0, 0, 1000), piece(0, 2000, 1000)]);
        assert_eq!(plan.of(1), [piece(1, 1000, 1000)]);
        assert_eq!(plan.bytes(), 3000);
    }

    #[test]
    fn ends_beyond_64_bits_are_cut() {
        assert_eq!(newest_wins([(0, u64::MAX - 5, 10), (1, u64::MAX, 1)]).bytes(), 5);
    }

    proptest! {
        // Against painting one byte after the other.
        #[test]
        fn each_byte_comes_from_the_newest_source_that_has_it(
            ranges in vec((0_u32..12, 0_u64..200, 0_u64..60), 0..60)
        ) {
            let mut painted = [None; 300];
            let mut by_age = ranges.clone();
            by_age.sort_by_key(|r| r.0);
            for (source, offset, len) in by_age {
                painted[offset as usize..(offset + len) as usize].fill(Some(source));
            }
            let plan = newest_wins(ranges);
            let mut planned = [None; 300];
            for source in plan.sources() {
                let pieces = plan.of(source);
                prop_assert!(pieces.windows(2).all(|w| w[0].end() < w[1].offset), "sorted and apart");
                for piece in pieces {
                    for at in piece.offset..piece.end() {
                        prop_assert_eq!(planned[at as usize].replace(source), None, "twice at {}", at);
                    }
                }
            }
            prop_assert_eq!(planned, painted);
        }
    }
}
