//! One virtual disk of a machine: the open chain of VHDX files, its change tracking, and the merge of the leaf
//! into its parent while the guest goes on writing.
//!
//! ```text
//! guest write:  gate (shared) -> mark tracking -> leaf -> and the parent, where the merge has passed already
//! merge step:   gate (alone)  -> copy one piece of the leaf into the parent, move the watermark
//! checkpoint:   gates of all disks (alone) -> new leaf
//! ```
//! Until the last step the leaf alone tells the whole truth: a merge that is cut off starts again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use farshore_core::ids::DiskId;
use farshore_disk::vhdx::{self, Access, Chain, Vhdx, VhdxError};
use farshore_disk::{Extents, FileDisk};
use uuid::Uuid;

use super::rct::Tracker;

/// Bytes merged while the gate is held: what a guest's write waits for at most.
const STEP: u64 = 4 << 20;

/// A disk.
pub(super) struct Disk {
    pub(super) id: DiskId,
    pub(super) slot: u32,
    pub(super) size: u64,
    pub(super) sector: u32,
    gate: RwLock<Gate>,
    /// Writes of parts of sectors, one at a time.
    edge: Mutex<()>,
    pub(super) tracker: Mutex<Tracker>,
}

/// What the gate guards: the open files, if the machine is on.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) chain: Option<Chain>,
    mirror: Option<Mirror>,
}

/// A merge under way.
struct Mirror {
    parent: Vhdx,
    /// Everything below is in the parent.
    below: u64,
    /// Keeps the order of overlapping writes the same in both files.
    order: Mutex<()>,
}

/// A guest's change at an offset, in whole sectors.
#[derive(Clone, Copy)]
enum Change<'a> {
    Write(&'a [u8]),
    Zero(u64),
}

impl Change<'_> {
    fn len(self) -> u64 {
        match self {
            Self::Write(data) => data.len() as u64,
            Self::Zero(count) => count,
        }
    }
}

/// How a merge ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// The parent holds everything; the caller switches to it.
    Whole,
    /// Told to stop before the end.
    Stopped,
}

impl Disk {
    /// A disk that is off.
    pub(super) fn new(id: DiskId, slot: u32, size: u64, sector: u32, tracker: Tracker) -> Self {
        Self {
            id,
            slot,
            size,
            sector,
            gate: RwLock::default(),
            edge: Mutex::default(),
            tracker: Mutex::new(tracker),
        }
    }

    /// Opens the gate's guard for one alone: no read or write of the guest is under way.
    pub(super) fn hold(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads as the guest does.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let gate = self.pass();
        let chain = gate.chain()?;
        let (from, to) = self.sectors(offset, buf.len() as u64);
        if (from, to) == (offset, offset + buf.len() as u64) {
            return chain.read_at(buf, offset).map_err(failed);
        }
        let mut whole = vec![0; len(to - from)?];
        chain.read_at(&mut whole, from).map_err(failed)?;
        let part = whole.get(len(offset - from)?..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(part.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    /// Writes as the guest does.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (from, to) = self.sectors(offset, data.len() as u64);
        if (from, to) == (offset, offset + data.len() as u64) {
            return self.change(offset, Change::Write(data));
        }
        let _edge = self.edge.lock().unwrap_or_else(PoisonError::into_inner);
        let mut whole = vec![0; len(to - from)?];
        self.read(from, &mut whole)?;
        let at = len(offset - from)?;
        whole.get_mut(at..at + data.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(data);
        self.change(from, Change::Write(&whole))
    }

    /// Makes a range read as zeros.
    pub(super) fn zero(&self, offset: u64, count: u64) -> io::Result<()> {
        let sector = u64::from(self.sector);
        let from = offset.next_multiple_of(sector);
        let to = (offset + count) / sector * sector;
        if from >= to {
            return self.write(offset, &vec![0; len(count)?]);
        }
        if from > offset {
            self.write(offset, &vec![0; len(from - offset)?])?;
        }
        self.change(from, Change::Zero(to - from))?;
        if offset + count > to {
            self.write(to, &vec![0; len(offset + count - to)?])?;
        }
        Ok(())
    }

    /// Makes durable what was written.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.pass().chain()?.flush().map_err(failed)
    }

    fn change(&self, offset: u64, change: Change<'_>) -> io::Result<()> {
        let gate = self.pass();
        let chain = gate.chain()?;
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner).mark(offset, change.len())?;
        let leaf = || match change {
            Change::Write(data) => chain.write_at(data, offset),
            Change::Zero(count) => chain.zero(offset, count),
        };
        let Some(mirror) = &gate.mirror else { return leaf().map_err(failed) };
        let _order = mirror.order.lock().unwrap_or_else(PoisonError::into_inner);
        leaf().map_err(failed)?;
        if offset >= mirror.below {
            return Ok(());
        }
        // May lie across the watermark: what is above it is copied again, from the leaf.
        let parent = match change {
            Change::Write(data) => mirror.parent.write_at(data, offset),
            Change::Zero(count) => mirror.parent.zero(offset, count),
        };
        parent.map_err(failed)
    }

    fn sectors(&self, offset: u64, count: u64) -> (u64, u64) {
        let sector = u64::from(self.sector);
        (offset / sector * sector, (offset + count).next_multiple_of(sector))
    }

    /// Merges the leaf of a disk that is on into `parent`. After [`Merged::Whole`] both files say the same until
    /// [`Self::switch`]; guests may write all the time.
    pub(super) fn merge(&self, parent: &Path, stopped: &dyn Fn() -> bool) -> io::Result<Merged> {
        let file = FileDisk::open_rw(parent)?;
        let parent = Vhdx::open(Arc::new(file), Access::Merge(Uuid::new_v4)).map_err(failed)?;
        self.hold().mirror = Some(Mirror { parent, below: 0, order: Mutex::default() });
        loop {
            let mut gate = self.hold();
            let Gate { chain, mirror } = &mut *gate;
            let leaf = chain.as_ref().and_then(|chain| chain.layers().first());
            let (Some(leaf), Some(mirror)) = (leaf, mirror.as_mut()) else {
                gate.mirror = None;
                return Ok(Merged::Stopped);
            };
            if mirror.below >= self.size {
                break;
            }
            if stopped() {
                gate.mirror = None;
                return Ok(Merged::Stopped);
            }
            let count = STEP.min(self.size - mirror.below);
            let copied = vhdx::merge_ranges(leaf, &mirror.parent, &Extents::one(mirror.below, count));
            match copied {
                Ok(_) => mirror.below += count,
                Err(error) => {
                    gate.mirror = None;
                    return Err(failed(error));
                }
            }
        }
        // Most of it is durable before writes are held for the rest of it.
        let gate = self.pass();
        gate.mirror.as_ref().map_or(Ok(()), |mirror| mirror.parent.flush()).map_err(failed)?;
        Ok(Merged::Whole)
    }

    /// Ends a merge: with writes held, makes the parent durable, lets `record` make it the leaf, and opens it.
    pub(super) fn switch(&self, parent: &Path, record: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut gate = self.hold();
        let Some(mirror) = gate.mirror.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        mirror.parent.close().map_err(failed)?;
        drop(mirror);
        let merged = open(parent)?;
        record()?;
        let old = gate.chain.replace(merged);
        // Closing the old leaf flushes it once more: the guest need not wait for that.
        drop(gate);
        drop(old);
        Ok(())
    }
}

impl Gate {
    /// Takes the chain out: the guest is cut off, a merge is over.
    pub(super) fn shut(&mut self) -> Option<Chain> {
        self.mirror = None;
        self.chain.take()
    }

    fn chain(&self) -> io::Result<&Chain> {
        self.chain.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// Opens a chain for the guest.
pub(super) fn open(leaf: &Path) -> io::Result<Chain> {
    Chain::open(leaf, Access::ReadWrite(Uuid::new_v4)).map_err(failed)
}

/// The error of a file, as an [`io::Error`] that keeps it.
pub(super) fn failed(error: VhdxError) -> io::Error {
    error.into()
}

fn len(count: u64) -> io::Result<usize> {
    usize::try_from(count).map_err(io::Error::other)
}

/// Name of the AVHDX of a disk for a checkpoint.
pub(super) fn avhdx_name(base: &str, checkpoint: Uuid) -> PathBuf {
    let stem = Path::new(base).file_stem().unwrap_or_default().to_string_lossy();
    PathBuf::from(format!("{stem}_{}.avhdx", checkpoint.to_string().to_uppercase()))
}
