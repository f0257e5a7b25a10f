//! What a file holds of its disk, range by range.

use super::bat::BlockState;
use super::bitmap;
use super::file::{State, Vhdx};
use super::{VhdxError, format::Geometry};
use crate::extents::Extents;

/// Who answers a read of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This file, with the bytes at `at`.
    Data {
        /// Offset in the file.
        at: u64,
    },
    /// This file, with zeros.
    Zero,
    /// The parent; zeros when there is none.
    Absent,
}

/// A range of the disk of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// In the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Who answers.
    pub kind: Kind,
}

/// Disk bytes mapped at a time by whole-disk walks: bounds the list of pieces.
const WINDOW: u64 = 1 << 30;

/// Pieces in order, neighbours of one kind (and one run of bytes in the file) joined.
#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn push(&mut self, new: Piece) {
        if let Some(last) = self.0.last_mut() {
            let joins = match (last.kind, new.kind) {
                (Kind::Data { at }, Kind::Data { at: next }) => at + last.len == next,
                (a, b) => a == b,
            };
            if joins {
                last.len += new.len;
                return;
            }
        }
        self.0.push(new);
    }
}

impl Vhdx {
    /// The pieces of a range, in order, without gaps.
    pub fn map(&self, offset: u64, len: u64) -> Result<Vec<Piece>, VhdxError> {
        self.check_range(offset, len)?;
        self.map_in(&self.read_state(), offset, len)
    }

    pub(super) fn map_in(&self, state: &State, offset: u64, len: u64) -> Result<Vec<Piece>, VhdxError> {
        let mut pieces = Pieces::default();
        let g: Geometry = state.bat.geometry;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (block, within) = (at / g.block_size, at % g.block_size);
            let len = (end - at).min(g.block_size - within);
            let entry = state.bat.payload(block);
            let corrupt = |what| VhdxError::corrupt(what, state.bat.offset + g.payload_entry(block) * 8);
            match entry.state().ok_or(corrupt("BAT entry of unknown state"))? {
                BlockState::NotPresent => pieces.push(Piece { offset: at, len, kind: Kind::Absent }),
                BlockState::Zero => pieces.push(Piece { offset: at, len, kind: Kind::Zero }),
                BlockState::Present => {
                    // The offset has 64 bits less the state's; beyond i64 no file has bytes.
                    if entry.offset() == 0 || entry.offset() > i64::MAX as u64 {
                        return Err(corrupt("BAT entry without place"));
                    }
                    pieces.push(Piece { offset: at, len, kind: Kind::Data { at: entry.offset() + within } });
                }
                BlockState::Partial => {
                    let bits = state.bat.bitmap(block).bitmap_offset();
                    let bits = bits.filter(|o| g.differencing && *o > 0 && *o < i64::MAX as u64);
                    let bits = bits.ok_or(corrupt("partial block without bitmap"))?;
                    if entry.offset() == 0 || entry.offset() > i64::MAX as u64 {
                        return Err(corrupt("BAT entry without place"));
                    }
                    let s = g.sector;
                    // Whole sectors around the range; the pieces are cut to it.
                    let (first, last) = (within / s, (within + len).div_ceil(s));
                    let changed = state.writer.as_ref().map(|w| &w.bitmaps);
                    let bit = g.first_bit(block) + first;
                    bitmap::runs(&*self.file, changed, bits, bit, last - first, |start, n, here| {
                        let from = ((first + start) * s).max(within);
                        let to = ((first + start + n) * s).min(within + len);
                        let kind = if here { Kind::Data { at: entry.offset() + from } } else { Kind::Absent };
                        pieces.push(Piece { offset: block * g.block_size + from, len: to - from, kind });
                    })?;
                }
            }
            at += len;
        }
        Ok(pieces.0)
    }

    /// Ranges whose bytes are in this file: whole blocks, and the present sectors of partial ones.
    pub fn allocated(&self) -> Result<Extents, VhdxError> {
        let mut out = Extents::new();
        self.walk(|piece| {
            if matches!(piece.kind, Kind::Data { .. }) {
                out.insert(piece.offset, piece.len);
            }
        })?;
        Ok(out)
    }

    /// Ranges that this file answers, with bytes or with zeros: what a merge has to move.
    pub fn present(&self) -> Result<Extents, VhdxError> {
        let mut out = Extents::new();
        self.walk(|piece| {
            if piece.kind != Kind::Absent {
                out.insert(piece.offset, piece.len);
            }
        })?;
        Ok(out)
    }

    /// All pieces of the disk; writers may come in between two windows.
    pub(super) fn walk(&self, mut seen: impl FnMut(Piece)) -> Result<(), VhdxError> {
        let mut at = 0;
        while at < self.size() {
            let len = WINDOW.min(self.size() - at);
            self.map(at, len)?.into_iter().for_each(&mut seen);
            at += len;
        }
        Ok(())
    }
}
