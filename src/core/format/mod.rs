//! The durable JSON records. Final from the first release on.
//!
//! Every record carries `formatVersion` (what wrote it) and `minReader` (what may read it); fields that
//! a reader does not know are kept in `extra` and written back. Times are RFC 3339 UTC, hashes BLAKE3.
//! A commit record and its segment lists are named or chained by the hash of their exact bytes, so they
//! are hashed as read, never as re-encoded; ledger, side and cursor are replaced under their ETag.

pub mod commit;
pub mod cursor;
pub mod ledger;
pub mod list;
pub mod point;
pub mod side;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version that this build writes.
pub const FORMAT_VERSION: u32 = 1;

/// Fields that this build does not know, kept as they were.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// Why a record cannot be used. None of these is repaired silently.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Longer than its kind may be; hostile or damaged.
    #[error("{kind} of {len} bytes is over its limit of {max}")]
    TooLarge {
        /// What it should have been.
        kind: &'static str,
        /// Its length.
        len: usize,
        /// The limit of its kind.
        max: usize,
    },
    /// Written for a newer reader.
    #[error(
        "{kind} needs a reader of format {needs}; this one reads up to {FORMAT_VERSION}: upgrade Farshore"
    )]
    TooNew {
        /// What it should have been.
        kind: &'static str,
        /// Its `minReader`.
        needs: u32,
    },
    /// Not JSON of this shape.
    #[error("{kind} cannot be read: {source}")]
    Malformed {
        /// What it should have been.
        kind: &'static str,
        /// What the parser says, with line and column.
        source: serde_json::Error,
    },
    /// Well-formed, but its parts contradict each other.
    #[error("{kind} is not consistent: {what}")]
    Inconsistent {
        /// What it should have been.
        kind: &'static str,
        /// Which rule is broken.
        what: &'static str,
    },
}

/// A durable record kept as JSON.
pub trait Record: Serialize + DeserializeOwned {
    /// Its name in messages.
    const KIND: &'static str;
    /// The longest one that is ever read or written, in bytes.
    const MAX: usize;

    /// Rules that the shape alone cannot say.
    ///
    /// # Errors
    /// The first rule that is broken.
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }

    /// Parses a record that may come from anybody.
    ///
    /// # Errors
    /// [`FormatError`]: too large, too new, malformed or inconsistent.
    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "minReader", default)]
            min_reader: u32,
        }
        let kind = Self::KIND;
        if bytes.len() > Self::MAX {
            return Err(FormatError::TooLarge { kind, len: bytes.len(), max: Self::MAX });
        }
        let malformed = |source| FormatError::Malformed { kind, source };
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.min_reader > FORMAT_VERSION {
            return Err(FormatError::TooNew { kind, needs: head.min_reader });
        }
        let record: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        record.check().map_err(|what| FormatError::Inconsistent { kind, what })?;
        Ok(record)
    }

    /// The bytes to store.
    ///
    /// # Errors
    /// [`FormatError`] if the record breaks its own rules or limit: then nothing must be stored.
    fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let kind = Self::KIND;
        self.check().map_err(|what| FormatError::Inconsistent { kind, what })?;
        let bytes = serde_json::to_vec(self).map_err(|source| FormatError::Malformed { kind, source })?;
        if bytes.len() > Self::MAX {
            return Err(FormatError::TooLarge { kind, len: bytes.len(), max: Self::MAX });
        }
        Ok(bytes)
    }
}
