//! Logs by [MS-HRL] v2 and their side manifests.
#![allow(unused_variables, dead_code, clippy::todo, missing_docs, reason = "signatures first")]

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::io::RandomAccess;

/// An entry's data is at most this long.
pub const MAX_ENTRY: u32 = 2 << 20;

#[derive(Debug, Error)]
pub enum HrlError {
    #[error("the log was not sealed")]
    Unsealed,
    #[error("log is corrupt at offset {offset:#x}: {what}")]
    Corrupt { what: &'static str, offset: u64 },
    #[error("read or write of the log failed at offset {offset:#x}")]
    Io { offset: u64, source: io::Error },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderOptions {
    pub unique_id: Uuid,
    /// Nil for the first log of a chain.
    pub previous_unique_id: Uuid,
    pub data_write_guid: Uuid,
    /// Virtual size of the disk.
    pub size: u64,
    pub time: Timestamp,
}

pub struct LogWriter {}

impl LogWriter {
    pub fn create(file: Box<dyn RandomAccess>, options: &HeaderOptions) -> Result<Self, HrlError> {
        todo!()
    }
    /// Ascending, non-overlapping; longer data becomes several entries.
    pub fn append(&mut self, offset: u64, data: &[u8]) -> Result<(), HrlError> {
        todo!()
    }
    pub fn seal(self, time: Timestamp) -> Result<Sealed, HrlError> {
        todo!()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub length: u64,
    pub entries: u64,
    pub data_bytes: u64,
    pub block_crcs: Vec<u32>,
}

pub struct LogReader {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub offset: u64,
    pub len: u32,
    /// Where its data is in the file.
    pub position: u64,
    /// 0 = absent.
    pub data_checksum: u32,
}

impl LogReader {
    pub fn open(file: Box<dyn RandomAccess>) -> Result<Self, HrlError> {
        todo!()
    }
    pub fn header(&self) -> &HeaderOptions {
        todo!()
    }
    /// The header's checksum does not fit; Hyper-V's own example has that, so it is no error.
    pub fn header_checksum_mismatch(&self) -> bool {
        todo!()
    }
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry> + '_ {
        std::iter::empty()
    }
    pub fn read(&self, entry: &Entry, buf: &mut [u8]) -> Result<(), HrlError> {
        todo!()
    }
}

/// What stands beside a log, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SideManifest {
    pub format_version: u32,
    #[serde(rename = "vmID")]
    pub vm_id: Uuid,
    #[serde(rename = "diskID")]
    pub disk_id: Uuid,
    pub term: u32,
    pub stream: u32,
    pub cycle: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_cycle: Option<u64>,
    #[serde(rename = "uniqueID")]
    pub unique_id: Uuid,
    #[serde(rename = "previousUniqueID")]
    pub previous_unique_id: Uuid,
    /// Bytes of the log.
    pub length: u64,
    /// BLAKE3 of the log, hex.
    pub blake3: String,
    /// CRC-32C per block of entries: its data and its metadata block.
    pub block_crcs: Vec<u32>,
    #[serde(rename = "baseRctID", default, skip_serializing_if = "Option::is_none")]
    pub base_rct_id: Option<String>,
    #[serde(rename = "targetRctID", default, skip_serializing_if = "Option::is_none")]
    pub target_rct_id: Option<String>,
    #[serde(rename = "referencePointID", default, skip_serializing_if = "Option::is_none")]
    pub reference_point_id: Option<String>,
    pub consistency: Consistency,
    pub point_time: Timestamp,
    pub virtual_size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    Crash,
    Application,
    Final,
}
