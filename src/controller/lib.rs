//! The controller: reconciles all resources, keeps the ledgers, hands out goals and SAS.
//!
//! ```text
//! protected_vm/  facts, observe -> farshore_core::vm::plan -> execute -> publish
//! host/          certificate requests, namespaces and rights of hosts, heartbeats, bootstrap tokens
//! vault/         connections to storage accounts, SAS          site     sites and policies
//! storage/       a VM's containers, the ledger's compare-and-swap
//! watch          one watch per kind, queues          sweep     what no reconcile sees
//! ```
//! *Architecture invariant:* nothing here decides about a VM; that is `farshore_core::vm`.
#![forbid(unsafe_code)]

pub mod context;
pub mod host;
pub mod leader;
pub mod metrics;
pub mod protected_vm;
pub mod report;
pub mod run;
pub mod site;
pub mod storage;
pub mod sweep;
pub mod vault;
pub mod watch;
pub mod write;
