//! Writing to a VHDX file so that a crash between any two operations leaves a file that opens.
//!
//! Data goes to its place at once. What makes it visible, BAT entries and sector bitmaps, is kept in memory and
//! goes through the log in one commit, at a flush or when the log has no room for more:
//!
//! ```text
//! flush the file      data and the pages of the commit before are durable
//! log entry, flush    from here on the commit counts (the first one also sets LogGuid in the header)
//! pages in place      a crash before the next flush replays them
//! ```
//!
//! A write that fails half-way (volume full) changes no entry; the place that was meant for it is found again as free
//! by the next opening. Space that a trim gives back is used again only after the commit, so a crash never shows new bytes in an old block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::bat::{Bat, BlockState, Entry, Place, Space};
use super::bitmap::{self, Changed};
use super::file::{Access, State, Vhdx};
use super::format::BITMAP_BLOCK;
use super::header::{Header, Region, Regions};
use super::map::Kind;
use super::{VhdxError, log};
use crate::bytes_at::index;
use crate::io::RandomAccess;

/// Pages that changing one block may touch: BAT entries of block and bitmap, and the bits of a block of 256 MiB.
const PER_BLOCK: usize = 20;
/// Zeros written at a time.
const ZEROS: u64 = 1 << 20;

/// What a file open for writing keeps.
pub(super) struct Writer {
    space: Space,
    /// Pages of the BAT changed since the last commit, by their offset in the file.
    bat_pages: BTreeSet<u64>,
    /// Pages of bitmaps changed since the last commit.
    pub(super) bitmaps: Changed,
    /// FileWriteGuid was changed.
    begun: bool,
    /// LogGuid of this opening, and whether the header has it.
    log: Uuid,
    log_in_header: bool,
    /// Of the next entry; its parity says which half of the log it goes to.
    sequence: u64,
    /// Pages that fit one commit.
    capacity: usize,
}

impl Writer {
    pub(super) fn new(
        bat: &Bat,
        header: &Header,
        regions: &Regions,
        file_len: u64,
        log: Uuid,
    ) -> Result<Self, VhdxError> {
        let mut parts = regions.all.clone();
        parts.push(Region { offset: header.log_offset, len: header.log_len.into() });
        let capacity = log::capacity(header.log_len);
        if capacity < PER_BLOCK {
            return Err(VhdxError::corrupt("log too short", header.log_offset));
        }
        Ok(Self {
            space: Space::of(bat, &parts, file_len)?,
            bat_pages: BTreeSet::new(),
            bitmaps: Changed::new(),
            begun: false,
            log,
            log_in_header: false,
            sequence: 1,
            capacity,
        })
    }

    fn room_for_block(&self) -> bool {
        self.bat_pages.len() + self.bitmaps.len() + PER_BLOCK <= self.capacity
    }
}

/// The parts of the state that a block's change touches, taken apart for the borrow checker.
struct Parts<'a> {
    file: &'a dyn RandomAccess,
    bat: &'a mut Bat,
    w: &'a mut Writer,
}

impl Vhdx {
    /// Writes; durable after [`Self::flush`]. A differencing file takes whole sectors only.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), VhdxError> {
        self.check_write(offset, buf.len() as u64)?;
        if self.write_in_place(buf, offset)? {
            return Ok(());
        }
        self.change(offset, buf.len() as u64, |parts, block, within, len, done| {
            let part = buf.get(index(done)..index(done + len)).unwrap_or_default();
            parts.write_block(block, within, part)
        })
    }

    /// Makes a range read as zero; whole blocks are given back to the file's free space.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), VhdxError> {
        self.check_write(offset, len)?;
        let leave = self.metadata.leave_allocated;
        self.change(offset, len, |parts, block, within, len, _| parts.zero_block(block, within, len, leave))
    }

    /// Returns when everything written before is durable.
    pub fn flush(&self) -> Result<(), VhdxError> {
        if self.access.guids().is_none() {
            return Ok(());
        }
        self.check_poison()?;
        self.poison_on_error(|| self.commit(&mut self.write_state()))
    }

    /// Flushes and says in the header that the log is empty. Also tried when the value is dropped.
    pub fn close(&self) -> Result<(), VhdxError> {
        if self.access.guids().is_none() {
            return Ok(());
        }
        self.check_poison()?;
        self.poison_on_error(|| {
            let state = &mut *self.write_state();
            self.commit(state)?;
            let Some(w) = state.writer.as_mut().filter(|w| w.log_in_header) else { return Ok(()) };
            // The pages of the last commit must be in place before the log that could replay them is given up.
            self.file.flush().map_err(|e| VhdxError::io(e, "flush", 0))?;
            state.header.log = Uuid::nil();
            state.header.advance(&*self.file)?;
            w.log_in_header = false;
            Ok(())
        })
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), VhdxError> {
        self.access.guids().ok_or(VhdxError::ReadOnly)?;
        self.check_poison()?;
        self.check_range(offset, len)?;
        let sector = self.metadata.geometry.sector;
        if self.is_differencing() && !(offset | len).is_multiple_of(sector) {
            return Err(VhdxError::Unaligned { offset, len, sector });
        }
        Ok(())
    }

    /// Writes when every byte already has its place. False: it has not, nothing was written.
    fn write_in_place(&self, buf: &[u8], offset: u64) -> Result<bool, VhdxError> {
        let state = self.read_state();
        if !state.writer.as_ref().is_some_and(|w| w.begun) {
            return Ok(false);
        }
        let pieces = self.map_in(&state, offset, buf.len() as u64)?;
        if !pieces.iter().all(|p| matches!(p.kind, Kind::Data { .. })) {
            return Ok(false);
        }
        for piece in pieces {
            let Kind::Data { at } = piece.kind else { continue };
            let part = buf.get(index(piece.offset - offset)..).and_then(|b| b.get(..index(piece.len)));
            self.file.write_at(part.unwrap_or_default(), at).map_err(|e| VhdxError::io(e, "block", at))?;
        }
        Ok(true)
    }

    /// Calls `one(parts, block, offset within it, length, bytes done before)` for every block of the range.
    fn change(
        &self,
        offset: u64,
        len: u64,
        mut one: impl FnMut(&mut Parts<'_>, u64, u64, u64, u64) -> Result<(), VhdxError>,
    ) -> Result<(), VhdxError> {
        if len == 0 {
            return Ok(());
        }
        let state = &mut *self.write_state();
        self.begin(state)?;
        let block_size = self.metadata.geometry.block_size;
        let mut done = 0;
        while done < len {
            if state.writer.as_ref().is_some_and(|w| !w.room_for_block()) {
                self.poison_on_error(|| self.commit(state))?;
            }
            let (block, within) = ((offset + done) / block_size, (offset + done) % block_size);
            let n = (len - done).min(block_size - within);
            let w = state.writer.as_mut().ok_or(VhdxError::ReadOnly)?;
            one(&mut Parts { file: &*self.file, bat: &mut state.bat, w }, block, within, n, done)?;
            done += n;
        }
        Ok(())
    }

    /// Before the first write: the ids that tell others that the file is not what it was.
    fn begin(&self, state: &mut State) -> Result<(), VhdxError> {
        let Some(w) = state.writer.as_mut().filter(|w| !w.begun) else { return Ok(()) };
        let guids = self.access.guids().ok_or(VhdxError::ReadOnly)?;
        state.header.file_write = guids();
        if matches!(self.access, Access::ReadWrite(_)) {
            state.header.data_write = guids();
        }
        self.poison_on_error(|| state.header.advance(&*self.file))?;
        w.begun = true;
        Ok(())
    }

    /// See the module's drawing.
    fn commit(&self, state: &mut State) -> Result<(), VhdxError> {
        self.file.flush().map_err(|e| VhdxError::io(e, "flush", 0))?;
        let Some(w) = state.writer.as_mut() else { return Ok(()) };
        if w.bat_pages.is_empty() && w.bitmaps.is_empty() {
            return Ok(());
        }
        let mut pages: BTreeMap<u64, log::Page> = w.bitmaps.clone();
        pages.extend(w.bat_pages.iter().filter_map(|at| Some((*at, state.bat.page(*at)?))));
        let half = state.header.log_len / 2 / 4096 * 4096;
        let at = if w.sequence.is_multiple_of(2) { half } else { 0 };
        let file_len = self.file.len().map_err(|e| VhdxError::io(e, "length", 0))?;
        let entry = log::encode_entry(w.log, w.sequence, at, file_len, &pages);
        // `change` commits before more pages gather than half of the log takes.
        debug_assert!(entry.len() as u64 <= u64::from(half), "entry of {} bytes", entry.len());
        let place = state.header.log_offset + u64::from(at);
        self.file.write_at(&entry, place).map_err(|e| VhdxError::io(e, "log", place))?;
        self.file.flush().map_err(|e| VhdxError::io(e, "log", place))?;
        w.sequence += 1;
        if !w.log_in_header {
            state.header.log = w.log;
            state.header.advance(&*self.file)?;
            w.log_in_header = true;
        }
        for (at, page) in &pages {
            self.file.write_at(page, *at).map_err(|e| VhdxError::io(e, "BAT or bitmap", *at))?;
        }
        w.bat_pages.clear();
        w.bitmaps.clear();
        w.space.committed();
        Ok(())
    }

    /// After a failed commit nobody knows what is durable: only a new opening can tell.
    fn poison_on_error(&self, run: impl FnOnce() -> Result<(), VhdxError>) -> Result<(), VhdxError> {
        run().inspect_err(|_| self.poisoned.store(true, Ordering::Release))
    }
}

impl Drop for Vhdx {
    fn drop(&mut self) {
        // Nothing to tell the failure to; a log left dirty is replayed by the next opening.
        let _ = self.close();
    }
}

impl Parts<'_> {
    fn write_block(&mut self, block: u64, within: u64, data: &[u8]) -> Result<(), VhdxError> {
        let (entry, len) = (self.bat.payload(block), data.len() as u64);
        match self.state(block)? {
            BlockState::Present => self.write(data, entry.offset() + within),
            BlockState::Partial => {
                self.write(data, entry.offset() + within)?;
                self.mark(block, within, len, true)
            }
            BlockState::NotPresent
                if self.bat.geometry.differencing && len < self.bat.geometry.block_len(block) =>
            {
                let bits = self.bitmap_block(block)?;
                let place = self.place(entry)?;
                self.write(data, place.offset + within)?;
                // Bits of an earlier life of the block may be set.
                let g = self.bat.geometry;
                let (first, all) = (g.first_bit(block), g.block_size / g.sector);
                bitmap::mark(self.file, &mut self.w.bitmaps, bits, first, all, false)?;
                self.mark(block, within, len, true)?;
                self.set(block, Entry::partial(place.offset));
                Ok(())
            }
            BlockState::NotPresent | BlockState::Zero => {
                let place = self.place(entry)?;
                let block_size = self.bat.geometry.block_size;
                if !place.clean {
                    self.write_zeros(place.offset, within)?;
                    self.write_zeros(place.offset + within + len, block_size - within - len)?;
                }
                self.write(data, place.offset + within)?;
                self.set(block, Entry::present(place.offset));
                Ok(())
            }
        }
    }

    fn zero_block(&mut self, block: u64, within: u64, len: u64, leave: bool) -> Result<(), VhdxError> {
        let g = self.bat.geometry;
        let (entry, state, whole) = (self.bat.payload(block), self.state(block)?, len == g.block_len(block));
        match state {
            BlockState::Zero => Ok(()),
            BlockState::NotPresent if !g.differencing => Ok(()),
            BlockState::NotPresent | BlockState::Present | BlockState::Partial if whole && !leave => {
                if entry.offset() != 0 {
                    self.w.space.give_back(entry.offset(), g.block_size);
                }
                self.set(block, Entry::ZERO);
                Ok(())
            }
            BlockState::Present => self.write_zeros(entry.offset() + within, len),
            BlockState::Partial => {
                self.write_zeros(entry.offset() + within, len)?;
                self.mark(block, within, len, true)
            }
            // A part of the parent's block: zeros that this file holds.
            BlockState::NotPresent => self.write_block(block, within, &vec![0; index(len)]),
        }
    }

    fn state(&self, block: u64) -> Result<BlockState, VhdxError> {
        let at = self.bat.offset + self.bat.geometry.payload_entry(block) * 8;
        let state = self.bat.payload(block).state();
        let state = state.filter(|s| *s != BlockState::Partial || self.bat.geometry.differencing);
        state.ok_or(VhdxError::corrupt("BAT entry of unknown state", at))
    }

    fn set(&mut self, block: u64, to: Entry) {
        let page = self.bat.set_payload(block, to);
        self.w.bat_pages.insert(page);
    }

    /// The bitmap block of the chunk of `block`, made when there is none.
    fn bitmap_block(&mut self, block: u64) -> Result<u64, VhdxError> {
        if let Some(offset) = self.bat.bitmap(block).bitmap_offset() {
            return Ok(offset);
        }
        let place = self.w.space.take(BITMAP_BLOCK, self.file)?;
        if !place.clean {
            self.write_zeros(place.offset, BITMAP_BLOCK)?;
        }
        let page = self.bat.set_bitmap(block, Entry::present(place.offset));
        self.w.bat_pages.insert(page);
        Ok(place.offset)
    }

    /// Sets or clears the bits of a range of a block that has a bitmap.
    fn mark(&mut self, block: u64, within: u64, len: u64, set: bool) -> Result<(), VhdxError> {
        let g = self.bat.geometry;
        let at = self.bat.offset + g.bitmap_entry(block) * 8;
        let bits = self.bat.bitmap(block).bitmap_offset();
        let bits = bits.ok_or(VhdxError::corrupt("partial block without bitmap", at))?;
        let first = g.first_bit(block) + within / g.sector;
        bitmap::mark(self.file, &mut self.w.bitmaps, bits, first, len / g.sector, set)
    }

    /// Where the block of `entry` goes: to the place that it kept while it was zero, or to a new one.
    fn place(&mut self, entry: Entry) -> Result<Place, VhdxError> {
        if entry.offset() != 0 {
            return Ok(Place { offset: entry.offset(), clean: false });
        }
        self.w.space.take(self.bat.geometry.block_size, self.file)
    }

    fn write(&self, data: &[u8], at: u64) -> Result<(), VhdxError> {
        self.file.write_at(data, at).map_err(|e| VhdxError::io(e, "block", at))
    }

    fn write_zeros(&self, at: u64, len: u64) -> Result<(), VhdxError> {
        let zeros = vec![0; index(ZEROS.min(len))];
        let mut done = 0;
        while done < len {
            let n = ZEROS.min(len - done);
            self.write(zeros.get(..index(n)).unwrap_or_default(), at + done)?;
            done += n;
        }
        Ok(())
    }
}
