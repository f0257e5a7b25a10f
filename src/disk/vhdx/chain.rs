//! A disk as its users see it: the leaf file and all its parents.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use super::create::resolve;
use super::file::{Access, Vhdx};
use super::map::Kind;
use super::{Size, VhdxError};
use crate::bytes_at::{index, put};
use crate::extents::Extents;
use crate::io::{FileDisk, RandomAccess};

/// Hyper-V makes at most 50 checkpoints of a VM; twice that is a damaged or hostile chain.
const MAX_DEPTH: usize = 100;

/// A leaf with its parents. Reads go down the chain, writes to the leaf.
#[derive(Debug)]
pub struct Chain {
    /// Leaf first; never empty.
    layers: Vec<Vhdx>,
    paths: Vec<PathBuf>,
    /// One unaligned write at a time: it reads, changes and writes sectors.
    unaligned: Mutex<()>,
}

impl Chain {
    /// Opens a file with `access` and its parents for reading, checking that each is the one its child was made over.
    pub fn open(leaf: &Path, access: Access) -> Result<Self, VhdxError> {
        let (mut layers, mut paths, mut seen) = (Vec::<Vhdx>::new(), Vec::<PathBuf>::new(), BTreeSet::new());
        let (mut next, mut access) = (Some(leaf.to_path_buf()), access);
        while let Some(path) = next {
            let real = std::fs::canonicalize(&path)
                .map_err(|e| VhdxError::Open { path: path.clone(), source: e })?;
            if !seen.insert(real) {
                return Err(VhdxError::Cycle { path });
            }
            if layers.len() >= MAX_DEPTH {
                return Err(VhdxError::TooDeep { limit: MAX_DEPTH });
            }
            let file = match access {
                Access::ReadOnly => FileDisk::open_read(&path),
                Access::ReadWrite(_) | Access::Merge(_) => FileDisk::open_rw(&path),
            };
            let file = file.map_err(|e| VhdxError::Open { path: path.clone(), source: e })?;
            let layer = Vhdx::open(Arc::new(file), access)?;
            if let (Some(child), Some(child_path)) = (layers.last(), paths.last()) {
                fits(child, child_path, &layer, &path)?;
            }
            next = parent_of(&layer, &path)?;
            layers.push(layer);
            paths.push(path);
            access = Access::ReadOnly;
        }
        Ok(Self { layers, paths, unaligned: Mutex::new(()) })
    }

    /// A chain of layers that are no files of the host.
    #[cfg(test)]
    pub(super) fn of(layers: Vec<Vhdx>) -> Self {
        Self { paths: vec![PathBuf::new(); layers.len()], layers, unaligned: Mutex::new(()) }
    }

    /// The files, leaf first.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The layers, leaf first.
    pub fn layers(&self) -> &[Vhdx] {
        &self.layers
    }

    #[expect(clippy::indexing_slicing, reason = "a chain has at least its leaf")]
    fn leaf(&self) -> &Vhdx {
        &self.layers[0]
    }

    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.leaf().size()
    }

    /// VirtualDiskId.
    pub fn disk_id(&self) -> Uuid {
        self.leaf().disk_id()
    }

    /// DataWriteGuid of the leaf.
    pub fn data_write_guid(&self) -> Uuid {
        self.leaf().data_write_guid()
    }

    /// 512 or 4096.
    pub fn logical_sector(&self) -> u32 {
        self.leaf().logical_sector()
    }

    /// Reads through the chain.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), VhdxError> {
        read_layers(&self.layers, buf, offset)
    }

    /// Writes to the leaf; parts of sectors are completed by what the chain holds.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), VhdxError> {
        let leaf = self.leaf();
        let (sector, len) = (u64::from(leaf.logical_sector()), buf.len() as u64);
        if !leaf.is_differencing() || (offset | len).is_multiple_of(sector) {
            return leaf.write_at(buf, offset);
        }
        leaf.check_range(offset, len)?;
        let _one = self.unaligned.lock().unwrap_or_else(PoisonError::into_inner);
        let from = offset - offset % sector;
        let mut whole = vec![0; index((offset + len).next_multiple_of(sector) - from)];
        self.read_at(&mut whole, from)?;
        put(&mut whole, index(offset - from), buf);
        leaf.write_at(&whole, from)
    }

    /// Makes a range read as zero, whatever the parents hold.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), VhdxError> {
        let leaf = self.leaf();
        leaf.check_range(offset, len)?;
        let sector = u64::from(leaf.logical_sector());
        let (from, to) = (offset.next_multiple_of(sector), (offset + len) / sector * sector);
        if !leaf.is_differencing() || (from == offset && to == offset + len) {
            return leaf.zero(offset, len);
        }
        if from >= to {
            return self.write_at(&vec![0; index(len)], offset);
        }
        self.write_at(&vec![0; index(from - offset)], offset)?;
        leaf.zero(from, to - from)?;
        self.write_at(&vec![0; index(offset + len - to)], to)
    }

    /// Makes what was written durable.
    pub fn flush(&self) -> Result<(), VhdxError> {
        self.leaf().flush()
    }

    /// Flushes and marks the leaf's log as empty.
    pub fn close(&self) -> Result<(), VhdxError> {
        self.leaf().close()
    }

    /// Ranges for which some file holds bytes; the rest of the disk reads as zero.
    pub fn allocated(&self) -> Result<Extents, VhdxError> {
        let (mut data, mut answered) = (Extents::new(), Extents::new());
        for layer in &self.layers {
            let (mut here, mut zero) = (Extents::new(), Extents::new());
            layer.walk(|piece| match piece.kind {
                Kind::Data { .. } => here.insert(piece.offset, piece.len),
                Kind::Zero => zero.insert(piece.offset, piece.len),
                Kind::Absent => {}
            })?;
            data = data.union(&here.subtract(&answered));
            answered = answered.union(&here).union(&zero);
        }
        Ok(data)
    }
}

fn read_layers(layers: &[Vhdx], buf: &mut [u8], offset: u64) -> Result<(), VhdxError> {
    match layers.split_first() {
        Some((layer, parents)) => layer.read_layer(buf, offset, |rest, at| read_layers(parents, rest, at)),
        None => {
            buf.fill(0);
            Ok(())
        }
    }
}

/// Where the parent of `layer` is, by the locator's paths in their order.
pub(super) fn parent_of(layer: &Vhdx, path: &Path) -> Result<Option<PathBuf>, VhdxError> {
    let Some(link) = layer.parent_locator() else { return Ok(None) };
    let folder = path.parent().unwrap_or(Path::new(""));
    let paths = [&link.relative_path, &link.volume_path, &link.absolute_path];
    let tried: Vec<PathBuf> = paths.into_iter().flatten().map(|p| resolve(p, folder)).collect();
    let found = tried.iter().find(|p| p.is_file()).cloned();
    found.map(Some).ok_or_else(|| VhdxError::ParentNotFound { child: path.into(), tried })
}

/// Is `parent` the file that `child` was made over?
pub(super) fn fits(child: &Vhdx, child_path: &Path, parent: &Vhdx, path: &Path) -> Result<(), VhdxError> {
    let size = |v: &Vhdx| Size { bytes: v.size(), sector: v.logical_sector() };
    let link = child.parent_locator().ok_or_else(|| VhdxError::NoParent { path: child_path.into() })?;
    let found = parent.data_write_guid();
    if link.linkage != found && link.linkage2 != Some(found) {
        let (child, parent) = (child_path.into(), path.into());
        return Err(VhdxError::ParentMismatch { child, parent, expected: link.linkage, found });
    }
    if size(child) != size(parent) {
        let (expected, found) = (size(child), size(parent));
        return Err(VhdxError::SizeMismatch {
            child: child_path.into(),
            parent: path.into(),
            expected,
            found,
        });
    }
    Ok(())
}

/// Digests and raw copies read a chain as a file of the disk's size. `set_len` is refused.
impl RandomAccess for Chain {
    fn len(&self) -> io::Result<u64> {
        Ok(self.size())
    }
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        Ok(Self::read_at(self, buf, off)?)
    }
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        Ok(Self::write_at(self, buf, off)?)
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(Self::flush(self)?)
    }
}
