//! The replica server's library against the blob double: every point is a state that the disks really had.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod azurite;
mod crash;
mod faults;
mod memory;
mod program;
mod refused;
mod source;
mod steady;
mod workers;
