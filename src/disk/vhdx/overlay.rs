//! A file as it would be after its log was replayed, for readers that must not write it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::format::PAGE;
use super::log::{Page, Replay};
use crate::bytes_at::{index, put};
use crate::io::RandomAccess;

pub(super) struct Overlay {
    file: Arc<dyn RandomAccess>,
    pages: BTreeMap<u64, Page>,
    len: u64,
}

impl Overlay {
    pub(super) fn new(file: Arc<dyn RandomAccess>, replay: Replay) -> Self {
        Self { file, pages: replay.pages, len: replay.len }
    }
}

impl RandomAccess for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        let end = off
            .checked_add(buf.len() as u64)
            .filter(|end| *end <= self.len)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        // What the replay would add to the file's length reads as zero.
        let stored = self.file.len()?.clamp(off, end) - off;
        let (inside, beyond) = buf.split_at_mut(index(stored));
        if !inside.is_empty() {
            self.file.read_at(inside, off)?;
        }
        beyond.fill(0);
        for (at, page) in self.pages.range(off.saturating_sub(PAGE - 1)..end) {
            let (from, to) = (off.max(*at), end.min(at + PAGE));
            let part = page.get(index(from - at)..index(to - at)).unwrap_or_default();
            put(buf, index(from - off), part);
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemDisk;

    #[test]
    fn pages_cover_the_file_and_the_grown_part_is_zero() {
        let replay = Replay { pages: BTreeMap::from([(4096, [7; 4096]), (12288, [8; 4096])]), len: 20000 };
        let overlay = Overlay::new(Arc::new(MemDisk::new(vec![1; 10000])), replay);
        let mut want = vec![1; 10000];
        want.resize(20000, 0);
        want[4096..8192].fill(7);
        want[12288..16384].fill(8);
        for (off, len) in
            [(0, 20000), (5000, 10), (4000, 200), (8000, 5000), (9990, 20), (19999, 1), (8191, 1)]
        {
            let mut buf = vec![9; len];
            overlay.read_at(&mut buf, off as u64).unwrap();
            assert_eq!(buf, want[off..off + len], "{off}");
        }
        assert!(overlay.read_at(&mut [0; 2], 19999).is_err());
    }
}
