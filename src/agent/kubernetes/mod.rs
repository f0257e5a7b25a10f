//! The agent's side of Kubernetes: how it gets in, lives, reports, and is told what to do.
//!
//! Outbound HTTPS only. While Kubernetes is away the engines go on with the last goal they know.

mod connection;
pub mod enroll;
mod heartbeat;
mod inbox;
mod inventory;
pub mod run;
mod spec;
mod status;

/// Field manager of everything that the agent applies.
const MANAGER: &str = "farshore-agent";
