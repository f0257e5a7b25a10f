//! The simulated Hyper-V host as its users meet it: a process, its socket, its NBD exports.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cloned_ref_to_slice_refs,
    unreachable_pub,
    reason = "tests: a panic is the answer, and nothing here is exported"
)]

mod changes;
mod checkpoints;
mod faults;
mod nbd;
mod restart;
mod support;
