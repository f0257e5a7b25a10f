//! Fixed VHD: raw data, then one footer. The form of a replica blob and of what Azure imports as a managed disk.
//!
//! Azure wants virtual sizes of whole MiB: [`padded_size`] rounds up; the pad between the disk's own size and that is
//! zero. Size of the blob: `padded_size(size) + FOOTER_SIZE`.

use thiserror::Error;
use uuid::Uuid;

use crate::bytes_at::{
    index, put, put_u8, put_u16_be, put_u32_be, put_u64_be, put_uuid, u8_at, u16_be, u32_be, u64_be, uuid_at,
};

/// Bytes of the footer.
pub const FOOTER_SIZE: u64 = 512;
/// Azure's unit of virtual sizes.
pub const ALIGNMENT: u64 = 1 << 20;

const FORMAT_VERSION: u32 = 0x0001_0000;
const TYPE_FIXED: u32 = 2;
const NO_OFFSET: u64 = u64::MAX;
/// 65535 x 16 x 255 sectors: the largest that the geometry field can say; larger disks keep these values.
const MAX_CHS_SECTORS: u64 = 65535 * 16 * 255;

/// Why a footer was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VhdError {
    /// Not `conectix`, or not 512 bytes.
    #[error("no VHD footer: the cookie is missing")]
    NoFooter,
    /// The checksum does not fit the content.
    #[error("VHD footer has checksum {found:#010x}, its content gives {computed:#010x}")]
    Checksum {
        /// In the footer.
        found: u32,
        /// Of the footer.
        computed: u32,
    },
    /// A version that this reader does not know.
    #[error("VHD format version {0:#010x} is not supported")]
    Version(u32),
    /// A dynamic or differencing VHD.
    #[error("VHD of type {0} is not a fixed one")]
    NotFixed(u32),
}

/// What a footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Virtual size in bytes (`CurrentSize`).
    pub size: u64,
    /// UniqueId.
    pub id: Uuid,
    /// Seconds since 2000-01-01 UTC.
    pub timestamp: u32,
    /// Cylinders, heads, sectors per track.
    pub geometry: (u16, u8, u8),
}

/// `virtual_size` rounded up to whole MiB: what the footer states and where it stands.
pub fn padded_size(virtual_size: u64) -> u64 {
    virtual_size.checked_next_multiple_of(ALIGNMENT).unwrap_or(virtual_size)
}

/// The footer of a fixed VHD of `size` bytes. `timestamp` in seconds since 2000-01-01 UTC.
///
/// Big-endian:
///
/// | off | size | field | value |
/// |---|---|---|---|
/// | 0 | 8 | Cookie | `conectix` |
/// | 8 | 4 | Features | 2 (reserved bit, always set) |
/// | 12 | 4 | FileFormatVersion | 0x00010000 |
/// | 16 | 8 | DataOffset | all ones: fixed |
/// | 24 | 4 | TimeStamp | |
/// | 28 | 4 | CreatorApplication | `win `: of others qemu believes the rounded geometry instead of CurrentSize |
/// | 32 | 4 | CreatorVersion | 0x000a0000 |
/// | 36 | 4 | CreatorHostOS | `Wi2k` |
/// | 40 | 8 | OriginalSize | bytes |
/// | 48 | 8 | CurrentSize | bytes |
/// | 56 | 4 | DiskGeometry | u16 cylinders, u8 heads, u8 sectors |
/// | 60 | 4 | DiskType | 2 |
/// | 64 | 4 | Checksum | ones' complement of the byte sum, itself left out |
/// | 68 | 16 | UniqueId | in text order |
/// | 84 | 1 | SavedState | 0 |
/// | 85 | 427 | Reserved | 0 |
pub fn footer(size: u64, id: Uuid, timestamp: u32) -> [u8; 512] {
    let mut b = [0; 512];
    put(&mut b, 0, b"conectix");
    put_u32_be(&mut b, 8, 2);
    put_u32_be(&mut b, 12, FORMAT_VERSION);
    put_u64_be(&mut b, 16, NO_OFFSET);
    put_u32_be(&mut b, 24, timestamp);
    put(&mut b, 28, b"win ");
    put_u32_be(&mut b, 32, 0x000a_0000);
    put(&mut b, 36, b"Wi2k");
    put_u64_be(&mut b, 40, size);
    put_u64_be(&mut b, 48, size);
    let (cylinders, heads, sectors) = geometry(size);
    put_u16_be(&mut b, 56, cylinders);
    put_u8(&mut b, 58, heads);
    put_u8(&mut b, 59, sectors);
    put_u32_be(&mut b, 60, TYPE_FIXED);
    put_uuid(&mut b, 68, id);
    let sum = checksum(&b);
    put_u32_be(&mut b, 64, sum);
    b
}

/// Reads a footer of a fixed VHD.
pub fn parse(footer: &[u8]) -> Result<Footer, VhdError> {
    let b: &[u8; 512] = footer.try_into().map_err(|_| VhdError::NoFooter)?;
    if !b.starts_with(b"conectix") {
        return Err(VhdError::NoFooter);
    }
    let (found, computed) = (u32_be(b, 64), checksum(b));
    if found != computed {
        return Err(VhdError::Checksum { found, computed });
    }
    match u32_be(b, 12) {
        FORMAT_VERSION => {}
        other => return Err(VhdError::Version(other)),
    }
    match u32_be(b, 60) {
        TYPE_FIXED => {}
        other => return Err(VhdError::NotFixed(other)),
    }
    Ok(Footer {
        size: u64_be(b, 48),
        id: uuid_at(b, 68),
        timestamp: u32_be(b, 24),
        geometry: (u16_be(b, 56), u8_at(b, 58), u8_at(b, 59)),
    })
}

fn checksum(b: &[u8; 512]) -> u32 {
    let sum: u32 =
        b.iter().enumerate().filter(|(i, _)| !(64..68).contains(i)).map(|(_, x)| u32::from(*x)).sum();
    !sum
}

/// Cylinders, heads, sectors per track by the rule of the VHD specification's appendix.
fn geometry(size: u64) -> (u16, u8, u8) {
    let total = (size / 512).min(MAX_CHS_SECTORS);
    let (heads, sectors) = if total >= 65535 * 16 * 63 {
        (16, 255)
    } else {
        let heads = (total / 17).div_ceil(1024).max(4);
        if total / 17 < heads * 1024 && heads <= 16 {
            (heads, 17)
        } else if total / 31 < 16 * 1024 {
            (16, 31)
        } else {
            (16, 63)
        }
    };
    let cylinders = total / sectors / heads;
    (
        u16::try_from(cylinders).unwrap_or(u16::MAX),
        u8::try_from(heads).unwrap_or(16),
        u8::try_from(sectors).unwrap_or(255),
    )
}

/// Where the footer of a disk of this virtual size begins in the blob, as an index.
pub fn footer_offset(virtual_size: u64) -> usize {
    index(padded_size(virtual_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

    #[test]
    fn a_footer_reads_back_and_every_byte_flip_is_found() {
        let made = footer(8 << 20, ID, 7);
        let read = parse(&made).unwrap();
        assert_eq!(read, Footer { size: 8 << 20, id: ID, timestamp: 7, geometry: (240, 4, 17) });
        for at in 0..512 {
            for bit in [0x01, 0x80] {
                let mut bad = made;
                bad[at] ^= bit;
                assert!(parse(&bad).is_err(), "flip at {at}");
            }
        }
        assert_eq!(parse(&made[..511]), Err(VhdError::NoFooter));
    }

    #[test]
    fn other_types_and_versions_are_refused_by_name() {
        let with = |at: usize, v: u32| {
            let mut b = footer(1 << 20, ID, 0);
            put_u32_be(&mut b, at, v);
            let sum = checksum(&b);
            put_u32_be(&mut b, 64, sum);
            parse(&b)
        };
        assert_eq!(with(60, 3), Err(VhdError::NotFixed(3)));
        assert_eq!(with(12, 0x0002_0000), Err(VhdError::Version(0x0002_0000)));
        assert!(VhdError::Version(0x0002_0000).to_string().contains("0x00020000"));
    }

    #[test]
    fn sizes_are_padded_to_whole_mebibytes() {
        for (size, padded) in [(0, 0), (1, 1 << 20), (1 << 20, 1 << 20), ((1 << 20) + 512, 2 << 20)] {
            assert_eq!(padded_size(size), padded);
        }
    }

    #[test]
    fn geometry_covers_the_disk_as_far_as_its_fields_allow() {
        for (size, want) in [
            (8u64 << 20, (240, 4, 17)),
            (1 << 30, (2080, 16, 63)),
            (127 << 30, (65278, 16, 255)),
            (2040 << 30, (65535, 16, 255)),
        ] {
            assert_eq!(geometry(size), want, "{size}");
        }
    }
}
