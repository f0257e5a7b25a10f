//! Sets of byte ranges of a disk: what is allocated, what has changed, what a segment covers.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A range of bytes of a disk; never empty inside an [`Extents`]. `offset + len` fits u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Extent {
    /// A range from `offset`, `len` bytes long; cut at the end of the u64 range.
    pub fn new(offset: u64, len: u64) -> Self {
        Self { offset, len: len.min(u64::MAX - offset) }
    }

    /// First byte after the range.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    fn between(start: u64, end: u64) -> Self {
        Self { offset: start, len: end.saturating_sub(start) }
    }
}

impl Serialize for Extent {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (self.offset, self.len).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (offset, len) = <(u64, u64)>::deserialize(d)?;
        if offset.checked_add(len).is_none() {
            return Err(D::Error::custom(format!("extent at {offset} of {len} bytes does not fit 64 bits")));
        }
        Ok(Self { offset, len })
    }
}

/// Sorted, non-overlapping, merged ranges: touching ranges are one. Written as `[[offset, len], ...]`; reading
/// accepts any order and merges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Extents {
    list: Vec<Extent>,
}

impl<'de> Deserialize<'de> for Extents {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Vec::<Extent>::deserialize(d)?.into_iter().collect())
    }
}

impl FromIterator<Extent> for Extents {
    fn from_iter<I: IntoIterator<Item = Extent>>(iter: I) -> Self {
        let mut list: Vec<Extent> = iter.into_iter().filter(|e| e.len > 0).collect();
        list.sort_unstable();
        let mut set = Self { list: Vec::with_capacity(list.len()) };
        for e in list {
            set.push(e);
        }
        set
    }
}

impl Extend<Extent> for Extents {
    fn extend<I: IntoIterator<Item = Extent>>(&mut self, iter: I) {
        *self = self.union(&iter.into_iter().collect());
    }
}

impl<'a> IntoIterator for &'a Extents {
    type Item = Extent;
    type IntoIter = std::iter::Copied<std::slice::Iter<'a, Extent>>;
    fn into_iter(self) -> Self::IntoIter {
        self.list.iter().copied()
    }
}

impl Extents {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// One range.
    pub fn one(offset: u64, len: u64) -> Self {
        std::iter::once(Extent::new(offset, len)).collect()
    }

    /// Ranges in ascending order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Extent> + DoubleEndedIterator + '_ {
        self.list.iter().copied()
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True when no byte is covered.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes covered.
    pub fn total(&self) -> u64 {
        self.list.iter().map(|e| e.len).sum()
    }

    /// First byte after the last range; 0 when empty.
    pub fn end(&self) -> u64 {
        self.list.last().map_or(0, Extent::end)
    }

    /// Adds a range. Appending at the end is cheap, elsewhere it costs a move of the tail.
    pub fn insert(&mut self, offset: u64, len: u64) {
        let new = Extent::new(offset, len);
        if new.len == 0 {
            return;
        }
        if self.list.last().is_none_or(|last| last.offset <= new.offset) {
            return self.push(new);
        }
        let from = self.list.partition_point(|e| e.end() < new.offset);
        let to = self.list.partition_point(|e| e.offset <= new.end());
        let (mut start, mut end) = (new.offset, new.end());
        for e in self.list.get(from..to).unwrap_or_default() {
            start = start.min(e.offset);
            end = end.max(e.end());
        }
        self.list.splice(from..to, [Extent::between(start, end)]);
    }

    /// Appends a non-empty range that begins no earlier than the last one does.
    fn push(&mut self, e: Extent) {
        match self.list.last_mut() {
            Some(last) if e.offset <= last.end() => last.len = last.end().max(e.end()) - last.offset,
            _ => self.list.push(e),
        }
    }

    /// Bytes in either.
    pub fn union(&self, other: &Self) -> Self {
        let mut out = Self { list: Vec::with_capacity(self.len() + other.len()) };
        let (mut a, mut b) = (self.list.iter().peekable(), other.list.iter().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if y.offset < x.offset => b.next(),
                (Some(_), _) => a.next(),
                (None, _) => b.next(),
            };
            match next {
                Some(e) => out.push(*e),
                None => return out,
            }
        }
    }

    /// Bytes in both.
    pub fn intersect(&self, other: &Self) -> Self {
        let mut out = Self::default();
        let (mut a, mut b) = (self.list.iter().peekable(), other.list.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let both = Extent::between(x.offset.max(y.offset), x.end().min(y.end()));
            if both.len > 0 {
                out.push(both);
            }
            if x.end() <= y.end() {
                a.next()
            } else {
                b.next()
            };
        }
        out
    }

    /// Bytes of this set that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        let mut out = Self::default();
        let mut holes = other.list.iter().peekable();
        for e in &self.list {
            let mut at = e.offset;
            while let Some(hole) = holes.peek() {
                if hole.end() <= at {
                    holes.next();
                    continue;
                }
                if hole.offset >= e.end() {
                    break;
                }
                if hole.offset > at {
                    out.push(Extent::between(at, hole.offset));
                }
                at = hole.end().min(e.end());
                if at == e.end() {
                    break;
                }
            }
            if at < e.end() {
                out.push(Extent::between(at, e.end()));
            }
        }
        out
    }

    /// What lies below `size`: ranges of a disk cut at its end.
    pub fn clip(&self, size: u64) -> Self {
        self.intersect(&Self::one(0, size))
    }

    /// True when the byte at `offset` is covered.
    pub fn contains(&self, offset: u64) -> bool {
        self.find(offset).is_some()
    }

    /// True when every byte of the range is covered.
    pub fn contains_range(&self, offset: u64, len: u64) -> bool {
        len == 0
            || self.find(offset).is_some_and(|e| offset.checked_add(len).is_some_and(|end| end <= e.end()))
    }

    fn find(&self, offset: u64) -> Option<&Extent> {
        let after = self.list.partition_point(|e| e.offset <= offset);
        after.checked_sub(1).and_then(|i| self.list.get(i)).filter(|e| offset < e.end())
    }

    /// The same set with every range widened to multiples of `granularity` (0 and 1 change nothing).
    pub fn align_out(&self, granularity: u64) -> Self {
        let g = granularity.max(1);
        let up = |n: u64| n.checked_next_multiple_of(g).unwrap_or(u64::MAX);
        let mut out = Self { list: Vec::with_capacity(self.len()) };
        for e in &self.list {
            out.push(Extent::between(e.offset - e.offset % g, up(e.end())));
        }
        out
    }

    /// The ranges cut into pieces of at most `max` bytes, ascending. Every piece but the last of a range is `max` long.
    pub fn split(&self, max: u64) -> impl Iterator<Item = Extent> + '_ {
        let max = max.max(1);
        self.list.iter().flat_map(move |e| {
            (0..e.len.div_ceil(max))
                .map(move |i| Extent { offset: e.offset + i * max, len: max.min(e.len - i * max) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const N: u64 = 64;

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0..N, 0..12u64), 0..12)
    }

    fn set(ranges: &[(u64, u64)]) -> Extents {
        ranges.iter().map(|(o, l)| Extent::new(*o, *l)).collect()
    }

    /// The same as a list of bytes covered or not.
    fn bits(set: &Extents) -> Vec<bool> {
        let mut bits = vec![false; 3 * N as usize];
        for e in set {
            assert!(e.len > 0);
            bits[e.offset as usize..e.end() as usize].fill(true);
        }
        for (a, b) in set.iter().zip(set.iter().skip(1)) {
            assert!(a.end() < b.offset, "sorted, apart, merged: {set:?}");
        }
        bits
    }

    fn both(a: &Extents, b: &Extents, op: impl Fn(bool, bool) -> bool) -> Vec<bool> {
        bits(a).into_iter().zip(bits(b)).map(|(a, b)| op(a, b)).collect()
    }

    proptest! {
        #[test]
        fn operations_agree_with_bits((a, b) in (ranges(), ranges()), at in 0..3 * N, len in 0..N, g in 1..9u64) {
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(bits(&x.union(&y)), both(&x, &y, |a, b| a || b));
            prop_assert_eq!(bits(&x.intersect(&y)), both(&x, &y, |a, b| a && b));
            prop_assert_eq!(bits(&x.subtract(&y)), both(&x, &y, |a, b| a && !b));
            prop_assert_eq!(bits(&x.clip(at)), both(&x, &Extents::one(0, at), |a, b| a && b));
            let model = bits(&x);
            prop_assert_eq!(x.total(), model.iter().filter(|b| **b).count() as u64);
            prop_assert_eq!(x.end(), model.iter().rposition(|b| *b).map_or(0, |i| i as u64 + 1));
            prop_assert_eq!(x.contains(at), model[at as usize]);
            let end = (at + len).min(3 * N);
            prop_assert_eq!(x.contains_range(at, end - at), model[at as usize..end as usize].iter().all(|b| *b));
            // Aligned out: a cell is covered when any byte of it was.
            let aligned = bits(&x.align_out(g).clip(3 * N));
            for (cell, wide) in model.chunks(g as usize).zip(aligned.chunks(g as usize)) {
                prop_assert!(wide.iter().all(|b| *b == cell.contains(&true)));
            }
            let pieces: Vec<Extent> = x.split(g).collect();
            prop_assert!(pieces.iter().all(|p| p.len > 0 && p.len <= g));
            prop_assert_eq!(&pieces.into_iter().collect::<Extents>(), &x);
        }

        #[test]
        fn inserting_in_any_order_gives_the_same_set(a in ranges()) {
            let (mut one, mut back) = (Extents::new(), Extents::new());
            a.iter().for_each(|(o, l)| one.insert(*o, *l));
            a.iter().rev().for_each(|(o, l)| back.insert(*o, *l));
            prop_assert_eq!(&one, &set(&a));
            prop_assert_eq!(&back, &set(&a));
            bits(&one);
            let json = serde_json::to_string(&one).unwrap();
            prop_assert_eq!(serde_json::from_str::<Extents>(&json).unwrap(), one);
        }
    }

    #[test]
    fn json_is_a_list_of_pairs_and_reading_it_merges_and_checks() {
        assert_eq!(serde_json::to_string(&set(&[(8, 4), (0, 4)])).unwrap(), "[[0,4],[8,4]]");
        assert_eq!(serde_json::from_str::<Extents>("[[8,4],[0,8],[3,0]]").unwrap(), Extents::one(0, 12));
        assert!(serde_json::from_str::<Extents>("[[18446744073709551615,1]]").is_err());
    }

    #[test]
    fn ranges_at_the_end_of_the_numbers_do_not_overflow() {
        let all = Extents::one(u64::MAX - 10, 100);
        assert_eq!((all.end(), all.total()), (u64::MAX, 10));
        assert_eq!(all.align_out(4096).end(), u64::MAX);
        assert!(!all.contains_range(u64::MAX - 5, 10));
        assert_eq!(all.split(3).count(), 4);
    }
}
