//! The three containers of a VM, and reading its records from them.

use std::sync::Arc;

use farshore_azure::{BlobErrorKind, BlobService, Container, ETag, Fetched, GetIfChanged};
use farshore_core::fault::{Code, Fault};
use farshore_core::format::Record;
use farshore_core::format::commit::{Commit, CommitDisk, CommitRef};
use farshore_core::format::ledger::Ledger;
use farshore_core::format::list::{MAX_RANGES, SegmentList};
use farshore_core::ids::{CycleId, Hash, VmId};
use farshore_core::names;

use crate::budget::Budget;
use crate::halt::{Halt, again, refusal};

/// The containers of one VM.
#[derive(Clone, Debug)]
pub struct Store {
    /// Ledger, replica page blobs, points.
    pub replica: Container,
    /// Cycles. Everything in it is hostile input.
    pub up: Container,
    /// The cursor.
    pub down: Container,
}

impl Store {
    /// By their durable names.
    #[must_use]
    pub fn new(service: &BlobService, vm: VmId) -> Self {
        Self {
            replica: service.container(&names::replica_container(vm)),
            up: service.container(&names::up_container(vm)),
            down: service.container(&names::down_container(vm)),
        }
    }

    /// A commit that may come from anybody, with the hash of its bytes; `None` if it is not there yet.
    pub(crate) async fn commit(&self, id: CycleId) -> Result<Option<(Commit, Hash)>, Halt> {
        let name = names::commit(id);
        let Some(fetched) = hostile(&self.up, &name, Commit::MAX as u64, id).await? else { return Ok(None) };
        let hash = Hash::of(&fetched.bytes);
        let commit = Commit::decode(&fetched.bytes).map_err(|e| refused(id, refusal(&e), e.to_string()))?;
        Ok(Some((commit, hash)))
    }

    /// A commit that was verified before: it must still be there, and be the same.
    pub(crate) async fn verified_commit(&self, of: CommitRef) -> Result<Commit, Halt> {
        match self.commit(of.id).await? {
            Some((commit, hash)) if hash == of.hash => Ok(commit),
            Some(_) => Err(refused(of.id, Code::CorruptCommit, "the verified commit was replaced".into())),
            None => Err(refused(of.id, Code::MissingSegment, "the verified commit is gone".into())),
        }
    }

    /// The segment list of one disk, checked against the commit that names it.
    pub(crate) async fn list(
        &self,
        id: CycleId,
        disk: &CommitDisk,
        budget: &Budget,
    ) -> Result<SegmentList, Halt> {
        let name = names::list(id, disk.disk_id, &disk.list);
        let corrupt =
            |what: String| refused(id, Code::CorruptCommit, format!("list of disk {}: {what}", disk.disk_id));
        let _reading = budget.list().await;
        let fetched = hostile(&self.up, &name, SegmentList::MAX as u64, id)
            .await?
            .ok_or_else(|| refused(id, Code::MissingSegment, format!("{name} is not there")))?;
        if Hash::of(&fetched.bytes) != disk.list {
            return Err(corrupt("its bytes do not hash to what the commit says".into()));
        }
        let list =
            SegmentList::decode(&fetched.bytes).map_err(|e| refused(id, refusal(&e), e.to_string()))?;
        if list.disk_id != disk.disk_id {
            return Err(corrupt(format!("it is of disk {}", list.disk_id)));
        }
        if !list.fits(disk.virtual_size) {
            return Err(corrupt(format!("a range ends after the disk's {} bytes", disk.virtual_size)));
        }
        let ranges: usize = list.segments.iter().map(|s| s.ranges.len()).sum();
        if ranges > MAX_RANGES {
            return Err(corrupt(format!("it has {ranges} ranges; {MAX_RANGES} are allowed")));
        }
        Ok(list)
    }
}

/// Reads a blob of `-up`, which may be anything.
async fn hostile(up: &Container, name: &str, max: u64, id: CycleId) -> Result<Option<Fetched>, Halt> {
    match again(|| up.get(name, max)).await {
        Ok(found) => Ok(found),
        Err(e) if e.kind == BlobErrorKind::TooLarge => {
            Err(refused(id, Code::CorruptCommit, format!("{name} is over its limit of {max} bytes")))
        }
        // `get` says `None` for a missing container too; a later write then says what is missing.
        Err(e) => Err(e.into()),
    }
}

pub(crate) fn refused(cycle: CycleId, code: Code, message: String) -> Halt {
    Halt::Refused { cycle, code, message }
}

/// The ledger as it was last read.
#[derive(Clone, Debug, Default)]
pub(crate) struct LedgerFile(Option<(Arc<Ledger>, ETag)>);

impl LedgerFile {
    /// The ledger of now; `None` if there is none.
    pub(crate) async fn read(&mut self, store: &Store) -> Result<Option<Arc<Ledger>>, Halt> {
        let fetched = match &self.0 {
            None => again(|| store.replica.get(names::LEDGER, Ledger::MAX as u64)).await?,
            Some((ledger, etag)) => {
                match again(|| store.replica.get_if_changed(names::LEDGER, etag, Ledger::MAX as u64)).await? {
                    GetIfChanged::Unchanged => return Ok(Some(Arc::clone(ledger))),
                    GetIfChanged::Changed(fetched) => Some(fetched),
                    GetIfChanged::Missing => None,
                }
            }
        };
        self.0 = None;
        let Some(fetched) = fetched else { return Ok(None) };
        let ledger =
            Ledger::decode(&fetched.bytes).map_err(|e| Fault::new(Code::LedgerUnreadable, e.to_string()))?;
        let ledger = Arc::new(ledger);
        self.0 = Some((Arc::clone(&ledger), fetched.etag));
        Ok(Some(ledger))
    }
}
