//! Reading segments. Nothing in the bytes is trusted: every length is checked before it is used, and what a frame
//! declares is exactly what it must give.

use bytes::Bytes;

use super::{
    DATA, FRAME, HEADER, MAGIC, MAX_FRAME, MAX_OFFSET, MAX_SEGMENT, RAW, SegmentError, SegmentId, TRAILER,
    TRAILER_MAGIC, VERSION, ZERO, ZSTD,
};
use crate::bytes_at::{index, u8_at, u16_le, u32_le, u64_le, uuid_at};

/// A range of the disk and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// In the disk.
    pub offset: u64,
    /// Bytes of the disk.
    pub len: u64,
    /// What is there.
    pub content: Content,
}

/// What a range holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Zero,
    /// These bytes, `len` of them.
    Data(Bytes),
}

/// Gives the frames of a segment in ascending order. A segment is good only when the iterator ended without an error:
/// the trailer's sums are compared at the end.
pub struct Decoder {
    bytes: Bytes,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    /// Next frame, and where the trailer begins.
    at: usize,
    end: usize,
    chain: u32,
    frames: u32,
    disk_bytes: u64,
    disk_end: u64,
    done: bool,
}

fn damaged(what: &'static str, offset: usize) -> SegmentError {
    SegmentError::Damaged { what, offset }
}

impl Decoder {
    /// Checks header and trailer of a whole segment that should be `expected`.
    pub fn open(bytes: Bytes, expected: &SegmentId) -> Result<Self, SegmentError> {
        if bytes.len() < HEADER + TRAILER || bytes.len() > MAX_SEGMENT || !bytes.starts_with(MAGIC) {
            return Err(damaged("not a segment", 0));
        }
        let (version, min_reader) = (u16_le(&bytes, 6), u16_le(&bytes, 8));
        if min_reader > VERSION {
            return Err(SegmentError::Version { version, min_reader });
        }
        let header = usize::from(u16_le(&bytes, 10));
        let end = bytes.len() - TRAILER;
        let body = header.checked_sub(4).filter(|n| *n >= HEADER - 4 && header <= end);
        let crc = body.and_then(|n| Some((crc32c::crc32c(bytes.get(..n)?), u32_le(&bytes, n))));
        let (_, header_crc) = crc.filter(|(a, b)| a == b).ok_or(damaged("header", 0))?;
        let found = SegmentId {
            vm: uuid_at(&bytes, 16),
            disk: uuid_at(&bytes, 32),
            term: u32_le(&bytes, 48),
            stream: u32_le(&bytes, 52),
            cycle: u64_le(&bytes, 56),
            index: u32_le(&bytes, 64),
        };
        if found != *expected {
            return Err(SegmentError::Other { expected: Box::new(*expected), found: Box::new(found) });
        }
        let trailer = bytes.get(end..).unwrap_or_default();
        let sum = crc32c::crc32c(trailer.get(..TRAILER - 4).unwrap_or_default());
        if !trailer.starts_with(TRAILER_MAGIC) || sum != u32_le(trailer, TRAILER - 4) {
            return Err(damaged("trailer", end));
        }
        Ok(Self {
            zstd: None,
            at: header,
            end,
            chain: crc32c::crc32c(&header_crc.to_le_bytes()),
            frames: 0,
            disk_bytes: 0,
            disk_end: 0,
            done: false,
            bytes,
        })
    }

    /// Bytes of the disk that the trailer promises, zeros included.
    pub fn disk_bytes(&self) -> u64 {
        u64_le(&self.bytes, self.end + 16)
    }

    fn frame(&mut self) -> Result<Option<Frame>, SegmentError> {
        let at = self.at;
        if at == self.end {
            let t = self.bytes.get(at..).unwrap_or_default();
            let sums = (u32_le(t, 8), u64_le(t, 16), u32_le(t, 24));
            return if sums == (self.frames, self.disk_bytes, self.chain) {
                Ok(None)
            } else {
                Err(damaged("frames are missing, doubled or moved", at))
            };
        }
        let h = self.bytes.get(at..self.end.min(at + FRAME)).filter(|h| h.len() == FRAME);
        let h = h.ok_or(damaged("frame header", at))?;
        let (kind, codec, len, offset) = (u8_at(h, 0), u8_at(h, 1), u32_le(h, 4), u64_le(h, 8));
        let (stored_len, crc) = (index(u32_le(h, 16).into()), u32_le(h, 20));
        let from = at + FRAME;
        // Both are below 2^32, so the sum cannot overflow.
        let stored = self.bytes.get(from..from + stored_len).filter(|_| from + stored_len <= self.end);
        let stored = stored.ok_or(damaged("frame reaches into the trailer", at))?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(h.get(..20).unwrap_or_default()), stored);
        if sum != crc {
            return Err(damaged("frame", at));
        }
        if len == 0 || offset < self.disk_end || offset > MAX_OFFSET - u64::from(len) {
            return Err(damaged("frame out of order", at));
        }
        let data_len = index(len.into());
        let content = match (kind, codec) {
            (ZERO, RAW) if stored_len == 0 => Content::Zero,
            (DATA, RAW) if stored_len == data_len && data_len <= MAX_FRAME => {
                Content::Data(self.bytes.slice(from..from + stored_len))
            }
            (DATA, ZSTD) if stored_len < data_len && data_len <= MAX_FRAME => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Decompressor::new().map_err(SegmentError::Zstd)?),
                };
                let mut data = Vec::with_capacity(data_len);
                let given = zstd.decompress_to_buffer(stored, &mut data);
                if given.ok() != Some(data_len) {
                    return Err(damaged("compressed frame", at));
                }
                Content::Data(data.into())
            }
            _ => return Err(damaged("frame of unknown kind or length", at)),
        };
        self.at = from + stored_len;
        self.frames += 1;
        self.disk_bytes += u64::from(len);
        self.disk_end = offset + u64::from(len);
        self.chain = crc32c::crc32c_append(self.chain, &crc.to_le_bytes());
        Ok(Some(Frame { offset, len: len.into(), content }))
    }
}

impl Iterator for Decoder {
    type Item = Result<Frame, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.frame().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
