//! A segment list: what one disk's part of a cycle is made of, named by its own hash.

use serde::{Deserialize, Serialize};

use super::{Extra, Record};
use crate::ids::{CycleId, DiskId, Hash};
use crate::names;

/// `<term>-<stream>/<cycle>/<diskID>.list-<blake3>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentList {
    /// See [`super`].
    pub format_version: u32,
    /// See [`super`].
    pub min_reader: u32,
    /// Which disk.
    #[serde(rename = "diskID")]
    pub disk_id: DiskId,
    /// Segments by index, from 0 without gaps.
    pub segments: Vec<SegmentEntry>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One segment of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentEntry {
    /// BLAKE3 of the stored bytes.
    pub hash: Hash,
    /// Stored bytes.
    pub stored: u64,
    /// `[offset, length]` on the disk, in bytes: sorted, not touching or overlapping inside one segment.
    pub ranges: Vec<(u64, u64)>,
}

impl SegmentEntry {
    /// Bytes of the disk that it carries.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, len)| len).sum()
    }
}

impl SegmentList {
    /// The name of the segment at `index`.
    #[must_use]
    pub fn segment_name(&self, cycle: CycleId, index: u32, entry: &SegmentEntry) -> String {
        names::segment(cycle, self.disk_id, index, &entry.hash)
    }

    /// True if every range lies inside a disk of `virtual_size` bytes.
    #[must_use]
    pub fn fits(&self, virtual_size: u64) -> bool {
        self.segments
            .iter()
            .flat_map(|s| &s.ranges)
            .all(|&(offset, len)| offset.checked_add(len).is_some_and(|end| end <= virtual_size))
    }
}

/// The longest stored segment, in bytes (DESIGN: at most 64 MiB, one Put Blob each).
pub const MAX_SEGMENT: u64 = 64 << 20;

/// The most ranges of one disk in one cycle: at about 24 bytes each a list stays below its 16 MiB.
/// Above it the agent joins neighbouring ranges (which costs bytes, never correctness).
pub const MAX_RANGES: usize = 500_000;

impl Record for SegmentList {
    const KIND: &'static str = "segment list";
    const MAX: usize = 16 << 20;

    fn check(&self) -> Result<(), &'static str> {
        if u32::try_from(self.segments.len()).is_err() {
            return Err("it has too many segments");
        }
        for segment in &self.segments {
            if segment.stored == 0 || segment.stored > MAX_SEGMENT {
                return Err("a segment is empty or over 64 MiB");
            }
            let mut end_before = 0_u64;
            let mut first = true;
            for &(offset, len) in &segment.ranges {
                let Some(end) = offset.checked_add(len) else { return Err("a range overflows") };
                if len == 0 || offset % 512 != 0 || len % 512 != 0 {
                    return Err("a range is empty or not of whole sectors");
                }
                if !first && offset <= end_before {
                    return Err("ranges of a segment are not sorted or touch");
                }
                (end_before, first) = (end, false);
            }
            if first {
                return Err("a segment has no ranges");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::FORMAT_VERSION;

    fn list(ranges: Vec<(u64, u64)>) -> SegmentList {
        SegmentList {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            disk_id: DiskId("7b0e4c1e-0000-4000-8000-00000000000d".parse().unwrap()),
            segments: vec![SegmentEntry { hash: Hash([1; 32]), stored: 100, ranges }],
            extra: Extra::new(),
        }
    }

    #[test]
    fn ranges_must_be_sorted_whole_sectors_apart() {
        let good = list(vec![(0, 512), (1024, 512)]);
        assert_eq!(SegmentList::decode(&good.encode().unwrap()).unwrap(), good);
        for bad in [
            vec![],
            vec![(0, 0)],
            vec![(1, 512)],
            vec![(0, 100)],
            vec![(0, 512), (512, 512)],
            vec![(1024, 512), (0, 512)],
            vec![(u64::MAX - 511, 1024)],
        ] {
            assert!(list(bad.clone()).encode().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_longest_list_allowed_fits_its_limit() {
        let far = 64_u64 << 40;
        let ranges = (0..MAX_RANGES as u64).map(|i| (far - 8192 * (MAX_RANGES as u64 - i), 4096)).collect();
        assert!(list(ranges).encode().is_ok());
    }
}
