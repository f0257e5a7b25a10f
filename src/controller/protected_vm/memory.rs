//! What is remembered of a ProtectedVM between two looks. All of it may be lost at any time: it saves requests and
//! writes, and no decision rests on it.

use std::collections::HashMap;
use std::sync::Mutex;

use farshore_core::retry::Failures;
use farshore_core::vm::observed::Sas;
use farshore_core::vm::status::Status;
use jiff::Timestamp;

use crate::storage::Known;

/// What is remembered of one.
#[derive(Debug, Default)]
pub struct Memory {
    /// Its containers as they were last read.
    pub known: Known,
    /// Failures in a row.
    pub failures: Option<Failures>,
    /// The status that was last written, which the watch may not show yet.
    pub written: Option<Status>,
    /// When that was.
    pub written_at: Option<Timestamp>,
    /// When jobs were last written.
    pub jobs_at: Option<Timestamp>,
    /// The SAS that were last handed out, by uid of the relationship, which the watch may not show yet.
    pub sas: Option<(String, Sas)>,
}

/// What is remembered of all, by uid.
#[derive(Debug, Default)]
pub struct Memories(Mutex<HashMap<String, Memory>>);

impl Memories {
    /// Takes one out while it is being reconciled.
    pub fn take(&self, uid: &str) -> Memory {
        self.0.lock().ok().and_then(|mut all| all.remove(uid)).unwrap_or_default()
    }

    /// Puts it back.
    pub fn put(&self, uid: &str, memory: Memory) {
        if let Ok(mut all) = self.0.lock() {
            all.insert(uid.to_owned(), memory);
        }
    }

    /// Forgets those that are gone.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        if let Ok(mut all) = self.0.lock() {
            all.retain(|uid, _| exists(uid));
        }
    }
}
