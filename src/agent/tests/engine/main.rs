//! The engine against a real simulated host and the blob double, without Kubernetes. What it uploads is
//! replayed into flat images by a small replica of the replica server, and every point is compared with what
//! the host's disks held at that instant.
#![expect(missing_docs, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "tests: sizes are small")]

mod child;
mod crash;
mod faults;
mod replay;
mod replicate;
mod slices;
mod support;
