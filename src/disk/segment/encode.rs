//! Making segments: zero runs are found, the rest is compressed when it pays.

use bytes::Bytes;

use super::{
    DATA, FRAME, HEADER, HEADER_LEN, MAGIC, MAX_FRAME, MAX_OFFSET, MAX_SEGMENT, RAW, SegmentError, SegmentId,
    TRAILER, TRAILER_MAGIC, VERSION, ZERO, ZSTD,
};
use crate::bytes_at::{index, is_zero, put, put_u8, put_u16_le, put_u32_le, put_u64_le, put_uuid};
use crate::digest;
use crate::extents::Extents;

/// Zeros are looked for in cells of this size, aligned to the disk.
const CELL: u64 = 4096;
/// A shorter run between data stays in the data, where zstd makes it nearly nothing: cutting the data there costs two
/// frame headers and a fresh start of the compressor.
const MIN_RUN: u64 = 16 << 10;
/// A zero frame's length is a u32; whole GiB keep it aligned.
const MAX_ZERO: u64 = 1 << 30;

/// How data is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// zstd of this level (negative ones are the fast ones), where it saves at least a sixteenth.
    Zstd(i32),
}

/// A finished segment.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// What is put into the blob.
    pub bytes: Bytes,
    /// BLAKE3 of `bytes`; the blob's name carries it.
    pub blake3: blake3::Hash,
    /// CRC-64/NVME of `bytes`; the service checks it at the Put.
    pub crc64: u64,
    /// What it covers of the disk, data and zeros.
    pub ranges: Extents,
    /// `ranges.total()`.
    pub disk_bytes: u64,
    /// Those of them that are zero runs.
    pub zero_bytes: u64,
}

/// Collects ranges of one disk, in ascending order, into one segment.
pub struct Encoder {
    out: Vec<u8>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
    max_disk_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
    frames: u32,
    chain: u32,
    ranges: Extents,
    /// Zeros at the end of what was pushed, not yet a frame.
    zero: Option<(u64, u64)>,
}

impl Encoder {
    /// An empty segment that takes at most `max_disk_bytes` of data; zero runs don't count, for they take no room.
    pub fn new(id: SegmentId, compression: Compression, max_disk_bytes: u64) -> Result<Self, SegmentError> {
        let zstd = match compression {
            Compression::None => None,
            Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(level).map_err(SegmentError::Zstd)?),
        };
        let mut this = Self {
            out: Vec::new(),
            scratch: Vec::with_capacity(if zstd.is_some() {
                zstd::zstd_safe::compress_bound(MAX_FRAME)
            } else {
                0
            }),
            zstd,
            max_disk_bytes,
            data_bytes: 0,
            zero_bytes: 0,
            frames: 0,
            chain: 0,
            ranges: Extents::new(),
            zero: None,
        };
        this.begin(&id);
        Ok(this)
    }

    fn begin(&mut self, id: &SegmentId) {
        self.out.clear();
        self.out.resize(HEADER, 0);
        let h = &mut self.out;
        put(h, 0, MAGIC);
        put_u16_le(h, 6, VERSION);
        put_u16_le(h, 8, VERSION);
        put_u16_le(h, 10, HEADER_LEN);
        put_uuid(h, 16, id.vm);
        put_uuid(h, 32, id.disk);
        put_u32_le(h, 48, id.term);
        put_u32_le(h, 52, id.stream);
        put_u64_le(h, 56, id.cycle);
        put_u32_le(h, 64, id.index);
        let crc = crc32c::crc32c(h.get(..HEADER - 4).unwrap_or_default());
        put_u32_le(h, HEADER - 4, crc);
        self.chain = crc32c::crc32c(&crc.to_le_bytes());
    }

    /// Bytes of data that still fit: a push of at most this much succeeds.
    pub fn room(&self) -> u64 {
        // Worst case: everything stored raw, a frame header each MiB, and a few around zeros.
        let left = MAX_SEGMENT.saturating_sub(self.out.len() + TRAILER + 8 * FRAME);
        let raw = left - left / MAX_FRAME * FRAME;
        self.max_disk_bytes.saturating_sub(self.data_bytes).min(raw as u64)
    }

    /// True when nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes of the disk pushed so far.
    pub fn disk_bytes(&self) -> u64 {
        self.data_bytes + self.zero_bytes
    }

    /// Bytes of the segment so far.
    pub fn stored_bytes(&self) -> usize {
        self.out.len()
    }

    /// Adds bytes of the disk. Large pushes (1 MiB and more) compress best; frames don't reach across pushes.
    pub fn push(&mut self, offset: u64, data: &[u8]) -> Result<(), SegmentError> {
        let len = data.len() as u64;
        self.check_order(offset, len)?;
        if len > self.room() {
            return Err(SegmentError::Full { len, room: self.room() });
        }
        let continues = self.zero.is_some_and(|(at, n)| at + n == offset);
        let (mut from, mut at) = (0, 0);
        while at < len {
            let run = zero_run(data, offset, at);
            if run == 0 {
                at = next_cell(offset, at).min(len);
            } else if run >= MIN_RUN || run == len || (at == 0 && continues) {
                self.data(offset + from, data.get(index(from)..index(at)).unwrap_or_default())?;
                self.zeros(offset + at, run)?;
                at += run;
                from = at;
            } else {
                at += run;
            }
        }
        self.data(offset + from, data.get(index(from)..).unwrap_or_default())?;
        self.ranges.insert(offset, len);
        Ok(())
    }

    /// Adds a range known to be zero, of any length.
    pub fn push_zero(&mut self, offset: u64, len: u64) -> Result<(), SegmentError> {
        self.check_order(offset, len)?;
        let frames = index(len.div_ceil(MAX_ZERO)) + 1;
        if self.out.len() + frames * FRAME + TRAILER > MAX_SEGMENT {
            return Err(SegmentError::Full { len, room: self.room() });
        }
        if len > 0 {
            self.zeros(offset, len)?;
            self.ranges.insert(offset, len);
        }
        Ok(())
    }

    /// Seals the segment: trailer, hash, checksum.
    pub fn finish(mut self) -> Result<Sealed, SegmentError> {
        self.flush_zeros()?;
        let mut t = [0; TRAILER];
        put(&mut t, 0, TRAILER_MAGIC);
        put_u32_le(&mut t, 8, self.frames);
        put_u64_le(&mut t, 16, self.disk_bytes());
        put_u32_le(&mut t, 24, self.chain);
        let crc = crc32c::crc32c(&t[..TRAILER - 4]);
        put_u32_le(&mut t, TRAILER - 4, crc);
        self.out.extend_from_slice(&t);
        Ok(Sealed {
            blake3: digest::bytes(&self.out),
            crc64: digest::crc64_nvme(&self.out),
            disk_bytes: self.disk_bytes(),
            zero_bytes: self.zero_bytes,
            ranges: self.ranges,
            bytes: Bytes::from(self.out),
        })
    }

    fn check_order(&self, offset: u64, len: u64) -> Result<(), SegmentError> {
        let end = self.ranges.end();
        let fits = offset.checked_add(len).is_some_and(|e| e <= MAX_OFFSET);
        if fits && (offset >= end) { Ok(()) } else { Err(SegmentError::Order { offset, len, end }) }
    }

    /// Zeros of the disk: joined with those before.
    fn zeros(&mut self, offset: u64, len: u64) -> Result<(), SegmentError> {
        self.zero_bytes += len;
        match &mut self.zero {
            Some((at, n)) if *at + *n == offset => *n += len,
            _ => {
                self.flush_zeros()?;
                self.zero = Some((offset, len));
            }
        }
        Ok(())
    }

    fn flush_zeros(&mut self) -> Result<(), SegmentError> {
        let Some((mut at, mut left)) = self.zero.take() else { return Ok(()) };
        while left > 0 {
            let n = left.min(MAX_ZERO);
            self.frame(ZERO, RAW, at, n, &[]);
            at += n;
            left -= n;
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, data: &[u8]) -> Result<(), SegmentError> {
        if data.is_empty() {
            return Ok(());
        }
        self.flush_zeros()?;
        for (i, part) in data.chunks(MAX_FRAME).enumerate() {
            let (at, len) = (offset + (i * MAX_FRAME) as u64, part.len() as u64);
            self.data_bytes += len;
            match &mut self.zstd {
                Some(zstd) if compressible(part) => {
                    let mut scratch = std::mem::take(&mut self.scratch);
                    zstd.compress_to_buffer(part, &mut scratch).map_err(SegmentError::Zstd)?;
                    if scratch.len() < part.len() - part.len() / 16 {
                        self.frame(DATA, ZSTD, at, len, &scratch);
                    } else {
                        self.frame(DATA, RAW, at, len, part);
                    }
                    self.scratch = scratch;
                }
                _ => self.frame(DATA, RAW, at, len, part),
            }
        }
        Ok(())
    }

    fn frame(&mut self, kind: u8, codec: u8, offset: u64, len: u64, stored: &[u8]) {
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let mut h = [0; FRAME];
        put_u8(&mut h, 0, kind);
        put_u8(&mut h, 1, codec);
        put_u32_le(&mut h, 4, narrow(len));
        put_u64_le(&mut h, 8, offset);
        put_u32_le(&mut h, 16, narrow(stored.len() as u64));
        let crc = crc32c::crc32c_append(crc32c::crc32c(&h[..20]), stored);
        put_u32_le(&mut h, 20, crc);
        self.out.extend_from_slice(&h);
        self.out.extend_from_slice(stored);
        self.frames += 1;
        self.chain = crc32c::crc32c_append(self.chain, &crc.to_le_bytes());
    }
}

/// Where the cell after the one at `at` (counted from `offset`) begins.
fn next_cell(offset: u64, at: u64) -> u64 {
    at + CELL - (offset + at) % CELL
}

/// Length of the run of zero cells that begins at `at`.
fn zero_run(data: &[u8], offset: u64, at: u64) -> u64 {
    let (len, mut end) = (data.len() as u64, at);
    while end < len {
        let next = next_cell(offset, end).min(len);
        if !data.get(index(end)..index(next)).is_some_and(is_zero) {
            break;
        }
        end = next;
    }
    end - at
}

/// Is it worth trying? Bytes of encrypted or compressed data are all about equally frequent. Counts 4096 bytes from
/// 16 places: the sum of squares is n + n(n-1)/256 = 69616 on average for random bytes, and 5 % more already stands for
/// data that zstd shortens.
fn compressible(data: &[u8]) -> bool {
    const PLACES: usize = 16;
    const TAKE: usize = 256;
    if data.len() < PLACES * TAKE * 4 {
        return true;
    }
    let mut counts = [0u32; 256];
    for place in data.chunks(data.len() / PLACES).take(PLACES) {
        for b in place.iter().take(TAKE) {
            if let Some(n) = counts.get_mut(usize::from(*b)) {
                *n += 1;
            }
        }
    }
    counts.iter().map(|n| n * n).sum::<u32>() > 73_000
}
