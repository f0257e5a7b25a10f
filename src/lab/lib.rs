//! The lab: the whole world of Farshore on one machine, for the demo, the tests and rehearsals.
//!
//! Nothing in it is a mock where a real part can be had. Every part that stands in for something
//! (the Hyper-V host, the blob service of the benches) is a process of its own with honest
//! behaviours and faults on demand.

pub mod blob;
pub mod demo;
pub mod guest;
pub mod host;
pub mod launch;
pub mod proof;
mod scratch;

pub use scratch::scratch;
