//! A simulated host with one VM, made once and cleaned between runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use farshore_core::ids::{DiskId, VmId};
use farshore_hyperv::Hypervisor;
use farshore_lab::host::admin::{Data, NewDisk, NewVm};
use farshore_lab::host::client::Admin;

use crate::double::text;
use crate::process::Process;

/// Capacity of its volume: what else is on this machine must not end a slice early.
const VOLUME: &str = "1099511627776";
/// The name of the only VM of a host.
const NAME: &str = "vm";

/// A running host with a running VM.
pub(crate) struct Vm {
    /// Which.
    pub(crate) id: VmId,
    /// Its disk.
    pub(crate) disk: DiskId,
    /// Where the host listens.
    pub(crate) socket: PathBuf,
    admin: Admin,
    _host: Process,
}

impl Vm {
    /// Starts a host in `folder` with a VM whose disk begins as the raw image.
    pub(crate) async fn of_image(folder: &Path, image: &Path) -> anyhow::Result<Self> {
        let disk = NewDisk { image: Some(image.to_owned()), ..NewDisk::default() };
        Self::with(folder, disk).await
    }

    /// Starts a host in `folder` with a VM of an empty disk.
    pub(crate) async fn of_size(folder: &Path, size: u64) -> anyhow::Result<Self> {
        Self::with(folder, NewDisk { size: Some(size), ..NewDisk::default() }).await
    }

    async fn with(folder: &Path, disk: NewDisk) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let host = Process::own(
            "the host",
            &["host", "--name", "bench", "--dir", text(folder)?, "--volume-bytes", VOLUME],
            &folder.join("log"),
        )?;
        let socket = folder.join("host.sock");
        let admin = Admin::new(&socket);
        admin.wait_ready(Duration::from_secs(20)).await?;
        let vm = admin.create(NewVm { disks: vec![disk], ..NewVm::with_disks(NAME, &[]) }).await?;
        let disk = vm.info.disks.first().context("a VM without disks")?.disk_id;
        admin.start(NAME).await?;
        Ok(Self { id: vm.info.id, disk, socket, admin, _host: host })
    }

    /// Writes bytes that do not compress, as the guest would.
    pub(crate) async fn write(&self, offset: u64, len: u64) -> anyhow::Result<()> {
        Ok(self.admin.write(NAME, "0", offset, Data::Random { seed: offset, len }).await?)
    }

    /// Removes checkpoints and reference points that a run left behind.
    pub(crate) async fn clean(&self) -> anyhow::Result<()> {
        let host = self.admin.hypervisor();
        for checkpoint in host.checkpoints(self.id).await? {
            host.delete_checkpoint(self.id, &checkpoint.id).await?;
        }
        for point in host.reference_points(self.id).await? {
            host.destroy_reference_point(self.id, &point.id).await?;
        }
        Ok(())
    }
}
