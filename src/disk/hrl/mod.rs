//! Logs of changes beside each disk, in the format of [MS-HRL] v2, and their side manifests.
//!
//! A log is written once, front to back, and counts only when sealed: [`LogWriter::seal`] makes data and metadata
//! durable first and then the header that says where they end. Anything else is [`HrlError::Unsealed`]: delete it and
//! make it anew.
//!
//! Little-endian, packed; times are seconds since 2000-01-01 UTC; checksums are the ones' complement of a byte sum
//! (they find little; the side manifest's BLAKE3 vouches for the whole):
//!
//! ```text
//! header 4096 | data of up to 127 entries, metadata block 4096 | data, metadata block | ...
//! ```
//!
//! Header:
//!
//! | off | size | field | value |
//! |---|---|---|---|
//! | 0 | 8 | Cookie | `msctlog` and a space |
//! | 8 | 4 | LogFormatVersion | 0x00020000 |
//! | 12 | 4 | TimeStamp | creation |
//! | 16 | 4 | CreatorApplication | `fshr` |
//! | 20 | 4 | CreatorVersion | 0x00010000 |
//! | 24, 32 | 8, 8 | OriginalSize, CurrentSize | of the disk |
//! | 40 | 4 | Checksum | of the header without it |
//! | 44 | 8 | EOLLocation | 0 = not sealed; else the file's length |
//! | 52 | 4 | ErrorCode | 0 |
//! | 56 | 4 | MetadataSize | 4096 |
//! | 60, 76 | 16, 16 | UniqueId, PreviousUniqueId | the chain of logs |
//! | 92 | 4 | LastModifiedTimeStamp | sealing |
//! | 96 | 8 | TotalMetadataEntries | |
//! | 104 | 4 | FileType | 0 |
//! | 108 | 2 | Flags | 0 |
//! | 110 | 16 | Vhd2DataWriteGuid | of the VHDX at the point |
//! | 126 | 3970 | reserved | 0 |
//!
//! Metadata block: {u64 PreviousMetadataLocation, counted back from the block, 0 = first; u32 ValidMetadataEntries;
//! u32 Checksum of these 32 bytes without it; 16 zero}, then entries:
//!
//! | off | size | field | value |
//! |---|---|---|---|
//! | 0 | 8 | ByteOffset | in the disk |
//! | 8 | 4 | Checksum | of the entry without it |
//! | 12 | 4 | DataLength | at most 2 MiB |
//! | 16 | 4 | TimeStamp | |
//! | 20 | 1 | MetaOperation | 1: write |
//! | 21 | 4 | DataChecksum | 0 = absent |
//! | 25 | 1 | Location | 0 |
//! | 26 | 6 | reserved | 0 |

mod manifest;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::io;

use jiff::Timestamp;
use thiserror::Error;
use uuid::Uuid;

use crate::bytes_at::{guid_at, put, put_guid, put_u16_le, put_u32_le, put_u64_le, u32_le, u64_le};

pub use manifest::{Consistency, SideManifest};
pub use read::{Entry, LogReader};
pub use write::{LogWriter, Sealed, file_size};

/// An entry's data is at most this long: what a reader holds at a time.
pub const MAX_ENTRY: u32 = 2 << 20;

const HEADER: u64 = 4096;
const VERSION: u32 = 0x0002_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY: usize = 32;
/// MetadataSize of our logs; 127 entries fit.
const BLOCK: u32 = 4096;
const OP_WRITE: u8 = 1;
/// Seconds from 1970 to 2000.
const EPOCH: i64 = 946_684_800;

/// Why a log could not be made or read.
#[derive(Debug, Error)]
pub enum HrlError {
    /// The writer did not finish.
    #[error("the log was not sealed")]
    Unsealed,
    /// Damaged.
    #[error("log is corrupt at offset {offset:#x}: {what}")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Where in the file.
        offset: u64,
    },
    /// A version that this reader does not know.
    #[error("log format version {0:#010x} is not supported")]
    Version(u32),
    /// Ranges must ascend, not overlap, and lie inside the disk.
    #[error("range at {offset} of {len} bytes does not follow {end} inside a disk of {size} bytes")]
    Order {
        /// Of the range.
        offset: u64,
        /// Of the range.
        len: u64,
        /// Where the range before ended.
        end: u64,
        /// Of the disk.
        size: u64,
    },
    /// The operating system refused.
    #[error("read or write of the log failed at offset {offset:#x}")]
    Io {
        /// Where in the file.
        offset: u64,
        /// What it said.
        source: io::Error,
    },
    /// The log is not the one its manifest describes.
    #[error("log does not fit its manifest: {what}")]
    Manifest {
        /// Which of its fields differs.
        what: &'static str,
    },
}

/// What a log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderOptions {
    /// Of this log.
    pub unique_id: Uuid,
    /// Of the log before; nil for the first of a chain.
    pub previous_unique_id: Uuid,
    /// DataWriteGuid of the VHDX.
    pub data_write_guid: Uuid,
    /// Virtual size of the disk.
    pub size: u64,
    /// Creation.
    pub time: Timestamp,
}

/// The fields of a header that change at the seal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seal {
    end: u64,
    entries: u64,
    time: u32,
}

fn seconds(time: Timestamp) -> u32 {
    u32::try_from(time.as_second() - EPOCH).unwrap_or(0)
}

fn time(seconds: u32) -> Timestamp {
    Timestamp::from_second(i64::from(seconds) + EPOCH).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Ones' complement of the sum of all bytes but the four at `at`.
fn checksum(b: &[u8], at: usize) -> u32 {
    let sum = |b: &[u8]| b.iter().map(|x| u32::from(*x)).fold(0u32, u32::wrapping_add);
    !sum(b).wrapping_sub(sum(b.get(at..at + 4).unwrap_or_default()))
}

fn encode_header(options: &HeaderOptions, seal: Seal) -> [u8; 4096] {
    let mut b = [0; 4096];
    put(&mut b, 0, b"msctlog ");
    put_u32_le(&mut b, 8, VERSION);
    put_u32_le(&mut b, 12, seconds(options.time));
    put(&mut b, 16, b"fshr");
    put_u32_le(&mut b, 20, 0x0001_0000);
    put_u64_le(&mut b, 24, options.size);
    put_u64_le(&mut b, 32, options.size);
    put_u64_le(&mut b, 44, seal.end);
    put_u32_le(&mut b, 56, BLOCK);
    put_guid(&mut b, 60, options.unique_id);
    put_guid(&mut b, 76, options.previous_unique_id);
    put_u32_le(&mut b, 92, seal.time);
    put_u64_le(&mut b, 96, seal.entries);
    put_u16_le(&mut b, 108, 0);
    put_guid(&mut b, 110, options.data_write_guid);
    let sum = checksum(&b, 40);
    put_u32_le(&mut b, 40, sum);
    b
}

/// Options, seal, metadata size, and whether the checksum fits.
fn decode_header(b: &[u8; 4096]) -> Result<(HeaderOptions, Seal, u32, bool), HrlError> {
    if !b.starts_with(b"msctlog") {
        return Err(HrlError::Corrupt { what: "cookie", offset: 0 });
    }
    if u32_le(b, 8) != VERSION {
        return Err(HrlError::Version(u32_le(b, 8)));
    }
    let options = HeaderOptions {
        unique_id: guid_at(b, 60),
        previous_unique_id: guid_at(b, 76),
        data_write_guid: guid_at(b, 110),
        size: u64_le(b, 32),
        time: time(u32_le(b, 12)),
    };
    let seal = Seal { end: u64_le(b, 44), entries: u64_le(b, 96), time: u32_le(b, 92) };
    Ok((options, seal, u32_le(b, 56), checksum(b, 40) == u32_le(b, 40)))
}
