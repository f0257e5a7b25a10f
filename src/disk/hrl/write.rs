//! Writing a log.

use jiff::Timestamp;

use super::{BLOCK, BLOCK_HEADER, ENTRY, HEADER, HeaderOptions, HrlError, MAX_ENTRY, OP_WRITE, Seal};
use super::{checksum, encode_header, seconds};
use crate::bytes_at::{put_u8, put_u32_le, put_u64_le};
use crate::io::RandomAccess;

const PER_BLOCK: usize = (BLOCK as usize - BLOCK_HEADER) / ENTRY;

/// A log being written. Dropped without [`Self::seal`] it stays unsealed.
pub struct LogWriter {
    file: Box<dyn RandomAccess>,
    options: HeaderOptions,
    /// Where the next byte goes.
    at: u64,
    /// Of the last metadata block; 0 before the first.
    last_block: u64,
    block: Vec<u8>,
    pending: usize,
    /// CRC-32C of the data since the last block.
    crc: u32,
    sealed: Sealed,
    /// End of the last range.
    end: u64,
}

/// What was sealed; the side manifest is made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Bytes of the file.
    pub length: u64,
    /// Entries in it.
    pub entries: u64,
    /// Bytes of the disk in it.
    pub data_bytes: u64,
    /// CRC-32C per block of entries: its data, then its metadata block.
    pub block_crcs: Vec<u32>,
}

impl LogWriter {
    /// Begins a log in an empty file.
    pub fn create(file: Box<dyn RandomAccess>, options: &HeaderOptions) -> Result<Self, HrlError> {
        let header = encode_header(options, Seal { time: seconds(options.time), ..Seal::default() });
        file.write_at(&header, 0).map_err(|source| HrlError::Io { offset: 0, source })?;
        Ok(Self {
            file,
            options: options.clone(),
            at: HEADER,
            last_block: 0,
            block: vec![0; BLOCK as usize],
            pending: 0,
            crc: 0,
            sealed: Sealed::default(),
            end: 0,
        })
    }

    /// Adds changed bytes; ranges ascend and don't overlap. Longer data becomes several entries.
    pub fn append(&mut self, offset: u64, data: &[u8]) -> Result<(), HrlError> {
        let (len, size) = (data.len() as u64, self.options.size);
        if offset < self.end || offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(HrlError::Order { offset, len, end: self.end, size });
        }
        let mut from = offset;
        for part in data.chunks(MAX_ENTRY as usize) {
            self.entry(from, part)?;
            from += part.len() as u64;
            self.end = from;
        }
        Ok(())
    }

    /// Bytes that the file has so far, without the metadata block not yet written.
    pub fn len(&self) -> u64 {
        self.at
    }

    /// True before the first entry.
    pub fn is_empty(&self) -> bool {
        self.sealed.entries == 0
    }

    /// Makes all durable, then the header that says so. A crash before its last flush leaves an unsealed log.
    pub fn seal(mut self, time: Timestamp) -> Result<Sealed, HrlError> {
        let io = |source| HrlError::Io { offset: 0, source };
        if self.pending > 0 || self.last_block == 0 {
            self.end_block()?;
        }
        // A file that was longer before would never be as long as its header says.
        self.file.set_len(self.at).map_err(io)?;
        self.file.flush().map_err(io)?;
        self.sealed.length = self.at;
        let seal = Seal { end: self.at, entries: self.sealed.entries, time: seconds(time) };
        self.file.write_at(&encode_header(&self.options, seal), 0).map_err(io)?;
        self.file.flush().map_err(io)?;
        Ok(self.sealed)
    }

    fn entry(&mut self, offset: u64, data: &[u8]) -> Result<(), HrlError> {
        self.file.write_at(data, self.at).map_err(|source| HrlError::Io { offset: self.at, source })?;
        self.at += data.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, data);
        let mut e = [0; ENTRY];
        put_u64_le(&mut e, 0, offset);
        put_u32_le(&mut e, 12, u32::try_from(data.len()).unwrap_or(MAX_ENTRY));
        put_u32_le(&mut e, 16, seconds(self.options.time));
        put_u8(&mut e, 20, OP_WRITE);
        put_u32_le(&mut e, 21, data_checksum(data));
        let sum = checksum(&e, 8);
        put_u32_le(&mut e, 8, sum);
        crate::bytes_at::put(&mut self.block, BLOCK_HEADER + self.pending * ENTRY, &e);
        self.pending += 1;
        self.sealed.entries += 1;
        self.sealed.data_bytes += data.len() as u64;
        if self.pending == PER_BLOCK { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<(), HrlError> {
        let back = if self.last_block == 0 { 0 } else { self.at - self.last_block };
        put_u64_le(&mut self.block, 0, back);
        put_u32_le(&mut self.block, 8, u32::try_from(self.pending).unwrap_or(0));
        let sum = checksum(self.block.get(..BLOCK_HEADER).unwrap_or_default(), 12);
        put_u32_le(&mut self.block, 12, sum);
        self.file
            .write_at(&self.block, self.at)
            .map_err(|source| HrlError::Io { offset: self.at, source })?;
        self.sealed.block_crcs.push(crc32c::crc32c_append(self.crc, &self.block));
        self.last_block = self.at;
        self.at += u64::from(BLOCK);
        self.block.fill(0);
        self.pending = 0;
        self.crc = 0;
        Ok(())
    }
}

/// Never 0, which would mean absent: at most 2 MiB are summed.
pub(super) fn data_checksum(data: &[u8]) -> u32 {
    // Sums of 4096 bytes fit u32 and vectorise; the total of 2 MiB fits as well.
    !data.chunks(4096).map(|c| c.iter().map(|b| u32::from(*b)).sum::<u32>()).fold(0u32, u32::wrapping_add)
}

/// Bytes that a log with `entries` entries and `data` bytes of changes takes, for the check of free space before.
pub fn file_size(data: u64, entries: u64) -> u64 {
    let blocks = entries.div_ceil(PER_BLOCK as u64).max(1);
    data.saturating_add(HEADER).saturating_add(blocks.saturating_mul(u64::from(BLOCK)))
}
