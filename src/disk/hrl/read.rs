//! Reading a sealed log.

use super::write::data_checksum;
use super::{BLOCK_HEADER, ENTRY, HEADER, HeaderOptions, HrlError, OP_WRITE, checksum, decode_header};
use crate::bytes_at::{index, u8_at, u32_le, u64_le};
use crate::io::RandomAccess;

/// [MS-HRL] asks for a multiple of 512; a block beyond this is damage, and would be read into memory.
const MAX_BLOCK: u32 = 1 << 20;
/// Logs of others may have longer entries than ours; readers hold one in memory.
const MAX_FOREIGN: u32 = 64 << 20;

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// In the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Where its bytes are in the file.
    pub position: u64,
    /// 0 = absent.
    pub data_checksum: u32,
}

impl Entry {
    /// First byte of the disk after it.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// A sealed log whose structure was checked whole; keeps 24 bytes per entry in memory.
pub struct LogReader {
    file: Box<dyn RandomAccess>,
    header: HeaderOptions,
    entries: Vec<Entry>,
    mismatch: bool,
}

fn corrupt(what: &'static str, offset: u64) -> HrlError {
    HrlError::Corrupt { what, offset }
}

impl LogReader {
    /// Opens a log: `Unsealed` when its writer did not finish, `Corrupt` when it did and something is wrong.
    pub fn open(file: Box<dyn RandomAccess>) -> Result<Self, HrlError> {
        let file_len = file.len().map_err(|source| HrlError::Io { offset: 0, source })?;
        if file_len < HEADER {
            return Err(HrlError::Unsealed);
        }
        let mut b = [0; 4096];
        file.read_at(&mut b, 0).map_err(|source| HrlError::Io { offset: 0, source })?;
        // Not one byte of the header may have reached the disk.
        if b.iter().all(|x| *x == 0) {
            return Err(HrlError::Unsealed);
        }
        let (header, seal, block, fits) = decode_header(&b)?;
        if seal.end == 0 || seal.end != file_len {
            return Err(HrlError::Unsealed);
        }
        if !block.is_multiple_of(512) || block == 0 || block > MAX_BLOCK {
            return Err(corrupt("metadata size", 56));
        }
        let mut this = Self { file, header, entries: Vec::new(), mismatch: !fits };
        let blocks = this.blocks(seal.end, block.into())?;
        let mut start = HEADER;
        for at in blocks {
            this.read_block(start, at, block)?;
            start = at + u64::from(block);
        }
        if this.entries.len() as u64 != seal.entries {
            return Err(corrupt("number of entries", 96));
        }
        Ok(this)
    }

    /// What the log says of itself.
    pub fn header(&self) -> &HeaderOptions {
        &self.header
    }

    /// The header's checksum does not fit. No error: it does not in the specification's own example either.
    pub fn header_checksum_mismatch(&self) -> bool {
        self.mismatch
    }

    /// The changes, ascending by offset in logs of ours.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry> + '_ {
        self.entries.iter().copied()
    }

    /// Reads the bytes of an entry into a buffer of its length, checking their checksum if there is one.
    pub fn read(&self, entry: &Entry, buf: &mut [u8]) -> Result<(), HrlError> {
        let offset = entry.position;
        if buf.len() as u64 != u64::from(entry.len) {
            return Err(corrupt("buffer of another length than the entry", offset));
        }
        self.file.read_at(buf, offset).map_err(|source| HrlError::Io { offset, source })?;
        if entry.data_checksum != 0 && entry.data_checksum != data_checksum(buf) {
            return Err(corrupt("data", offset));
        }
        Ok(())
    }

    /// Where the metadata blocks are, first to last: the last one is at the end, each says how far back the one before is.
    fn blocks(&self, end: u64, block: u64) -> Result<Vec<u64>, HrlError> {
        let mut at = end.checked_sub(block).filter(|at| *at >= HEADER).ok_or(corrupt("end of log", 44))?;
        let mut list = vec![at];
        loop {
            let mut b = [0; BLOCK_HEADER];
            self.file.read_at(&mut b, at).map_err(|source| HrlError::Io { offset: at, source })?;
            if checksum(&b, 12) != u32_le(&b, 12) {
                return Err(corrupt("metadata block", at));
            }
            let back = u64_le(&b, 0);
            if back == 0 {
                list.reverse();
                return Ok(list);
            }
            // Strictly backwards by a block at least, so this ends.
            let before = at.checked_sub(back).filter(|before| *before >= HEADER && back >= block);
            at = before.ok_or(corrupt("metadata block", at))?;
            list.push(at);
        }
    }

    /// Takes in the entries of the block at `at`, whose data begins at `start`.
    fn read_block(&mut self, start: u64, at: u64, block: u32) -> Result<(), HrlError> {
        let mut b = vec![0; index(block.into())];
        self.file.read_at(&mut b, at).map_err(|source| HrlError::Io { offset: at, source })?;
        let count = index(u32_le(&b, 8).into());
        if count > (b.len() - BLOCK_HEADER) / ENTRY {
            return Err(corrupt("metadata block", at));
        }
        let mut position = start;
        for e in b.get(BLOCK_HEADER..).unwrap_or_default().chunks_exact(ENTRY).take(count) {
            let (offset, len, sum) = (u64_le(e, 0), u32_le(e, 12), u32_le(e, 21));
            let sums = u32_le(e, 8);
            // Hyper-V's own example leaves DataChecksum 0; whether the entry's sum covers it is not said, so both do.
            let without =
                checksum(e, 8).wrapping_add(e.get(21..25).into_iter().flatten().map(|x| u32::from(*x)).sum());
            if (sums != checksum(e, 8) && sums != without) || u8_at(e, 20) != OP_WRITE || u8_at(e, 25) != 0 {
                return Err(corrupt("entry", at));
            }
            let inside = offset.checked_add(len.into()).is_some_and(|end| end <= self.header.size);
            if len == 0 || len > MAX_FOREIGN || !inside {
                return Err(corrupt("entry outside the disk", at));
            }
            self.entries.push(Entry { offset, len, position, data_checksum: sum });
            position += u64::from(len);
        }
        if position != at {
            return Err(corrupt("data between metadata blocks", at));
        }
        Ok(())
    }
}
