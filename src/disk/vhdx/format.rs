//! Numbers and names of the VHDX format ([MS-VHDX]), and what creating a file asks for.

use uuid::{Uuid, uuid};

use super::VhdxError;

pub(super) const MIB: u64 = 1 << 20;
/// Unit of the log, of metadata updates and of the headers.
pub(super) const PAGE: u64 = 4096;
pub(super) const FILE_ID: &[u8; 8] = b"vhdxfile";
pub(super) const HEADER_OFFSETS: [u64; 2] = [64 << 10, 128 << 10];
pub(super) const REGION_OFFSETS: [u64; 2] = [192 << 10, 256 << 10];
pub(super) const REGION_SIZE: usize = 64 << 10;
/// [MS-VHDX] 2.2: the largest virtual size.
pub(super) const MAX_SIZE: u64 = 64 << 40;
/// Sector bitmap blocks are always this long; one covers a chunk of 2^23 sectors.
pub(super) const BITMAP_BLOCK: u64 = MIB;
pub(super) const SECTORS_PER_CHUNK: u64 = 1 << 23;

pub(super) const REGION_BAT: Uuid = uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08");
pub(super) const REGION_METADATA: Uuid = uuid!("8B7CA206-4790-4B9A-B8FE-575F050F886E");

pub(super) const ITEM_FILE_PARAMETERS: Uuid = uuid!("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
pub(super) const ITEM_VIRTUAL_SIZE: Uuid = uuid!("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
pub(super) const ITEM_DISK_ID: Uuid = uuid!("BECA12AB-B2E6-4523-93EF-C309E000C746");
pub(super) const ITEM_LOGICAL_SECTOR: Uuid = uuid!("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
pub(super) const ITEM_PHYSICAL_SECTOR: Uuid = uuid!("CDA348C7-445D-4471-9CC9-E9885251C556");
pub(super) const ITEM_PARENT_LOCATOR: Uuid = uuid!("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");
pub(super) const LOCATOR_VHDX: Uuid = uuid!("B04AEFB7-D19E-4A81-B789-25B8E9445913");

/// Where new GUIDs come from (`Uuid::new_v4`, or a counter in tests).
pub type Guids = fn() -> Uuid;

/// What a file to be created is like.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Virtual size in bytes: a multiple of the logical sector, at most 64 TiB.
    pub size: u64,
    /// Bytes of a payload block: a power of two from 1 MiB to 256 MiB.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector: u32,
    /// 512 or 4096.
    pub physical_sector: u32,
    /// All blocks allocated from the start.
    pub fixed: bool,
    /// VirtualDiskId; a child has its parent's.
    pub disk_id: Uuid,
    /// Makes a differencing file.
    pub parent: Option<ParentLink>,
    /// For FileWriteGuid and DataWriteGuid.
    pub guids: Guids,
}

impl CreateOptions {
    /// Dynamic, blocks of 32 MiB, sectors of 512 (logical) and 4096 (physical) bytes, no parent.
    pub fn new(size: u64, disk_id: Uuid, guids: Guids) -> Self {
        Self {
            size,
            block_size: 32 << 20,
            logical_sector: 512,
            physical_sector: 4096,
            fixed: false,
            disk_id,
            parent: None,
            guids,
        }
    }

    pub(super) fn check(&self) -> Result<(), VhdxError> {
        let sector = |n: u32| n == 512 || n == 4096;
        let wrong = if !sector(self.logical_sector) || !sector(self.physical_sector) {
            "sectors must be of 512 or 4096 bytes"
        } else if self.size == 0
            || self.size > MAX_SIZE
            || !self.size.is_multiple_of(u64::from(self.logical_sector))
        {
            "size must be whole sectors, at least one and at most 64 TiB"
        } else if !valid_block_size(self.block_size) {
            "block size must be a power of two from 1 MiB to 256 MiB"
        } else if self.fixed && self.parent.is_some() {
            "a differencing file cannot be fixed"
        } else {
            return Ok(());
        };
        Err(VhdxError::Options(wrong))
    }
}

pub(super) fn valid_block_size(n: u32) -> bool {
    n.is_power_of_two() && (1 << 20..=256 << 20).contains(&n)
}

/// What a differencing file says of its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent's DataWriteGuid.
    pub linkage: Uuid,
    /// The second DataWriteGuid accepted during a merge.
    pub linkage2: Option<Uuid>,
    /// From the child's folder; tried first.
    pub relative_path: Option<String>,
    /// By volume GUID; tried second.
    pub volume_path: Option<String>,
    /// Absolute; tried last.
    pub absolute_path: Option<String>,
}

/// Sizes that follow from the metadata; all arithmetic on block numbers is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) size: u64,
    pub(super) block_size: u64,
    pub(super) sector: u64,
    pub(super) differencing: bool,
}

impl Geometry {
    /// Payload blocks of the disk.
    pub(super) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block_size)
    }

    /// Payload blocks that share one sector bitmap block. Both factors are powers of two and the quotient is >= 16.
    pub(super) fn chunk_ratio(&self) -> u64 {
        SECTORS_PER_CHUNK * self.sector / self.block_size
    }

    /// Entries of the BAT. Without a parent the last chunk's bitmap entry is left out ([MS-VHDX] 2.5).
    pub(super) fn bat_entries(&self) -> u64 {
        let (blocks, ratio) = (self.blocks(), self.chunk_ratio());
        if self.differencing {
            blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            blocks + blocks.saturating_sub(1) / ratio
        }
    }

    /// Index in the BAT of a payload block.
    pub(super) fn payload_entry(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio()
    }

    /// Index in the BAT of the bitmap block of a payload block.
    pub(super) fn bitmap_entry(&self, block: u64) -> u64 {
        let ratio = self.chunk_ratio();
        block / ratio * (ratio + 1) + ratio
    }

    /// Index in its bitmap block of the bit of the first sector of `block`.
    pub(super) fn first_bit(&self, block: u64) -> u64 {
        block % self.chunk_ratio() * (self.block_size / self.sector)
    }

    /// Bytes of the disk in `block`: a whole block but for the last.
    pub(super) fn block_len(&self, block: u64) -> u64 {
        self.block_size.min(self.size.saturating_sub(block * self.block_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_entries_interleave_the_bat_after_every_chunk() {
        let g = Geometry { size: 10 << 30, block_size: 32 << 20, sector: 512, differencing: false };
        assert_eq!((g.blocks(), g.chunk_ratio(), g.bat_entries()), (320, 128, 322));
        assert_eq!((g.payload_entry(127), g.bitmap_entry(127), g.payload_entry(128)), (127, 128, 129));
        let child = Geometry { differencing: true, ..g };
        assert_eq!(child.bat_entries(), 3 * 129);
        assert_eq!(child.first_bit(129), 65536);
    }

    #[test]
    fn impossible_options_are_refused() {
        let good = CreateOptions::new(1 << 20, Uuid::nil(), Uuid::nil);
        assert!(good.check().is_ok());
        for bad in [
            CreateOptions { size: 0, ..good.clone() },
            CreateOptions { size: 1000, ..good.clone() },
            CreateOptions { size: MAX_SIZE + 512, ..good.clone() },
            CreateOptions { block_size: 3 << 20, ..good.clone() },
            CreateOptions { block_size: 512 << 20, ..good.clone() },
            CreateOptions { logical_sector: 1024, ..good.clone() },
            CreateOptions { fixed: true, parent: Some(ParentLink::default()), ..good.clone() },
        ] {
            assert!(matches!(bad.check(), Err(VhdxError::Options(_))), "{bad:?}");
        }
    }
}
