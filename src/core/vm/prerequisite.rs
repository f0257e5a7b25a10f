//! What a VM must fulfil before it can be protected; each unmet prerequisite is named (R4.1, HYPERV 7.2).
//!
//! What concerns a disk is judged here, because only here it is known which disks are left out; what concerns
//! the VM as a whole, or what only the host can see, the agent has found.

use std::collections::BTreeSet;

use super::observed::{Finding, Report, ReportedDisk};
use crate::fault::Code;
use crate::ids::DiskId;
use crate::units::{Bytes, MIB};

/// Largest disk whose replica fits a page blob: 8 TiB less room for the footer (2026-11, AZURE-BLOB).
pub(super) const MAX_DISK: u64 = (8 << 40) - MIB;

/// The disks to replicate, in the order of their slots.
///
/// # Errors
/// Every unmet prerequisite.
pub(super) fn check(report: &Report, exclude: &[String]) -> Result<Vec<DiskId>, Vec<Finding>> {
    let mut unmet: Vec<Finding> = Vec::new();
    let (out, chosen): (Vec<_>, Vec<_>) =
        report.disks.iter().partition(|disk| exclude.iter().any(|entry| names(entry, disk)));
    for entry in exclude {
        if !report.disks.iter().any(|disk| names(entry, disk)) {
            unmet.push(Finding::new(
                Code::ExcludedDiskNotFound,
                format!("{entry} is no disk of {}", report.vm_name),
            ));
        }
    }
    unmet.extend(
        report.unmet.iter().filter(|f| !judged_here(f.code) && !speaks_of(f, &out, &chosen)).cloned(),
    );
    if chosen.is_empty() {
        unmet.push(Finding::new(Code::NoDisks, format!("{} has no disk to replicate", report.vm_name)));
    }
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for disk in chosen {
        unmet.extend(flaw(disk));
        let Some(id) = disk.id else { continue };
        if seen.insert(id) {
            ids.push(id);
        } else {
            unmet.push(Finding::new(
                Code::DuplicateDiskID,
                format!("{} has the id of another disk, {id}", disk.path),
            ));
        }
    }
    if unmet.is_empty() { Ok(ids) } else { Err(unmet) }
}

fn flaw(disk: &ReportedDisk) -> Option<Finding> {
    let path = &disk.path;
    if disk.pass_through {
        return Some(Finding::new(Code::PassThroughDisk, format!("{path} is a physical disk of the host")));
    }
    if disk.shared {
        return Some(Finding::new(Code::SharedDisk, format!("{path} is shared with other VMs")));
    }
    if disk.virtual_size > MAX_DISK {
        return Some(Finding::new(Code::DiskTooLarge, format!("{path} has {}", Bytes(disk.virtual_size))));
    }
    disk.id.is_none().then(|| Finding::new(Code::CorruptVirtualDisk, format!("{path} has no VirtualDiskId")))
}

/// Codes that this module decides by itself.
fn judged_here(code: Code) -> bool {
    matches!(
        code,
        Code::SharedDisk | Code::PassThroughDisk | Code::DuplicateDiskID | Code::DiskTooLarge | Code::NoDisks
    )
}

/// Is it about a disk that is left out? Agents name a disk by its path.
fn speaks_of(finding: &Finding, out: &[&ReportedDisk], chosen: &[&ReportedDisk]) -> bool {
    let named = |disks: &[&ReportedDisk]| disks.iter().any(|d| finding.message.contains(&d.path));
    named(out) && !named(chosen)
}

/// Does an entry of `spec.disks.exclude` mean this disk: by VirtualDiskId or by file name?
fn names(entry: &str, disk: &ReportedDisk) -> bool {
    let file = disk.path.rsplit(['\\', '/']).next().unwrap_or(&disk.path);
    entry.eq_ignore_ascii_case(file) || disk.id.is_some_and(|id| entry.eq_ignore_ascii_case(&id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::{disk, report};

    fn codes(report: &Report, exclude: &[&str]) -> Vec<Code> {
        let exclude: Vec<String> = exclude.iter().map(|e| (*e).to_owned()).collect();
        check(report, &exclude).err().unwrap_or_default().into_iter().map(|f| f.code).collect()
    }

    // R4.1
    #[test]
    fn each_unmet_prerequisite_is_named() {
        type Break = fn(&mut Report);
        let cases: [(&str, Break, Code); 7] = [
            ("shared", |r| r.disks[1].shared = true, Code::SharedDisk),
            ("pass-through", |r| r.disks[1].pass_through = true, Code::PassThroughDisk),
            ("too large", |r| r.disks[1].virtual_size = MAX_DISK + 1, Code::DiskTooLarge),
            ("twice", |r| r.disks[1].id = r.disks[0].id, Code::DuplicateDiskID),
            ("no id", |r| r.disks[1].id = None, Code::CorruptVirtualDisk),
            ("none", |r| r.disks.clear(), Code::NoDisks),
            (
                "by agent",
                |r| r.unmet.push(Finding::new(Code::CheckpointsDisabled, "x")),
                Code::CheckpointsDisabled,
            ),
        ];
        assert_eq!(codes(&report(), &[]), []);
        for (name, break_it, want) in cases {
            let mut r = report();
            break_it(&mut r);
            assert_eq!(codes(&r, &[]), [want], "{name}");
        }
    }

    #[test]
    fn all_unmet_ones_are_named_together() {
        let mut r = report();
        r.disks[0].shared = true;
        r.disks[1].virtual_size = MAX_DISK + 1;
        r.unmet.push(Finding::new(Code::OldConfigurationVersion, "version 5.0"));
        assert_eq!(codes(&r, &[]), [Code::OldConfigurationVersion, Code::SharedDisk, Code::DiskTooLarge]);
    }

    #[test]
    fn a_disk_that_is_left_out_may_be_anything() {
        let mut r = report();
        r.disks[1].shared = true;
        let path = r.disks[1].path.clone();
        r.unmet.push(Finding::new(Code::SharedDisk, "shared"));
        r.unmet.push(Finding::new(Code::UnsupportedSectorSize, format!("{path} has 4096-byte sectors")));
        assert_eq!(codes(&r, &[]), [Code::UnsupportedSectorSize, Code::SharedDisk]);
        assert_eq!(check(&r, &["DISK2.vhdx".into()]), Ok(vec![disk(1)]));
        assert_eq!(check(&r, &[disk(2).to_string()]), Ok(vec![disk(1)]));
        assert_eq!(codes(&r, &["disk2.vhdx", "other.vhdx"]), [Code::ExcludedDiskNotFound]);
    }
}
