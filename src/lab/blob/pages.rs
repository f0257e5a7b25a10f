//! The pages of one page blob on disk: a data file and a log of where what lies.
//!
//! ```text
//! pages.<n>   data, in the order in which places were given out (sparse)
//! map.<n>     one record after the other, 48 bytes, little endian:
//!               0  kind: 1 write, 2 clear, 3 snapshot, 4 truncate, 5 touch
//!               8  start       16  end       24  place       32  etag       40  CRC-32C of 0..40
//! ```
//! Data first, then its record, then the answer: what was answered survives SIGKILL. A torn record
//! at the end is dropped. The power of the machine is another matter: nothing is flushed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::pagemap::PageMap;

const RECORD: usize = 48;
const WRITE: u8 = 1;
const CLEAR: u8 = 2;
const SNAPSHOT: u8 = 3;
const TRUNCATE: u8 = 4;
const TOUCH: u8 = 5;

/// One page blob's data, also of its snapshots.
#[derive(Debug)]
pub(super) struct PageStore {
    data: File,
    paths: [PathBuf; 2],
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: File,
    map: Arc<PageMap>,
    /// Raised by each snapshot.
    generation: u64,
    /// Next free place in the data file.
    free: u64,
    /// The maps of the snapshots; generation and map.
    versions: Vec<(u64, Arc<PageMap>)>,
    etag: u64,
}

/// A piece of a write: where it goes, and whether that is a new place.
struct Piece {
    range: Range<u64>,
    place: u64,
    fresh: bool,
}

impl PageStore {
    /// Names of its files.
    fn paths(folder: &Path, number: u64) -> [PathBuf; 2] {
        [folder.join(format!("pages.{number}")), folder.join(format!("map.{number}"))]
    }

    pub(super) fn create(folder: &Path, number: u64) -> io::Result<PageStore> {
        let paths = PageStore::paths(folder, number);
        let [data, log] = &paths;
        let mut options = OpenOptions::new();
        options.read(true).create(true).truncate(true);
        let data = options.write(true).open(data)?;
        File::create(log)?;
        let log = OpenOptions::new().append(true).open(log)?;
        let inner = Inner { log, map: Arc::default(), generation: 0, free: 0, versions: Vec::new(), etag: 0 };
        Ok(PageStore { data, paths, inner: Mutex::new(inner) })
    }

    /// Reads the log again.
    pub(super) fn open(folder: &Path, number: u64) -> io::Result<PageStore> {
        let paths = PageStore::paths(folder, number);
        let [data, log] = &paths;
        let data = OpenOptions::new().read(true).write(true).open(data)?;
        let mut bytes = Vec::new();
        File::open(log)?.read_to_end(&mut bytes)?;
        let log = OpenOptions::new().append(true).open(log)?;
        let mut map = PageMap::default();
        let (mut generation, mut free, mut etag) = (0, 0, 0);
        let mut versions = Vec::new();
        let mut whole = 0;
        for record in bytes.chunks_exact(RECORD) {
            let Some((kind, range, place, tag)) = decode(record) else { break };
            match kind {
                WRITE => {
                    free = free.max(place + (range.end - range.start));
                    map.set(range, Some(place), generation);
                }
                CLEAR => map.set(range, None, generation),
                SNAPSHOT => {
                    versions.push((generation, Arc::new(map.clone())));
                    generation += 1;
                }
                TRUNCATE => map.truncate(range.start),
                TOUCH => {}
                _ => break,
            }
            etag = etag.max(tag);
            whole += RECORD as u64;
        }
        log.set_len(whole)?;
        let inner = Inner { log, map: Arc::new(map), generation, free, versions, etag };
        Ok(PageStore { data, paths, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tag of the last change that it holds.
    pub(super) fn etag(&self) -> u64 {
        self.inner().etag
    }

    /// The map now.
    pub(super) fn map(&self) -> Arc<PageMap> {
        Arc::clone(&self.inner().map)
    }

    /// The map of a snapshot.
    pub(super) fn version(&self, generation: u64) -> Option<Arc<PageMap>> {
        let inner = self.inner();
        inner.versions.iter().find(|(g, _)| *g == generation).map(|(_, map)| Arc::clone(map))
    }

    /// Writes `frames`, which together are as long as the range from `start` on.
    pub(super) fn write(&self, start: u64, frames: &[Bytes], etag: u64) -> io::Result<()> {
        let len: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
        let pieces = self.inner().plan(start..start + len);
        for piece in &pieces {
            self.write_piece(start, frames, piece)?;
        }
        self.inner().commit(&pieces, etag)
    }

    fn write_piece(&self, start: u64, frames: &[Bytes], piece: &Piece) -> io::Result<()> {
        let mut at = start;
        for frame in frames {
            let end = at + frame.len() as u64;
            let from = piece.range.start.clamp(at, end);
            let to = piece.range.end.clamp(at, end);
            let part = frame.get(index(from - at)..index(to - at)).unwrap_or_default();
            if !part.is_empty() {
                self.data.write_all_at(part, piece.place + (from - piece.range.start))?;
            }
            at = end;
        }
        Ok(())
    }

    /// Zeros; gives the disk space back where no snapshot holds it.
    pub(super) fn clear(&self, range: Range<u64>, etag: u64) -> io::Result<()> {
        let mut inner = self.inner();
        let generation = inner.generation;
        let own: Vec<_> =
            inner.map.within(range.clone()).filter(|(_, s)| s.generation == generation).collect();
        inner.append(CLEAR, range.clone(), 0, etag)?;
        Arc::make_mut(&mut inner.map).set(range, None, generation);
        drop(inner);
        for (start, segment) in own {
            if let Some(place) = segment.place {
                punch(&self.data, place, segment.end - start);
            }
        }
        Ok(())
    }

    /// Keeps the present state for ever; its generation.
    pub(super) fn snapshot(&self, etag: u64) -> io::Result<u64> {
        let mut inner = self.inner();
        inner.append(SNAPSHOT, 0..0, 0, etag)?;
        let generation = inner.generation;
        let map = Arc::clone(&inner.map);
        inner.versions.push((generation, map));
        inner.generation += 1;
        Ok(generation)
    }

    /// Lets a snapshot go, and the disk space that only it held.
    pub(super) fn forget(&self, generation: u64) {
        let mut inner = self.inner();
        let Some(at) = inner.versions.iter().position(|(g, _)| *g == generation) else { return };
        let (_, map) = inner.versions.remove(at);
        let before = at.checked_sub(1).and_then(|i| inner.versions.get(i)).map(|(_, m)| Arc::clone(m));
        let after = inner.versions.get(at).map_or_else(|| Arc::clone(&inner.map), |(_, m)| Arc::clone(m));
        drop(inner);
        // A place is in use during one unbroken run of versions, so the neighbours decide.
        for (start, segment) in map.segments() {
            let Some(place) = segment.place else { continue };
            let mut held: Vec<Range<u64>> = Vec::new();
            for other in [Some(&after), before.as_ref()].into_iter().flatten() {
                held.extend(other.within(start..segment.end).filter_map(|(from, other)| {
                    (other.place == Some(place + (from - start))).then_some(from..other.end)
                }));
            }
            held.sort_by_key(|range| range.start);
            let mut from = start;
            for range in held {
                if range.start > from {
                    punch(&self.data, place + (from - start), range.start - from);
                }
                from = from.max(range.end);
            }
            if segment.end > from {
                punch(&self.data, place + (from - start), segment.end - from);
            }
        }
    }

    pub(super) fn truncate(&self, len: u64, etag: u64) -> io::Result<()> {
        let mut inner = self.inner();
        inner.append(TRUNCATE, len..len, 0, etag)?;
        Arc::make_mut(&mut inner.map).truncate(len);
        Ok(())
    }

    /// Bytes of a range as a map has them.
    pub(super) fn read(&self, map: &PageMap, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut out = vec![0; index(range.end - range.start)];
        for (start, segment) in map.within(range.clone()) {
            let Some(place) = segment.place else { continue };
            let (from, to) = (index(start - range.start), index(segment.end - range.start));
            if let Some(part) = out.get_mut(from..to) {
                self.data.read_exact_at(part, place)?;
            }
        }
        Ok(out)
    }

    /// Removes its files; whoever still reads it can go on.
    pub(super) fn unlink(&self) {
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Inner {
    /// In place what this generation wrote already; the rest gets new places.
    fn plan(&mut self, range: Range<u64>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let own: Vec<_> = self
            .map
            .within(range.clone())
            .filter(|(_, segment)| segment.generation == self.generation)
            .filter_map(|(start, segment)| Some((start..segment.end, segment.place?)))
            .collect();
        for (found, place) in own {
            if found.start > at {
                pieces.push(self.fresh(at..found.start));
            }
            at = found.end;
            pieces.push(Piece { range: found, place, fresh: false });
        }
        if at < range.end {
            pieces.push(self.fresh(at..range.end));
        }
        pieces
    }

    fn fresh(&mut self, range: Range<u64>) -> Piece {
        let place = self.free;
        self.free += range.end - range.start;
        Piece { range, place, fresh: true }
    }

    fn commit(&mut self, pieces: &[Piece], etag: u64) -> io::Result<()> {
        let generation = self.generation;
        let mut records = Vec::with_capacity(RECORD * pieces.len().max(1));
        for piece in pieces.iter().filter(|piece| piece.fresh) {
            records.extend(encode(WRITE, piece.range.clone(), piece.place, etag));
        }
        if records.is_empty() {
            records.extend(encode(TOUCH, 0..0, 0, etag));
        }
        self.log.write_all(&records)?;
        for piece in pieces.iter().filter(|piece| piece.fresh) {
            Arc::make_mut(&mut self.map).set(piece.range.clone(), Some(piece.place), generation);
        }
        self.etag = self.etag.max(etag);
        Ok(())
    }

    fn append(&mut self, kind: u8, range: Range<u64>, place: u64, etag: u64) -> io::Result<()> {
        self.log.write_all(&encode(kind, range, place, etag))?;
        self.etag = self.etag.max(etag);
        Ok(())
    }
}

fn encode(kind: u8, range: Range<u64>, place: u64, etag: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(RECORD);
    for field in [u64::from(kind), range.start, range.end, place, etag] {
        out.extend(field.to_le_bytes());
    }
    let check = u64::from(crc32c::crc32c(&out));
    out.extend(check.to_le_bytes());
    out
}

fn decode(record: &[u8]) -> Option<(u8, Range<u64>, u64, u64)> {
    let (body, check) = record.split_at_checked(RECORD - 8)?;
    if u64::from(crc32c::crc32c(body)).to_le_bytes() != check {
        return None;
    }
    let field = |n: usize| Some(u64::from_le_bytes(body.get(n * 8..n * 8 + 8)?.try_into().ok()?));
    Some((u8::try_from(field(0)?).ok()?, field(1)?..field(2)?, field(3)?, field(4)?))
}

/// In-memory lengths: requests are at most some MiB long, and this machine has 64 bits.
pub(super) fn index(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// Only saves disk space, so a file system without holes does no harm.
fn punch(file: &File, place: u64, len: u64) {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if let (Ok(place), Ok(len)) = (i64::try_from(place), i64::try_from(len)) {
        let _ = fallocate(file, flags, place, len);
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    const LEN: u64 = 64 * 512;

    fn all(store: &PageStore, map: &PageMap) -> Vec<u8> {
        store.read(map, 0..LEN).unwrap()
    }

    /// Random writes, clears, snapshots, forgotten snapshots and reopenings against plain arrays.
    #[test]
    fn every_snapshot_keeps_its_bytes_whatever_comes_after_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        for seed in 0..40 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut store = PageStore::create(folder.path(), seed).unwrap();
            let mut base = vec![0_u8; index(LEN)];
            let mut kept: Vec<(u64, Vec<u8>)> = Vec::new();
            for step in 1..120_u64 {
                let start = random.random_range(0..64_u64) * 512;
                let end = (start + random.random_range(1..16_u64) * 512).min(LEN);
                match random.random_range(0..10) {
                    0 => {
                        let generation = store.snapshot(step).unwrap();
                        kept.push((generation, base.clone()));
                    }
                    1 if !kept.is_empty() => {
                        let (generation, _) = kept.remove(random.random_range(0..kept.len()));
                        store.forget(generation);
                    }
                    2 => {
                        store = PageStore::open(folder.path(), seed).unwrap();
                        assert_eq!(store.etag(), step - 1, "seed {seed}");
                        let known: Vec<u64> = kept.iter().map(|(g, _)| *g).collect();
                        let stale: Vec<u64> = store.inner().versions.iter().map(|(g, _)| *g).collect();
                        stale.iter().filter(|g| !known.contains(g)).for_each(|g| store.forget(*g));
                        store.write(0, &[Bytes::from(base[..512].to_vec())], step).unwrap();
                    }
                    3..5 => {
                        store.clear(start..end, step).unwrap();
                        base[index(start)..index(end)].fill(0);
                    }
                    _ => {
                        let bytes: Vec<u8> = (start..end).map(|_| random.random()).collect();
                        base[index(start)..index(end)].copy_from_slice(&bytes);
                        let middle = random.random_range(0..=bytes.len());
                        let frames = [
                            Bytes::copy_from_slice(&bytes[..middle]),
                            Bytes::copy_from_slice(&bytes[middle..]),
                        ];
                        store.write(start, &frames, step).unwrap();
                    }
                }
                if store.etag() < step {
                    store.write(0, &[Bytes::from(base[..512].to_vec())], step).unwrap();
                }
                assert_eq!(all(&store, &store.map()), base, "seed {seed} step {step}");
                for (generation, want) in &kept {
                    let map = store.version(*generation).unwrap();
                    assert_eq!(all(&store, &map), *want, "seed {seed} step {step} snapshot {generation}");
                }
            }
        }
    }

    #[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
    #[test]
    fn a_torn_record_at_the_end_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let store = PageStore::create(folder.path(), 1).unwrap();
        store.write(0, &[Bytes::from(vec![1; 512])], 1).unwrap();
        store.write(512, &[Bytes::from(vec![2; 512])], 2).unwrap();
        let log = folder.path().join("map.1");
        let len = std::fs::metadata(&log).unwrap().len();
        OpenOptions::new().write(true).open(&log).unwrap().set_len(len - 1).unwrap();
        let store = PageStore::open(folder.path(), 1).unwrap();
        assert_eq!((store.etag(), store.map().present()), (1, vec![0..512]));
        store.write(1024, &[Bytes::from(vec![3; 512])], 3).unwrap();
        let store = PageStore::open(folder.path(), 1).unwrap();
        assert_eq!(store.map().present(), [0..512, 1024..1536]);
        assert_eq!(store.read(&store.map(), 1024..1025).unwrap(), [3]);
    }
}
