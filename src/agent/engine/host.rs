//! What the engine reads from the host: facts for the prerequisites, the configuration, volumes, our traces.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use farshore_core::cycle;
use farshore_core::fault::{Code, Fault};
use farshore_core::format::Extra;
use farshore_core::format::commit::{self, Configuration};
use farshore_core::ids::DiskId;
use farshore_core::relationship::{DiskFacts, VmFacts};
use farshore_disk::vhdx::{Access, Chain};
use farshore_hyperv::{DiskFormat, Firmware, Hypervisor, VmInfo};

use super::Tracking;
use crate::fault::{OrFault, Result};

/// The VM as the prerequisites see it. `wanted`: the disks to replicate, or all.
#[must_use]
pub fn facts(vm: &VmInfo, wanted: Option<&[DiskId]>) -> VmFacts {
    let disks: Vec<DiskFacts> = vm
        .disks
        .iter()
        .filter(|disk| wanted.is_none_or(|wanted| wanted.contains(&disk.disk_id)))
        .map(|disk| DiskFacts {
            id: disk.disk_id,
            path: disk.path.clone(),
            size: disk.size,
            shared: disk.shared || disk.format == DiskFormat::Vhds,
            pass_through: disk.pass_through,
            vhdx: disk.format == DiskFormat::Vhdx,
            logical_sector_size: disk.logical_sector_size,
        })
        .collect();
    let missing = wanted.unwrap_or_default().iter().filter(|id| disks.iter().all(|d| d.id != **id));
    VmFacts {
        configuration_version: vm.configuration_version.clone(),
        replicated_by_other: vm.replication_mode != 0,
        checkpoints_enabled: vm.checkpoints_enabled,
        missing: missing.copied().collect(),
        disks,
    }
}

/// The VM's hardware as a commit carries it.
pub(super) fn configuration(vm: &VmInfo, replicated: &[DiskId]) -> Configuration {
    Configuration {
        name: vm.name.clone(),
        generation: vm.generation,
        firmware: match vm.firmware {
            Firmware::Bios => "BIOS".to_owned(),
            Firmware::Uefi => "UEFI".to_owned(),
        },
        processor_count: vm.processors,
        memory_mib: vm.memory >> 20,
        disks: vm
            .disks
            .iter()
            .map(|disk| commit::DiskSlot {
                disk_id: (!disk.pass_through).then_some(disk.disk_id),
                controller: disk.controller_type.clone(),
                controller_number: disk.controller,
                location: disk.slot,
                path: disk.path.clone(),
                replicated: replicated.contains(&disk.disk_id),
            })
            .collect(),
        network_adapters: vm
            .nics
            .iter()
            .map(|nic| commit::NetworkAdapter {
                name: nic.name.clone(),
                mac: nic.mac.chars().filter(char::is_ascii_hexdigit).collect(),
                vlan: nic.vlan,
                network: nic.switch.clone(),
                addresses: nic.addresses.clone(),
            })
            .collect(),
        extra: Extra::new(),
    }
}

/// The fullest of the volumes that hold a VM's replicated disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Space {
    /// Its path.
    pub(super) volume: String,
    /// Free bytes.
    pub(super) free: u64,
    /// What is never eaten into.
    pub(super) reserve: u64,
}

/// Looks at every volume that holds one of `paths`, and returns the one with the least room above its reserve.
pub(super) async fn space<'a, H: Hypervisor>(
    host: &H,
    paths: impl Iterator<Item = &'a str>,
    reserve: u64,
) -> Result<Space> {
    let mut seen = BTreeSet::new();
    let mut fullest: Option<Space> = None;
    for path in paths {
        let folder = Path::new(path).parent().map_or(path, |p| p.to_str().unwrap_or(path));
        if !seen.insert(folder.to_owned()) {
            continue;
        }
        let volume = host.volume(path).await.or_fault()?;
        let reserve = cycle::reserve(volume.total, reserve);
        let here = Space { volume: volume.path, free: volume.free, reserve };
        let room = |s: &Space| i128::from(s.free) - i128::from(s.reserve);
        if fullest.as_ref().is_none_or(|known| room(&here) < room(known)) {
            fullest = Some(here);
        }
    }
    fullest.ok_or_else(|| Fault::new(Code::NoDisks, "the VM has no disk to replicate"))
}

impl Space {
    pub(super) fn tracking(&self, avhdx: u64, logs: u64) -> Tracking {
        Tracking { avhdx, logs, free: self.free }
    }
}

/// A digest of everything whose change may end an unrecoverable fault of the host: the VM's facts, and whether
/// each disk's chain can be opened.
pub(super) async fn fingerprint<H: Hypervisor>(
    host: &H,
    vm: farshore_core::ids::VmId,
    disks: &[DiskId],
) -> String {
    let Ok(info) = host.vm(vm).await else { return "absent".to_owned() };
    let facts = facts(&info, Some(disks));
    // The file that a running VM writes to changes its name with every checkpoint; whether it opens does not.
    let paths: Vec<PathBuf> = facts.disks.iter().map(|d| PathBuf::from(&d.path)).collect();
    let opens = tokio::task::spawn_blocking(move || {
        paths.iter().map(|p| Chain::open(p, Access::ReadOnly).is_ok()).collect::<Vec<bool>>()
    });
    let opens = opens.await.unwrap_or_default();
    let disks: Vec<_> = facts.disks.iter().map(|d| (d.id, d.size, d.shared, d.pass_through)).collect();
    format!(
        "{} {} {} {disks:?} {:?} {opens:?}",
        facts.configuration_version, facts.replicated_by_other, facts.checkpoints_enabled, facts.missing
    )
}
