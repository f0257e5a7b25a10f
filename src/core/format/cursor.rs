//! `cursor.json`: how far the replica server is. Written If-Match, never backwards.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::commit::CommitRef;
use super::{Extra, Record};
use crate::ids::{CycleId, DiskId, Stream, Term, VmId};

/// `cursor.json` in the download container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cursor {
    /// See [`super`].
    pub format_version: u32,
    /// See [`super`].
    pub min_reader: u32,
    /// Whose.
    #[serde(rename = "vmID")]
    pub vm_id: VmId,
    /// Term that is being followed.
    pub term: Term,
    /// Stream that is being followed.
    pub stream: Stream,
    /// Newest cycle whose chain, presence and hashes are proven.
    pub verified: Option<Verified>,
    /// Newest cycle whose bytes are in the replica blobs of every disk.
    pub applied: Option<CommitRef>,
    /// Newest verified cycle that is a recovery point.
    pub newest_point: Option<NewestPoint>,
    /// The cycle that was refused, and why: nothing after it is applied.
    pub refused: Option<Refused>,
    /// Failback: the newest round that the host has merged.
    pub received: Option<CommitRef>,
    /// Worker that wrote it.
    pub worker: String,
    /// By that worker's clock.
    pub written_at: Timestamp,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The verified commit, with all that another node needs to carry on from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// Which commit.
    #[serde(flatten)]
    pub commit: CommitRef,
    /// Its reference point on the host.
    #[serde(rename = "referencePointID")]
    pub reference_point_id: String,
    /// Its tracking id per disk.
    #[serde(rename = "rctIDs")]
    pub rct_ids: BTreeMap<DiskId, String>,
    /// Per disk not wholly copied yet: everything below this offset was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copied_up_to: BTreeMap<DiskId, u64>,
    /// Our reference points on the host after that cycle.
    #[serde(rename = "ownPointIDs", default)]
    pub own_point_ids: Vec<String>,
    /// When the next commit may be looked for.
    pub next_cycle_at: Timestamp,
}

/// The newest recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestPoint {
    /// Its name ([`crate::names::point`]).
    pub name: String,
    /// Its instant, by the host's clock.
    pub time: Timestamp,
}

/// A cycle that will not be applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which.
    #[serde(flatten)]
    pub id: CycleId,
    /// Code from the error catalogue.
    pub code: String,
    /// What was found, for a person.
    #[serde(default)]
    pub message: String,
}

impl Cursor {
    /// True if writing `next` over `self` takes nothing back.
    #[must_use]
    pub fn may_become(&self, next: &Self) -> bool {
        let verified = |c: &Self| c.verified.as_ref().map(|v| v.commit.id);
        let applied = |c: &Self| c.applied.map(|a| a.id);
        (next.term, next.stream) >= (self.term, self.stream)
            && verified(next) >= verified(self)
            && applied(next) >= applied(self)
            && applied(next) <= verified(next)
    }
}

impl Record for Cursor {
    const KIND: &'static str = "cursor.json";
    const MAX: usize = 1 << 20;

    fn check(&self) -> Result<(), &'static str> {
        if self.applied.map(|a| a.id) > self.verified.as_ref().map(|v| v.commit.id) {
            return Err("a cycle is applied that was not verified");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Cycle, Hash};

    fn cursor(verified: u64, applied: u64) -> Cursor {
        let commit = |cycle| CommitRef {
            id: CycleId { term: Term(1), stream: Stream(1), cycle: Cycle(cycle) },
            hash: Hash([0; 32]),
        };
        let at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        Cursor {
            format_version: 1,
            min_reader: 1,
            vm_id: VmId("7b0e4c1e-0000-4000-8000-000000000001".parse().unwrap()),
            term: Term(1),
            stream: Stream(1),
            verified: Some(Verified {
                commit: commit(verified),
                reference_point_id: "rp".into(),
                rct_ids: BTreeMap::new(),
                copied_up_to: BTreeMap::new(),
                own_point_ids: vec![],
                next_cycle_at: at,
            }),
            applied: Some(commit(applied)),
            newest_point: None,
            refused: None,
            received: None,
            worker: "w".into(),
            written_at: at,
            extra: Extra::new(),
        }
    }

    #[test]
    fn a_cursor_never_goes_back() {
        let now = cursor(5, 4);
        assert!(now.may_become(&cursor(5, 5)));
        assert!(now.may_become(&cursor(6, 4)));
        assert!(!now.may_become(&cursor(4, 4)));
        assert!(!now.may_become(&cursor(6, 3)));
        assert!(!now.may_become(&cursor(5, 6)), "applied before verified");
        assert!(!now.may_become(&Cursor { stream: Stream(0), ..cursor(6, 6) }));
    }

    #[test]
    fn a_cursor_is_read_back_whole() {
        let mut now = cursor(5, 4);
        now.extra.insert("later".into(), true.into());
        assert_eq!(Cursor::decode(&now.encode().unwrap()).unwrap(), now);
        assert!(cursor(3, 4).encode().is_err());
    }
}
