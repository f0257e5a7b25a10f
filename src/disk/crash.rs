//! A file that can lose power: tests run durable code over it, cut it after every operation and look at what is left.
//!
//! Until [`RandomAccess::flush`] returns, a write may be kept, lost or torn, in any combination: a disk's cache
//! and a file system owe no order between two flushes.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bytes_at::index;
use crate::io::{MemDisk, RandomAccess, read_slice, write_slice};

/// The unit that a disk writes all or nothing of.
const SECTOR: usize = 512;

/// What happens at the power cut to what was written after the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is lost.
    All,
    /// All of it is kept.
    Nothing,
    /// Each sector of each write is kept or lost by this seed's dice.
    Some(u64),
}

#[derive(Debug, Clone)]
enum Op {
    Write { off: u64, data: Vec<u8> },
    SetLen(u64),
}

#[derive(Debug, Default)]
struct State {
    volatile: Vec<u8>,
    durable: Vec<u8>,
    unflushed: Vec<Op>,
    ops: u64,
    cut_after: Option<u64>,
}

/// A file in memory that knows what of it is durable.
#[derive(Debug, Default)]
pub struct CrashFile {
    state: Mutex<State>,
}

impl CrashFile {
    /// A file whose durable content is `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { state: Mutex::new(State { volatile: bytes.clone(), durable: bytes, ..State::default() }) }
    }

    /// From now on `ops` more writes, length changes and flushes succeed; all later calls fail.
    pub fn cut_after(&self, ops: u64) {
        let mut s = self.lock();
        s.cut_after = Some(s.ops + ops);
    }

    /// Writes, length changes and flushes so far: the number of places to cut at.
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// Only what certainly survives a power cut now.
    pub fn crash(&self) -> MemDisk {
        self.crash_with(Loss::All)
    }

    /// What a power cut now leaves behind when the unflushed writes fare as `loss` says.
    pub fn crash_with(&self, loss: Loss) -> MemDisk {
        let s = self.lock();
        let mut bytes = s.durable.clone();
        let mut dice = match loss {
            Loss::All => return MemDisk::new(bytes),
            Loss::Nothing => None,
            Loss::Some(seed) => Some(seed),
        };
        for op in &s.unflushed {
            match op {
                Op::SetLen(len) => {
                    if keep(&mut dice) {
                        bytes.resize(index(*len), 0);
                    }
                }
                Op::Write { off, data } => {
                    let mut at = *off;
                    for sector in data.chunks(SECTOR) {
                        if keep(&mut dice) {
                            // Cannot fail: the length fits memory, it was written before.
                            let _ = write_slice(&mut bytes, sector, at);
                        }
                        at += sector.len() as u64;
                    }
                }
            }
        }
        MemDisk::new(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One throw: splitmix64, so that a seed says everything about a run.
fn keep(dice: &mut Option<u64>) -> bool {
    let Some(seed) = dice else { return true };
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) & 1 == 0
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        if self.cut_after.is_some_and(|at| self.ops >= at) {
            return Err(io::Error::other("power was cut"));
        }
        self.ops += 1;
        Ok(())
    }
}

impl RandomAccess for CrashFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().volatile.len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        read_slice(&self.lock().volatile, buf, off)
    }
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        let mut s = self.lock();
        s.step()?;
        write_slice(&mut s.volatile, buf, off)?;
        s.unflushed.push(Op::Write { off, data: buf.to_vec() });
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut s = self.lock();
        s.step()?;
        s.volatile.resize(index(len), 0);
        s.unflushed.push(Op::SetLen(len));
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let mut s = self.lock();
        s.step()?;
        for op in std::mem::take(&mut s.unflushed) {
            match op {
                Op::Write { off, data } => write_slice(&mut s.durable, &data, off)?,
                Op::SetLen(len) => s.durable.resize(index(len), 0),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_flushed_is_sure_to_survive() {
        let f = CrashFile::new(vec![1; 1024]);
        f.write_at(&[2; 1024], 0).unwrap();
        assert_eq!(f.crash().to_vec(), vec![1; 1024]);
        assert_eq!(f.crash_with(Loss::Nothing).to_vec(), vec![2; 1024]);
        f.flush().unwrap();
        assert_eq!(f.crash().to_vec(), vec![2; 1024]);
    }

    #[test]
    fn unflushed_writes_are_torn_at_sectors() {
        let f = CrashFile::new(vec![1; 8192]);
        f.write_at(&[2; 8192], 0).unwrap();
        let mut mixed = false;
        for seed in 0..8 {
            let left = f.crash_with(Loss::Some(seed)).to_vec();
            assert!(left.chunks(SECTOR).all(|s| s.iter().all(|b| *b == s[0])));
            mixed |= left.contains(&1) && left.contains(&2);
        }
        assert!(mixed);
    }

    #[test]
    fn after_the_cut_every_write_fails() {
        let f = CrashFile::new(Vec::new());
        f.cut_after(2);
        f.write_at(&[1], 0).unwrap();
        f.flush().unwrap();
        assert!(f.write_at(&[2], 0).is_err());
        assert!(f.flush().is_err());
        assert_eq!(f.crash_with(Loss::Nothing).to_vec(), vec![1]);
        assert_eq!(f.ops(), 2);
    }
}
