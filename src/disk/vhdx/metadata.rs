//! The metadata region: what kind of disk it is, and who its parent is.

use uuid::Uuid;

use super::VhdxError;
use super::format::{
    CreateOptions, Geometry, ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_LOGICAL_SECTOR, ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR, ITEM_VIRTUAL_SIZE, LOCATOR_VHDX, MAX_SIZE, MIB, ParentLink, valid_block_size,
};
use super::header::Region;
use crate::bytes_at::{guid_at, index, put, put_guid, put_u16_le, put_u32_le, u16_le, u32_le, u64_le};
use crate::io::RandomAccess;

/// The table before the items.
const TABLE: usize = 64 << 10;
/// [MS-VHDX] 2.6: at most this many items, of at most 1 MiB each.
const MAX_ITEMS: u16 = 2047;
const LEAVE_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;
const REQUIRED: u32 = 4;
const OF_VIRTUAL_DISK: u32 = 2;

/// The items, decoded.
///
/// Table, little-endian, at the region's start:
///
/// | off | size | field |
/// |---|---|---|
/// | 0 | 8 | `metadata` |
/// | 10 | 2 | EntryCount, at most 2047 |
/// | 32 + 32 i | 16 | ItemId |
/// | 48 + 32 i | 4 | Offset in the region, at least 64 KiB |
/// | 52 + 32 i | 4 | Length |
/// | 56 + 32 i | 4 | bit 0 user, bit 1 of the virtual disk, bit 2 required |
///
/// Items: file parameters {u32 block size, u32 bit 0 leave allocated, bit 1 has parent}, virtual size u64, disk id
/// GUID, logical and physical sector size u32, parent locator (below).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) geometry: Geometry,
    pub(super) physical_sector: u32,
    /// Fixed: a trim must not give blocks back.
    pub(super) leave_allocated: bool,
    pub(super) disk_id: Uuid,
    pub(super) parent: Option<ParentLink>,
}

impl Metadata {
    pub(super) fn of(options: &CreateOptions) -> Self {
        Self {
            geometry: Geometry {
                size: options.size,
                block_size: options.block_size.into(),
                sector: options.logical_sector.into(),
                differencing: options.parent.is_some(),
            },
            physical_sector: options.physical_sector,
            leave_allocated: options.fixed,
            disk_id: options.disk_id,
            parent: options.parent.clone(),
        }
    }

    /// The whole region: 1 MiB, or an error when the paths of the parent do not fit.
    pub(super) fn encode(&self) -> Result<Vec<u8>, VhdxError> {
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let flags =
            u32::from(self.leave_allocated) * LEAVE_ALLOCATED + u32::from(self.parent.is_some()) * HAS_PARENT;
        let mut parameters = narrow(self.geometry.block_size).to_le_bytes().to_vec();
        parameters.extend(flags.to_le_bytes());
        let mut items = vec![
            (ITEM_FILE_PARAMETERS, parameters, REQUIRED),
            (ITEM_VIRTUAL_SIZE, self.geometry.size.to_le_bytes().to_vec(), REQUIRED | OF_VIRTUAL_DISK),
            (ITEM_DISK_ID, self.disk_id.to_bytes_le().to_vec(), REQUIRED | OF_VIRTUAL_DISK),
            (
                ITEM_LOGICAL_SECTOR,
                narrow(self.geometry.sector).to_le_bytes().to_vec(),
                REQUIRED | OF_VIRTUAL_DISK,
            ),
            (ITEM_PHYSICAL_SECTOR, self.physical_sector.to_le_bytes().to_vec(), REQUIRED | OF_VIRTUAL_DISK),
        ];
        if let Some(parent) = &self.parent {
            items.push((ITEM_PARENT_LOCATOR, encode_locator(parent)?, REQUIRED));
        }
        let mut b = vec![0; index(MIB)];
        put(&mut b, 0, b"metadata");
        put_u16_le(&mut b, 10, u16::try_from(items.len()).unwrap_or(u16::MAX));
        let mut at = TABLE;
        for (i, (id, data, flags)) in items.into_iter().enumerate() {
            let entry = 32 + 32 * i;
            put_guid(&mut b, entry, id);
            put_u32_le(&mut b, entry + 16, narrow(at as u64));
            put_u32_le(&mut b, entry + 20, narrow(data.len() as u64));
            put_u32_le(&mut b, entry + 24, flags);
            if at + data.len() > b.len() {
                return Err(VhdxError::Options("the parent's paths are too long"));
            }
            put(&mut b, at, &data);
            at = (at + data.len()).next_multiple_of(8);
        }
        Ok(b)
    }

    pub(super) fn read(file: &dyn RandomAccess, region: Region) -> Result<Self, VhdxError> {
        let bad = |what| VhdxError::corrupt(what, region.offset);
        let mut table = vec![0; TABLE];
        file.read_at(&mut table, region.offset)
            .map_err(|e| VhdxError::short(e, "metadata", region.offset))?;
        if !table.starts_with(b"metadata") || u16_le(&table, 10) > MAX_ITEMS {
            return Err(bad("metadata table"));
        }
        let mut found = Items::default();
        for (_, entry) in (0..u16_le(&table, 10)).zip(table.get(32..).unwrap_or_default().chunks_exact(32)) {
            let (id, at, len) =
                (guid_at(entry, 0), u64::from(u32_le(entry, 16)), u64::from(u32_le(entry, 20)));
            let required = u32_le(entry, 24) & REQUIRED != 0;
            let Some(slot) = found.slot(id) else {
                if required {
                    return Err(VhdxError::UnknownRequired { what: "metadata item", id });
                }
                continue;
            };
            // The region lies inside the file and is itself bounded by 4 GiB; an item by 1 MiB.
            if at < TABLE as u64 || len > MIB || at + len > region.len || slot.is_some() {
                return Err(bad("metadata item"));
            }
            let mut data = vec![0; index(len)];
            let from = region.offset + at;
            file.read_at(&mut data, from).map_err(|e| VhdxError::short(e, "metadata item", from))?;
            *slot = Some(data);
        }
        found.decode(region.offset)
    }
}

#[derive(Default)]
struct Items {
    parameters: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    disk_id: Option<Vec<u8>>,
    logical: Option<Vec<u8>>,
    physical: Option<Vec<u8>>,
    locator: Option<Vec<u8>>,
}

impl Items {
    fn slot(&mut self, id: Uuid) -> Option<&mut Option<Vec<u8>>> {
        Some(match id {
            ITEM_FILE_PARAMETERS => &mut self.parameters,
            ITEM_VIRTUAL_SIZE => &mut self.size,
            ITEM_DISK_ID => &mut self.disk_id,
            ITEM_LOGICAL_SECTOR => &mut self.logical,
            ITEM_PHYSICAL_SECTOR => &mut self.physical,
            ITEM_PARENT_LOCATOR => &mut self.locator,
            _ => return None,
        })
    }

    fn decode(self, region: u64) -> Result<Metadata, VhdxError> {
        let item = |item: Option<Vec<u8>>, len: usize, what| {
            item.filter(|b| b.len() >= len).ok_or(VhdxError::corrupt(what, region))
        };
        let parameters = item(self.parameters, 8, "file parameters")?;
        let (block_size, flags) = (u32_le(&parameters, 0), u32_le(&parameters, 4));
        let size = u64_le(&item(self.size, 8, "virtual size")?, 0);
        let sector = u32_le(&item(self.logical, 4, "logical sector size")?, 0);
        let physical_sector = u32_le(&item(self.physical, 4, "physical sector size")?, 0);
        if !valid_block_size(block_size) {
            return Err(VhdxError::corrupt("block size", region));
        }
        if (sector != 512 && sector != 4096) || (physical_sector != 512 && physical_sector != 4096) {
            return Err(VhdxError::corrupt("sector size", region));
        }
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(sector.into()) {
            return Err(VhdxError::corrupt("virtual size", region));
        }
        let differencing = flags & HAS_PARENT != 0;
        let parent = match (differencing, self.locator) {
            (false, _) => None,
            (true, None) => return Err(VhdxError::corrupt("parent locator", region)),
            (true, Some(b)) => Some(decode_locator(&b).ok_or(VhdxError::corrupt("parent locator", region))??),
        };
        Ok(Metadata {
            geometry: Geometry { size, block_size: block_size.into(), sector: sector.into(), differencing },
            physical_sector,
            leave_allocated: flags & LEAVE_ALLOCATED != 0,
            disk_id: guid_at(&item(self.disk_id, 16, "virtual disk id")?, 0),
            parent,
        })
    }
}

/// Parent locator, little-endian; offsets count from its start; texts are UTF-16 without terminator:
///
/// | off | size | field |
/// |---|---|---|
/// | 0 | 16 | LocatorType |
/// | 18 | 2 | KeyValueCount |
/// | 20 + 12 i | 4, 4 | KeyOffset, ValueOffset |
/// | 28 + 12 i | 2, 2 | KeyLength, ValueLength |
fn encode_locator(parent: &ParentLink) -> Result<Vec<u8>, VhdxError> {
    let pairs: Vec<(&str, String)> = [
        ("parent_linkage", Some(braced(parent.linkage))),
        ("parent_linkage2", parent.linkage2.map(braced)),
        ("relative_path", parent.relative_path.clone()),
        ("volume_path", parent.volume_path.clone()),
        ("absolute_win32_path", parent.absolute_path.clone()),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect();
    let mut b = vec![0; 20 + 12 * pairs.len()];
    put_guid(&mut b, 0, LOCATOR_VHDX);
    put_u16_le(&mut b, 18, u16::try_from(pairs.len()).unwrap_or(u16::MAX));
    for (i, (key, value)) in pairs.iter().enumerate() {
        for (half, text) in [(0, *key), (1, value.as_str())] {
            let at = u32::try_from(b.len()).unwrap_or(u32::MAX);
            let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let len = u16::try_from(utf16.len())
                .map_err(|_| VhdxError::Options("the parent's paths are too long"))?;
            put_u32_le(&mut b, 20 + 12 * i + 4 * half, at);
            put_u16_le(&mut b, 28 + 12 * i + 2 * half, len);
            b.extend(utf16);
        }
    }
    Ok(b)
}

fn braced(id: Uuid) -> String {
    id.braced().to_string()
}

/// `None`: damaged.
fn decode_locator(b: &[u8]) -> Option<Result<ParentLink, VhdxError>> {
    if b.len() < 20 {
        return None;
    }
    let kind = guid_at(b, 0);
    if kind != LOCATOR_VHDX {
        return Some(Err(VhdxError::UnknownRequired { what: "parent locator", id: kind }));
    }
    let text = |at: u32, len: u16| {
        let raw = b.get(index(at.into())..)?.get(..usize::from(len))?;
        let (units, rest) = raw.as_chunks::<2>();
        let units: Vec<u16> = units.iter().map(|u| u16::from_le_bytes(*u)).collect();
        rest.is_empty().then(|| String::from_utf16(&units).ok()).flatten()
    };
    let (mut linkage, mut link) = (None, ParentLink::default());
    for i in 0..usize::from(u16_le(b, 18)) {
        let entry = b.get(20 + 12 * i..)?.first_chunk::<12>()?;
        let key = text(u32_le(entry, 0), u16_le(entry, 8))?;
        let value = text(u32_le(entry, 4), u16_le(entry, 10))?;
        match key.as_str() {
            "parent_linkage" => linkage = Some(Uuid::parse_str(&value).ok()?),
            "parent_linkage2" => link.linkage2 = Uuid::parse_str(&value).ok().filter(|id| !id.is_nil()),
            "relative_path" => link.relative_path = Some(value),
            "volume_path" => link.volume_path = Some(value),
            "absolute_win32_path" => link.absolute_path = Some(value),
            _ => {}
        }
    }
    link.linkage = linkage?;
    Some(Ok(link))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemDisk;

    #[test]
    fn metadata_of_a_child_reads_back_whole() {
        let mut options = CreateOptions::new(3 << 30, Uuid::from_u128(7), Uuid::nil);
        options.parent = Some(ParentLink {
            linkage: Uuid::from_u128(8),
            linkage2: Some(Uuid::from_u128(9)),
            relative_path: Some(".\\Wurzel-ß.vhdx".into()),
            volume_path: None,
            absolute_path: Some("C:\\disks\\Wurzel-ß.vhdx".into()),
        });
        let made = Metadata::of(&options);
        let file = MemDisk::new(made.encode().unwrap());
        assert_eq!(Metadata::read(&file, Region { offset: 0, len: MIB }).unwrap(), made);
    }

    #[test]
    fn paths_that_do_not_fit_are_refused() {
        let mut options = CreateOptions::new(3 << 30, Uuid::nil(), Uuid::nil);
        options.parent =
            Some(ParentLink { relative_path: Some("x".repeat(40_000)), ..ParentLink::default() });
        assert!(matches!(Metadata::of(&options).encode(), Err(VhdxError::Options(_))));
    }
}
