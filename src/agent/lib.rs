//! The agent of a Hyper-V host: it tracks, logs and ships the disks of the VMs that it is told to protect.
//!
//! ```text
//! inbox (Kubernetes) --- Assignment ---> engine (one task per VM) --- Report ---> status
//!                                          |  core::relationship decides, journal remembers
//!                                          v
//!        hypervisor: checkpoint, changes   transfer: read -> encode -> upload   store: -up, -down
//! ```
//! [`engine`] and [`transfer`] know nothing of Kubernetes: benches and tests drive them with values.
#![forbid(unsafe_code)]

pub mod config;
pub mod crash;
pub mod engine;
pub mod fault;
pub mod journal;
pub mod kubernetes;
pub mod store;
pub mod transfer;

pub use kubernetes::run::run;
