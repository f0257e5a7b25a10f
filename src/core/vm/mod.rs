//! One ProtectedVM: from what was observed to what is done about it.
//!
//! ```text
//! Observed --resolve--> findings, the VM, whose the containers are
//!     |                      |
//!     +-------- plan --------+--> actions (at most one that cannot be undone, and that one last)
//!                            +--> status, jobs, the time to look again
//! ```
//!
//! The controller fills [`observed::Observed`] and carries out [`plan::Plan`]; nothing here waits, logs,
//! fails or reads a clock. *Architecture invariant:* where a VM is follows from the ledger alone; status and
//! jobs are shown, never read for a decision, except that ids once resolved stay.

mod deletion;
pub mod jobs;
pub mod ledger_edit;
pub mod observed;
pub mod orphan;
pub mod plan;
mod prerequisite;
mod replicate;
pub mod resolve;
mod stands;
pub mod status;
pub mod timeline;
pub mod transition;

#[cfg(test)]
mod tests;

pub use plan::{Action, Container, Plan, plan};
