//! New files: fixed, dynamic, and children of existing ones.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::VhdxError;
use super::bat::Entry;
use super::file::{Access, Vhdx};
use super::format::{CreateOptions, Guids, MIB, ParentLink};
use super::header::{Header, Region, Regions, write_start};
use super::metadata::Metadata;
use crate::bytes_at::index;
use crate::io::{FileDisk, RandomAccess};

/// As Hyper-V and qemu have it.
const LOG_LEN: u32 = 1 << 20;

impl Vhdx {
    /// Writes a new VHDX into an empty file and makes it durable:
    /// 1 MiB of headers, 1 MiB of log, 1 MiB of metadata, the BAT, then blocks.
    pub fn create(file: &dyn RandomAccess, options: &CreateOptions) -> Result<(), VhdxError> {
        options.check()?;
        let metadata = Metadata::of(options);
        let g = metadata.geometry;
        let bat = Region { offset: 3 * MIB, len: (g.bat_entries() * 8).next_multiple_of(MIB) };
        let region = Region { offset: 2 * MIB, len: MIB };
        let regions = Regions { bat, metadata: region, all: vec![bat, region] };
        let blocks_at = bat.offset + bat.len;
        let blocks = if options.fixed { g.blocks() } else { 0 };
        let len = blocks_at + blocks * g.block_size;
        file.set_len(len).map_err(|e| VhdxError::io(e, "new file", len))?;
        let items = metadata.encode()?;
        file.write_at(&items, region.offset).map_err(|e| VhdxError::io(e, "metadata", region.offset))?;
        if options.fixed {
            let mut table = vec![0u8; index(g.bat_entries() * 8)];
            for block in 0..blocks {
                let entry = Entry::present(blocks_at + block * g.block_size);
                crate::bytes_at::put_u64_le(&mut table, index(g.payload_entry(block) * 8), entry.0);
            }
            file.write_at(&table, bat.offset).map_err(|e| VhdxError::io(e, "BAT", bat.offset))?;
        }
        let header = Header {
            slot: 0,
            sequence: 1,
            file_write: (options.guids)(),
            data_write: (options.guids)(),
            log: Uuid::nil(),
            log_len: LOG_LEN,
            log_offset: MIB,
        };
        write_start(file, header, &regions)?;
        file.flush().map_err(|e| VhdxError::io(e, "new file", 0))
    }
}

/// Creates `child` as a differencing file over `parent`: same size, sectors, block size and disk id. The parent must
/// not be written any more while it has children.
pub fn create_child(parent: &Path, child: &Path, guids: Guids) -> Result<(), VhdxError> {
    let open = |e, path: &Path| VhdxError::Open { path: path.into(), source: e };
    let file = FileDisk::open_read(parent).map_err(|e| open(e, parent))?;
    let of = Vhdx::open(Arc::new(file), Access::ReadOnly)?;
    let absolute = std::path::absolute(parent).map_err(|e| open(e, parent))?;
    let folder = std::path::absolute(child).map_err(|e| open(e, child))?.parent().map(Path::to_path_buf);
    let options = CreateOptions {
        size: of.size(),
        block_size: of.block_size(),
        logical_sector: of.logical_sector(),
        physical_sector: of.physical_sector(),
        fixed: false,
        disk_id: of.disk_id(),
        parent: Some(ParentLink {
            linkage: of.data_write_guid(),
            linkage2: None,
            relative_path: relative(&absolute, &folder.unwrap_or_default()),
            volume_path: None,
            absolute_path: absolute.to_str().map(str::to_owned),
        }),
        guids,
    };
    let new = FileDisk::create_new(child).map_err(|e| open(e, child))?;
    Vhdx::create(&new, &options)
}

/// `path` as seen from `folder`, with Windows' separators as the format has them; `None` when there is no way (other
/// drive) or the name is not Unicode.
fn relative(path: &Path, folder: &Path) -> Option<String> {
    let (to, from): (Vec<Component<'_>>, Vec<_>) =
        (path.components().collect(), folder.components().collect());
    let common = to.iter().zip(&from).take_while(|(a, b)| a == b).count();
    if common == 0 {
        return None;
    }
    let mut parts = vec![".."; from.len() - common];
    if parts.is_empty() {
        parts.push(".");
    }
    for part in to.get(common..)? {
        parts.push(part.as_os_str().to_str()?);
    }
    Some(parts.join("\\"))
}

/// Where a path of a parent locator leads on this system, seen from the child's folder.
pub(super) fn resolve(path: &str, folder: &Path) -> PathBuf {
    let path = if cfg!(windows) { path.to_owned() } else { path.replace('\\', "/") };
    folder.join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_lead_back_to_the_parent() {
        for (path, folder, want) in [
            ("/a/b/p.vhdx", "/a/b", ".\\p.vhdx"),
            ("/a/p.vhdx", "/a/b/c", "..\\..\\p.vhdx"),
            ("/a/x/p.vhdx", "/a/b", "..\\x\\p.vhdx"),
        ] {
            let found = relative(Path::new(path), Path::new(folder)).unwrap();
            assert_eq!(found, want);
            assert!(resolve(&found, Path::new(folder)).components().count() > 2);
        }
    }
}
