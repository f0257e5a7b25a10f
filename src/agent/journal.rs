//! The agent's durable memory on disk: one journal per VM, replaced atomically, and beside it the list of
//! segments that the running cycle has uploaded, which only grows.
//!
//! `<vm>.journal`, little-endian:
//! | off | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `FSJRNL\r\n` |
//! | 8 | 4 | version of this layout, 1 |
//! | 12 | 8 | length of the payload |
//! | 20 | 32 | BLAKE3 of the payload |
//! | 52 | … | payload: [`Journal`] as JSON; the file ends with it |
//!
//! `<vm>.segments`:
//! | off | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `FSSEGS\r\n` |
//! | 8 | 4 | length of the payload of a record |
//! | 12 | 8 | first bytes of the payload's BLAKE3 |
//! | 20 | … | payload, JSON; then the next record's length. The first record is a [`Head`], all others [`Sent`] |
//!
//! A crash while a journal is replaced leaves the old one. A crash while a record is appended leaves a torn
//! tail that the next opening cuts off; its segment is read and uploaded once more, under the same name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use farshore_core::format::list::SegmentEntry;
use farshore_core::format::{FormatError, Record};
use farshore_core::ids::{CycleId, DiskId, VmId};
use farshore_core::relationship::Journal;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"FSJRNL\r\n";
const VERSION: u32 = 1;
const HEADER: usize = 52;
const SENT_MAGIC: &[u8; 8] = b"FSSEGS\r\n";
/// Longest record: a segment of 64 MiB in single sectors would have 131,072 ranges of at most 40 digits.
const MAX_RECORD: usize = 8 << 20;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("{operation} of {} failed", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its bytes are not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Its content cannot be used by this version.
    #[error("{} cannot be used", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
}

type Result<T> = std::result::Result<T, JournalError>;

/// Where the journals of a host are kept.
#[derive(Clone, Debug)]
pub struct JournalStore {
    folder: PathBuf,
}

impl JournalStore {
    /// In `folder`, which is made if need be, for its owner only.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(io_error("make", folder))?;
        restrict(folder, 0o700).map_err(io_error("restrict", folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.folder.join(format!("{vm}.journal"))
    }

    fn segments_path(&self, vm: VmId) -> PathBuf {
        self.folder.join(format!("{vm}.segments"))
    }

    /// The journal of a VM; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is damaged: it is never guessed at.
    pub fn load(&self, vm: VmId) -> Result<Option<Journal>> {
        let path = self.path(vm);
        let mut bytes = Vec::new();
        let limit = HEADER + Journal::MAX;
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("open", &path)(e)),
            Ok(file) => {
                file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(io_error("read", &path))?
            }
        };
        let journal = parse(&path, &bytes)?;
        if journal.vm_id != vm {
            return Err(JournalError::Damaged { path, what: "it is of another VM" });
        }
        Ok(Some(journal))
    }

    /// Replaces the journal: durable when it returns.
    ///
    /// # Errors
    /// It cannot be written; the old one is still there.
    pub fn save(&self, journal: &Journal) -> Result<()> {
        let path = self.path(journal.vm_id);
        let payload =
            journal.encode().map_err(|source| JournalError::Format { path: path.clone(), source })?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes.extend_from_slice(blake3::hash(&payload).as_bytes());
        bytes.extend_from_slice(&payload);
        replace(&path, &bytes, 0o600).map_err(io_error("write", &path))
    }

    /// Forgets a VM.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self, vm: VmId) -> Result<()> {
        for path in [self.segments_path(vm), self.path(vm)] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(e)),
                _ => {}
            }
        }
        sync_folder(&self.folder).map_err(io_error("sync", &self.folder))
    }

    /// Opens the list of what `cycle` has uploaded from the checkpoint `instant`, and reads what it holds.
    /// A list of anything else is emptied first.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn segments(&self, vm: VmId, cycle: CycleId, instant: &str) -> Result<(SentLog, Vec<Sent>)> {
        let path = self.segments_path(vm);
        let head = Head { cycle, instant: instant.to_owned() };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        restrict(&path, 0o600).map_err(io_error("restrict", &path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error("read", &path))?;
        let (found, sent, good) = parse_sent(&bytes);
        drop(bytes);
        if found.as_ref() == Some(&head) {
            file.set_len(good).map_err(io_error("truncate", &path))?;
            let mut log = SentLog { file, path };
            io::Seek::seek(&mut log.file, io::SeekFrom::Start(good)).map_err(io_error("seek", &log.path))?;
            return Ok((log, sent));
        }
        file.set_len(0).map_err(io_error("truncate", &path))?;
        io::Seek::rewind(&mut file).map_err(io_error("seek", &path))?;
        file.write_all(SENT_MAGIC).map_err(io_error("write", &path))?;
        let mut log = SentLog { file, path };
        log.write(&head)?;
        Ok((log, Vec::new()))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Journal> {
    let damaged = |what| JournalError::Damaged { path: path.to_owned(), what };
    let (header, payload) = bytes.split_at_checked(HEADER).ok_or_else(|| damaged("it is too short"))?;
    let (magic, header) = header.split_at_checked(8).ok_or_else(|| damaged("it is too short"))?;
    if magic != MAGIC {
        return Err(damaged("it is not a journal"));
    }
    let (version, header) = header.split_first_chunk::<4>().ok_or_else(|| damaged("it is too short"))?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(damaged("its layout is of another version"));
    }
    let (len, hash) = header.split_first_chunk::<8>().ok_or_else(|| damaged("it is too short"))?;
    if u64::from_le_bytes(*len) != payload.len() as u64 {
        return Err(damaged("its length is not what it says"));
    }
    if blake3::hash(payload).as_bytes().as_slice() != hash {
        return Err(damaged("its checksum differs"));
    }
    Journal::decode(payload).map_err(|source| JournalError::Format { path: path.to_owned(), source })
}

/// What the list of uploaded segments is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    cycle: CycleId,
    /// The checkpoint: a cycle that is made again has another one.
    instant: String,
}

/// Which part of a disk's data a segment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    /// Changes since the cycle before.
    Changes,
    /// Copied for the first time.
    Copy,
}

/// One piece of work that is done for good: its segment is in storage, or it had no data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// Which disk.
    pub disk: DiskId,
    /// Of which part.
    pub part: Part,
    /// That part is done up to this offset.
    pub up_to: u64,
    /// The segment; absent if there was nothing but zeros to copy.
    pub entry: Option<SegmentEntry>,
}

/// The list of uploaded segments, open for more.
#[derive(Debug)]
pub struct SentLog {
    file: File,
    path: PathBuf,
}

impl SentLog {
    /// Adds a record. It survives the process at once and a power cut mostly: whoever needs it to be certain
    /// writes what depends on it elsewhere and calls [`SentLog::sync`] before.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn append(&mut self, sent: &Sent) -> Result<()> {
        self.write(sent)
    }

    /// Returns when all records are durable.
    ///
    /// # Errors
    /// They cannot be made durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }

    fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let path = &self.path;
        let malformed = |source| JournalError::Format {
            path: path.clone(),
            source: FormatError::Malformed { kind: "segment record", source },
        };
        let payload = serde_json::to_vec(record).map_err(malformed)?;
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(12 + payload.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&check(&payload));
        bytes.extend_from_slice(&payload);
        self.file.write_all(&bytes).map_err(io_error("append to", path))
    }
}

fn check(payload: &[u8]) -> [u8; 8] {
    let mut short = [0; 8];
    blake3::Hasher::new().update(payload).finalize_xof().fill(&mut short);
    short
}

/// What the list holds, and how many of its bytes are good. Nothing after the first bad record is believed.
fn parse_sent(bytes: &[u8]) -> (Option<Head>, Vec<Sent>, u64) {
    let mut sent = Vec::new();
    let Some(rest) = bytes.strip_prefix(SENT_MAGIC) else { return (None, sent, 0) };
    let Some((head, mut rest)) = record::<Head>(rest) else { return (None, sent, 0) };
    while let Some((next, after)) = record::<Sent>(rest) {
        sent.push(next);
        rest = after;
    }
    (Some(head), sent, (bytes.len() - rest.len()) as u64)
}

fn record<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|n| *n <= MAX_RECORD)?;
    let (payload, rest) = rest.split_at_checked(length)?;
    if check(payload) != *sum {
        return None;
    }
    Some((serde_json::from_slice(payload).ok()?, rest))
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { operation, path, source }
}

/// Writes a file so that after a crash there is either the old or the new one.
///
/// # Errors
/// It cannot be written; the old one is still there.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
    restrict(&new, mode)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

#[cfg(unix)]
fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// The state folder is made by the installer for SYSTEM and Administrators; files inherit that.
#[cfg(not(unix))]
fn restrict(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// NTFS journals names itself; a folder cannot be opened to be synced.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use farshore_core::fault::{Code, Fault};
    use farshore_core::ids::{Hash, Stream, Term};
    use uuid::Uuid;

    use super::*;

    const VM: VmId = VmId(Uuid::from_u128(1));

    fn journal(missed: u64) -> Journal {
        let mut journal = Journal::begin(VM, (Term(1), Stream(1)), None, None, None);
        journal.missed_cycles = missed;
        journal.fault = Some(Fault::new(Code::NetworkError, "x"));
        journal
    }

    fn store() -> (tempfile::TempDir, JournalStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = JournalStore::open(&dir.path().join("state")).unwrap();
        (dir, store)
    }

    #[test]
    fn a_journal_is_read_back_replaced_and_forgotten() {
        let (_dir, store) = store();
        assert_eq!(store.load(VM).unwrap(), None);
        for missed in 0..3 {
            store.save(&journal(missed)).unwrap();
            assert_eq!(store.load(VM).unwrap(), Some(journal(missed)));
        }
        store.remove(VM).unwrap();
        store.remove(VM).unwrap();
        assert_eq!(store.load(VM).unwrap(), None);
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, store) = store();
        store.save(&journal(1)).unwrap();
        let mode = std::fs::metadata(store.path(VM)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_journal_cut_or_changed_at_any_byte_is_refused_never_guessed_at() {
        let (_dir, store) = store();
        store.save(&journal(7)).unwrap();
        let path = store.path(VM);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(store.load(VM), Err(JournalError::Damaged { .. })), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 0x10;
            std::fs::write(&path, &other).unwrap();
            assert!(store.load(VM).is_err(), "changed at {at}");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        std::fs::write(&path, longer).unwrap();
        assert!(store.load(VM).is_err());
        std::fs::write(&path, whole).unwrap();
        assert_eq!(store.load(VM).unwrap(), Some(journal(7)));
    }

    #[test]
    fn a_replacement_torn_at_any_byte_leaves_the_old_journal() {
        let (_dir, store) = store();
        store.save(&journal(1)).unwrap();
        let old = std::fs::read(store.path(VM)).unwrap();
        store.save(&journal(2)).unwrap();
        let new = std::fs::read(store.path(VM)).unwrap();
        let half = store.folder.join(format!("{VM}.journal.new"));
        for cut in 0..=new.len() {
            std::fs::write(store.path(VM), &old).unwrap();
            std::fs::write(&half, &new[..cut]).unwrap();
            assert_eq!(store.load(VM).unwrap(), Some(journal(1)), "cut at {cut}");
        }
        store.save(&journal(3)).unwrap();
        assert_eq!(store.load(VM).unwrap(), Some(journal(3)), "the torn file is no obstacle");
    }

    fn sent(n: u64) -> Sent {
        let entry = SegmentEntry { hash: Hash([1; 32]), stored: 10 + n, ranges: vec![(n * 4096, 512)] };
        Sent {
            disk: DiskId(Uuid::from_u128(2)),
            part: if n.is_multiple_of(2) { Part::Changes } else { Part::Copy },
            up_to: n * 4096 + 512,
            entry: (n != 1).then_some(entry),
        }
    }

    fn cycle() -> CycleId {
        CycleId::first(Term(1), Stream(1))
    }

    #[test]
    fn the_list_of_segments_cut_at_any_byte_gives_a_prefix_and_takes_more() {
        let (_dir, store) = store();
        let (mut log, found) = store.segments(VM, cycle(), "cp").unwrap();
        assert_eq!(found, []);
        let mut ends = vec![];
        for n in 0..4 {
            log.append(&sent(n)).unwrap();
            ends.push(std::fs::metadata(store.segments_path(VM)).unwrap().len());
        }
        log.sync().unwrap();
        let whole = std::fs::read(store.segments_path(VM)).unwrap();
        let all: Vec<_> = (0..4).map(sent).collect();
        for cut in 0..=whole.len() {
            std::fs::write(store.segments_path(VM), &whole[..cut]).unwrap();
            let (mut log, found) = store.segments(VM, cycle(), "cp").unwrap();
            let good = ends.iter().filter(|end| **end <= cut as u64).count();
            assert_eq!(found, all[..good], "cut at {cut}");
            log.append(&sent(9)).unwrap();
            let (_, found) = store.segments(VM, cycle(), "cp").unwrap();
            assert_eq!((found.len(), found.last()), (good + 1, Some(&sent(9))), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 0x10;
            std::fs::write(store.segments_path(VM), &other).unwrap();
            let (_, found) = store.segments(VM, cycle(), "cp").unwrap();
            assert_eq!(found, all[..found.len()], "changed at {at}");
            assert!(found.len() < 4, "changed at {at}");
        }
    }

    #[test]
    fn the_list_of_another_cycle_or_checkpoint_is_emptied() {
        let (_dir, store) = store();
        for (cycle, instant) in [(cycle(), "cp"), (cycle().next(), "cp"), (cycle().next(), "cp2")] {
            let (mut log, found) = store.segments(VM, cycle, instant).unwrap();
            assert_eq!(found, []);
            log.append(&sent(0)).unwrap();
        }
    }
}
