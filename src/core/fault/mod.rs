//! What can go wrong, in one catalogue (R9): code, class, health, causes, remedy.

mod catalog;

use std::fmt;

pub use catalog::{CATALOG, Code, Entry};
use serde::{Deserialize, Serialize};

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Try again by itself, on the ladder of [`crate::retry`] (R9.2).
    Recoverable,
    /// Stop: health Critical, `Stalled`, until the spec, the host or a request changes (R9.1).
    Unrecoverable,
    /// The chain is broken: the disks must be compared again (R8.1).
    NeedsResync,
}

/// A VM's health as Site Recovery shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Nothing to do.
    Normal,
    /// Being dealt with, or soon a problem.
    Warning,
    /// A person must act, or the VM is not protected now.
    Critical,
}

/// One fault that happened: a code of the catalogue and what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which.
    pub code: Code,
    /// What failed and on what: lower case, no trailing dot, never a secret.
    pub message: String,
    /// The service's own wish for how long to wait (Retry-After), in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

impl Fault {
    /// A fault with its circumstances.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_seconds: None }
    }

    /// Its row of the catalogue.
    #[must_use]
    pub fn entry(&self) -> &'static Entry {
        self.code.entry()
    }

    /// Its class.
    #[must_use]
    pub fn class(&self) -> Class {
        self.entry().class
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Fault {}
