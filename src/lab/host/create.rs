//! Makes a machine: its folder, its VHDX files, its record. The record comes last: without it there is no machine.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use farshore_core::ids::{DiskId, VmId};
use farshore_disk::FileDisk;
use farshore_disk::vhdx::{Access, CreateOptions, Vhdx};
use farshore_hyperv::{NicInfo, PowerState};
use uuid::Uuid;

use super::admin::{NewDisk, NewVm};
use super::disk::failed;
use super::record::{self, DiskRecord, VmRecord};

/// Configuration version of Windows Server 2022.
const CONFIGURATION_VERSION: &str = "10.0";
/// Bytes of an image read at a time.
const STEP: usize = 1 << 20;

/// Makes the machine in a folder of its own below `dir` and returns that.
pub(super) fn create(dir: &Path, new: &NewVm, switch: &str) -> io::Result<PathBuf> {
    let id = new.id.unwrap_or_else(|| VmId(Uuid::new_v4()));
    let folder = folder(dir, &new.name, id)?;
    fs::create_dir_all(&folder)?;
    match fill(&folder, new, id, switch) {
        Ok(()) => Ok(folder),
        Err(error) => {
            fs::remove_dir_all(&folder)?;
            Err(error)
        }
    }
}

fn fill(folder: &Path, new: &NewVm, id: VmId, switch: &str) -> io::Result<()> {
    let disks = new
        .disks
        .iter()
        .zip(0..)
        .map(|(disk, slot)| make_disk(folder, disk, slot))
        .collect::<Result<_, _>>()?;
    let record = VmRecord {
        id,
        name: new.name.clone(),
        generation: new.generation,
        state: PowerState::Off,
        running_since: None,
        configuration_version: CONFIGURATION_VERSION.to_owned(),
        processors: new.processors,
        memory: new.memory,
        replication_mode: 0,
        checkpoints_enabled: true,
        nics: nics(new, id, switch),
        disks,
        checkpoints: Vec::new(),
        reference_points: Vec::new(),
        serial: 0,
    };
    record::save(&folder.join(record::FILE), &record)
}

/// The machine's name; with the id behind it if another machine has that name.
fn folder(dir: &Path, name: &str, id: VmId) -> io::Result<PathBuf> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_. ".contains(c));
    if name.is_empty() || name.starts_with('.') || !plain {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} cannot name a machine here"),
        ));
    }
    let folder = dir.join(name);
    Ok(if folder.exists() { dir.join(format!("{name}-{id}")) } else { folder })
}

fn nics(new: &NewVm, id: VmId, switch: &str) -> Vec<NicInfo> {
    let [a, b, ..] = id.0.into_bytes();
    let nics = new.nics.iter().zip(0_u8..).map(|(nic, index)| NicInfo {
        id: format!("Microsoft:{}\\{index}", id.to_string().to_uppercase()),
        name: nic.name.clone(),
        mac: format!("00-15-5D-{a:02X}-{b:02X}-{index:02X}"),
        vlan: nic.vlan,
        switch: Some(nic.switch.clone().unwrap_or_else(|| switch.to_owned())),
        addresses: nic.addresses.clone(),
    });
    nics.collect()
}

fn make_disk(folder: &Path, new: &NewDisk, slot: u32) -> io::Result<DiskRecord> {
    let sector = new.logical_sector_size.unwrap_or(512);
    let image = new.image.as_deref().map(|path| Image::open(path, folder)).transpose()?;
    let least = image.as_ref().map_or(0, |image| image.size);
    let size = new.size.unwrap_or(least).max(least).next_multiple_of(u64::from(sector));
    if size == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a disk needs a size or an image"));
    }
    let id = new.id.unwrap_or_else(|| DiskId(Uuid::new_v4()));
    let name = format!("disk{slot}.vhdx");
    let path = folder.join(&name);
    let mut options = CreateOptions::new(size, id.0, Uuid::new_v4);
    options.fixed = new.fixed;
    options.logical_sector = sector;
    Vhdx::create(&FileDisk::create_new(&path)?, &options).map_err(failed)?;
    let file =
        Vhdx::open(Arc::new(FileDisk::open_rw(&path)?), Access::ReadWrite(Uuid::new_v4)).map_err(failed)?;
    if let Some(image) = image {
        image.copy(&file)?;
    }
    file.close().map_err(failed)?;
    Ok(DiskRecord {
        id,
        slot,
        size,
        logical_sector_size: sector,
        dynamic: !new.fixed,
        shared: false,
        pass_through: false,
        chain: vec![name],
        sealed: Some(file.data_write_guid()),
    })
}

/// A raw image; one of another format is converted beside the disk first.
struct Image {
    file: File,
    size: u64,
    converted: Option<PathBuf>,
}

impl Image {
    fn open(path: &Path, folder: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut magic = [0; 4];
        let raw = file.read(&mut magic)? < 4 || &magic != b"QFI\xfb";
        if raw {
            let file = File::open(path)?;
            let size = file.metadata()?.len();
            return Ok(Self { file, size, converted: None });
        }
        let target = folder.join("image.raw");
        let mut convert = Command::new("qemu-img");
        let output = convert.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(path).arg(&target).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(io::Error::other(format!("qemu-img convert: {said}")));
        }
        let file = File::open(&target)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size, converted: Some(target) })
    }

    /// Copies what is not zero.
    fn copy(self, disk: &Vhdx) -> io::Result<()> {
        let mut buf = vec![0; STEP];
        let mut offset = 0;
        while offset < self.size {
            let n = usize::try_from((self.size - offset).min(STEP as u64)).map_err(io::Error::other)?;
            let whole = n.next_multiple_of(4096).min(STEP);
            let part = buf.get_mut(..whole).ok_or(io::ErrorKind::InvalidInput)?;
            part.fill(0);
            let read = part.get_mut(..n).ok_or(io::ErrorKind::InvalidInput)?;
            std::os::unix::fs::FileExt::read_exact_at(&self.file, read, offset)?;
            let fits = usize::try_from(disk.size() - offset).unwrap_or(STEP).min(whole);
            let data = part.get(..fits).ok_or(io::ErrorKind::InvalidInput)?;
            if data.iter().any(|b| *b != 0) {
                disk.write_at(data, offset).map_err(failed)?;
            }
            offset += n as u64;
        }
        self.converted.map_or(Ok(()), fs::remove_file)
    }
}
