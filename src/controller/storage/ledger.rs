//! Writes the ledger: by compare-and-swap, with a nonce that tells after a lost answer whose write landed; then
//! copies its side to side.json.

use bytes::Bytes;
use farshore_azure::{BlobError, BlobErrorKind, BlobService, Condition, Container, ETag, PutNew, crc64};
use farshore_core::format::ledger::{Change, HistoryEntry, Ledger};
use farshore_core::format::side::SideRecord;
use farshore_core::format::{FormatError, Record as _};
use farshore_core::names;
use farshore_core::vm::ledger_edit::LedgerEdit;
use jiff::Timestamp;
use uuid::Uuid;

/// Why a ledger was not written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Somebody else wrote it since it was observed: observe again.
    #[error("the ledger of {0} was written by somebody else meanwhile")]
    Overtaken(String),
    /// Storage failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The new ledger breaks its own rules: a defect here, nothing was written.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// For the history.
    pub actor: &'a str,
    /// By our clock.
    pub now: Timestamp,
}

impl Writer<'_> {
    fn change<'a>(&'a self, note: &'a str) -> Change<'a> {
        Change { nonce: Uuid::new_v4().simple().to_string(), actor: self.actor, note, now: self.now }
    }
}

/// Writes the first ledger of a VM, only if there is none.
///
/// # Errors
/// [`LedgerError`]; `Overtaken` if there is one that is not ours.
pub async fn create(
    service: &BlobService,
    first: &Ledger,
    writer: Writer<'_>,
) -> Result<Ledger, LedgerError> {
    let note = format!("protection begins with epoch {}", first.epoch);
    let (ledger, _) = first.advance(writer.change(&note), |_| ());
    put(service, &ledger, &Condition::IfNoneMatchAny).await?;
    Ok(ledger)
}

/// Writes the next version of the ledger that was observed with `etag`.
///
/// # Errors
/// [`LedgerError`]; `Overtaken` if it is no longer the one that was observed.
pub async fn write(
    service: &BlobService,
    observed: &Ledger,
    etag: &ETag,
    edit: &LedgerEdit,
    writer: Writer<'_>,
) -> Result<Ledger, LedgerError> {
    let note = edit.notes.join("; ");
    let (next, moved_out) = observed.advance(writer.change(&note), |ledger| edit.apply(ledger));
    if let Some(entry) = moved_out {
        keep(service, observed, &entry).await?;
    }
    put(service, &next, &Condition::IfMatch(etag.clone())).await?;
    Ok(next)
}

/// Puts a ledger and, when the answer does not tell, finds out by the nonce whether it landed.
async fn put(service: &BlobService, ledger: &Ledger, condition: &Condition) -> Result<(), LedgerError> {
    let container = service.container(&names::replica_container(ledger.vm_id));
    let bytes = Bytes::from(ledger.encode()?);
    let error = match container.put_if(names::LEDGER, bytes, condition).await {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let lost = matches!(error.kind, BlobErrorKind::ConditionNotMet | BlobErrorKind::AlreadyExists);
    if !lost && !error.outcome_unknown() {
        return Err(error.into());
    }
    let max = u64::try_from(Ledger::MAX).unwrap_or(u64::MAX);
    let there = container.get(names::LEDGER, max).await?.map(|fetched| Ledger::decode(&fetched.bytes));
    match there {
        Some(Ok(there)) if there.nonce == ledger.nonce => Ok(()),
        Some(_) if lost => Err(LedgerError::Overtaken(ledger.vm_id.to_string())),
        Some(_) | None => Err(error.into()),
    }
}

/// An entry that no longer fits goes into `ledger-history/` first, so that no crash loses it.
async fn keep(service: &BlobService, ledger: &Ledger, entry: &HistoryEntry) -> Result<(), LedgerError> {
    let container = service.container(&names::replica_container(ledger.vm_id));
    let name = format!("ledger-history/{}.json", entry.seq);
    let bytes = serde_json::to_vec(entry)
        .map_err(|source| FormatError::Malformed { kind: "history entry of a ledger", source })?;
    let sum = crc64(&bytes);
    match container.put_new(&name, Bytes::from(bytes), sum).await? {
        PutNew::Created(_) | PutNew::Taken | PutNew::AmbiguousTaken => Ok(()),
    }
}

/// Copies the ledger's side to side.json, over a lower seq only.
///
/// # Errors
/// [`LedgerError`]; `Overtaken` if another writer was quicker with the same or a newer one.
pub async fn copy_side(service: &BlobService, ledger: &Ledger) -> Result<(), LedgerError> {
    let container = service.container(&names::down_container(ledger.vm_id));
    let side = ledger.side();
    let condition = match there(&container).await? {
        Some((record, _)) if !record.may_become(&side) => return Ok(()),
        Some((_, etag)) => Condition::IfMatch(etag),
        None => Condition::IfNoneMatchAny,
    };
    match container.put_if(names::SIDE, Bytes::from(side.encode()?), &condition).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind, BlobErrorKind::ConditionNotMet | BlobErrorKind::AlreadyExists) => {
            Err(LedgerError::Overtaken(ledger.vm_id.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

async fn there(container: &Container) -> Result<Option<(SideRecord, ETag)>, LedgerError> {
    let max = u64::try_from(SideRecord::MAX).unwrap_or(u64::MAX);
    match container.get(names::SIDE, max).await? {
        Some(fetched) => Ok(Some((SideRecord::decode(&fetched.bytes)?, fetched.etag))),
        None => Ok(None),
    }
}
