//! The replica server: Hyper-V's word for the receiving side. It verifies the cycles that hosts upload, applies
//! them to replica page blobs and makes recovery points. It keeps nothing locally: whatever is not in storage
//! can be lost, and any worker can go on where another was killed.
//!
//! A library first: [`VmTask`] takes the steps of one VM, [`replicate_vm`] paces them, [`Worker`] does so for
//! many VMs; none of them knows Kubernetes, which only says which VMs there are and who shares them
//! ([`kubernetes`]). What is decided is decided in `farshore_core::points`.
#![forbid(unsafe_code)]

mod apply;
mod budget;
mod chain;
mod context;
mod crash;
mod cursor;
mod halt;
mod lease;
mod pace;
mod point_reader;
mod prune;
mod segment;
mod set;
mod store;
mod task;
mod worker;
mod write;

pub mod cli;
pub mod kubernetes;

pub use budget::Budget;
pub use context::{Clock, Context, Policy};
pub use crash::{Crash, CrashPoint, UnknownCrashPoint};
pub use point_reader::PointReader;
pub use store::Store;
pub use task::{Next, VmTask};
pub use worker::{Assignment, Worker, replicate_vm};
