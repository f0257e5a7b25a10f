//! Admin client of a simulated host: what `farshore-lab vm`, `farshore-lab fault` and the tests call.

use std::path::PathBuf;
use std::time::{Duration, Instant as Clock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use farshore_hyperv::sim::SimHost;
use farshore_hyperv::{HyperVError, Result};

use super::admin::{AdminRequest, AdminVm, Data, DiskDigest, Fault, Instant, NewVm, PATH, Settings};

/// A host, as its administrator reaches it.
#[derive(Clone, Debug)]
pub struct Admin {
    host: SimHost,
}

impl Admin {
    /// The host that listens on `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { host: SimHost::new(socket) }
    }

    /// The same host as a [`farshore_hyperv::Hypervisor`].
    #[must_use]
    pub fn hypervisor(&self) -> SimHost {
        self.host.clone()
    }

    /// Waits until the host answers.
    pub async fn wait_ready(&self, limit: Duration) -> Result<()> {
        let end = Clock::now() + limit;
        loop {
            match self.list().await {
                Err(HyperVError::Unreachable { .. }) if Clock::now() < end => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => return other.map(drop),
            }
        }
    }

    /// All machines.
    pub async fn list(&self) -> Result<Vec<AdminVm>> {
        self.call(AdminRequest::List).await
    }

    /// One machine by name or id.
    pub async fn find(&self, vm: &str) -> Result<Option<AdminVm>> {
        let all = self.list().await?;
        Ok(all.into_iter().find(|found| found.info.name == vm || found.info.id.to_string() == vm))
    }

    /// Makes a machine; it is off.
    pub async fn create(&self, vm: NewVm) -> Result<AdminVm> {
        self.call(AdminRequest::Create(vm)).await
    }

    /// Deletes a machine that is off, with its files.
    pub async fn delete(&self, vm: &str) -> Result<()> {
        self.call(AdminRequest::Delete { vm: vm.to_owned() }).await
    }

    /// Starts a machine: its NBD exports open.
    pub async fn start(&self, vm: &str) -> Result<()> {
        self.call(AdminRequest::Start { vm: vm.to_owned() }).await
    }

    /// Turns a machine off: NBD connections are cut.
    pub async fn stop(&self, vm: &str) -> Result<()> {
        self.call(AdminRequest::Stop { vm: vm.to_owned() }).await
    }

    /// Shuts the guest down.
    pub async fn shutdown(&self, vm: &str) -> Result<()> {
        self.call(AdminRequest::Shutdown { vm: vm.to_owned() }).await
    }

    /// Writes to a disk of a running machine, as its guest would.
    pub async fn write(&self, vm: &str, disk: &str, offset: u64, data: Data) -> Result<()> {
        self.call(AdminRequest::Write { vm: vm.to_owned(), disk: disk.to_owned(), offset, data }).await
    }

    /// Writes bytes to a disk of a running machine.
    pub async fn write_bytes(&self, vm: &str, disk: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write(vm, disk, offset, Data::Base64(STANDARD.encode(bytes))).await
    }

    /// Reads from a disk, also while the machine is off.
    pub async fn read(&self, vm: &str, disk: &str, offset: u64, len: u32) -> Result<Vec<u8>> {
        let (vm, disk) = (vm.to_owned(), disk.to_owned());
        let text: String = self.call(AdminRequest::Read { vm, disk, offset, len }).await?;
        STANDARD.decode(text).map_err(|e| HyperVError::Protocol { message: e.to_string() })
    }

    /// BLAKE3 of every disk, all from one instant, and of each `range` bytes of them. Also while the machine is off.
    pub async fn digest(&self, vm: &str, range: Option<u64>) -> Result<Vec<DiskDigest>> {
        self.call(AdminRequest::Digest { vm: vm.to_owned(), range }).await
    }

    /// What the disks held at each checkpoint since the machine was made (a host with `--record` only).
    pub async fn instants(&self, vm: &str) -> Result<Vec<Instant>> {
        self.call(AdminRequest::Instants { vm: vm.to_owned() }).await
    }

    /// Takes a standard checkpoint, as a person does in Hyper-V Manager.
    pub async fn standard_checkpoint(&self, vm: &str, name: &str) -> Result<()> {
        self.call(AdminRequest::StandardCheckpoint { vm: vm.to_owned(), name: name.to_owned() }).await
    }

    /// Changes settings of a machine.
    pub async fn configure(&self, vm: &str, settings: Settings) -> Result<()> {
        self.call(AdminRequest::Configure { vm: vm.to_owned(), settings }).await
    }

    /// Makes something go wrong.
    pub async fn fault(&self, fault: Fault) -> Result<()> {
        self.call(AdminRequest::Fault { fault }).await
    }

    async fn call<T: serde::de::DeserializeOwned>(&self, request: AdminRequest) -> Result<T> {
        self.host.post(PATH, &request).await
    }
}
