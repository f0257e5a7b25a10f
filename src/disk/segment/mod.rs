//! Segments: what travels between the host and the storage account.
#![allow(unused_variables, dead_code, clippy::todo, missing_docs, reason = "signatures first")]

use bytes::Bytes;
use thiserror::Error;
use uuid::Uuid;

use crate::extents::Extents;

/// A segment is at most this long.
pub const MAX_SEGMENT: usize = 64 << 20;
/// A data frame covers at most this much of the disk.
pub const MAX_FRAME: usize = 1 << 20;

#[derive(Debug, Error)]
pub enum SegmentError {
    #[error("segment is full")]
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SegmentId {
    pub vm: Uuid,
    pub disk: Uuid,
    pub term: u32,
    pub stream: u32,
    pub cycle: u64,
    pub index: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Zstd(i32),
}

pub struct Encoder {}

impl Encoder {
    pub fn new(id: SegmentId, compression: Compression, max_disk_bytes: u64) -> Result<Self, SegmentError> {
        todo!()
    }
    /// Disk bytes that may still be pushed.
    pub fn room(&self) -> u64 {
        todo!()
    }
    pub fn is_empty(&self) -> bool {
        todo!()
    }
    /// Offsets ascend; pieces do not overlap.
    pub fn push(&mut self, offset: u64, data: &[u8]) -> Result<(), SegmentError> {
        todo!()
    }
    /// A range known to be zero.
    pub fn push_zero(&mut self, offset: u64, len: u64) -> Result<(), SegmentError> {
        todo!()
    }
    pub fn finish(self) -> Result<Sealed, SegmentError> {
        todo!()
    }
}

#[derive(Clone, Debug)]
pub struct Sealed {
    pub bytes: Bytes,
    pub blake3: blake3::Hash,
    pub crc64: u64,
    pub ranges: Extents,
    pub disk_bytes: u64,
    pub zero_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub offset: u64,
    pub len: u64,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Zero,
    Data(Bytes),
}

pub struct Decoder {}

impl Decoder {
    pub fn open(bytes: Bytes, expected: &SegmentId) -> Result<Self, SegmentError> {
        todo!()
    }
}

impl Iterator for Decoder {
    type Item = Result<Frame, SegmentError>;
    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}
