//! `ledger.json`: the truth about one VM, kept with its data and replaced under its ETag only.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::commit::{CommitRef, Configuration};
use super::side::{Side, SideRecord};
use super::{Extra, FORMAT_VERSION, Record};
use crate::ids::{DiskId, Epoch, Hash, Stream, Term, VmId};

/// A resting place, or what is under way between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LedgerState {
    /// Protection is being set up; no recovery point yet.
    Enabling,
    /// Replicating to Azure.
    Protected,
    /// Running in Azure, not committed.
    FailedOver,
    /// Running in Azure for good.
    FailoverCommitted,
    /// The on-premises copy is kept in step.
    FailbackSynchronized,
    /// Back on-premises, the Azure VM still there.
    FailedBack,
    /// Back on-premises for good.
    FailbackCommitted,
    /// Replication was stopped; data and points are kept for re-creation.
    Released,
}

/// What a source of intents last asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentRecord {
    /// Its epoch.
    pub epoch: Epoch,
    /// [`crate::intent::Intent::hash`] of its content.
    pub hash: Hash,
}

/// The policy in force when it was last read, for as long as the resource itself may not be believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySettings {
    /// Name of the ReplicationPolicy.
    pub name: String,
    /// Seconds between cycles.
    pub replication_interval_seconds: u32,
    /// Seconds between snapshot sets.
    pub recovery_point_spacing_seconds: u32,
    /// Seconds for which points are kept.
    pub recovery_point_retention_seconds: u32,
}

/// What deletion of the ProtectedVM does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// Replication stops; ledger, replica and points stay.
    #[default]
    Retain,
    /// As Retain, and the host's tracking is removed at once.
    StopReplication,
    /// The containers go too.
    Purge,
}

/// One change of the ledger that a person would want in a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The `seq` that it was written with.
    pub seq: u64,
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// State after it.
    pub state: LedgerState,
    /// Epoch after it.
    pub epoch: Epoch,
    /// Term after it.
    pub term: Term,
    /// Who asked.
    pub actor: String,
    /// What happened, in a sentence.
    pub note: String,
}

/// How many entries stay in the ledger itself.
pub const HISTORY_CAP: usize = 64;

/// `ledger.json` in the replica container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// See [`super`].
    pub format_version: u32,
    /// See [`super`].
    pub min_reader: u32,
    /// Raised by each write.
    pub seq: u64,
    /// Fresh for each write: after a lost answer it says whose write landed.
    pub nonce: String,
    /// Whose ledger.
    #[serde(rename = "vmID")]
    pub vm_id: VmId,
    /// Where the VM is.
    pub state: LedgerState,
    /// Highest epoch accepted from any source.
    pub epoch: Epoch,
    /// By source (`ProtectedVM/namespace/name`).
    pub intents: BTreeMap<String, IntentRecord>,
    /// Current term.
    pub term: Term,
    /// Current stream.
    pub stream: Stream,
    /// Attempt inside the term, for Azure resources.
    pub attempt: u32,
    /// The last commit of the term before that counts.
    pub cut: Option<CommitRef>,
    /// Who owns the VM.
    pub owner: Side,
    /// Owning host or failover cluster (`host/<name>`, `cluster/<name>`).
    pub claim: String,
    /// Management cluster (uid of its kube-system namespace).
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    /// The commit whose configuration is in force.
    pub configuration: Option<Configuration>,
    /// The policy in force.
    pub policy: PolicySettings,
    /// In force while the resource may not be believed.
    pub deletion_policy: DeletionPolicy,
    /// Replicated disks, fixed at Enabling.
    pub disks: Vec<DiskId>,
    /// Storage account that holds the containers.
    pub storage_account: String,
    /// Newest time at which the host was heard of.
    pub last_contact: Option<Timestamp>,
    /// Time of the last change of side.
    pub last_move_at: Option<Timestamp>,
    /// One-shot wishes already carried out.
    pub handled_tokens: BTreeMap<String, String>,
    /// Who made the last change.
    pub actor: String,
    /// First write.
    pub created_at: Timestamp,
    /// This write.
    pub written_at: Timestamp,
    /// Newest last, at most [`HISTORY_CAP`]; older ones are in `ledger-history/`.
    pub history: Vec<HistoryEntry>,
    /// Fields of later versions (pinned target, evaluated loss, ARM ids, kept disks, failback destination, ...).
    #[serde(flatten)]
    pub extra: Extra,
}

/// One change of a ledger, before it is numbered.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// Fresh random text.
    pub nonce: String,
    /// Who asked.
    pub actor: &'a str,
    /// What happened.
    pub note: &'a str,
    /// By the writer's clock.
    pub now: Timestamp,
}

impl Ledger {
    /// The next version of the ledger: numbered, signed by a nonce, noted in the history. The second
    /// value is the entry that no longer fits and belongs into `ledger-history/<seq>.json` first.
    #[must_use]
    pub fn advance(&self, change: Change<'_>, edit: impl FnOnce(&mut Self)) -> (Self, Option<HistoryEntry>) {
        let mut next = self.clone();
        edit(&mut next);
        next.seq = self.seq.saturating_add(1);
        next.nonce = change.nonce;
        next.actor = change.actor.to_owned();
        next.written_at = change.now;
        next.history.push(HistoryEntry {
            seq: next.seq,
            at: change.now,
            state: next.state,
            epoch: next.epoch,
            term: next.term,
            actor: change.actor.to_owned(),
            note: change.note.to_owned(),
        });
        let moved_out = (next.history.len() > HISTORY_CAP).then(|| next.history.remove(0));
        (next, moved_out)
    }

    /// What is copied to `side.json` right after this version is written.
    #[must_use]
    pub fn side(&self) -> SideRecord {
        SideRecord {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            seq: self.seq,
            side: self.owner,
            term: self.term,
            stream: self.stream,
            cluster_id: self.cluster_id.clone(),
            written_at: self.written_at,
            extra: Extra::new(),
        }
    }
}

impl Record for Ledger {
    const KIND: &'static str = "ledger.json";
    const MAX: usize = 4 << 20;

    fn check(&self) -> Result<(), &'static str> {
        if self.intents.values().any(|i| i.epoch > self.epoch) {
            return Err("an intent has a higher epoch than the ledger");
        }
        if self.history.len() > HISTORY_CAP {
            return Err("its history is over its cap");
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A ledger at Protected; tests change one thing.
    pub(crate) fn protected() -> Ledger {
        let at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        Ledger {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            seq: 3,
            nonce: "n3".into(),
            vm_id: VmId("7b0e4c1e-0000-4000-8000-000000000001".parse().unwrap()),
            state: LedgerState::Protected,
            epoch: Epoch(1),
            intents: BTreeMap::from([(
                "ProtectedVM/shop/sql01".into(),
                IntentRecord { epoch: Epoch(1), hash: Hash([1; 32]) },
            )]),
            term: Term(1),
            stream: Stream(1),
            attempt: 0,
            cut: None,
            owner: Side::OnPremises,
            claim: "host/h1".into(),
            cluster_id: "c1".into(),
            configuration: None,
            policy: PolicySettings {
                name: "gold".into(),
                replication_interval_seconds: 300,
                recovery_point_spacing_seconds: 900,
                recovery_point_retention_seconds: 86400,
            },
            deletion_policy: DeletionPolicy::Retain,
            disks: vec![],
            storage_account: "acct".into(),
            last_contact: None,
            last_move_at: None,
            handled_tokens: BTreeMap::new(),
            actor: "controller".into(),
            created_at: at,
            written_at: at,
            history: vec![],
            extra: Extra::new(),
        }
    }

    #[test]
    fn each_write_is_numbered_signed_and_noted() {
        let now: Timestamp = "2026-01-03T00:00:00Z".parse().unwrap();
        let change = || Change { nonce: "n4".into(), actor: "ann", note: "new stream", now };
        let (next, moved) = protected().advance(change(), |l| l.stream = Stream(2));
        assert_eq!((next.seq, next.nonce.as_str(), next.stream), (4, "n4", Stream(2)));
        assert_eq!(next.history.last().map(|h| (h.seq, h.note.as_str())), Some((4, "new stream")));
        assert!(moved.is_none());
        assert_eq!(next.side().seq, 4);

        let mut full = next;
        for _ in 0..HISTORY_CAP {
            full = full.advance(change(), |_| ()).0;
        }
        assert_eq!(full.history.len(), HISTORY_CAP);
        assert_eq!(full.advance(change(), |_| ()).1.map(|h| h.seq), Some(5), "the oldest moves out");
    }

    #[test]
    fn a_ledger_keeps_fields_of_later_versions() {
        let mut ledger = protected();
        ledger.extra.insert("pinnedTarget".into(), serde_json::json!({"vmName": "x"}));
        assert_eq!(Ledger::decode(&ledger.encode().unwrap()).unwrap(), ledger);
    }
}
