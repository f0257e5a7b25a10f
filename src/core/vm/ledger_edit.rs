//! A change of the ledger as a value: decided here, numbered and written by the controller.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fault::Code;
use crate::format::ledger::{DeletionPolicy, IntentRecord, Ledger, LedgerState, PolicySettings};
use crate::ids::{DiskId, Stream};
use crate::retry::Failures;

/// In `ledger.json`: the stream that starts from nothing, so that its relationship is given no base.
const FULL_COPY_STREAM: &str = "fullCopyStream";
/// In `ledger.json`: why the disks are copied again, and how often that failed in a row.
const RESYNCHRONIZATION: &str = "resynchronization";
/// In `ledger.json`: the person confirmed that the containers go.
const PURGING: &str = "purging";
/// In `ledger.json`: a shorter retention that comes into force later.
const SHORTER_RETENTION: &str = "shorterRetention";

/// What a new stream starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewStream {
    /// From the last verified cycle.
    Continue,
    /// From nothing: everything is copied again.
    FullCopy,
}

/// Why the disks are copied again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resynchronization {
    /// Code of the catalogue.
    pub code: Code,
    /// What was found.
    pub message: String,
    /// Times in a row that it came to this.
    pub failures: Failures,
}

/// A shorter retention that comes into force later, so that a slip of the hand costs no points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShorterRetention {
    /// The policy's.
    pub seconds: u32,
    /// From then on.
    pub from: Timestamp,
}

/// Reads the fields that this version adds to the ledger.
pub trait LedgerExt {
    /// The current stream starts from nothing.
    fn full_copy(&self) -> bool;
    /// Why the disks are copied again, if they are.
    fn resynchronization(&self) -> Option<Resynchronization>;
    /// The containers are to be removed.
    fn purging(&self) -> bool;
    /// A shorter retention that waits.
    fn shorter_retention(&self) -> Option<ShorterRetention>;
}

impl LedgerExt for Ledger {
    fn full_copy(&self) -> bool {
        self.extra.get(FULL_COPY_STREAM).and_then(serde_json::Value::as_u64) == Some(u64::from(self.stream.0))
    }

    fn resynchronization(&self) -> Option<Resynchronization> {
        self.extra.get(RESYNCHRONIZATION).and_then(|v| serde_json::from_value(v.clone()).ok())
    }

    fn purging(&self) -> bool {
        self.extra.get(PURGING).and_then(serde_json::Value::as_bool).unwrap_or(false)
    }

    fn shorter_retention(&self) -> Option<ShorterRetention> {
        self.extra.get(SHORTER_RETENTION).and_then(|v| serde_json::from_value(v.clone()).ok())
    }
}

/// What to change. Absent fields stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerEdit {
    /// What happened, for the history: sentences without a dot.
    pub notes: Vec<String>,
    /// New state.
    pub state: Option<LedgerState>,
    /// An accepted intent; its epoch becomes the ledger's.
    pub intent: Option<(String, IntentRecord)>,
    /// A new stream.
    pub stream: Option<NewStream>,
    /// Policy in force.
    pub policy: Option<PolicySettings>,
    /// What deletion does.
    pub deletion_policy: Option<DeletionPolicy>,
    /// Owning host or failover cluster.
    pub claim: Option<String>,
    /// Replicated disks.
    pub disks: Option<Vec<DiskId>>,
    /// Why the disks are copied again.
    pub resynchronization: Option<Resynchronization>,
    /// A shorter retention waits, or no longer does.
    pub shorter_retention: Option<Option<ShorterRetention>>,
    /// The containers are to be removed, or no longer.
    pub purging: Option<bool>,
}

impl LedgerEdit {
    /// True if there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// Notes what happened.
    pub fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }

    /// Makes the change. Numbering and history are [`Ledger::advance`]'s.
    pub fn apply(&self, ledger: &mut Ledger) {
        let Self {
            notes: _,
            state,
            intent,
            stream,
            policy,
            deletion_policy,
            claim,
            disks,
            resynchronization,
            shorter_retention,
            purging,
        } = self;
        ledger.state = state.unwrap_or(ledger.state);
        if let Some((source, record)) = intent {
            ledger.epoch = ledger.epoch.max(record.epoch);
            ledger.intents.insert(source.clone(), *record);
        }
        if let Some(start) = stream {
            ledger.stream = ledger.stream.next();
            match start {
                NewStream::Continue => {}
                NewStream::FullCopy => {
                    let Stream(stream) = ledger.stream;
                    ledger.extra.insert(FULL_COPY_STREAM.into(), stream.into());
                }
            }
        }
        ledger.policy = policy.clone().unwrap_or_else(|| ledger.policy.clone());
        ledger.deletion_policy = deletion_policy.unwrap_or(ledger.deletion_policy);
        ledger.claim = claim.clone().unwrap_or_else(|| ledger.claim.clone());
        ledger.disks = disks.clone().unwrap_or_else(|| ledger.disks.clone());
        if let Some(why) = resynchronization.as_ref().and_then(|r| serde_json::to_value(r).ok()) {
            ledger.extra.insert(RESYNCHRONIZATION.into(), why);
        }
        match shorter_retention {
            None => {}
            Some(None) => {
                ledger.extra.remove(SHORTER_RETENTION);
            }
            Some(Some(waits)) => {
                if let Ok(waits) = serde_json::to_value(waits) {
                    ledger.extra.insert(SHORTER_RETENTION.into(), waits);
                }
            }
        }
        match purging {
            None => {}
            Some(false) => {
                ledger.extra.remove(PURGING);
            }
            Some(true) => {
                ledger.extra.insert(PURGING.into(), true.into());
            }
        }
    }
}
