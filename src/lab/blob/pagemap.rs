//! Which pages of a blob hold data, where in the file, and since which generation.
//!
//! A generation is what lies between two snapshots. A page written in the current generation may be
//! overwritten in place; an older one belongs to a snapshot and gets a new place. Comparing
//! generations gives true differences between snapshots.

use std::{collections::BTreeMap, ops::Range};

/// One run of pages with the same history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) end: u64,
    /// Where it lies in the data file; `None`: cleared.
    pub(super) place: Option<u64>,
    /// When it was last written or cleared.
    pub(super) generation: u64,
}

/// Segments by their start, without overlaps; pages never touched are in none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PageMap(BTreeMap<u64, Segment>);

impl PageMap {
    /// Segments within a range, cut to it.
    pub(super) fn within(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Segment)> + '_ {
        let first = self.0.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        self.0.range(first..range.end.max(first)).filter_map(move |(start, segment)| {
            let (from, end) = ((*start).max(range.start), segment.end.min(range.end));
            let place = segment.place.map(|place| place + (from - start));
            (from < end).then_some((from, Segment { end, place, ..*segment }))
        })
    }

    /// All of them.
    pub(super) fn segments(&self) -> impl Iterator<Item = (u64, Segment)> + '_ {
        self.0.iter().map(|(start, segment)| (*start, *segment))
    }

    /// Sets the state of a range.
    pub(super) fn set(&mut self, range: Range<u64>, place: Option<u64>, generation: u64) {
        if range.is_empty() {
            return;
        }
        self.carve(&range);
        let mut start = range.start;
        let segment = Segment { end: range.end, place, generation };
        if let Some((before, found)) = self.0.range(..start).next_back() {
            let joined = found.end == start
                && found.generation == generation
                && found.place.map(|p| p + (start - before)) == place;
            if joined {
                start = *before;
            }
        }
        let place = match self.0.get(&start) {
            Some(found) => found.place,
            None => segment.place,
        };
        self.0.insert(start, Segment { place, ..segment });
    }

    /// Forgets all from `len` on.
    pub(super) fn truncate(&mut self, len: u64) {
        self.carve(&(len..u64::MAX));
    }

    /// Removes what lies in a range, keeping what sticks out.
    fn carve(&mut self, range: &Range<u64>) {
        let first = self.0.range(..range.start).next_back().map_or(range.start, |(start, _)| *start);
        let hit: Vec<(u64, Segment)> = self
            .0
            .range(first..range.end)
            .filter(|(_, segment)| segment.end > range.start)
            .map(|(start, segment)| (*start, *segment))
            .collect();
        for (start, segment) in hit {
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, Segment { end: range.start, ..segment });
            }
            if segment.end > range.end {
                let place = segment.place.map(|place| place + (range.end - start));
                self.0.insert(range.end, Segment { place, ..segment });
            }
        }
    }

    /// Ranges that hold data, joined.
    pub(super) fn present(&self) -> Vec<Range<u64>> {
        joined(self.segments().filter(|(_, s)| s.place.is_some()).map(|(start, s)| start..s.end))
    }

    /// What was written and what was cleared since `older`, whose generation was `generation`.
    pub(super) fn since(&self, older: &PageMap, generation: u64) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
        let newer = || self.segments().filter(|(_, s)| s.generation > generation);
        let written = joined(newer().filter(|(_, s)| s.place.is_some()).map(|(start, s)| start..s.end));
        let cleared = newer().filter(|(_, s)| s.place.is_none()).flat_map(|(start, s)| {
            older.within(start..s.end).filter(|(_, s)| s.place.is_some()).map(|(start, s)| start..s.end)
        });
        (written, joined(cleared))
    }
}

/// Joins ranges that touch; they come sorted.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]
    fn differences_are_what_was_written_and_cleared_between_two_snapshots() {
        let mut map = PageMap::default();
        map.set(0..4096, Some(0), 0);
        let first = map.clone();
        map.set(512..1024, Some(9000), 1);
        map.set(2048..3072, None, 1);
        map.set(8192..8704, None, 1);
        assert_eq!(map.since(&first, 0), (vec![512..1024], vec![2048..3072]));
        let second = map.clone();
        map.set(0..512, Some(20000), 2);
        assert_eq!(map.since(&second, 1), (vec![0..512], vec![]));
        assert_eq!(map.since(&first, 0), (vec![0..1024], vec![2048..3072]));
        assert_eq!(map.present(), [0..2048, 3072..4096]);
        map.truncate(1000);
        assert_eq!(map.present(), [0..1000]);
    }

    #[test]
    fn a_map_is_like_an_array_of_pages() {
        const PAGES: usize = 40;
        for seed in 0..300 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut map = PageMap::default();
            let mut model: [Option<(Option<u64>, u64)>; PAGES] = [None; PAGES];
            for step in 0..60_u64 {
                let start = random.random_range(0..PAGES);
                let end = random.random_range(start + 1..=PAGES);
                let place = random.random_bool(0.7).then(|| random.random_range(0..100) * 1000);
                let generation = step / 20;
                map.set(start as u64..end as u64, place, generation);
                for (page, slot) in model.iter_mut().enumerate().take(end).skip(start) {
                    *slot = Some((place.map(|p| p + (page - start) as u64), generation));
                }
                for (page, want) in model.iter().enumerate() {
                    let page = page as u64;
                    let got = map.within(page..page + 1).next().map(|(_, s)| (s.place, s.generation));
                    assert_eq!(got, *want, "seed {seed} step {step} page {page}");
                }
            }
        }
    }
}
