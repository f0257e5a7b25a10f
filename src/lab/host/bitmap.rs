//! Which 4 KiB blocks of a disk were written: one bit each, in chunks that exist only where a bit is set.

use std::collections::BTreeMap;
use std::io;

/// Bytes that one bit stands for. Real RCT's granularity is undocumented; consumers must not rely on it.
pub(super) const BLOCK: u64 = 4096;
const WORDS: usize = 512;
/// Bytes that one chunk stands for: 128 MiB.
const CHUNK: u64 = BLOCK * 64 * WORDS as u64;

/// A set of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bitmap {
    chunks: BTreeMap<u64, Box<[u64; WORDS]>>,
}

impl Bitmap {
    /// Marks every block that the range touches.
    pub(super) fn set(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = offset.saturating_add(len - 1) / BLOCK;
        let mut block = offset / BLOCK;
        let per_chunk = CHUNK / BLOCK;
        while block <= last {
            let chunk = self.chunks.entry(block / per_chunk).or_insert_with(|| Box::new([0; WORDS]));
            let end = last.min(block / per_chunk * per_chunk + per_chunk - 1);
            while block <= end {
                let (word, first) = ((block % per_chunk) / 64, block % 64);
                let bits = (64 - first).min(end - block + 1);
                let mask = (u64::MAX >> (64 - bits)) << first;
                if let Some(word) = usize::try_from(word).ok().and_then(|w| chunk.get_mut(w)) {
                    *word |= mask;
                }
                block += bits;
            }
        }
    }

    /// Adds every block of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        for (index, from) in &other.chunks {
            let into = self.chunks.entry(*index).or_insert_with(|| Box::new([0; WORDS]));
            for (a, b) in into.iter_mut().zip(from.iter()) {
                *a |= b;
            }
        }
    }

    /// Bytes that the blocks stand for.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.values().flat_map(|c| c.iter()).map(|w| u64::from(w.count_ones()) * BLOCK).sum()
    }

    /// Ranges of marked blocks from `from` on, ascending: offset and length, not merged across words.
    pub(super) fn ranges_from(&self, from: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.chunks
            .range(from / CHUNK..)
            .flat_map(move |(index, chunk)| {
                let base = index * CHUNK;
                chunk.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(move |(w, word)| {
                    let base = base + w as u64 * 64 * BLOCK;
                    runs(*word).map(move |(bit, n)| (base + bit * BLOCK, n * BLOCK))
                })
            })
            .filter(move |(offset, len)| offset + len > from)
    }

    /// Appends `u64 chunks`, then per chunk `u64 index` and its words, little-endian.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.chunks.len() as u64).to_le_bytes());
        for (index, chunk) in &self.chunks {
            out.extend(index.to_le_bytes());
            chunk.iter().for_each(|word| out.extend(word.to_le_bytes()));
        }
    }

    /// Reads what [`Self::encode`] wrote, from the front of `input`.
    pub(super) fn decode(input: &mut &[u8]) -> io::Result<Self> {
        let mut chunks = BTreeMap::new();
        for _ in 0..take_u64(input)? {
            let index = take_u64(input)?;
            let mut words = Box::new([0; WORDS]);
            for word in words.iter_mut() {
                *word = take_u64(input)?;
            }
            chunks.insert(index, words);
        }
        Ok(Self { chunks })
    }
}

fn take_u64(input: &mut &[u8]) -> io::Result<u64> {
    let (head, rest) = input.split_first_chunk::<8>().ok_or(io::ErrorKind::UnexpectedEof)?;
    *input = rest;
    Ok(u64::from_le_bytes(*head))
}

/// Runs of set bits: first bit and count.
fn runs(word: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = if at < 64 { word >> at } else { 0 };
        if rest == 0 {
            return None;
        }
        let first = at + rest.trailing_zeros();
        let n = (word >> first).trailing_ones();
        at = first + n;
        Some((u64::from(first), u64::from(n)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_disk::extents::Extents;

    fn extents(map: &Bitmap) -> Extents {
        map.ranges_from(0).map(|(offset, len)| farshore_disk::Extent::new(offset, len)).collect()
    }

    #[test]
    fn ranges_are_the_blocks_that_were_touched_whatever_their_place() {
        let mut model = Extents::new();
        let mut map = Bitmap::default();
        for (offset, len) in [
            (0, 1),
            (4095, 2),
            (CHUNK - 1, 2),
            (3 * CHUNK, 2 * CHUNK + 5),
            (64 * BLOCK * 7 + 11, 64 * BLOCK),
            (9 * CHUNK + 63 * BLOCK, BLOCK),
            (5, 0),
        ] {
            map.set(offset, len);
            model.insert(offset, len);
        }
        let want = model.align_out(BLOCK);
        assert_eq!(extents(&map), want);
        assert_eq!(map.bytes(), want.total());
        let mut bytes = Vec::new();
        map.encode(&mut bytes);
        assert_eq!(Bitmap::decode(&mut bytes.as_slice()).unwrap(), map);
        assert!(Bitmap::decode(&mut &bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn merging_is_the_union_and_paging_starts_where_it_is_told() {
        let (mut a, mut b) = (Bitmap::default(), Bitmap::default());
        a.set(0, BLOCK);
        b.set(2 * CHUNK + 8 * BLOCK, 4 * BLOCK);
        a.merge(&b);
        assert_eq!(extents(&a).total(), 5 * BLOCK);
        let from = 2 * CHUNK + 12 * BLOCK;
        assert_eq!(a.ranges_from(from).count(), 0);
        assert_eq!(a.ranges_from(from - 1).collect::<Vec<_>>(), [(2 * CHUNK + 8 * BLOCK, 4 * BLOCK)]);
    }
}
