//! Where the bytes of segments come from: a frozen chain of files, or a sealed log.

use std::path::Path;

use farshore_disk::hrl::{Entry, LogReader};
use farshore_disk::io::FileDisk;
use farshore_disk::vhdx::{Access, Chain};

use crate::fault::{OrFault, Result};

/// Takes bytes and where on the disk they belong.
pub(super) type Sink<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<()>;

/// Bytes of one disk as of one instant. Blocking; called from many threads.
pub trait Source: Send + Sync {
    /// Gives the bytes of a range to `sink`, piece by piece in order.
    ///
    /// # Errors
    /// They cannot be read, or `sink` fails.
    fn read(&self, offset: u64, len: u64, sink: Sink<'_>) -> Result<()>;
}

/// Bytes read at a time from a chain: large enough to be quick, small against the budget.
const STEP: u64 = 1 << 20;

/// A frozen disk.
#[derive(Debug)]
pub struct ChainSource(pub Chain);

impl ChainSource {
    /// Opens the frozen file and all its parents.
    ///
    /// # Errors
    /// The chain is broken, a file is damaged or cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Chain::open(path, Access::ReadOnly).map(Self).or_fault()
    }
}

impl Source for ChainSource {
    fn read(&self, offset: u64, len: u64, sink: Sink<'_>) -> Result<()> {
        let mut buffer = vec![0; usize::try_from(len.min(STEP)).unwrap_or(0)];
        let mut done = 0;
        while done < len {
            // Pieces end at whole steps of the disk, so that runs of zeros are found wherever a range begins.
            let at = offset + done;
            let n = (STEP - at % STEP).min(len - done);
            let piece = buffer.get_mut(..usize::try_from(n).unwrap_or(0)).unwrap_or_default();
            self.0.read_at(piece, at).or_fault()?;
            sink(at, piece)?;
            done += n;
        }
        Ok(())
    }
}

/// A sealed log. Ranges asked for must be whole entries: see [`LogSource::ranges`].
pub struct LogSource {
    reader: LogReader,
    entries: Vec<Entry>,
}

impl LogSource {
    /// Opens a sealed log.
    ///
    /// # Errors
    /// It is not sealed, damaged or cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = FileDisk::open_read(path).or_fault()?;
        let reader = LogReader::open(Box::new(file)).or_fault()?;
        let entries = reader.entries().collect();
        Ok(Self { reader, entries })
    }

    /// The ranges that it holds: one per entry, ascending.
    #[must_use]
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        self.entries.iter().map(|e| (e.offset, u64::from(e.len))).collect()
    }
}

impl Source for LogSource {
    fn read(&self, offset: u64, len: u64, sink: Sink<'_>) -> Result<()> {
        let end = offset.saturating_add(len);
        let first = self.entries.partition_point(|e| e.offset + u64::from(e.len) <= offset);
        let mut buffer = Vec::new();
        for entry in self.entries.iter().skip(first).take_while(|e| e.offset < end) {
            buffer.resize(usize::try_from(entry.len).unwrap_or(0), 0);
            self.reader.read(entry, &mut buffer).or_fault()?;
            // An entry may be cut by the end of a segment.
            let from = offset.saturating_sub(entry.offset);
            let to = u64::from(entry.len).min(end - entry.offset);
            let cut = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            sink(entry.offset + from, buffer.get(cut(from)..cut(to)).unwrap_or_default())?;
        }
        Ok(())
    }
}
