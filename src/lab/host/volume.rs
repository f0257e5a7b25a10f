//! The volume that a host's files lie on: its capacity, what is used, and the limit that writes run into.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use farshore_hyperv::Volume;

/// What is counted again at the latest after so many bytes written: files of others grow too.
const RECOUNT: u64 = 16 << 20;
/// Most that one write can grow a file beyond its own length: tables, logs, a fresh file's metadata.
const OVERHEAD: u64 = 4 << 20;

/// Counts the space of everything below one folder.
pub(super) struct Meter {
    dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// `None`: the real volume's.
    limit: Option<u64>,
    /// Bytes taken by a fault, as if other files lay there.
    filled: u64,
    /// Bytes used when last counted.
    used: u64,
    /// Bytes promised since then.
    promised: u64,
    counted: bool,
}

impl Meter {
    /// A meter of everything below `dir`, with a capacity of `limit` bytes.
    pub(super) fn new(dir: &Path, limit: Option<u64>) -> Self {
        let state = State { limit, filled: 0, used: 0, promised: 0, counted: false };
        Self { dir: dir.to_owned(), state: Mutex::new(state) }
    }

    /// Capacity and free space now.
    pub(super) fn volume(&self) -> io::Result<Volume> {
        let path = self.dir.to_string_lossy().into_owned();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(total) = state.limit {
            let used = bytes_below(&self.dir)?.saturating_add(state.filled);
            return Ok(Volume { path, total, free: total.saturating_sub(used) });
        }
        let stat = nix::sys::statvfs::statvfs(&self.dir)?;
        let (total, free) =
            (stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size());
        Ok(Volume { path, total, free: free.saturating_sub(state.filled) })
    }

    /// Promises space for a write of `len` bytes; false if the volume is full.
    pub(super) fn promise(&self, len: u64) -> io::Result<bool> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(limit) = state.limit else { return Ok(true) };
        if !state.counted || state.promised >= RECOUNT || !state.fits(limit, len) {
            state.used = bytes_below(&self.dir)?;
            state.promised = 0;
            state.counted = true;
        }
        let fits = state.fits(limit, len);
        if fits {
            state.promised += len;
        }
        Ok(fits)
    }

    /// Fills the volume until `free` bytes are left, or gives everything taken back.
    pub(super) fn fill(&self, free: Option<u64>) -> io::Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).filled = 0;
        let now = self.volume()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(free) = free {
            // Without a limit of its own the volume gets the real one's as it is now.
            state.limit.get_or_insert(now.free.saturating_add(bytes_below(&self.dir)?));
            let limit = state.limit.unwrap_or(0);
            state.filled = limit.saturating_sub(bytes_below(&self.dir)?).saturating_sub(free);
        }
        state.counted = false;
        Ok(())
    }
}

impl State {
    fn fits(&self, limit: u64, len: u64) -> bool {
        let taken = self.used.saturating_add(self.promised).saturating_add(self.filled);
        taken.saturating_add(len).saturating_add(OVERHEAD) <= limit
    }
}

/// Bytes allocated to files below `dir`; files that vanish meanwhile count nothing.
pub(super) fn bytes_below(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => sum += meta.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    Ok(sum)
}

/// Bytes allocated to one file.
pub(super) fn bytes_of(file: PathBuf) -> io::Result<u64> {
    std::fs::metadata(file).map(|meta| meta.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_does_not_fit_is_refused_until_space_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let meter = Meter::new(dir.path(), Some(64 << 20));
        assert!(meter.promise(32 << 20).unwrap());
        std::fs::write(dir.path().join("a"), vec![1; 40 << 20]).unwrap();
        assert!(!meter.promise(32 << 20).unwrap());
        std::fs::remove_file(dir.path().join("a")).unwrap();
        assert!(meter.promise(32 << 20).unwrap());
    }

    #[test]
    fn a_filled_volume_reports_and_enforces_what_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let meter = Meter::new(dir.path(), None);
        meter.fill(Some(8 << 20)).unwrap();
        assert_eq!(meter.volume().unwrap().free, 8 << 20);
        assert!(meter.promise(4 << 20).unwrap());
        assert!(!meter.promise(5 << 20).unwrap());
        meter.fill(None).unwrap();
        assert!(meter.promise(5 << 20).unwrap());
    }
}
