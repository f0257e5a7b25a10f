//! VHDX files and their chains: create, read, write, trim, map, merge ([MS-VHDX] v1).
//!
//! [`Vhdx`] is one file; [`Chain`] is a leaf with all its parents and what users of a disk open. Writes reach the
//! disk like those of a disk with a volatile cache: [`Vhdx::flush`] makes them durable, and after a crash every
//! sector written since then holds either its old or a newer content. Changes of the block table go through the log.
//!
//! ```text
//! format   numbers, options        log      entries, replay      file     Vhdx: open, read, write, trim, flush
//! header   headers, region tables  overlay  replay in memory     map      what a file holds, range by range
//! metadata items, parent locator   bat      table, free space    chain    Chain; create_child; merge
//! ```

mod bat;
mod bitmap;
mod chain;
mod create;
mod file;
mod format;
mod header;
#[cfg(test)]
mod hostile_tests;
mod log;
mod map;
mod merge;
mod metadata;
mod overlay;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use uuid::Uuid;

pub use chain::Chain;
pub use create::create_child;
pub use file::{Access, Vhdx};
pub use format::{CreateOptions, Guids, ParentLink};
pub use map::{Kind, Piece};
pub use merge::{merge_into_parent, merge_ranges};

/// Why a VHDX file or chain could not be used.
#[derive(Debug, Error)]
pub enum VhdxError {
    /// The operating system refused.
    #[error("I/O on {what} failed at offset {offset:#x} of the VHDX file")]
    Io {
        /// Which part of the file.
        what: &'static str,
        /// Where in the file.
        offset: u64,
        /// What it said.
        source: io::Error,
    },
    /// A file could not be opened.
    #[error("open of {} failed", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A structure is damaged.
    #[error("VHDX file is corrupt at offset {offset:#x}: {what}")]
    Corrupt {
        /// Which.
        what: &'static str,
        /// Where in the file.
        offset: u64,
    },
    /// Of a version that this reader does not know.
    #[error("{what} version {version} is not supported")]
    Version {
        /// Of what.
        what: &'static str,
        /// The version found.
        version: u16,
    },
    /// The file requires something that this reader does not know.
    #[error("VHDX file requires the unknown {what} {id}")]
    UnknownRequired {
        /// Region, metadata item or locator.
        what: &'static str,
        /// Its id.
        id: Uuid,
    },
    /// No path of the locator leads to a file.
    #[error("parent of {} not found (tried {})", child.display(), shown(tried))]
    ParentNotFound {
        /// Who looks for it.
        child: PathBuf,
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// The parent was changed or replaced after the child was made.
    #[error("parent {} of {} has data id {found}, the child expects {expected}", parent.display(), child.display())]
    ParentMismatch {
        /// Who expects it.
        child: PathBuf,
        /// Who is there.
        parent: PathBuf,
        /// parent_linkage of the child.
        expected: Uuid,
        /// DataWriteGuid of the parent.
        found: Uuid,
    },
    /// Parent and child differ in virtual size or sector size.
    #[error("parent {} is a disk of {found}, {} of {expected} (bytes, bytes per sector)", parent.display(), child.display())]
    SizeMismatch {
        /// Who expects it.
        child: PathBuf,
        /// Who is there.
        parent: PathBuf,
        /// The child's.
        expected: Size,
        /// The parent's.
        found: Size,
    },
    /// A file is its own ancestor.
    #[error("chain of parents comes back to {}", path.display())]
    Cycle {
        /// The file met twice.
        path: PathBuf,
    },
    /// More files than a chain may have.
    #[error("chain of parents is longer than {limit} files")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// Written through a read-only handle.
    #[error("VHDX file is open for reading only")]
    ReadOnly,
    /// Beyond the end of the disk.
    #[error("range at {offset} of {len} bytes lies outside the disk of {size} bytes")]
    OutOfRange {
        /// Of the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Virtual size.
        size: u64,
    },
    /// A differencing file is written by whole sectors.
    #[error("range at {offset} of {len} bytes is not whole sectors of {sector} bytes")]
    Unaligned {
        /// Of the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Logical sector.
        sector: u64,
    },
    /// A write or flush of the block table failed before; what is durable is unknown. Reopen.
    #[error("an earlier write of this VHDX file failed; it must be reopened")]
    Poisoned,
    /// Options that no file can have.
    #[error("VHDX file cannot be created: {0}")]
    Options(&'static str),
    /// Asked to merge a file that has no parent, or that is not the parent's child.
    #[error("{} is not a differencing file", path.display())]
    NoParent {
        /// Which.
        path: PathBuf,
    },
}

/// Virtual size and logical sector size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes of the disk.
    pub bytes: u64,
    /// Bytes of a logical sector.
    pub sector: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.bytes, self.sector)
    }
}

fn shown(paths: &[PathBuf]) -> String {
    let list: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    if list.is_empty() { "no path".into() } else { list.join(", ") }
}

/// What kind of trouble a [`VhdxError`] is; the error catalogue builds on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The chain of parents is not what the files say: not recoverable.
    BrokenChain,
    /// The file's structures are damaged or of an unknown kind: not recoverable.
    Corrupt,
    /// The operating system refused.
    Io,
    /// The caller asked for what cannot be.
    Usage,
}

impl VhdxError {
    /// Which class this is.
    pub fn class(&self) -> Class {
        match self {
            Self::ParentNotFound { .. }
            | Self::ParentMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::Cycle { .. }
            | Self::TooDeep { .. } => Class::BrokenChain,
            Self::Corrupt { .. } | Self::Version { .. } | Self::UnknownRequired { .. } => Class::Corrupt,
            Self::Io { .. } | Self::Open { .. } | Self::Poisoned => Class::Io,
            Self::ReadOnly
            | Self::OutOfRange { .. }
            | Self::Unaligned { .. }
            | Self::Options(_)
            | Self::NoParent { .. } => Class::Usage,
        }
    }

    fn io(source: io::Error, what: &'static str, offset: u64) -> Self {
        Self::Io { what, offset, source }
    }

    /// As `io`, but a file that ends too early is a damaged one.
    fn short(source: io::Error, what: &'static str, offset: u64) -> Self {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            Self::Corrupt { what, offset }
        } else {
            Self::Io { what, offset, source }
        }
    }

    fn corrupt(what: &'static str, offset: u64) -> Self {
        Self::Corrupt { what, offset }
    }
}

impl From<VhdxError> for io::Error {
    fn from(e: VhdxError) -> Self {
        let kind = match &e {
            VhdxError::Io { source, .. } | VhdxError::Open { source, .. } => source.kind(),
            VhdxError::OutOfRange { .. } => io::ErrorKind::UnexpectedEof,
            VhdxError::ReadOnly => io::ErrorKind::PermissionDenied,
            VhdxError::Unaligned { .. } | VhdxError::Options(_) | VhdxError::NoParent { .. } => {
                io::ErrorKind::InvalidInput
            }
            VhdxError::Poisoned => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, e)
    }
}
