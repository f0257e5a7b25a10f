//! Containers and blobs, in memory with everything also on disk.
//!
//! ```text
//! D/containers/<container>/container.json
//! D/containers/<container>/<escaped blob name>/meta.json      written last, by rename
//!                                              block.<n>      content of a block blob
//!                                              pages.<n> map.<n>
//! ```
//! A folder without its JSON file never was, and is removed at the start.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{lease::Lease, pagemap::PageMap, pages::PageStore};

pub(super) type Metadata = BTreeMap<String, String>;

/// All of an account.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    containers: RwLock<BTreeMap<String, Arc<Container>>>,
    /// The last tag given out: 100 ns since 1970, so that it also tells the time of the change.
    tag: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) name: String,
    folder: PathBuf,
    info: Mutex<ContainerInfo>,
    blobs: RwLock<BTreeMap<String, Arc<Blob>>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerInfo {
    pub(super) etag: u64,
    pub(super) metadata: Metadata,
}

/// A name that holds, held or will hold a blob.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    /// Shared by page writes, exclusive for all that must not happen between their halves.
    pub(super) gate: tokio::sync::RwLock<()>,
    state: Mutex<Option<State>>,
}

#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) etag: u64,
    pub(super) created: u64,
    pub(super) metadata: Metadata,
    /// Content headers: `content-type` and the like.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) lease: Lease,
    pub(super) content: Content,
    pub(super) len: u64,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) copy: Option<Copied>,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    Block { number: u64 },
    Page { number: u64, pages: Arc<PageStore> },
}

#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) id: String,
    pub(super) etag: u64,
    pub(super) metadata: Metadata,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) content: Content,
    pub(super) len: u64,
    /// Of page blobs.
    pub(super) generation: u64,
}

/// The last copy onto a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Copied {
    pub(super) id: String,
    pub(super) source: String,
    pub(super) bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    etag: u64,
    created: u64,
    metadata: Metadata,
    headers: BTreeMap<String, String>,
    lease: Lease,
    content: Kept,
    len: u64,
    snapshots: Vec<KeptSnapshot>,
    copy: Option<Copied>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Kept {
    Block { number: u64 },
    Page { number: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptSnapshot {
    id: String,
    etag: u64,
    metadata: Metadata,
    headers: BTreeMap<String, String>,
    content: Kept,
    len: u64,
    generation: u64,
}

impl Content {
    fn kept(&self) -> Kept {
        match self {
            Content::Block { number } => Kept::Block { number: *number },
            Content::Page { number, .. } => Kept::Page { number: *number },
        }
    }

    pub(super) fn number(&self) -> u64 {
        match self {
            Content::Block { number } | Content::Page { number, .. } => *number,
        }
    }

    pub(super) fn is_page(&self) -> bool {
        matches!(self, Content::Page { .. })
    }
}

impl Snapshot {
    /// The pages as they were.
    pub(super) fn pages(&self) -> Option<(Arc<PageStore>, Arc<PageMap>)> {
        let Content::Page { pages, .. } = &self.content else { return None };
        Some((Arc::clone(pages), pages.version(self.generation)?))
    }
}

/// When a tag was given out.
pub(super) fn time_of(tag: u64) -> Timestamp {
    let nanos = i128::from(tag) * 100;
    Timestamp::from_nanosecond(nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Store {
    pub(super) fn open(folder: &Path) -> io::Result<Store> {
        let root = folder.join("containers");
        fs::create_dir_all(&root)?;
        let mut containers = BTreeMap::new();
        let mut tag = 0;
        for entry in fs::read_dir(&root)? {
            let folder = entry?.path();
            let Some(container) = Container::open(&folder, &mut tag)? else {
                fs::remove_dir_all(&folder)?;
                continue;
            };
            containers.insert(container.name.clone(), Arc::new(container));
        }
        Ok(Store { folder: root, containers: RwLock::new(containers), tag: AtomicU64::new(tag) })
    }

    /// A new tag: above all others, and the present time.
    pub(super) fn tag(&self) -> u64 {
        let now = u64::try_from(Timestamp::now().as_nanosecond() / 100).unwrap_or(0);
        let next = |last: u64| Some(now.max(last + 1));
        match self.tag.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(last) | Err(last) => now.max(last + 1),
        }
    }

    pub(super) fn container(&self, name: &str) -> Option<Arc<Container>> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(super) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// `None`: it was there.
    pub(super) fn create_container(
        &self,
        name: &str,
        metadata: Metadata,
    ) -> io::Result<Option<ContainerInfo>> {
        let mut containers = self.containers.write().unwrap_or_else(PoisonError::into_inner);
        if containers.contains_key(name) {
            return Ok(None);
        }
        let info = ContainerInfo { etag: self.tag(), metadata };
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let container = Container {
            name: name.to_owned(),
            folder,
            info: Mutex::new(info.clone()),
            blobs: RwLock::default(),
        };
        container.save(&info)?;
        containers.insert(name.to_owned(), Arc::new(container));
        Ok(Some(info))
    }

    pub(super) fn delete_container(&self, name: &str) -> io::Result<bool> {
        let mut containers = self.containers.write().unwrap_or_else(PoisonError::into_inner);
        let Some(container) = containers.get(name) else { return Ok(false) };
        fs::remove_file(container.folder.join("container.json"))?;
        fs::remove_dir_all(&container.folder)?;
        containers.remove(name);
        Ok(true)
    }
}

impl Container {
    fn open(folder: &Path, tag: &mut u64) -> io::Result<Option<Container>> {
        let Some(info) = read_json::<ContainerInfo>(&folder.join("container.json"))? else { return Ok(None) };
        let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        *tag = (*tag).max(info.etag);
        let mut blobs = BTreeMap::new();
        for entry in fs::read_dir(folder)? {
            let folder = entry?.path();
            if !folder.is_dir() {
                continue;
            }
            let Some(meta) = read_json::<Meta>(&folder.join("meta.json"))? else {
                fs::remove_dir_all(&folder)?;
                continue;
            };
            let (name, state) = load(&folder, meta)?;
            *tag = (*tag).max(state.etag);
            let blob = Blob::new(&name, folder, Some(state));
            blobs.insert(name, Arc::new(blob));
        }
        let (folder, info) = (folder.to_owned(), Mutex::new(info));
        Ok(Some(Container { name, folder, info, blobs: RwLock::new(blobs) }))
    }

    fn save(&self, info: &ContainerInfo) -> io::Result<()> {
        write_json(&self.folder.join("container.json"), info)
    }

    pub(super) fn info(&self) -> ContainerInfo {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_info(&self, new: ContainerInfo) -> io::Result<()> {
        let mut info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        self.save(&new)?;
        *info = new;
        Ok(())
    }

    /// A blob that exists.
    pub(super) fn blob(&self, name: &str) -> Option<Arc<Blob>> {
        let blobs = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        blobs.get(name).filter(|blob| blob.state().is_some()).cloned()
    }

    /// The place of a blob, existing or not.
    pub(super) fn slot(&self, name: &str) -> Arc<Blob> {
        if let Some(found) = self.blobs.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Arc::clone(found);
        }
        let mut blobs = self.blobs.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Blob::new(name, self.folder.join(escaped(name)), None));
        Arc::clone(blobs.entry(name.to_owned()).or_insert_with(new))
    }

    /// Existing blobs from `first` on, in order.
    pub(super) fn from(&self, first: &str) -> Vec<Arc<Blob>> {
        let blobs = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        let range = blobs.range::<str, _>((std::ops::Bound::Included(first), std::ops::Bound::Unbounded));
        range.map(|(_, blob)| Arc::clone(blob)).filter(|blob| blob.state().is_some()).collect()
    }
}

impl Blob {
    fn new(name: &str, folder: PathBuf, state: Option<State>) -> Blob {
        Blob { name: name.to_owned(), folder, gate: tokio::sync::RwLock::new(()), state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no file of it has yet.
    pub(super) fn next_number(state: Option<&State>, tag: u64) -> u64 {
        let used = state.map_or(0, |s| s.content.number());
        tag.max(used + 1)
    }

    pub(super) fn block_path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("block.{number}"))
    }

    /// Makes a state durable, then true; files that it no longer names are removed.
    pub(super) fn commit(&self, new: State) -> io::Result<()> {
        let meta = Meta {
            name: self.name.clone(),
            etag: new.etag,
            created: new.created,
            metadata: new.metadata.clone(),
            headers: new.headers.clone(),
            lease: new.lease.clone(),
            content: new.content.kept(),
            len: new.len,
            snapshots: new.snapshots.iter().map(KeptSnapshot::of).collect(),
            copy: new.copy.clone(),
        };
        fs::create_dir_all(&self.folder)?;
        write_json(&self.folder.join("meta.json"), &meta)?;
        let old = self.state().replace(new.clone());
        if let Some(old) = old {
            self.remove_unused(&old, &new);
        }
        Ok(())
    }

    fn remove_unused(&self, old: &State, new: &State) {
        let in_use = |content: &Content| {
            content.kept() == new.content.kept()
                || new.snapshots.iter().any(|s| s.content.kept() == content.kept())
        };
        for snapshot in &old.snapshots {
            let gone = !new.snapshots.iter().any(|s| s.id == snapshot.id);
            if let (true, Content::Page { pages, .. }) = (gone, &snapshot.content) {
                pages.forget(snapshot.generation);
            }
        }
        let contents = old.snapshots.iter().map(|s| &s.content).chain([&old.content]);
        contents.filter(|content| !in_use(content)).for_each(|content| self.remove(content));
    }

    /// Deletes it with its snapshots. A file that somebody is about to commit under this name stays.
    pub(super) fn delete(&self) -> io::Result<()> {
        fs::remove_file(self.folder.join("meta.json"))?;
        let Some(old) = self.state().take() else { return Ok(()) };
        for content in old.snapshots.iter().map(|s| &s.content).chain([&old.content]) {
            self.remove(content);
        }
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }

    fn remove(&self, content: &Content) {
        match content {
            Content::Block { number } => drop(fs::remove_file(self.block_path(*number))),
            Content::Page { pages, .. } => pages.unlink(),
        }
    }
}

impl KeptSnapshot {
    fn of(snapshot: &Snapshot) -> KeptSnapshot {
        KeptSnapshot {
            id: snapshot.id.clone(),
            etag: snapshot.etag,
            metadata: snapshot.metadata.clone(),
            headers: snapshot.headers.clone(),
            content: snapshot.content.kept(),
            len: snapshot.len,
            generation: snapshot.generation,
        }
    }
}

/// A blob from its folder.
fn load(folder: &Path, meta: Meta) -> io::Result<(String, State)> {
    let mut opened: BTreeMap<u64, Arc<PageStore>> = BTreeMap::new();
    let mut content = |kept: Kept| -> io::Result<Content> {
        let number = match kept {
            Kept::Block { number } => return Ok(Content::Block { number }),
            Kept::Page { number } => number,
        };
        let pages = match opened.get(&number) {
            Some(pages) => Arc::clone(pages),
            None => Arc::new(PageStore::open(folder, number)?),
        };
        opened.insert(number, Arc::clone(&pages));
        Ok(Content::Page { number, pages })
    };
    let mut snapshots = Vec::new();
    for kept in meta.snapshots {
        snapshots.push(Snapshot {
            content: content(kept.content)?,
            id: kept.id,
            etag: kept.etag,
            metadata: kept.metadata,
            headers: kept.headers,
            len: kept.len,
            generation: kept.generation,
        });
    }
    let content = content(meta.content)?;
    let etag = match &content {
        Content::Page { pages, .. } => meta.etag.max(pages.etag()),
        Content::Block { .. } => meta.etag,
    };
    let state = State {
        etag,
        created: meta.created,
        metadata: meta.metadata,
        headers: meta.headers,
        lease: meta.lease,
        content,
        len: meta.len,
        snapshots,
        copy: meta.copy,
    };
    Ok((meta.name, state))
}

/// A blob's name as one of a folder.
fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || (byte == b'.' && !out.is_empty()) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    if out.len() > 200 { format!("%{}", blake3::hash(name.as_bytes()).to_hex()) } else { out }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(new, path)
}
