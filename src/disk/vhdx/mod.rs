//! VHDX files and their chains: create, read, write, trim, map, merge.
//!
//! [`Vhdx`] is one file; [`Chain`] is a leaf with all its parents and what users of a disk open.
#![allow(unused_variables, dead_code, clippy::todo, missing_docs, reason = "signatures first")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

use crate::extents::Extents;
use crate::io::RandomAccess;

/// Where new GUIDs come from (`Uuid::new_v4`, or a counter in tests).
pub type Guids = fn() -> Uuid;

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// A dirty log is replayed in memory; the file is never written.
    ReadOnly,
    /// A dirty log is replayed into the file; the first write changes FileWriteGuid and DataWriteGuid.
    ReadWrite(Guids),
    /// As `ReadWrite`, but DataWriteGuid stays: for the parent of a merge, whose child must go on finding it.
    Merge(Guids),
}

#[derive(Debug, Error)]
pub enum VhdxError {
    #[error("read or write of {what} failed at offset {offset:#x}")]
    Io { what: &'static str, offset: u64, source: io::Error },
}

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The chain of parents is not what the files say: not recoverable.
    BrokenChain,
    /// The file's structures are damaged or of an unknown kind.
    Corrupt,
    /// The operating system refused.
    Io,
    /// The caller asked for what cannot be.
    Usage,
}

impl VhdxError {
    pub fn class(&self) -> Class {
        todo!()
    }
}

#[derive(Clone, Debug)]
pub struct CreateOptions {
    pub size: u64,
    pub block_size: u32,
    pub logical_sector: u32,
    pub physical_sector: u32,
    pub fixed: bool,
    pub disk_id: Uuid,
    pub parent: Option<ParentLink>,
    pub guids: Guids,
}

impl CreateOptions {
    /// Dynamic, 32 MiB blocks, 512/4096-byte sectors.
    pub fn new(size: u64, disk_id: Uuid, guids: Guids) -> Self {
        todo!()
    }
}

/// What a differencing file says of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent's DataWriteGuid.
    pub linkage: Uuid,
    pub relative_path: Option<String>,
    pub volume_path: Option<String>,
    pub absolute_path: Option<String>,
}

pub struct Vhdx {}

impl Vhdx {
    pub fn create(file: &dyn RandomAccess, options: &CreateOptions) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn open(file: Arc<dyn RandomAccess>, access: Access) -> Result<Self, VhdxError> {
        todo!()
    }
    pub fn size(&self) -> u64 {
        todo!()
    }
    pub fn block_size(&self) -> u32 {
        todo!()
    }
    pub fn logical_sector(&self) -> u32 {
        todo!()
    }
    pub fn disk_id(&self) -> Uuid {
        todo!()
    }
    pub fn data_write_guid(&self) -> Uuid {
        todo!()
    }
    pub fn is_differencing(&self) -> bool {
        todo!()
    }
    pub fn parent_locator(&self) -> Option<&ParentLink> {
        todo!()
    }
    /// Reads what this file alone holds; what only a parent has reads as zero.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn flush(&self) -> Result<(), VhdxError> {
        todo!()
    }
    /// Flushes and marks the log as empty. Also tried when dropped.
    pub fn close(&self) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn allocated(&self) -> Result<Extents, VhdxError> {
        todo!()
    }
}

pub struct Chain {}

impl Chain {
    pub fn open(leaf: &Path, access: Access) -> Result<Self, VhdxError> {
        todo!()
    }
    /// The files, leaf first.
    pub fn paths(&self) -> &[PathBuf] {
        todo!()
    }
    pub fn layers(&self) -> &[Vhdx] {
        todo!()
    }
    pub fn size(&self) -> u64 {
        todo!()
    }
    pub fn disk_id(&self) -> Uuid {
        todo!()
    }
    pub fn data_write_guid(&self) -> Uuid {
        todo!()
    }
    pub fn logical_sector(&self) -> u32 {
        todo!()
    }
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn flush(&self) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn close(&self) -> Result<(), VhdxError> {
        todo!()
    }
    pub fn allocated(&self) -> Result<Extents, VhdxError> {
        todo!()
    }
}

/// Digests and raw copies read chains as files. `set_len` is refused.
impl RandomAccess for Chain {
    fn len(&self) -> io::Result<u64> {
        todo!()
    }
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        todo!()
    }
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        todo!()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        todo!()
    }
    fn flush(&self) -> io::Result<()> {
        todo!()
    }
}

/// Creates `child` as a differencing file over `parent` (same size, sectors, disk id).
pub fn create_child(parent: &Path, child: &Path, guids: Guids) -> Result<(), VhdxError> {
    todo!()
}

/// Copies what `child` holds inside `ranges` into `parent` (opened with [`Access::Merge`]); returns bytes copied.
pub fn merge_ranges(child: &Vhdx, parent: &Vhdx, ranges: &Extents) -> Result<u64, VhdxError> {
    todo!()
}

/// Copies all that `child` holds into its parent file and flushes it. The child stays as it is: the caller removes it.
pub fn merge_into_parent(child: &Path, guids: Guids) -> Result<u64, VhdxError> {
    todo!()
}
