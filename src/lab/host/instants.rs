//! What the disks of a machine held at each checkpoint, for tests: digests of the frozen files, made in the
//! background. A checkpoint's files are not merged before its digests are made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use farshore_core::ids::{DiskId, Hash};
use farshore_disk::digest;
use farshore_disk::vhdx::{Access, Chain};
use farshore_hyperv::CheckpointId;

use super::admin::Instant;
use super::record;

/// Makes and keeps the digests of one machine.
pub(super) struct Recorder {
    path: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    done: Vec<Instant>,
    pending: BTreeSet<CheckpointId>,
}

impl Recorder {
    /// Goes on with what `path` holds.
    pub(super) fn open(path: PathBuf) -> std::io::Result<Arc<Self>> {
        let done = record::load(&path)?.unwrap_or_default();
        let state = Mutex::new(State { done, pending: BTreeSet::new() });
        Ok(Arc::new(Self { path, state, changed: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the digests of a checkpoint, unless they are made; `instant` comes without them.
    pub(super) fn begin(self: &Arc<Self>, instant: Instant, files: Vec<(DiskId, PathBuf)>) {
        let id = instant.checkpoint.clone();
        {
            let mut state = self.lock();
            if state.done.iter().any(|done| done.checkpoint == id) || !state.pending.insert(id.clone()) {
                return;
            }
        }
        let recorder = Arc::clone(self);
        let worker = std::thread::Builder::new().name("digest".into()).spawn(move || {
            let id = instant.checkpoint.clone();
            let digests = files.into_iter().map(|(disk, path)| Ok((disk, whole(&path)?)));
            let digests = digests.collect::<std::io::Result<BTreeMap<_, _>>>();
            recorder.end(&id, digests.map(|digests| Instant { digests, ..instant }));
        });
        if let Err(error) = worker {
            self.end(&id, Err(error));
        }
    }

    fn end(&self, id: &CheckpointId, result: std::io::Result<Instant>) {
        let mut state = self.lock();
        match result {
            Ok(instant) => {
                state.done.push(instant);
                state.done.sort_by_key(|instant| instant.time);
                if let Err(error) = record::save(&self.path, &state.done) {
                    tracing::warn!(%error, "digests not saved");
                }
            }
            Err(error) => tracing::warn!(%error, checkpoint = %id, "digests not made"),
        }
        state.pending.remove(id);
        self.changed.notify_all();
    }

    /// Waits until the digests of a checkpoint are made.
    pub(super) fn wait(&self, id: &CheckpointId) {
        let waiting = self.changed.wait_while(self.lock(), |state| state.pending.contains(id));
        drop(waiting.unwrap_or_else(PoisonError::into_inner));
    }

    /// All of them, oldest first, when those under way are made.
    pub(super) fn all(&self) -> Vec<Instant> {
        let waited = self.changed.wait_while(self.lock(), |state| !state.pending.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).done.clone()
    }
}

fn whole(path: &std::path::Path) -> std::io::Result<Hash> {
    let chain = Chain::open(path, Access::ReadOnly).map_err(super::disk::failed)?;
    digest::whole(&chain).map(|hash| Hash(*hash.as_bytes()))
}

/// Digests by disk, none yet.
pub(super) const fn none() -> BTreeMap<DiskId, Hash> {
    BTreeMap::new()
}
