//! `.hrl` logs of one cycle on the host: written beside the disks, sealed in two phases, checked, removed.

use std::io;
use std::path::{Path, PathBuf};

use farshore_core::fault::{Code, Fault};
use farshore_core::format::FORMAT_VERSION;
use farshore_core::ids::{CycleId, DiskId, VmId};
use farshore_core::names;
use farshore_core::relationship::{FrozenDisk, Running};
use farshore_disk::digest;
use farshore_disk::hrl::{Consistency, HeaderOptions, LogReader, LogWriter, MAX_ENTRY, SideManifest};
use farshore_disk::io::FileDisk;
use jiff::Timestamp;
use uuid::Uuid;

use crate::crash::{Crash, CrashPoint};
use crate::fault::{Classify, OrFault, Result};
use crate::journal::replace;
use crate::transfer::{ChainSource, Source};

/// Where a disk's log of a cycle goes: beside the disk.
pub(super) fn path(disk_path: &str, disk: DiskId, cycle: CycleId) -> PathBuf {
    Path::new(disk_path).with_file_name(names::log_file(disk, cycle))
}

fn manifest_path(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// What a log is written from.
pub(super) struct LogSpec {
    pub(super) vm: VmId,
    pub(super) cycle: CycleId,
    pub(super) disk: FrozenDisk,
    /// Changed ranges, ascending, apart.
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) base_rct_id: Option<String>,
    pub(super) previous: Option<Uuid>,
    pub(super) time: Timestamp,
    pub(super) crash: Crash,
}

/// Writes and seals the log of one disk, then its manifest. Blocking. Returns the log's id.
///
/// A crash before the seal leaves a log whose end is not marked; before the manifest, a log that nobody
/// believes. Either is thrown away and written again.
pub(super) fn write(spec: &LogSpec) -> Result<Uuid> {
    let log = spec.disk.log.as_deref().map(Path::new);
    let log = log.ok_or_else(|| Fault::new(Code::Unknown, "a delta without a place for its log"))?;
    remove(log).or_fault()?;
    let chain = ChainSource::open(Path::new(&spec.disk.path))?;
    let id = Uuid::new_v4();
    let previous = spec.previous.unwrap_or_else(Uuid::nil);
    let file = FileDisk::create_new(log).map_err(|e| in_file(&e, log))?;
    let options = HeaderOptions {
        unique_id: id,
        previous_unique_id: previous,
        data_write_guid: chain.0.data_write_guid(),
        size: spec.disk.virtual_size,
        time: spec.time,
    };
    let mut writer = LogWriter::create(Box::new(file), &options).or_fault()?;
    let step = u64::from(MAX_ENTRY);
    for &(offset, len) in &spec.ranges {
        let mut done = 0;
        while done < len {
            let n = step.min(len - done);
            chain.read(offset + done, n, &mut |at, bytes| writer.append(at, bytes).or_fault())?;
            done += n;
        }
        spec.crash.pass(CrashPoint::LogHalfWritten);
    }
    let sealed = writer.seal(spec.time).or_fault()?;
    spec.crash.pass(CrashPoint::LogSealed);
    let manifest = SideManifest {
        format_version: FORMAT_VERSION,
        vm_id: spec.vm.0,
        disk_id: spec.disk.disk_id.0,
        term: spec.cycle.term.0,
        stream: spec.cycle.stream.0,
        cycle: spec.cycle.cycle.0,
        previous_cycle: spec.cycle.cycle.0.checked_sub(1).filter(|n| *n > 0),
        unique_id: id,
        previous_unique_id: previous,
        length: sealed.length,
        blake3: hash(log)?,
        block_crcs: sealed.block_crcs,
        base_rct_id: spec.base_rct_id.clone(),
        target_rct_id: Some(spec.disk.rct_id.clone()),
        reference_point_id: None,
        consistency: Consistency::Crash,
        point_time: spec.time,
        virtual_size: spec.disk.virtual_size,
    };
    let json = serde_json::to_vec_pretty(&manifest).map_err(|e| Fault::new(Code::Unknown, e.to_string()))?;
    replace(&manifest_path(log), &json, 0o600).map_err(|e| in_file(&e, log))?;
    spec.crash.pass(CrashPoint::LogManifestWritten);
    Ok(id)
}

fn hash(log: &Path) -> Result<String> {
    let file = FileDisk::open_read(log).map_err(|e| in_file(&e, log))?;
    Ok(digest::whole(&file).map_err(|e| in_file(&e, log))?.to_string())
}

fn in_file(error: &io::Error, path: &Path) -> Fault {
    let fault = error.fault();
    Fault { message: format!("{}: {}", path.display(), fault.message), ..fault }
}

/// Are all logs of the cycle there, sealed, and what their manifests say? Blocking; reads every byte if
/// `deep`, as after a restart.
pub(super) fn are_sealed(running: &Running, deep: bool) -> bool {
    let Some(instant) = &running.instant else { return false };
    !instant.disks.is_empty() && instant.disks.iter().all(|disk| is_sealed(running.id, disk, deep))
}

fn is_sealed(cycle: CycleId, disk: &FrozenDisk, deep: bool) -> bool {
    let Some(log) = disk.log.as_deref().map(Path::new) else { return false };
    let manifest = std::fs::read(manifest_path(log)).ok();
    let manifest = manifest.and_then(|json| serde_json::from_slice::<SideManifest>(&json).ok());
    let Some(manifest) = manifest else { return false };
    let Ok(length) = std::fs::metadata(log).map(|m| m.len()) else { return false };
    let Ok(reader) = FileDisk::open_read(log).map_err(|_| ()).and_then(|file| {
        LogReader::open(Box::new(file)).map_err(|error| {
            tracing::warn!(log = %log.display(), %error, "a log is not usable and is made again");
        })
    }) else {
        return false;
    };
    let of_cycle =
        (manifest.term, manifest.stream, manifest.cycle) == (cycle.term.0, cycle.stream.0, cycle.cycle.0);
    of_cycle
        && manifest.length == length
        && manifest.unique_id == reader.header().unique_id
        && manifest.target_rct_id.as_deref() == Some(disk.rct_id.as_str())
        && (!deep || hash(log).is_ok_and(|found| found == manifest.blake3))
}

/// Bytes that the logs of a cycle take.
pub(super) fn bytes(running: &Running) -> u64 {
    let disks = running.instant.iter().flat_map(|i| &i.disks);
    disks
        .filter_map(|d| d.log.as_deref())
        .filter_map(|log| std::fs::metadata(log).ok())
        .map(|m| m.len())
        .sum()
}

/// Removes a log and its manifest; the manifest first, so that no manifest is ever without its log.
pub(super) fn remove(log: &Path) -> io::Result<()> {
    for path in [manifest_path(log), log.to_owned()] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Removes every log of ours beside a disk, of whatever cycle, except those in `keep`.
pub(super) fn sweep(disk_path: &str, disk: DiskId, keep: &[PathBuf]) -> io::Result<()> {
    let Some(folder) = Path::new(disk_path).parent() else { return Ok(()) };
    let prefix = format!("{disk}_");
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with(&prefix)) else { continue };
        let Some(log) = name.strip_suffix(".json.new").or_else(|| name.strip_suffix(".json")).or(Some(name))
        else {
            continue;
        };
        let is_ours =
            log.strip_suffix(".hrl").is_some_and(|stem| stem.len() == prefix.len() + 6 + 1 + 6 + 1 + 10);
        if is_ours && !keep.contains(&folder.join(log)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeping_takes_our_logs_of_that_disk_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskId(Uuid::from_u128(1));
        let other = DiskId(Uuid::from_u128(2));
        let cycle = |n| {
            let first = CycleId::first(farshore_core::ids::Term(1), farshore_core::ids::Stream(1));
            CycleId { cycle: farshore_core::ids::Cycle(n), ..first }
        };
        let disk_path = dir.path().join("a.vhdx");
        let at = |disk, n| path(disk_path.to_str().unwrap(), disk, cycle(n));
        let manifest = |n| manifest_path(&at(disk, n));
        let foreign = dir.path().join(format!("{disk}_backup.hrl"));
        let kept = [disk_path.clone(), at(disk, 3), manifest(3), at(other, 2), foreign];
        for file in kept.iter().chain(&[at(disk, 2), manifest(2), at(disk, 1)]) {
            std::fs::write(file, b"x").unwrap();
        }
        sweep(disk_path.to_str().unwrap(), disk, &[at(disk, 3)]).unwrap();
        let left = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        assert_eq!(left.collect::<std::collections::BTreeSet<_>>(), kept.into_iter().collect());
    }
}
