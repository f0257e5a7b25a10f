//! Files as sequences of bytes at offsets: the trait everything here reads and writes through, and two of its kinds.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crate::bytes_at::index;

/// Bytes at offsets. All methods take `&self`; calls may run in parallel.
#[expect(clippy::len_without_is_empty, reason = "an empty file is of no special interest here")]
pub trait RandomAccess: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `off`; `UnexpectedEof` when the file ends before.
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()>;
    /// Writes all of `buf` at `off`, growing the file when needed.
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<()>;
    /// Cuts or grows (with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns when everything written before is durable.
    fn flush(&self) -> io::Result<()>;
}

impl<T: RandomAccess + ?Sized> RandomAccess for Arc<T> {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        (**self).read_at(buf, off)
    }
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        (**self).write_at(buf, off)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }
    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }
}

/// A file of the host.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
}

impl FileDisk {
    /// Opens an existing file for reading only.
    pub fn open_read(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).open(path).map(|file| Self { file })
    }

    /// Opens an existing file for reading and writing.
    pub fn open_rw(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(|file| Self { file })
    }

    /// Creates a file that must not exist yet.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map(|file| Self { file })
    }

    /// The file underneath, for what the trait does not cover (locks, metadata).
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl RandomAccess for FileDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|m| m.len())
    }

    #[cfg(unix)]
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buf, off)
    }

    #[cfg(unix)]
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, buf, off)
    }

    #[cfg(windows)]
    fn read_at(&self, mut buf: &mut [u8], mut off: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buf.is_empty() {
            match self.file.seek_read(buf, off) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = buf.get_mut(n..).unwrap_or_default();
                    off += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    #[cfg(windows)]
    fn write_at(&self, mut buf: &[u8], mut off: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buf.is_empty() {
            match self.file.seek_write(buf, off) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    buf = buf.get(n..).unwrap_or_default();
                    off += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// A memory file's volume is full here, so that a test of hostile lengths fails instead of the machine.
const MEM_LIMIT: u64 = 1 << 30;

/// A file in memory, for tests.
#[derive(Debug, Default)]
pub struct MemDisk {
    bytes: RwLock<Vec<u8>>,
}

impl MemDisk {
    /// A file with these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes) }
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Copies `buf.len()` bytes at `off` out of `bytes`.
pub(crate) fn read_slice(bytes: &[u8], buf: &mut [u8], off: u64) -> io::Result<()> {
    let from = bytes.get(index(off)..).and_then(|rest| rest.get(..buf.len()));
    buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
    Ok(())
}

/// Copies `buf` into `bytes` at `off`, growing it when needed.
pub(crate) fn write_slice(bytes: &mut Vec<u8>, buf: &[u8], off: u64) -> io::Result<()> {
    let end = index(off).checked_add(buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    crate::bytes_at::put(bytes, index(off), buf);
    Ok(())
}

impl RandomAccess for MemDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        read_slice(&self.bytes.read().unwrap_or_else(PoisonError::into_inner), buf, off)
    }
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        if off.saturating_add(buf.len() as u64) > MEM_LIMIT {
            return Err(io::ErrorKind::StorageFull.into());
        }
        write_slice(&mut self.bytes.write().unwrap_or_else(PoisonError::into_inner), buf, off)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > MEM_LIMIT {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.write().unwrap_or_else(PoisonError::into_inner).resize(index(len), 0);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_memory_read_back_what_was_written_and_refuse_to_read_past_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = FileDisk::create_new(&path).unwrap();
        assert_eq!(FileDisk::create_new(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        for disk in [&file as &dyn RandomAccess, &MemDisk::default()] {
            disk.write_at(b"abc", 5).unwrap();
            assert_eq!(disk.len().unwrap(), 8);
            let mut buf = [9; 4];
            disk.read_at(&mut buf, 4).unwrap();
            assert_eq!(&buf, b"\0abc");
            assert_eq!(disk.read_at(&mut buf, 5).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            disk.set_len(6).unwrap();
            disk.flush().unwrap();
            assert_eq!(disk.len().unwrap(), 6);
        }
        assert!(FileDisk::open_read(&path).unwrap().write_at(b"x", 0).is_err());
    }
}
