//! What stands beside a log, as JSON: whose it is, what it is made of, and what proves it whole.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::HrlError;
use crate::digest;
use crate::io::RandomAccess;

/// One log's side manifest. All disks of one checkpoint carry the same cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SideManifest {
    /// 1.
    pub format_version: u32,
    /// The VM.
    #[serde(rename = "vmID")]
    pub vm_id: Uuid,
    /// VirtualDiskId.
    #[serde(rename = "diskID")]
    pub disk_id: Uuid,
    /// Of the commit that the log belongs to.
    pub term: u32,
    /// Likewise.
    pub stream: u32,
    /// Likewise.
    pub cycle: u64,
    /// The cycle that it continues; absent for a stream's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_cycle: Option<u64>,
    /// UniqueId of the log.
    #[serde(rename = "uniqueID")]
    pub unique_id: Uuid,
    /// PreviousUniqueId of the log.
    #[serde(rename = "previousUniqueID")]
    pub previous_unique_id: Uuid,
    /// Bytes of the log.
    pub length: u64,
    /// BLAKE3 of the log, hex.
    pub blake3: String,
    /// CRC-32C per block of entries: its data, then its metadata block.
    pub block_crcs: Vec<u32>,
    /// Changes since this point of change tracking,
    #[serde(rename = "baseRctID", default, skip_serializing_if = "Option::is_none")]
    pub base_rct_id: Option<String>,
    /// up to this one.
    #[serde(rename = "targetRctID", default, skip_serializing_if = "Option::is_none")]
    pub target_rct_id: Option<String>,
    /// InstanceID of the reference point.
    #[serde(rename = "referencePointID", default, skip_serializing_if = "Option::is_none")]
    pub reference_point_id: Option<String>,
    /// What the point promises.
    pub consistency: Consistency,
    /// When the disks were as the log makes them.
    pub point_time: Timestamp,
    /// Bytes of the disk.
    pub virtual_size: u64,
}

/// What a point promises about the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// As after a power cut.
    Crash,
    /// Applications were quiesced.
    Application,
    /// The guest was shut down.
    Final,
}

impl SideManifest {
    /// The version that this code writes.
    pub const VERSION: u32 = 1;

    /// Reads the whole log and compares length and BLAKE3.
    pub fn check(&self, log: &dyn RandomAccess) -> Result<(), HrlError> {
        let io = |source| HrlError::Io { offset: 0, source };
        if log.len().map_err(io)? != self.length {
            return Err(HrlError::Manifest { what: "length" });
        }
        let found = digest::whole(log).map_err(io)?;
        if blake3::Hash::from_hex(&self.blake3).ok() != Some(found) {
            return Err(HrlError::Manifest { what: "blake3" });
        }
        Ok(())
    }
}
