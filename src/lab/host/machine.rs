//! A virtual machine: its record, its disks, power, and what its guest may do.
//!
//! The record on disk is the truth after a restart; memory is never ahead of it. `ops` serialises everything
//! that changes files: power, checkpoints, merges. The guest's reads and writes pass only the disks' gates.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use std::{fs, io};

use farshore_core::ids::{DiskId, VmId};
use farshore_disk::vhdx::Chain;
use farshore_hyperv::win32::CTLOG_VHD_CHANGED_OFFLINE;
use farshore_hyperv::{
    CheckpointInfo, DiskFormat, DiskInfo, DiskType, Firmware, HyperVError, PowerState, Result, VmInfo,
};
use jiff::Timestamp;
use uuid::Uuid;

use super::disk::{self, Disk};
use super::instants::Recorder;
use super::nbd::{Export, Exports, Server};
use super::rct::Tracker;
use super::record::{self, VmRecord};
use super::volume::Meter;
use super::{Setup, fault};

/// How often a write that found the volume full looks again.
const FULL_POLL: Duration = Duration::from_millis(50);

/// A virtual machine.
pub(super) struct Machine {
    pub(super) id: VmId,
    pub(super) folder: PathBuf,
    pub(super) setup: Arc<Setup>,
    pub(super) disks: Vec<Arc<Disk>>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) faults: Faults,
    ops: Mutex<()>,
    record: Mutex<VmRecord>,
    on: AtomicBool,
    /// Writes that wait for space.
    waiting: AtomicUsize,
    nbd: OnceLock<Server>,
}

/// Faults of one machine; gone with the process.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) vss: AtomicBool,
    pub(super) checkpoints: AtomicBool,
}

impl Machine {
    /// Loads a machine from its folder. It is on if it was when the host ended.
    pub(super) fn load(folder: &Path, setup: &Arc<Setup>) -> io::Result<Arc<Self>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no machine in this folder");
        let record: VmRecord = record::load(&folder.join(record::FILE))?.ok_or_else(missing)?;
        remove_orphans(folder, &record)?;
        let mut disks = Vec::new();
        for found in &record.disks {
            let base = found.chain.first().ok_or_else(missing)?;
            let mut tracker = Tracker::open(&folder.join(base), found.size)?;
            tracker.retain(|id| record.holds(id))?;
            let sector = found.logical_sector_size;
            disks.push(Arc::new(Disk::new(found.id, found.slot, found.size, sector, tracker)));
        }
        let machine = Arc::new(Self {
            id: record.id,
            folder: folder.to_owned(),
            setup: Arc::clone(setup),
            disks,
            recorder: Recorder::open(folder.join("instants.json"))?,
            faults: Faults::default(),
            ops: Mutex::default(),
            record: Mutex::new(record),
            on: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            nbd: OnceLock::new(),
        });
        let server = Server::listen(&machine.nbd_path(), Arc::new(Disks(Arc::downgrade(&machine))))?;
        drop(machine.nbd.set(server));
        machine.record_instants();
        if machine.record().state == PowerState::Running
            && let Err(error) = machine.power_on(&machine.ops())
        {
            tracing::warn!(vm.id = %machine.id, %error, "did not start");
            machine.update(|record| record.state = PowerState::Off)?;
        }
        Ok(machine)
    }

    /// Socket of the NBD server.
    pub(super) fn nbd_path(&self) -> PathBuf {
        let mut name = self.folder.file_name().unwrap_or_default().to_owned();
        name.push(".sock");
        self.setup.nbd_dir.join(name)
    }

    /// The record as it is.
    pub(super) fn record(&self) -> VmRecord {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the record: on disk first.
    pub(super) fn update(&self, change: impl FnOnce(&mut VmRecord)) -> io::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = record.clone();
        change(&mut next);
        record::save(&self.folder.join(record::FILE), &next)?;
        *record = next;
        Ok(())
    }

    /// The right to change files.
    pub(super) fn ops(&self) -> MutexGuard<'_, ()> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True while the guest may run.
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// Power state: PausedCritical while writes wait for space.
    pub(super) fn state(&self) -> PowerState {
        match self.record().state {
            PowerState::Running if self.waiting.load(Ordering::SeqCst) > 0 => PowerState::PausedCritical,
            state => state,
        }
    }

    /// A disk by slot or id.
    pub(super) fn disk(&self, name: &str) -> Option<&Arc<Disk>> {
        self.disks.iter().find(|disk| disk.slot.to_string() == name || disk.id.to_string() == name)
    }

    /// Path of a file in the machine's folder.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Starts the machine.
    pub(super) fn start(&self) -> Result<()> {
        let ops = self.ops();
        if !self.is_on() {
            self.power_on(&ops)?;
        }
        Ok(())
    }

    fn power_on(&self, _ops: &MutexGuard<'_, ()>) -> Result<()> {
        let record = self.record();
        let mut chains = Vec::new();
        for (disk, kept) in self.disks.iter().zip(&record.disks) {
            let leaf = self.path(kept.leaf());
            let chain = disk::open(&leaf).map_err(|e| fault::of_disk("start", &leaf, disk.id, &e))?;
            if kept.sealed.is_some_and(|sealed| sealed != chain.data_write_guid()) {
                tracing::warn!(disk.id = %disk.id, "changed while the machine was off: tracking lost");
                let mut tracker = disk.tracker.lock().unwrap_or_else(PoisonError::into_inner);
                tracker.lose(CTLOG_VHD_CHANGED_OFFLINE).map_err(|e| fault::other("start", &e))?;
            }
            chains.push(chain);
        }
        self.update(|record| {
            record.state = PowerState::Running;
            record.running_since = Some(Timestamp::now());
            record.disks.iter_mut().for_each(|disk| disk.sealed = None);
        })
        .map_err(|e| fault::other("start", &e))?;
        for (disk, chain) in self.disks.iter().zip(chains) {
            disk.hold().chain = Some(chain);
        }
        self.on.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Turns the machine off.
    pub(super) fn stop(&self) -> Result<()> {
        let ops = self.power_off();
        if self.record().state != PowerState::Off {
            self.close_disks(&ops, PowerState::Off)?;
            self.settle(&ops);
        }
        Ok(())
    }

    /// Shuts the guest down.
    pub(super) fn shutdown(&self) -> Result<()> {
        match self.state() {
            state @ (PowerState::PausedCritical | PowerState::Paused | PowerState::Saved) => {
                let reason = "its guest does not run and cannot shut down".to_owned();
                Err(HyperVError::InvalidState { vm: self.id, state, reason })
            }
            _ => self.stop(),
        }
    }

    /// Ends for this process; the machine is on again when the host comes back.
    pub(super) fn suspend(&self) -> Result<()> {
        let ops = self.power_off();
        let state = self.record().state;
        if state == PowerState::Running {
            self.close_disks(&ops, state)?;
        }
        for disk in &self.disks {
            let tracker = disk.tracker.lock().unwrap_or_else(PoisonError::into_inner);
            tracker.close().map_err(|e| fault::other("close change tracking", &e))?;
        }
        Ok(())
    }

    /// Cuts the guest off at once; merges end at their next piece.
    fn power_off(&self) -> MutexGuard<'_, ()> {
        self.on.store(false, Ordering::SeqCst);
        if let Some(server) = self.nbd.get() {
            server.disconnect();
        }
        self.ops()
    }

    fn close_disks(&self, _ops: &MutexGuard<'_, ()>, state: PowerState) -> Result<()> {
        let mut sealed = Vec::new();
        for disk in &self.disks {
            let chain = disk.hold().shut();
            sealed.push(chain.map(|chain| self.seal(disk, &chain)).transpose()?);
        }
        self.update(|record| {
            record.state = state;
            record.running_since = None;
            record.disks.iter_mut().zip(sealed).for_each(|(disk, guid)| disk.sealed = guid);
        })
        .map_err(|e| fault::other("stop", &e))
    }

    fn seal(&self, disk: &Disk, chain: &Chain) -> Result<Uuid> {
        let error = |e| fault::of_disk("stop", &self.folder, disk.id, &disk::failed(e));
        chain.close().map_err(error)?;
        Ok(chain.data_write_guid())
    }

    /// What the hypervisor reports.
    pub(super) fn info(&self) -> VmInfo {
        let state = self.state();
        let record = self.record();
        let two = record.generation == 2;
        let disks = record.disks.iter().map(|disk| DiskInfo {
            disk_id: disk.id,
            path: self.path(disk.leaf()).to_string_lossy().into_owned(),
            format: DiskFormat::Vhdx,
            disk_type: match (disk.chain.len(), disk.dynamic) {
                (2.., _) => DiskType::Differencing,
                (_, true) => DiskType::Dynamic,
                (_, false) => DiskType::Fixed,
            },
            size: disk.size,
            controller_type: if two { "SCSI" } else { "IDE" }.to_owned(),
            controller: 0,
            slot: disk.slot,
            shared: disk.shared,
            pass_through: disk.pass_through,
            logical_sector_size: disk.logical_sector_size,
            volume: self.setup.dir.to_string_lossy().into_owned(),
        });
        let checkpoints = record.checkpoints.iter().filter(|c| !c.merging).map(|c| CheckpointInfo {
            id: c.id.clone(),
            name: c.name.clone(),
            kind: c.kind,
            created: c.time,
        });
        VmInfo {
            id: record.id,
            state,
            configuration_path: self.folder.to_string_lossy().into_owned(),
            firmware: if two { Firmware::Uefi } else { Firmware::Bios },
            secure_boot: two,
            disks: disks.collect(),
            checkpoints: checkpoints.collect(),
            name: record.name,
            generation: record.generation,
            configuration_version: record.configuration_version,
            processors: record.processors,
            memory: record.memory,
            dynamic_memory: false,
            replication_mode: record.replication_mode,
            checkpoints_enabled: record.checkpoints_enabled,
            nics: record.nics,
            running_since: record.running_since,
        }
    }

    /// Waits until the volume has room for a write of the guest: the machine is PausedCritical meanwhile.
    fn room(&self, meter: &Meter, len: u64) -> io::Result<()> {
        if meter.promise(len)? {
            return Ok(());
        }
        tracing::warn!(vm.id = %self.id, "volume full: paused");
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let end = loop {
            if !self.is_on() {
                break Err(io::ErrorKind::NotConnected.into());
            }
            match meter.promise(len) {
                Ok(false) => std::thread::sleep(FULL_POLL),
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        end
    }

    /// Writes as the guest does.
    pub(super) fn write(&self, disk: &Disk, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room(&self.setup.meter, data.len() as u64)?;
        disk.write(offset, data)
    }
}

/// Removes AVHDX files that no record names: left by a kill inside a checkpoint or after a merge.
fn remove_orphans(folder: &Path, record: &VmRecord) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = record.disks.iter().any(|disk| disk.chain.contains(&name));
        if path.extension().is_some_and(|e| e == "avhdx") && !known {
            tracing::info!(path = %path.display(), "removed a file that belongs to no checkpoint");
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The disks of a machine, as exports.
struct Disks(Weak<Machine>);

/// One disk in the hands of an NBD client.
struct Guest {
    machine: Arc<Machine>,
    disk: Arc<Disk>,
}

impl Exports for Disks {
    fn names(&self) -> Vec<String> {
        let machine = self.0.upgrade();
        machine.iter().flat_map(|m| &m.disks).map(|disk| disk.slot.to_string()).collect()
    }

    fn open(&self, name: &str) -> std::result::Result<Option<Arc<dyn Export>>, String> {
        let Some(machine) = self.0.upgrade() else { return Ok(None) };
        let Some(disk) = machine.disk(name).map(Arc::clone) else { return Ok(None) };
        if !machine.is_on() {
            return Err(format!("virtual machine is {:?}", machine.state()));
        }
        Ok(Some(Arc::new(Guest { machine, disk })))
    }
}

impl Export for Guest {
    fn size(&self) -> u64 {
        self.disk.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.machine.write(&self.disk, offset, data)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        // Room for the partial sectors and tables that zeroing may write.
        self.machine.room(&self.machine.setup.meter, 1 << 16)?;
        self.disk.zero(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl Machine {
    /// A disk id as the trait's error.
    pub(super) fn disk_by_id(&self, id: DiskId) -> Result<&Arc<Disk>> {
        let found = self.disks.iter().find(|disk| disk.id == id);
        found.ok_or(HyperVError::DiskNotFound { vm: self.id, disk: id })
    }
}
