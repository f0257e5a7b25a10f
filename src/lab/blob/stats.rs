//! What the double saw, by its own monotonic clock: the referee of benches.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};

/// `/_admin/stats`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stats {
    /// Requests by operation.
    pub requests: BTreeMap<String, u64>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Bytes of bodies that came, also of refused requests.
    pub bytes_in: u64,
    /// Bytes of bodies that went.
    pub bytes_out: u64,
    /// Put Page requests that succeeded.
    pub page_writes: u64,
    /// Bytes that they wrote.
    pub page_bytes: u64,
    /// Put Blob requests that succeeded.
    pub blob_writes: u64,
    /// Bytes that they wrote.
    pub blob_bytes: u64,
    /// Microseconds from the start of the double to the first byte of the first write of pages or
    /// blobs since the last reset.
    pub first_write_micros: Option<u64>,
    /// The same to the end of the last such write.
    pub last_write_micros: Option<u64>,
}

impl Stats {
    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }
}

#[derive(Debug)]
pub(super) struct Counters {
    start: Instant,
    stats: Mutex<Stats>,
}

impl Counters {
    pub(super) fn new() -> Counters {
        Counters { start: Instant::now(), stats: Mutex::default() }
    }

    pub(super) fn snapshot(&self) -> Stats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn reset(&self) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = Stats::default();
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A write began.
    pub(super) fn begin_write(&self) {
        let now = self.micros();
        self.change(|stats| {
            stats.first_write_micros.get_or_insert(now);
        });
    }

    /// A write of pages or of a blob succeeded.
    pub(super) fn end_write(&self, pages: bool, bytes: u64) {
        let now = self.micros();
        self.change(|stats| {
            let (writes, total) = if pages {
                (&mut stats.page_writes, &mut stats.page_bytes)
            } else {
                (&mut stats.blob_writes, &mut stats.blob_bytes)
            };
            *writes += 1;
            *total += bytes;
            stats.last_write_micros = Some(now);
        });
    }
}
