//! `points/<name>.json`: a recovery point that has a snapshot set.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::commit::Consistency;
use super::{Extra, Record};
use crate::ids::{Cycle, CycleId, DiskId, Hash, Stream, Term};

/// Written after the last snapshot of the set: a set without it is not a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// See [`super`].
    pub format_version: u32,
    /// See [`super`].
    pub min_reader: u32,
    /// [`crate::names::point`].
    pub name: String,
    /// The instant of the checkpoint, by the host's clock.
    pub time: Timestamp,
    /// Term of its cycle.
    pub term: Term,
    /// Stream of its cycle.
    pub stream: Stream,
    /// Its cycle.
    pub cycle: Cycle,
    /// Hash of its commit record.
    pub commit_hash: Hash,
    /// What it promises.
    pub consistency: Consistency,
    /// Snapshot of each disk's replica blob.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub snapshots: BTreeMap<DiskId, String>,
    /// When its bytes were last compared with the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Timestamp>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Point {
    /// Which cycle it stands for.
    #[must_use]
    pub const fn id(&self) -> CycleId {
        CycleId { term: self.term, stream: self.stream, cycle: self.cycle }
    }
}

impl Record for Point {
    const KIND: &'static str = "recovery point";
    const MAX: usize = 1 << 20;

    fn check(&self) -> Result<(), &'static str> {
        if self.name != crate::names::point(self.time, self.id()) {
            return Err("its name does not say its time and cycle");
        }
        Ok(())
    }
}
