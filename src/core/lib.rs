//! What Farshore decides, and the durable formats it decides about.
//!
//! Pure by dependency: no tokio, no Kubernetes client, no clock, no file system. Every function here
//! takes what was observed and the time, and returns values; `farshore-controller`, `farshore-agent`
//! and `farshore-replica-server` act on them.
#![forbid(unsafe_code)]

pub mod cycle;
pub mod fault;
pub mod format;
pub mod host;
pub mod ids;
pub mod intent;
pub mod names;
pub mod points;
pub mod relationship;
pub mod retry;
pub mod timing;
pub mod units;
pub mod vm;
