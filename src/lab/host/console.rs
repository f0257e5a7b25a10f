//! The whole host: its machines, and the two protocols that reach them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use farshore_core::ids::{Hash, VmId};
use farshore_disk::vhdx::{Access, Chain};
use farshore_hyperv::wire::Request;
use farshore_hyperv::{
    CheckpointKind, Consistency, HostInfo, HyperVError, PowerState, Result, VmInfo, win32,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::admin::{AdminRequest, AdminVm, Data, DiskDigest, Fault, NewVm, Settings};
use super::disk::Disk;
use super::machine::Machine;
use super::{Setup, create, fault, record};

/// Windows Server 2022.
const VERSION: &str = "10.0.20348";
/// Most bytes of one write: a guest's large I/O.
const WRITE: u64 = 1 << 20;

/// A host.
pub(super) struct Host {
    setup: Arc<Setup>,
    machines: RwLock<BTreeMap<VmId, Arc<Machine>>>,
    delays: Mutex<BTreeMap<String, Duration>>,
}

impl Host {
    /// Loads all machines below the host's folder.
    pub(super) fn load(setup: Setup) -> io::Result<Arc<Self>> {
        let setup = Arc::new(setup);
        let mut machines = BTreeMap::new();
        for entry in std::fs::read_dir(&setup.dir)? {
            let folder = entry?.path();
            if folder.join(record::FILE).is_file() {
                let machine = Machine::load(&folder, &setup)?;
                machines.insert(machine.id, machine);
            }
        }
        for machine in machines.values().map(Arc::clone) {
            // Merges that the last run left.
            std::thread::Builder::new().name("merge".into()).spawn(move || machine.settle(&machine.ops()))?;
        }
        Ok(Arc::new(Self { setup, machines: RwLock::new(machines), delays: Mutex::default() }))
    }

    /// Ends cleanly: merges stop, files are closed.
    pub(super) fn suspend(&self) {
        self.setup.stopping.store(true, Ordering::SeqCst);
        for machine in self.all() {
            if let Err(error) = machine.suspend() {
                tracing::warn!(vm.id = %machine.id, %error, "not closed cleanly");
            }
        }
    }

    fn up(&self) -> Result<()> {
        if self.setup.stopping.load(Ordering::SeqCst) {
            return Err(HyperVError::Unreachable { message: "the host shuts down".to_owned() });
        }
        Ok(())
    }

    fn all(&self) -> Vec<Arc<Machine>> {
        self.machines.read().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect()
    }

    fn machine(&self, vm: VmId) -> Result<Arc<Machine>> {
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.get(&vm).map(Arc::clone).ok_or(HyperVError::VmNotFound { vm })
    }

    /// A machine by id or by a name that only it has.
    fn named(&self, name: &str) -> Result<Arc<Machine>> {
        if let Ok(id) = name.parse() {
            return self.machine(id);
        }
        let mut found = self.all();
        found.retain(|machine| machine.record().name == name);
        match (found.pop(), found.is_empty()) {
            (Some(machine), true) => Ok(machine),
            (Some(_), false) => {
                Err(fault::refused("find VM", &format!("several machines are named {name}: use the id")))
            }
            (None, _) => Err(fault::refused("find VM", &format!("no machine is named {name}"))),
        }
    }

    fn delay(&self, call: &Value, tag: &str) {
        let name = call.get(tag).and_then(Value::as_str).unwrap_or_default();
        let wait = {
            let delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
            delays.get(name).or_else(|| delays.get("*")).copied()
        };
        if let Some(wait) = wait {
            std::thread::sleep(wait);
        }
    }

    /// Answers a call of the trait.
    pub(super) fn hyperv(&self, call: &Value) -> Result<Value> {
        self.up()?;
        self.delay(call, "call");
        match parse(call)? {
            Request::Host => json(self.info()?),
            Request::Vms => json(self.all().iter().map(|m| m.info()).collect::<Vec<VmInfo>>()),
            Request::Vm { vm } => json(self.machine(vm)?.info()),
            Request::CreateCheckpoint { vm, name, consistency } => {
                let machine = self.machine(vm)?;
                let taken = machine.take(&name, CheckpointKind::Recovery, consistency)?;
                json(machine.describe(&machine.record(), &taken))
            }
            Request::Checkpoints { vm } => json(self.machine(vm)?.checkpoints()),
            Request::DeleteCheckpoint { vm, checkpoint } => {
                json(self.machine(vm)?.delete_checkpoint(&checkpoint)?)
            }
            Request::AvhdxBytes { vm, checkpoint } => json(self.machine(vm)?.avhdx_bytes(&checkpoint)?),
            Request::ConvertToReferencePoint { vm, checkpoint } => {
                json(self.machine(vm)?.convert(&checkpoint)?)
            }
            Request::ReferencePoints { vm } => json(self.machine(vm)?.record().reference_points),
            Request::DestroyReferencePoint { vm, reference_point } => {
                json(self.machine(vm)?.destroy_reference_point(&reference_point)?)
            }
            Request::QueryChanges { vm, disk, since, checkpoint, offset } => {
                json(self.machine(vm)?.changes(disk, &since, &checkpoint, offset)?)
            }
            Request::Volume { path } => self.volume(&path),
            Request::Start { vm } => json(self.machine(vm)?.start()?),
            Request::Stop { vm } => json(self.machine(vm)?.stop()?),
            Request::Shutdown { vm } => json(self.machine(vm)?.shutdown()?),
        }
    }

    fn info(&self) -> Result<HostInfo> {
        Ok(HostInfo {
            name: self.setup.name.clone(),
            version: VERSION.to_owned(),
            features: ["ResilientChangeTracking", "ReferencePoints"].map(str::to_owned).to_vec(),
            failover_cluster: self.setup.cluster.clone(),
            volumes: vec![self.setup.meter.volume().map_err(|e| fault::other("volume", &e))?],
            virtual_switches: vec![self.setup.switch.clone()],
            time: Timestamp::now(),
        })
    }

    fn volume(&self, path: &str) -> Result<Value> {
        if !Path::new(path).starts_with(&self.setup.dir) {
            return Err(fault::refused("volume", &format!("{path} is on no volume of this host")));
        }
        json(self.setup.meter.volume().map_err(|e| fault::other("volume", &e))?)
    }

    /// Answers a call of the administrator.
    pub(super) fn admin(&self, call: &Value) -> Result<Value> {
        self.up()?;
        match parse(call)? {
            AdminRequest::List => json(self.all().iter().map(describe).collect::<Vec<AdminVm>>()),
            AdminRequest::Create(new) => self.create(&new),
            AdminRequest::Delete { vm } => json(self.delete(&*self.named(&vm)?)?),
            AdminRequest::Start { vm } => json(self.named(&vm)?.start()?),
            AdminRequest::Stop { vm } => json(self.named(&vm)?.stop()?),
            AdminRequest::Shutdown { vm } => json(self.named(&vm)?.shutdown()?),
            AdminRequest::Write { vm, disk, offset, data } => {
                let machine = self.named(&vm)?;
                json(write(&machine, disk_of(&machine, &disk)?, offset, &data)?)
            }
            AdminRequest::Read { vm, disk, offset, len } => {
                let machine = self.named(&vm)?;
                let disk = disk_of(&machine, &disk)?;
                let mut buf = vec![0; len as usize];
                view(&machine, disk, |source| source.read(offset, &mut buf))?;
                json(STANDARD.encode(buf))
            }
            AdminRequest::Digest { vm, range } => json(digests(&*self.named(&vm)?, range)?),
            AdminRequest::Instants { vm } => json(self.named(&vm)?.recorder.all()),
            AdminRequest::StandardCheckpoint { vm, name } => {
                json(self.named(&vm)?.take(&name, CheckpointKind::Standard, Consistency::Crash).map(drop)?)
            }
            AdminRequest::Configure { vm, settings } => json(configure(&*self.named(&vm)?, settings)?),
            AdminRequest::Fault { fault } => json(self.fault(fault)?),
        }
    }

    fn create(&self, new: &NewVm) -> Result<Value> {
        let failed = |e: io::Error| fault::other("create VM", &e);
        let mut machines = self.machines.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = new.id.filter(|id| machines.contains_key(id)) {
            return Err(fault::refused("create VM", &format!("{id} exists")));
        }
        let folder = create::create(&self.setup.dir, new, &self.setup.switch).map_err(failed)?;
        let machine = Machine::load(&folder, &self.setup).map_err(failed)?;
        machines.insert(machine.id, Arc::clone(&machine));
        json(describe(&machine))
    }

    fn delete(&self, machine: &Machine) -> Result<()> {
        if machine.state() != PowerState::Off {
            let (vm, state) = (machine.id, machine.state());
            return Err(HyperVError::InvalidState {
                vm,
                state,
                reason: "turn it off before deleting it".into(),
            });
        }
        self.machines.write().unwrap_or_else(PoisonError::into_inner).remove(&machine.id);
        let _ops = machine.ops();
        std::fs::remove_dir_all(&machine.folder).map_err(|e| fault::other("delete VM", &e))
    }

    fn fault(&self, wanted: Fault) -> Result<()> {
        match wanted {
            Fault::BreakChain { vm, disk } => {
                let machine = self.named(&vm)?;
                let disk = disk_of(&machine, &disk)?.id;
                if !machine.record().disks.iter().any(|d| d.id == disk && d.chain.len() > 1) {
                    machine.take("Before the fault", CheckpointKind::Standard, Consistency::Crash)?;
                }
                let record = machine.record();
                let chain = record.disks.iter().find(|d| d.id == disk).map_or(&[][..], |d| &d.chain);
                // The oldest child: a guest that runs has it open and does not notice.
                let child = machine.path(chain.get(1).map_or("", String::as_str));
                fault::flip_parent_link(&child).map_err(|e| fault::other("break chain", &e))
            }
            Fault::FillVolume { free } => {
                self.setup.meter.fill(free).map_err(|e| fault::other("fill volume", &e))
            }
            Fault::FailVss { vm, on } => {
                self.named(&vm)?.faults.vss.store(on, Ordering::SeqCst);
                Ok(())
            }
            Fault::RefuseCheckpoints { vm, on } => {
                self.named(&vm)?.faults.checkpoints.store(on, Ordering::SeqCst);
                Ok(())
            }
            Fault::LoseTracking { vm, code } => {
                let code = code.unwrap_or(win32::VHD_INVALID_CHANGE_TRACKING_ID);
                for disk in &self.named(&vm)?.disks {
                    let mut tracker = disk.tracker.lock().unwrap_or_else(PoisonError::into_inner);
                    tracker.lose(code).map_err(|e| fault::other("lose tracking", &e))?;
                }
                Ok(())
            }
            Fault::Delay { call, millis } => {
                let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
                match millis {
                    0 => drop(delays.remove(&call)),
                    millis => drop(delays.insert(call, Duration::from_millis(millis))),
                }
                Ok(())
            }
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(call: &Value) -> Result<T> {
    T::deserialize(call).map_err(|e| HyperVError::Protocol { message: e.to_string() })
}

fn json(value: impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| HyperVError::Protocol { message: e.to_string() })
}

fn describe(machine: &Arc<Machine>) -> AdminVm {
    AdminVm { info: machine.info(), nbd: machine.nbd_path(), folder: machine.folder.clone() }
}

fn disk_of<'a>(machine: &'a Machine, name: &str) -> Result<&'a Disk> {
    let found = machine.disk(name).map(|disk| &**disk);
    found.ok_or_else(|| fault::refused("find disk", &format!("no disk {name} in {}", machine.id)))
}

/// Writes as the guest does, in pieces.
fn write(machine: &Machine, disk: &Disk, offset: u64, data: &Data) -> Result<()> {
    let failed = |e: io::Error| fault::other("write", &e);
    let inside = |len: u64| match offset.checked_add(len) {
        Some(end) if end <= disk.size => Ok(()),
        _ => Err(fault::refused("write", "beyond the end of the disk")),
    };
    if !machine.is_on() {
        let (vm, state) = (machine.id, machine.state());
        return Err(HyperVError::InvalidState { vm, state, reason: "only a running guest writes".into() });
    }
    if let Data::Base64(text) = data {
        let bytes = STANDARD.decode(text).map_err(|e| fault::refused("write", &e.to_string()))?;
        inside(bytes.len() as u64)?;
        return machine.write(disk, offset, &bytes).map_err(failed);
    }
    let len = match data {
        Data::Random { len, .. } | Data::Byte { len, .. } => *len,
        Data::Base64(_) => 0,
    };
    inside(len)?;
    let mut random = match data {
        Data::Random { seed, .. } => Some(random(*seed)),
        Data::Byte { .. } | Data::Base64(_) => None,
    };
    let value = if let Data::Byte { value, .. } = data { *value } else { 0 };
    let mut done = 0;
    while done < len {
        let n = WRITE.min(len - done);
        let mut piece = vec![value; usize::try_from(n).unwrap_or_default()];
        if let Some(random) = &mut random {
            random.fill(&mut piece);
        }
        machine.write(disk, offset + done, &piece).map_err(failed)?;
        done += n;
    }
    Ok(())
}

/// Bytes that follow from a seed: BLAKE3's extended output of its eight bytes, little-endian.
pub fn random(seed: u64) -> blake3::OutputReader {
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof()
}

/// A disk's contents, whether the machine is on or off.
enum Source<'a> {
    On(&'a Chain),
    Off(Chain),
}

impl Source<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::On(chain) => farshore_disk::RandomAccess::read_at(*chain, buf, offset),
            Self::Off(chain) => farshore_disk::RandomAccess::read_at(chain, buf, offset),
        }
    }
}

fn view<T>(machine: &Machine, disk: &Disk, look: impl FnOnce(&Source<'_>) -> io::Result<T>) -> Result<T> {
    let gate = disk.hold();
    look_at(machine, disk, gate.chain.as_ref(), look)
}

fn look_at<T>(
    machine: &Machine,
    disk: &Disk,
    chain: Option<&Chain>,
    look: impl FnOnce(&Source<'_>) -> io::Result<T>,
) -> Result<T> {
    let record = machine.record();
    let kept = record.disks.iter().find(|kept| kept.id == disk.id);
    let leaf = machine.path(kept.map_or("", |kept| kept.leaf()));
    let failed = |e: &io::Error| fault::of_disk("read", &leaf, disk.id, e);
    let source = match chain {
        Some(chain) => Source::On(chain),
        None => {
            let chain = Chain::open(&leaf, Access::ReadOnly);
            Source::Off(chain.map_err(|e| failed(&super::disk::failed(e)))?)
        }
    };
    look(&source).map_err(|e| failed(&e))
}

/// Digests of all disks with all writes held.
fn digests(machine: &Machine, range: Option<u64>) -> Result<Vec<DiskDigest>> {
    let gates: Vec<_> = machine.disks.iter().map(|disk| disk.hold()).collect();
    let all = machine.disks.iter().zip(&gates).map(|(disk, gate)| {
        look_at(machine, disk, gate.chain.as_ref(), |source| digest(disk, source, range))
    });
    all.collect()
}

fn digest(disk: &Disk, source: &Source<'_>, range: Option<u64>) -> io::Result<DiskDigest> {
    let range = range.unwrap_or(0);
    let finish = |hasher: &blake3::Hasher| Hash(*hasher.finalize().as_bytes());
    let (mut whole, mut part, mut ranges) = (blake3::Hasher::new(), blake3::Hasher::new(), Vec::new());
    let mut buf = Vec::new();
    let mut offset = 0;
    while offset < disk.size {
        let mut n = WRITE.min(disk.size - offset);
        if let Some(inside) = offset.checked_rem(range) {
            n = n.min(range - inside);
        }
        buf.resize(usize::try_from(n).map_err(io::Error::other)?, 0);
        source.read(offset, &mut buf)?;
        whole.update(&buf);
        offset += n;
        if range != 0 {
            part.update(&buf);
            if offset % range == 0 || offset == disk.size {
                ranges.push(finish(&part));
                part.reset();
            }
        }
    }
    Ok(DiskDigest { disk_id: disk.id, slot: disk.slot, size: disk.size, blake3: finish(&whole), ranges })
}

fn configure(machine: &Machine, settings: Settings) -> Result<()> {
    let Settings { name, configuration_version, replication_mode, checkpoints_enabled, nics, disks } =
        settings;
    for disk in &disks {
        disk_of(machine, &disk.disk)?;
    }
    machine
        .update(|record| {
            record.name = name.unwrap_or_else(|| std::mem::take(&mut record.name));
            record.nics = nics.unwrap_or_else(|| std::mem::take(&mut record.nics));
            record.configuration_version =
                configuration_version.unwrap_or_else(|| std::mem::take(&mut record.configuration_version));
            record.replication_mode = replication_mode.unwrap_or(record.replication_mode);
            record.checkpoints_enabled = checkpoints_enabled.unwrap_or(record.checkpoints_enabled);
            for disk in &mut record.disks {
                let (slot, id) = (disk.slot.to_string(), disk.id.to_string());
                for set in disks.iter().filter(|set| set.disk == slot || set.disk == id) {
                    disk.shared = set.shared.unwrap_or(disk.shared);
                    disk.pass_through = set.pass_through.unwrap_or(disk.pass_through);
                }
            }
        })
        .map_err(|e| fault::other("configure", &e))
}
