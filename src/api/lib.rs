//! The resources of Farshore: group `farshore.dev`, version `v1alpha1`.
//!
//! Types only: what a person may write, what the parts tell each other, and the rules that the API
//! server enforces. No client, no decision. Everything that is read from the API server passes through
//! these types once; `crds()` is the only source of the CRDs in `crds/` and in the chart.
//!
//! ```text
//! administrators   HyperVSite  HyperVHost  RecoveryVault  ReplicationPolicy      cluster-scoped
//! VM owners        ProtectedVM  RecoveryJob                                      their namespace
//! machines         HyperVVM  ReplicationRelationship                             the host's namespace
//! ```
#![forbid(unsafe_code)]
#![expect(clippy::duplicated_attributes, reason = "printcolumn(...) takes the same keys again")]
#![expect(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]

pub mod annotation;
pub mod condition;
mod crds;
mod duration;
mod host;
mod job;
mod policy;
mod protected_vm;
pub mod reason;
mod relationship;
mod rules;
mod schema;
mod shared;
mod site;
mod vault;
mod vm;

pub use crds::crds;
pub use duration::{Duration, DurationError};
pub use host::*;
pub use job::*;
pub use policy::*;
pub use protected_vm::*;
pub use relationship::*;
pub use shared::*;
pub use site::*;
pub use vault::*;
pub use vm::*;

/// API group of every resource.
pub const GROUP: &str = "farshore.dev";
/// The served and stored version.
pub const VERSION: &str = "v1alpha1";

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
