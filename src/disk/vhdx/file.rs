//! One VHDX file: opening and reading. Writing is in `write`.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use uuid::Uuid;

use super::bat::Bat;
use super::format::{Guids, ParentLink};
use super::header::{Header, Regions};
use super::map::Kind;
use super::metadata::Metadata;
use super::overlay::Overlay;
use super::write::Writer;
use super::{VhdxError, log};
use crate::bytes_at::index;
use crate::io::RandomAccess;

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// A dirty log is replayed in memory; the file is never written.
    ReadOnly,
    /// A dirty log is replayed into the file; the first write changes FileWriteGuid and DataWriteGuid.
    ReadWrite(Guids),
    /// As `ReadWrite`, but DataWriteGuid stays: for the parent of a merge, whose child must go on finding it. What is
    /// read through that child does not change by the merge, so the id still tells the truth.
    Merge(Guids),
}

impl Access {
    pub(super) fn guids(self) -> Option<Guids> {
        match self {
            Self::ReadOnly => None,
            Self::ReadWrite(guids) | Self::Merge(guids) => Some(guids),
        }
    }
}

/// One VHDX file. Calls may run in parallel.
pub struct Vhdx {
    pub(super) file: Arc<dyn RandomAccess>,
    pub(super) metadata: Metadata,
    pub(super) access: Access,
    pub(super) poisoned: AtomicBool,
    state: RwLock<State>,
}

/// What writes change. Data of blocks in their places is written under the read lock.
pub(super) struct State {
    pub(super) header: Header,
    pub(super) bat: Bat,
    /// Only with write access.
    pub(super) writer: Option<Writer>,
}

impl fmt::Debug for Vhdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vhdx")
            .field("metadata", &self.metadata)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl Vhdx {
    /// Opens a file, replaying its log as `access` says. Parents are not looked for: see [`super::Chain`].
    pub fn open(file: Arc<dyn RandomAccess>, access: Access) -> Result<Self, VhdxError> {
        let len = |file: &dyn RandomAccess| file.len().map_err(|e| VhdxError::io(e, "length", 0));
        let mut header = Header::read(&*file)?;
        let replay = log::read(&*file, &header, len(&*file)?)?;
        let file: Arc<dyn RandomAccess> = match (replay, access) {
            (None, _) => file,
            (Some(replay), Access::ReadOnly) => Arc::new(Overlay::new(file, replay)),
            (Some(replay), Access::ReadWrite(_) | Access::Merge(_)) => {
                replay_into(&*file, &replay)?;
                file
            }
        };
        if access.guids().is_some() && !header.log.is_nil() {
            // Durable above, so a crash before this line replays the same again.
            header.log = Uuid::nil();
            header.advance(&*file)?;
        }
        let file_len = len(&*file)?;
        let regions = Regions::read(&*file, file_len)?;
        let metadata = Metadata::read(&*file, regions.metadata)?;
        let bat = Bat::read(&*file, metadata.geometry, regions.bat)?;
        let writer = match access.guids() {
            Some(guids) => Some(Writer::new(&bat, &header, &regions, file_len, guids())?),
            None => None,
        };
        let state = RwLock::new(State { header, bat, writer });
        Ok(Self { file, metadata, access, poisoned: AtomicBool::new(false), state })
    }

    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.metadata.geometry.size
    }

    /// Bytes of a payload block.
    pub fn block_size(&self) -> u32 {
        u32::try_from(self.metadata.geometry.block_size).unwrap_or(u32::MAX)
    }

    /// 512 or 4096.
    pub fn logical_sector(&self) -> u32 {
        u32::try_from(self.metadata.geometry.sector).unwrap_or(u32::MAX)
    }

    /// 512 or 4096.
    pub fn physical_sector(&self) -> u32 {
        self.metadata.physical_sector
    }

    /// VirtualDiskId: the same in all files of a chain.
    pub fn disk_id(&self) -> Uuid {
        self.metadata.disk_id
    }

    /// DataWriteGuid: changes when the content changes, at the first write after opening.
    pub fn data_write_guid(&self) -> Uuid {
        self.read_state().header.data_write
    }

    /// True when the file has a parent.
    pub fn is_differencing(&self) -> bool {
        self.metadata.geometry.differencing
    }

    /// What the file says of its parent.
    pub fn parent_locator(&self) -> Option<&ParentLink> {
        self.metadata.parent.as_ref()
    }

    /// Reads what this file alone holds; what only a parent has reads as zero.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), VhdxError> {
        self.read_layer(buf, offset, |absent, _| {
            absent.fill(0);
            Ok(())
        })
    }

    /// Reads what this file holds, and hands the parts that only a parent has to `absent` with their offset.
    pub(super) fn read_layer(
        &self,
        buf: &mut [u8],
        offset: u64,
        mut absent: impl FnMut(&mut [u8], u64) -> Result<(), VhdxError>,
    ) -> Result<(), VhdxError> {
        self.check_range(offset, buf.len() as u64)?;
        // Held while reading: a block may not be given back and filled anew meanwhile.
        let state = self.read_state();
        let mut rest = buf;
        for piece in self.map_in(&state, offset, rest.len() as u64)? {
            let (part, tail) = rest.split_at_mut(index(piece.len).min(rest.len()));
            match piece.kind {
                Kind::Data { at } => {
                    self.file.read_at(part, at).map_err(|e| VhdxError::short(e, "block", at))?;
                }
                Kind::Zero => part.fill(0),
                Kind::Absent => absent(part, piece.offset)?,
            }
            rest = tail;
        }
        Ok(())
    }

    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<(), VhdxError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(VhdxError::OutOfRange { offset, len, size: self.size() }),
        }
    }

    pub(super) fn check_poison(&self) -> Result<(), VhdxError> {
        if self.poisoned.load(Ordering::Acquire) { Err(VhdxError::Poisoned) } else { Ok(()) }
    }

    pub(super) fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn replay_into(file: &dyn RandomAccess, replay: &log::Replay) -> Result<(), VhdxError> {
    let io = |e, at| VhdxError::io(e, "log replay", at);
    if file.len().map_err(|e| io(e, 0))? < replay.len {
        file.set_len(replay.len).map_err(|e| io(e, replay.len))?;
    }
    for (at, page) in &replay.pages {
        file.write_at(page, *at).map_err(|e| io(e, *at))?;
    }
    file.flush().map_err(|e| io(e, 0))
}
