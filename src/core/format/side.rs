//! `side.json`: which side may run the VM, for hosts that can read storage but not the ledger.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Extra, Record};
use crate::ids::{Stream, Term};

/// A side that can own a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Side {
    /// The Hyper-V host or failover cluster.
    OnPremises,
    /// Azure.
    Azure,
}

/// `side.json` in the download container. Written If-Match and only over a lower `seq`, right after each
/// ledger write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SideRecord {
    /// See [`super`].
    pub format_version: u32,
    /// See [`super`].
    pub min_reader: u32,
    /// The ledger's.
    pub seq: u64,
    /// Who owns the VM.
    pub side: Side,
    /// The ledger's.
    pub term: Term,
    /// The ledger's.
    pub stream: Stream,
    /// Management cluster that wrote it.
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    /// By that cluster's clock.
    pub written_at: Timestamp,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl SideRecord {
    /// True if `next` may be written over `self`.
    #[must_use]
    pub const fn may_become(&self, next: &Self) -> bool {
        next.seq > self.seq
    }
}

impl Record for SideRecord {
    const KIND: &'static str = "side.json";
    const MAX: usize = 64 << 10;
}
