//! A simulated Hyper-V host: a process of its own with machines over real VHDX files.
//!
//! It has what the agent needs of a host (`farshore_hyperv::Hypervisor`, over its socket) and what a person
//! needs ([`client::Admin`], same socket); every disk of a running machine is also served by NBD, so that guests and
//! tools that are not ours write to it. Everything survives a restart; a kill loses what a guest had not flushed
//! and makes change tracking coarser, nothing else. What is not simulated: guests themselves, saved states,
//! power failures below the process (files are not re-read from a colder truth), storage migration.
//!
//! ```text
//! D/host.sock        both protocols, HTTP/1.1 and JSON
//! D/nbd/<vm>.sock    NBD: exports "0", "1", ... by slot, or by VirtualDiskId
//! D/<vm>/vm.json     the record      D/<vm>/disk0.vhdx, disk0_<GUID>.avhdx   the disks
//!        diskN.rct, diskN.mrt   change tracking      instants.json   digests (with --record)
//! ```

pub mod admin;
mod bitmap;
mod checkpoint;
pub mod client;
mod console;
mod create;
mod disk;
mod fault;
mod instants;
mod machine;
mod nbd;
mod rct;
mod record;
mod server;
mod volume;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;

pub use console::random;

/// Arguments of `farshore-lab host`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Computer name of the host.
    #[arg(long)]
    pub name: String,
    /// Folder of its machines: its only volume.
    #[arg(long)]
    pub dir: PathBuf,
    /// Socket that it listens on [default: <dir>/host.sock].
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Failover cluster that it is a node of.
    #[arg(long)]
    pub cluster: Option<String>,
    /// Folder of the NBD sockets [default: <dir>/nbd].
    #[arg(long)]
    pub nbd_dir: Option<PathBuf>,
    /// Name of its virtual switch.
    #[arg(long, default_value = "External")]
    pub switch: String,
    /// Capacity of the volume in bytes; what is used counts everything below <dir> [default: the real one].
    #[arg(long)]
    pub volume_bytes: Option<u64>,
    /// Make digests of all disks at every checkpoint.
    #[arg(long)]
    pub record: bool,
}

/// What all machines of a host share.
struct Setup {
    name: String,
    dir: PathBuf,
    nbd_dir: PathBuf,
    cluster: Option<String>,
    switch: String,
    record: bool,
    meter: volume::Meter,
    /// The process is about to end.
    stopping: AtomicBool,
}

/// Runs it until SIGTERM or SIGINT.
pub async fn run(args: Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("create {}", args.dir.display()))?;
    let dir = args.dir.canonicalize()?;
    let nbd_dir = args.nbd_dir.unwrap_or_else(|| dir.join("nbd"));
    std::fs::create_dir_all(&nbd_dir).with_context(|| format!("create {}", nbd_dir.display()))?;
    let socket = args.socket.unwrap_or_else(|| dir.join("host.sock"));
    let setup = Setup {
        name: args.name,
        meter: volume::Meter::new(&dir, args.volume_bytes),
        dir,
        nbd_dir,
        cluster: args.cluster,
        switch: args.switch,
        record: args.record,
        stopping: AtomicBool::new(false),
    };
    let host = tokio::task::spawn_blocking(move || console::Host::load(setup)).await??;
    server::serve(&socket, host).await
}
