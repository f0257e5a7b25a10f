//! The block allocation table: where each block of the disk is, and which parts of the file are free.

use super::VhdxError;
use super::format::{Geometry, MIB};
use super::header::Region;
use crate::bytes_at::index;
use crate::extents::{Extent, Extents};
use crate::io::RandomAccess;

/// State of a payload block; u64 entry = state in bits 0-2, file offset in MiB in bits 20-63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// 0: ask the parent; zero without one.
    NotPresent,
    /// 1, 2, 3 (undefined, zero, unmapped): reads as zero, the parent is not asked.
    Zero,
    /// 6.
    Present,
    /// 7: the sector bitmap says which sectors are here; others are the parent's.
    Partial,
}

/// An entry as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry(pub(super) u64);

impl Entry {
    pub(super) const ZERO: Self = Self(2);

    pub(super) fn present(offset: u64) -> Self {
        Self(offset | 6)
    }
    pub(super) fn partial(offset: u64) -> Self {
        Self(offset | 7)
    }
    /// Of a payload block, `None` when the state does not exist.
    pub(super) fn state(self) -> Option<BlockState> {
        Some(match self.0 & 7 {
            0 => BlockState::NotPresent,
            1..=3 => BlockState::Zero,
            6 => BlockState::Present,
            7 => BlockState::Partial,
            _ => return None,
        })
    }
    /// Of a bitmap block: only "present" has one.
    pub(super) fn bitmap_offset(self) -> Option<u64> {
        (self.0 & 7 == 6).then_some(self.offset())
    }
    /// Offset in the file, in bytes.
    pub(super) fn offset(self) -> u64 {
        self.0 & !(MIB - 1)
    }
}

/// The table in memory, with what it says about the file's space.
#[derive(Debug)]
pub(super) struct Bat {
    pub(super) geometry: Geometry,
    /// Of the region, in the file.
    pub(super) offset: u64,
    entries: Vec<Entry>,
}

impl Bat {
    pub(super) fn read(
        file: &dyn RandomAccess,
        geometry: Geometry,
        region: Region,
    ) -> Result<Self, VhdxError> {
        let count = geometry.bat_entries();
        // The region lies inside the file, so the memory for the table is bounded by the file's length.
        if count * 8 > region.len {
            return Err(VhdxError::corrupt("BAT too short for the disk", region.offset));
        }
        let mut raw = vec![0; index(count * 8)];
        file.read_at(&mut raw, region.offset).map_err(|e| VhdxError::short(e, "BAT", region.offset))?;
        let (words, _) = raw.as_chunks::<8>();
        let entries = words.iter().map(|w| Entry(u64::from_le_bytes(*w))).collect();
        Ok(Self { geometry, offset: region.offset, entries })
    }

    fn entry(&self, i: u64) -> Entry {
        self.entries.get(index(i)).copied().unwrap_or_default()
    }

    pub(super) fn payload(&self, block: u64) -> Entry {
        self.entry(self.geometry.payload_entry(block))
    }

    pub(super) fn bitmap(&self, block: u64) -> Entry {
        self.entry(self.geometry.bitmap_entry(block))
    }

    /// Sets a payload entry; returns the offset of the 4 KiB page of the file that must be written.
    pub(super) fn set_payload(&mut self, block: u64, to: Entry) -> u64 {
        self.set(self.geometry.payload_entry(block), to)
    }

    /// Sets a bitmap entry; returns the page as above.
    pub(super) fn set_bitmap(&mut self, block: u64, to: Entry) -> u64 {
        self.set(self.geometry.bitmap_entry(block), to)
    }

    fn set(&mut self, i: u64, to: Entry) -> u64 {
        if let Some(entry) = self.entries.get_mut(index(i)) {
            *entry = to;
        }
        self.offset + i * 8 / 4096 * 4096
    }

    /// The page of the table at this offset of the file; `None` when the offset is outside.
    pub(super) fn page(&self, at: u64) -> Option<[u8; 4096]> {
        let first = at.checked_sub(self.offset)? / 8;
        let rest = self.entries.get(index(first)..).filter(|rest| !rest.is_empty())?;
        let mut page = [0; 4096];
        for (to, from) in page.as_chunks_mut::<8>().0.iter_mut().zip(rest) {
            *to = from.0.to_le_bytes();
        }
        Some(page)
    }

    /// Bytes of the file that entries refer to, with their lengths. Blocks that are zero but keep their place count.
    fn used(&self) -> impl Iterator<Item = Extent> + '_ {
        let ratio = self.geometry.chunk_ratio();
        self.entries.iter().enumerate().filter_map(move |(i, e)| {
            let is_bitmap = (i as u64) % (ratio + 1) == ratio;
            let len = if is_bitmap { MIB } else { self.geometry.block_size };
            (e.offset() != 0).then(|| Extent::new(e.offset(), len))
        })
    }
}

/// Free space of a file open for writing. What a trim gives back is free only after the BAT without it is durable,
/// or a crash would show the new content of the space under the old block.
#[derive(Debug)]
pub(super) struct Space {
    /// Reusable; holds old bytes.
    free: Extents,
    /// Given back since the last commit.
    pending: Vec<Extent>,
    /// From here on nothing was ever stored: new blocks here read as zero.
    end: u64,
}

/// A place for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    /// False: old bytes are there.
    pub(super) clean: bool,
}

impl Space {
    /// Finds the gaps; refuses a file whose blocks overlap each other, `fixed` parts or the end of the file.
    pub(super) fn of(bat: &Bat, fixed: &[Region], file_len: u64) -> Result<Self, VhdxError> {
        let mut used: Vec<Extent> =
            bat.used().chain(fixed.iter().map(|r| Extent::new(r.offset, r.len))).collect();
        used.push(Extent::new(0, MIB));
        used.sort_unstable();
        let mut at = 0;
        let mut free = Extents::new();
        for e in &used {
            if e.offset < at {
                return Err(VhdxError::corrupt("blocks overlap", e.offset));
            }
            free.insert(at, e.offset - at);
            at = e.end();
        }
        // A fixed region of length 0 does not reach beyond the file; a block must lie inside it.
        if at > file_len {
            return Err(VhdxError::corrupt("block beyond the end of the file", at));
        }
        let end = file_len.next_multiple_of(MIB);
        free.insert(at, end - at);
        Ok(Self { free, pending: Vec::new(), end })
    }

    /// A place for `len` bytes (whole MiB), at the end of the file if there is no gap.
    pub(super) fn take(&mut self, len: u64, file: &dyn RandomAccess) -> Result<Place, VhdxError> {
        let gap = self.free.iter().find(|e| e.len >= len);
        if let Some(gap) = gap {
            self.free = self.free.subtract(&Extents::one(gap.offset, len));
            return Ok(Place { offset: gap.offset, clean: false });
        }
        let offset = self.end;
        file.set_len(offset + len).map_err(|e| VhdxError::io(e, "new block", offset))?;
        self.end = offset + len;
        Ok(Place { offset, clean: true })
    }

    /// Gives space back at the next commit.
    pub(super) fn give_back(&mut self, offset: u64, len: u64) {
        self.pending.push(Extent::new(offset, len));
    }

    /// The BAT that no longer refers to the pending space is durable.
    pub(super) fn committed(&mut self) {
        for e in self.pending.drain(..) {
            self.free.insert(e.offset, e.len);
        }
    }
}
