//! Bytes of disks: extents, VHDX and VHD files, [MS-HRL] logs, the segments that travel, and digests.
//!
//! Nothing here reads a clock, makes random ids, talks to a network or knows tokio: times and GUIDs come from the
//! caller, files come as [`io::RandomAccess`]. Lengths and offsets read from files are bounds-checked before use.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::disallowed_methods, reason = "tests"))]

mod bytes_at;
pub mod crash;
pub mod digest;
pub mod extents;
pub mod hrl;
pub mod io;
pub mod segment;
pub mod vhd;
pub mod vhdx;

pub use extents::{Extent, Extents};
pub use io::{FileDisk, MemDisk, RandomAccess};
