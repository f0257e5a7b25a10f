//! The protocol between [`crate::sim::SimHost`] and the lab's host: one JSON request, one JSON answer.
//!
//! `POST /hyperv` with a [`Request`]; 200 carries the method's result, anything else a
//! [`crate::HyperVError`]. HTTP/1.1 over a unix socket.

use farshore_core::ids::{DiskId, VmId};
use serde::{Deserialize, Serialize};

use crate::model::{CheckpointId, Consistency, RctId, ReferencePointId};

/// Path of the trait's calls.
pub const PATH: &str = "/hyperv";

/// Most ranges in one answer to [`Request::QueryChanges`]; the client asks on from where it ended.
pub const RANGES_PER_PAGE: usize = 8192;

/// One call of the trait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "the trait's methods document each call")]
pub enum Request {
    Host,
    Vms,
    Vm { vm: VmId },
    CreateCheckpoint { vm: VmId, name: String, consistency: Consistency },
    Checkpoints { vm: VmId },
    DeleteCheckpoint { vm: VmId, checkpoint: CheckpointId },
    AvhdxBytes { vm: VmId, checkpoint: CheckpointId },
    ConvertToReferencePoint { vm: VmId, checkpoint: CheckpointId },
    ReferencePoints { vm: VmId },
    DestroyReferencePoint { vm: VmId, reference_point: ReferencePointId },
    QueryChanges { vm: VmId, disk: DiskId, since: RctId, checkpoint: CheckpointId, offset: u64 },
    Volume { path: String },
    Start { vm: VmId },
    Stop { vm: VmId },
    Shutdown { vm: VmId },
}

/// One page of changed ranges, as `QueryChangesVirtualDisk` returns them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangesPage {
    /// Offset and length of each range, ascending, not overlapping.
    pub ranges: Vec<(u64, u64)>,
    /// Everything below is answered; equal to the disk's size on the last page.
    pub processed_to: u64,
    /// Virtual size of the disk.
    pub size: u64,
}
