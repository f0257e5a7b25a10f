//! Starts and drives the lab: the tools, a real control plane, the blob service, simulated hosts and
//! our own programs, each a process that can be killed, paused and started again.

mod azurite;
mod binaries;
mod blobs;
mod cli;
mod control_plane;
mod error;
pub mod keeper;
mod kubeconfig;
mod link;
mod parts;
mod pki;
mod port;
pub mod tools;
mod world;

pub use azurite::azurite;
pub use binaries::{Binaries, PACKAGES};
pub use blobs::{BLOBS, Blobs, BlobsKind};
pub use cli::{Command, run};
pub use control_plane::{APISERVER, CONTROLLER_MANAGER, ControlPlane, ETCD};
pub use error::{Error, Result};
pub use kubeconfig::{client, config, install_crypto};
pub use link::Link;
pub use parts::{Parts, Program, Seen, State, until};
pub use port::Port;
pub use world::{CONTROLLER, NAMESPACE, Settings, World, agent_part, host_part, replica_server_part};
