//! The two headers and the two region tables of a VHDX file.

use uuid::Uuid;

use super::VhdxError;
use super::format::{FILE_ID, HEADER_OFFSETS, MIB, REGION_BAT, REGION_METADATA, REGION_OFFSETS, REGION_SIZE};
use crate::bytes_at::{guid_at, put, put_guid, put_u16_le, put_u32_le, put_u64_le, u16_le, u32_le, u64_le};
use crate::io::RandomAccess;

const VERSION: u16 = 1;
/// [MS-VHDX] 2.2.3: a region table has at most this many entries.
const MAX_REGIONS: u32 = 2047;

/// One header, little-endian, 4 KiB at 64 KiB and at 128 KiB; the valid one with the higher sequence number counts.
///
/// | off | size | field |
/// |---|---|---|
/// | 0 | 4 | `head` |
/// | 4 | 4 | CRC-32C of the 4096 bytes, itself as zero |
/// | 8 | 8 | SequenceNumber |
/// | 16 | 16 | FileWriteGuid |
/// | 32 | 16 | DataWriteGuid |
/// | 48 | 16 | LogGuid: not nil = the log must be replayed first |
/// | 64 | 2 | LogVersion, 0 |
/// | 66 | 2 | Version, 1 |
/// | 68 | 4 | LogLength, whole MiB |
/// | 72 | 8 | LogOffset, whole MiB |
/// | 80 | 4016 | zero |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Which of the two this one is.
    pub(super) slot: usize,
    pub(super) sequence: u64,
    pub(super) file_write: Uuid,
    pub(super) data_write: Uuid,
    pub(super) log: Uuid,
    pub(super) log_len: u32,
    pub(super) log_offset: u64,
}

impl Header {
    fn encode(&self) -> [u8; 4096] {
        let mut b = [0; 4096];
        put(&mut b, 0, b"head");
        put_u64_le(&mut b, 8, self.sequence);
        put_guid(&mut b, 16, self.file_write);
        put_guid(&mut b, 32, self.data_write);
        put_guid(&mut b, 48, self.log);
        put_u16_le(&mut b, 66, VERSION);
        put_u32_le(&mut b, 68, self.log_len);
        put_u64_le(&mut b, 72, self.log_offset);
        let crc = crc32c::crc32c(&b);
        put_u32_le(&mut b, 4, crc);
        b
    }

    fn parse(b: &mut [u8; 4096], slot: usize) -> Option<(Self, u16, u16)> {
        let crc = u32_le(b, 4);
        put_u32_le(b, 4, 0);
        (b.starts_with(b"head") && crc32c::crc32c(b) == crc).then(|| {
            let header = Self {
                slot,
                sequence: u64_le(b, 8),
                file_write: guid_at(b, 16),
                data_write: guid_at(b, 32),
                log: guid_at(b, 48),
                log_len: u32_le(b, 68),
                log_offset: u64_le(b, 72),
            };
            (header, u16_le(b, 66), u16_le(b, 64))
        })
    }

    /// Finds the header that counts.
    pub(super) fn read(file: &dyn RandomAccess) -> Result<Self, VhdxError> {
        let mut id = [0; 8];
        file.read_at(&mut id, 0).map_err(|e| VhdxError::short(e, "file identifier", 0))?;
        if &id != FILE_ID {
            return Err(VhdxError::corrupt("file identifier", 0));
        }
        let mut best = None;
        for (slot, off) in HEADER_OFFSETS.into_iter().enumerate() {
            let mut b = [0; 4096];
            file.read_at(&mut b, off).map_err(|e| VhdxError::short(e, "header", off))?;
            let Some(found) = Self::parse(&mut b, slot) else { continue };
            if best.as_ref().is_none_or(|(h, ..): &(Self, u16, u16)| h.sequence < found.0.sequence) {
                best = Some(found);
            }
        }
        let (header, version, log_version) =
            best.ok_or(VhdxError::corrupt("both headers", HEADER_OFFSETS[0]))?;
        if version != VERSION {
            return Err(VhdxError::Version { what: "VHDX", version });
        }
        if log_version != 0 && !header.log.is_nil() {
            return Err(VhdxError::Version { what: "VHDX log", version: log_version });
        }
        let whole = u64::from(header.log_len).is_multiple_of(MIB) && header.log_offset.is_multiple_of(MIB);
        if !whole || header.log_offset < MIB || header.log_offset.checked_add(header.log_len.into()).is_none()
        {
            return Err(VhdxError::corrupt("log location", HEADER_OFFSETS[0]));
        }
        Ok(header)
    }

    /// Writes this header as the newest one, over the older of the two, and makes it durable. A crash on the way
    /// leaves the other, older header.
    pub(super) fn advance(&mut self, file: &dyn RandomAccess) -> Result<(), VhdxError> {
        let next = Self { slot: 1 - self.slot.min(1), sequence: self.sequence + 1, ..*self };
        let off = if next.slot == 0 { HEADER_OFFSETS[0] } else { HEADER_OFFSETS[1] };
        file.write_at(&next.encode(), off).map_err(|e| VhdxError::io(e, "header", off))?;
        file.flush().map_err(|e| VhdxError::io(e, "header", off))?;
        *self = next;
        Ok(())
    }

    /// Writes both headers of a new file.
    pub(super) fn write_both(mut self, file: &dyn RandomAccess) -> Result<(), VhdxError> {
        for off in HEADER_OFFSETS {
            file.write_at(&self.encode(), off).map_err(|e| VhdxError::io(e, "header", off))?;
            self.sequence += 1;
        }
        Ok(())
    }
}

/// A part of the file: whole MiB, beyond the first MiB, inside the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Where BAT and metadata are; and all regions, which no block may overlap.
///
/// Little-endian, 64 KiB at 192 KiB and again at 256 KiB:
///
/// | off | size | field |
/// |---|---|---|
/// | 0 | 4 | `regi` |
/// | 4 | 4 | CRC-32C of the 65536 bytes, itself as zero |
/// | 8 | 4 | EntryCount, at most 2047 |
/// | 12 | 4 | zero |
/// | 16 + 32 i | 16 | Guid |
/// | 32 + 32 i | 8 | FileOffset |
/// | 40 + 32 i | 4 | Length |
/// | 44 + 32 i | 4 | bit 0: required |
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub(super) bat: Region,
    pub(super) metadata: Region,
    pub(super) all: Vec<Region>,
}

impl Regions {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; REGION_SIZE];
        put(&mut b, 0, b"regi");
        put_u32_le(&mut b, 8, 2);
        for (at, id, region) in [(16, REGION_BAT, self.bat), (48, REGION_METADATA, self.metadata)] {
            put_guid(&mut b, at, id);
            put_u64_le(&mut b, at + 16, region.offset);
            put_u32_le(&mut b, at + 24, u32::try_from(region.len).unwrap_or(u32::MAX));
            put_u32_le(&mut b, at + 28, 1);
        }
        let crc = crc32c::crc32c(&b);
        put_u32_le(&mut b, 4, crc);
        b
    }

    /// Reads the first table, or the second when the first is damaged.
    pub(super) fn read(file: &dyn RandomAccess, file_len: u64) -> Result<Self, VhdxError> {
        for off in REGION_OFFSETS {
            let mut b = vec![0; REGION_SIZE];
            file.read_at(&mut b, off).map_err(|e| VhdxError::short(e, "region table", off))?;
            let crc = u32_le(&b, 4);
            put_u32_le(&mut b, 4, 0);
            if b.starts_with(b"regi") && crc32c::crc32c(&b) == crc && u32_le(&b, 8) <= MAX_REGIONS {
                return Self::parse(&b, off, file_len);
            }
        }
        Err(VhdxError::corrupt("both region tables", REGION_OFFSETS[0]))
    }

    fn parse(b: &[u8], table: u64, file_len: u64) -> Result<Self, VhdxError> {
        let (mut bat, mut metadata, mut all) = (None, None, Vec::new());
        for (i, entry) in (0..u32_le(b, 8)).zip(b.get(16..).unwrap_or_default().chunks_exact(32)) {
            let at = table + 16 + u64::from(i) * 32;
            let (id, region) =
                (guid_at(entry, 0), Region { offset: u64_le(entry, 16), len: u32_le(entry, 24).into() });
            let inside = region.offset.checked_add(region.len).is_some_and(|end| end <= file_len);
            if !inside
                || region.offset < MIB
                || !region.offset.is_multiple_of(MIB)
                || !region.len.is_multiple_of(MIB)
            {
                return Err(VhdxError::corrupt("region outside the file", at));
            }
            all.push(region);
            let known = match id {
                REGION_BAT => bat.replace(region).is_none(),
                REGION_METADATA => metadata.replace(region).is_none(),
                _ if u32_le(entry, 28) & 1 != 0 => {
                    return Err(VhdxError::UnknownRequired { what: "region", id });
                }
                _ => true,
            };
            if !known {
                return Err(VhdxError::corrupt("region listed twice", at));
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Self { bat, metadata, all }),
            _ => Err(VhdxError::corrupt("region table without BAT or metadata", table)),
        }
    }
}

/// Writes file identifier, headers and region tables of a new file.
pub(super) fn write_start(
    file: &dyn RandomAccess,
    header: Header,
    regions: &Regions,
) -> Result<(), VhdxError> {
    let mut id = vec![0; 64 << 10];
    put(&mut id, 0, FILE_ID);
    // Creator: UTF-16 text of at most 512 bytes, for people.
    for (i, c) in "Farshore".encode_utf16().enumerate() {
        put_u16_le(&mut id, 8 + 2 * i, c);
    }
    file.write_at(&id, 0).map_err(|e| VhdxError::io(e, "file identifier", 0))?;
    header.write_both(file)?;
    for off in REGION_OFFSETS {
        file.write_at(&regions.encode(), off).map_err(|e| VhdxError::io(e, "region table", off))?;
    }
    Ok(())
}
