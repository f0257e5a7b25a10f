//! The engine against a real simulated host and the blob double, without Kubernetes. What it uploads is
//! replayed into flat images by a small replica of the replica server, and every point is compared with what
//! the host's disks held at that instant.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "tests: one program of several modules, which may fail loudly; sizes are small"
)]

mod child;
mod crash;
mod faults;
mod replay;
mod replicate;
mod slices;
mod support;
mod throughput;
