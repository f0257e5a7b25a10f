//! Segments: what travels between a host and the storage account. One segment is one blob, at most 64 MiB, of one
//! disk and cycle; [`Encoder`] makes it, [`Decoder`] gives it back frame by frame.
//!
//! Final from the first release on. Little-endian:
//!
//! ```text
//! header | frame | frame | ... | trailer
//! ```
//!
//! Header, 96 bytes (a later writer may make it longer; the CRC is always its last 4 bytes):
//!
//! | off | size | field | value |
//! |---|---|---|---|
//! | 0 | 6 | magic | `FSHSEG` |
//! | 6 | 2 | version | 1 |
//! | 8 | 2 | minReader | 1: readers below it refuse |
//! | 10 | 2 | header length | 96 |
//! | 12 | 4 | flags | 0; unknown ones are ignored |
//! | 16 | 16 | VM id | bytes in the order of the text |
//! | 32 | 16 | disk id | likewise |
//! | 48 | 4 | term | |
//! | 52 | 4 | stream | |
//! | 56 | 8 | cycle | |
//! | 64 | 4 | index | of the segment in its disk's cycle |
//! | 68 | 24 | reserved | 0 |
//! | 92 | 4 | CRC-32C | of the header before it |
//!
//! Frame, 24 bytes and what is stored. Frames ascend by offset and do not overlap:
//!
//! | off | size | field | value |
//! |---|---|---|---|
//! | 0 | 1 | kind | 1 data, 2 zero run |
//! | 1 | 1 | codec | 0 raw, 1 one zstd frame; 0 for a zero run |
//! | 2 | 2 | reserved | 0 |
//! | 4 | 4 | disk length | bytes; data at most 1 MiB; never 0 |
//! | 8 | 8 | disk offset | bytes |
//! | 16 | 4 | stored length | raw: the disk length; zstd: less than it; zero run: 0 |
//! | 20 | 4 | CRC-32C | of the frame's first 20 bytes and what is stored |
//! | 24 | | stored bytes | |
//!
//! Trailer, the last 32 bytes:
//!
//! | off | size | field | value |
//! |---|---|---|---|
//! | 0 | 8 | magic | `FSHSEGND` |
//! | 8 | 4 | frames | |
//! | 12 | 4 | reserved | 0 |
//! | 16 | 8 | disk bytes | data and zeros |
//! | 24 | 4 | CRC-32C | of the header's CRC and all frames' CRCs in order: nothing is missing, doubled or moved |
//! | 28 | 4 | CRC-32C | of the trailer before it |
//!
//! The CRCs find damage; who made a segment is vouched for by its BLAKE3, which is its name.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use thiserror::Error;
use uuid::Uuid;

pub use decode::{Content, Decoder, Frame};
pub use encode::{Compression, Encoder, Sealed};

/// A segment is at most this long: what one Put Blob carries and one worker holds in memory.
pub const MAX_SEGMENT: usize = 64 << 20;
/// A data frame covers at most this much of the disk: what a reader holds beside the segment.
pub const MAX_FRAME: usize = 1 << 20;

const MAGIC: &[u8; 6] = b"FSHSEG";
const VERSION: u16 = 1;
const HEADER: usize = HEADER_LEN as usize;
const HEADER_LEN: u16 = 96;
const FRAME: usize = 24;
const TRAILER: usize = 32;
const TRAILER_MAGIC: &[u8; 8] = b"FSHSEGND";
const DATA: u8 = 1;
const ZERO: u8 = 2;
const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// Disk offsets end here: no disk is as long, and sums of two fit u64.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// Which segment it is; all of it stands in the header and is checked by the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentId {
    /// The VM.
    pub vm: Uuid,
    /// The disk (VirtualDiskId).
    pub disk: Uuid,
    /// Of the commit that lists it.
    pub term: u32,
    /// Likewise.
    pub stream: u32,
    /// Likewise.
    pub cycle: u64,
    /// Number among the segments of this disk and cycle.
    pub index: u32,
}

/// Why a segment could not be made or read.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// What was pushed does not fit any more: finish this segment and begin the next.
    #[error("segment is full: {len} bytes pushed, room for {room}")]
    Full {
        /// Bytes pushed.
        len: u64,
        /// Bytes that fit.
        room: u64,
    },
    /// Ranges must ascend, not overlap, and end below 2^63.
    #[error("range at {offset} of {len} bytes does not follow the segment's end at {end}")]
    Order {
        /// Of the range.
        offset: u64,
        /// Of the range.
        len: u64,
        /// Where the range before ended.
        end: u64,
    },
    /// The compressor refused (a level that does not exist).
    #[error("zstd failed")]
    Zstd(#[source] std::io::Error),
    /// A version that this reader does not know.
    #[error(
        "segment format version {version} needs a reader of at least {min_reader}, this one is {VERSION}"
    )]
    Version {
        /// Of the writer.
        version: u16,
        /// What it asks for.
        min_reader: u16,
    },
    /// The content of another place.
    #[error("segment is {found:?}, expected {expected:?}")]
    Other {
        /// What was asked for.
        expected: Box<SegmentId>,
        /// What the header says.
        found: Box<SegmentId>,
    },
    /// Damaged, or not a segment.
    #[error("segment is damaged at offset {offset:#x}: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: usize,
    },
}
