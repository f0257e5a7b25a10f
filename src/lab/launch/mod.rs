//! Starts and drives the lab: the tools, a real control plane, the blob service, simulated hosts and
//! our own programs, each a process that can be killed, paused and started again.

mod cli;
mod control_plane;
mod error;
mod kubeconfig;
mod parts;
mod pki;
mod port;
pub mod tools;

pub use cli::{Command, run};
pub use control_plane::{APISERVER, CONTROLLER_MANAGER, ControlPlane, ETCD};
pub use error::{Error, Result};
pub use kubeconfig::{client, config, install_crypto};
pub use parts::{Parts, Program, Seen, State, until};
pub use port::Port;
