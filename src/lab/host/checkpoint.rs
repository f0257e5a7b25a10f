//! Checkpoints and reference points of a machine.
//!
//! ```text
//! base <- A1 <- A2      checkpoint 1 froze base and made A1; checkpoint 2 froze A1 and made A2, the leaf
//! ```
//! Deleting or converting a checkpoint marks it as merging; its AVHDX is merged into the file that it froze as
//! soon as it is the leaf, while the guest runs. What is left is taken up by every later call and after a restart.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::{fs, io};

use farshore_core::ids::DiskId;
use farshore_disk::vhdx::{self, Chain};
use farshore_hyperv::win32::{VHD_INVALID_CHANGE_TRACKING_ID, VSS_MORE_DATA};
use farshore_hyperv::wire::{ChangesPage, RANGES_PER_PAGE};
use farshore_hyperv::{
    Checkpoint, CheckpointId, CheckpointKind, Consistency, FrozenDisk, HyperVError, PowerState, RctId,
    ReferencePoint, ReferencePointId, Result, TrackedDisk,
};
use jiff::Timestamp;
use uuid::Uuid;

use super::admin::Instant;
use super::disk::{self, Gate, Merged, avhdx_name};
use super::fault;
use super::instants;
use super::machine::Machine;
use super::record::{CheckpointRecord, FrozenRecord, VmRecord};
use super::volume::bytes_of;

/// Space that a new AVHDX needs at least.
const AVHDX_SPACE: u64 = 4 << 20;

impl Machine {
    /// Takes a checkpoint: all disks at one instant.
    pub(super) fn take(
        &self,
        name: &str,
        kind: CheckpointKind,
        consistency: Consistency,
    ) -> Result<CheckpointRecord> {
        let ops = self.ops();
        self.settle(&ops);
        self.may_take(consistency)?;
        let guid = Uuid::new_v4();
        let record = self.record();
        let frozen: Vec<_> = record
            .disks
            .iter()
            .map(|disk| FrozenRecord {
                id: disk.id,
                rct_id: (kind == CheckpointKind::Recovery)
                    .then(|| RctId(format!("rctX:{:08x}:{}", record.serial + 1, Uuid::new_v4()))),
                frozen: disk.leaf().to_owned(),
                avhdx: avhdx_name(disk.chain.first().map_or("", String::as_str), guid)
                    .to_string_lossy()
                    .into_owned(),
            })
            .collect();
        let taken = CheckpointRecord {
            id: CheckpointId(format!("Microsoft:{}", guid.to_string().to_uppercase())),
            name: name.to_owned(),
            kind,
            consistency,
            time: Timestamp::now(),
            disks: frozen,
            merging: false,
        };
        let taken = self.freeze(taken).inspect_err(|_| self.forget(guid))?;
        self.record_instants();
        Ok(taken)
    }

    fn may_take(&self, consistency: Consistency) -> Result<()> {
        let (vm, state) = (self.id, self.state());
        let refused = |reason: &str| Err(HyperVError::InvalidState { vm, state, reason: reason.to_owned() });
        if !self.record().checkpoints_enabled {
            return Err(HyperVError::CheckpointsDisabled { vm });
        }
        if self.faults.checkpoints.load(Ordering::SeqCst) {
            return refused("another operation is in progress");
        }
        match state {
            PowerState::Running | PowerState::Off | PowerState::Saved | PowerState::Paused => {}
            _ => return refused("checkpoints need a machine at rest or running"),
        }
        if consistency == Consistency::Application {
            if self.faults.vss.load(Ordering::SeqCst) {
                let reason = "a VSS writer of the guest failed".to_owned();
                return Err(HyperVError::VssFailed { vm, code: VSS_MORE_DATA, reason });
            }
            if state != PowerState::Running {
                return refused("application consistency needs a running guest");
            }
        }
        let space = AVHDX_SPACE * self.disks.len() as u64;
        match self.setup.meter.promise(space) {
            Ok(true) => Ok(()),
            Ok(false) => Err(HyperVError::DiskFull { path: self.folder.to_string_lossy().into_owned() }),
            Err(error) => Err(fault::other("create checkpoint", &error)),
        }
    }

    /// Holds the writes of all disks, lets new files take them from here on, and writes down that it is so.
    fn freeze(&self, mut taken: CheckpointRecord) -> Result<CheckpointRecord> {
        for disk in self.disks.iter().filter(|_| self.is_on()) {
            // Most of it is durable before writes are held. If the machine was just turned off there is nothing to do.
            if let Err(error) = disk.flush() {
                tracing::debug!(%error, "flush before a checkpoint");
            }
        }
        let mut gates: Vec<_> = self.disks.iter().map(|disk| disk.hold()).collect();
        taken.time = Timestamp::now();
        let mut chains = Vec::new();
        for (frozen, gate) in taken.disks.iter().zip(&gates) {
            let leaf = self.path(&frozen.frozen);
            let chain = self.grow(frozen, gate);
            chains.push(chain.map_err(|e| fault::of_disk("create checkpoint", &leaf, frozen.id, &e))?);
        }
        self.track(&taken).map_err(|e| fault::other("track changes", &e))?;
        let sealed = chains.iter().map(Chain::data_write_guid).collect::<Vec<_>>();
        self.update(|record| {
            record.serial += 1;
            record.checkpoints.push(taken.clone());
            for ((disk, frozen), guid) in record.disks.iter_mut().zip(&taken.disks).zip(sealed) {
                disk.chain.push(frozen.avhdx.clone());
                disk.sealed = disk.sealed.map(|_| guid);
            }
        })
        .map_err(|e| fault::other("create checkpoint", &e))?;
        for (gate, chain) in gates.iter_mut().zip(chains) {
            if gate.chain.is_some() {
                gate.chain = Some(chain);
            }
        }
        Ok(taken)
    }

    /// Makes the new leaf of one disk and opens it with all its parents, which checks the whole chain.
    fn grow(&self, frozen: &FrozenRecord, gate: &Gate) -> io::Result<Chain> {
        let (leaf, child) = (self.path(&frozen.frozen), self.path(&frozen.avhdx));
        match &gate.chain {
            Some(chain) => chain.close().map_err(disk::failed)?,
            None => disk::open(&leaf)?.close().map_err(disk::failed)?,
        }
        vhdx::create_child(&leaf, &child, Uuid::new_v4).map_err(disk::failed)?;
        disk::open(&child)
    }

    fn track(&self, taken: &CheckpointRecord) -> io::Result<()> {
        for (disk, frozen) in self.disks.iter().zip(&taken.disks) {
            if let Some(id) = &frozen.rct_id {
                disk.tracker.lock().unwrap_or_else(PoisonError::into_inner).add(id.clone())?;
            }
        }
        Ok(())
    }

    /// Removes what a failed checkpoint has made.
    fn forget(&self, guid: Uuid) {
        let record = self.record();
        for (disk, kept) in self.disks.iter().zip(&record.disks) {
            let base = kept.chain.first().map_or("", String::as_str);
            match fs::remove_file(self.folder.join(avhdx_name(base, guid))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "left an AVHDX of a failed checkpoint");
                }
                _ => {}
            }
            let mut tracker = disk.tracker.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = tracker.retain(|id| record.holds(id)) {
                tracing::warn!(%error, "left a point of a failed checkpoint");
            }
        }
    }

    /// Merges what can be merged. Problems are logged and tried again by the next call.
    pub(super) fn settle(&self, ops: &MutexGuard<'_, ()>) {
        while let Some(checkpoint) = self.record().checkpoints.pop().filter(|c| c.merging) {
            self.recorder.wait(&checkpoint.id);
            for frozen in &checkpoint.disks {
                match self.merge(ops, &checkpoint.id, frozen) {
                    Ok(Merged::Whole) => {}
                    Ok(Merged::Stopped) => return,
                    Err(error) => {
                        tracing::warn!(vm.id = %self.id, disk.id = %frozen.id, %error, "merge failed");
                        return;
                    }
                }
            }
            let gone = |record: &mut VmRecord| record.checkpoints.retain(|c| c.id != checkpoint.id);
            if let Err(error) = self.update(gone) {
                tracing::warn!(vm.id = %self.id, %error, "merge not recorded");
                return;
            }
        }
    }

    fn merge(&self, _ops: &MutexGuard<'_, ()>, id: &CheckpointId, frozen: &FrozenRecord) -> Result<Merged> {
        let (parent, child) = (self.path(&frozen.frozen), self.path(&frozen.avhdx));
        let failed = |e: &io::Error| fault::of_disk("merge", &child, frozen.id, e);
        let disk = self.disk_by_id(frozen.id)?;
        if self.is_on() {
            let stopped = || !self.is_on() || self.setup.stopping.load(Ordering::SeqCst);
            if disk.merge(&parent, &stopped).map_err(|e| failed(&e))? == Merged::Stopped {
                return Ok(Merged::Stopped);
            }
            disk.switch(&parent, || self.drop_leaf(id, frozen.id, None)).map_err(|e| failed(&e))?;
        } else {
            if self.setup.stopping.load(Ordering::SeqCst) {
                return Ok(Merged::Stopped);
            }
            vhdx::merge_into_parent(&child, Uuid::new_v4).map_err(|e| failed(&disk::failed(e)))?;
            let sealed = fault::data_write_guid(&parent).map_err(|e| failed(&e))?;
            self.drop_leaf(id, frozen.id, Some(sealed)).map_err(|e| failed(&e))?;
        }
        fs::remove_file(&child).map_err(|e| failed(&e))?;
        Ok(Merged::Whole)
    }

    fn drop_leaf(&self, id: &CheckpointId, disk: DiskId, sealed: Option<Uuid>) -> io::Result<()> {
        self.update(|record| {
            if let Some(found) = record.disks.iter_mut().find(|d| d.id == disk) {
                found.chain.pop();
                found.sealed = found.sealed.and(sealed);
            }
            for checkpoint in record.checkpoints.iter_mut().filter(|c| c.id == *id) {
                checkpoint.disks.retain(|d| d.id != disk);
            }
        })
    }

    /// Recovery checkpoints, oldest first.
    pub(super) fn checkpoints(&self) -> Vec<Checkpoint> {
        let record = self.record();
        let ours = record.checkpoints.iter().filter(|c| !c.merging && c.kind == CheckpointKind::Recovery);
        ours.map(|checkpoint| self.describe(&record, checkpoint)).collect()
    }

    /// A checkpoint as the trait has it.
    pub(super) fn describe(&self, record: &VmRecord, checkpoint: &CheckpointRecord) -> Checkpoint {
        let text = |file: &str| self.path(file).to_string_lossy().into_owned();
        let disks = checkpoint.disks.iter().filter_map(|frozen| {
            let disk = record.disks.iter().find(|disk| disk.id == frozen.id)?;
            Some(FrozenDisk {
                disk_id: frozen.id,
                path: text(&frozen.frozen),
                rct_id: frozen.rct_id.clone()?,
                avhdx_path: text(&frozen.avhdx),
                size: disk.size,
                logical_sector_size: disk.logical_sector_size,
            })
        });
        Checkpoint {
            id: checkpoint.id.clone(),
            name: checkpoint.name.clone(),
            consistency: checkpoint.consistency,
            time: checkpoint.time,
            disks: disks.collect(),
        }
    }

    fn checkpoint(&self, id: &CheckpointId) -> Result<CheckpointRecord> {
        let mut all = self.record().checkpoints;
        all.retain(|c| c.id == *id && !c.merging);
        all.pop().ok_or_else(|| HyperVError::CheckpointNotFound { vm: self.id, checkpoint: id.clone() })
    }

    /// Deletes a checkpoint.
    pub(super) fn delete_checkpoint(&self, id: &CheckpointId) -> Result<()> {
        let ops = self.ops();
        if let Ok(checkpoint) = self.checkpoint(id) {
            self.retire(id, None)?;
            let ids = checkpoint.disks.into_iter().filter_map(|d| Some((d.id, d.rct_id?)));
            self.untrack(ids)?;
        }
        self.settle(&ops);
        Ok(())
    }

    /// Marks a checkpoint as merging; with a reference point, which takes over its ids in the same write.
    fn retire(&self, id: &CheckpointId, point: Option<ReferencePoint>) -> Result<()> {
        self.update(|record| {
            record.checkpoints.iter_mut().filter(|c| c.id == *id).for_each(|c| c.merging = true);
            record.reference_points.extend(point);
        })
        .map_err(|e| fault::other("delete checkpoint", &e))
    }

    fn untrack(&self, ids: impl Iterator<Item = (DiskId, RctId)>) -> Result<()> {
        for (disk, id) in ids {
            let disk = self.disk_by_id(disk)?;
            let mut tracker = disk.tracker.lock().unwrap_or_else(PoisonError::into_inner);
            tracker.remove(&id).map_err(|e| fault::other("change tracking", &e))?;
        }
        Ok(())
    }

    /// Bytes of a checkpoint's AVHDX files.
    pub(super) fn avhdx_bytes(&self, id: &CheckpointId) -> Result<u64> {
        let files = self.checkpoint(id)?.disks.into_iter().map(|frozen| self.path(&frozen.avhdx));
        files.map(bytes_of).sum::<io::Result<u64>>().map_err(|e| fault::other("AVHDX", &e))
    }

    /// Converts a recovery checkpoint.
    pub(super) fn convert(&self, id: &CheckpointId) -> Result<ReferencePoint> {
        let ops = self.ops();
        if let Some(done) = self.record().reference_points.into_iter().find(|p| p.checkpoint == *id) {
            self.settle(&ops);
            return Ok(done);
        }
        let checkpoint = self.checkpoint(id)?;
        let tracked = checkpoint
            .disks
            .iter()
            .map(|frozen| Some(TrackedDisk { disk_id: frozen.id, rct_id: frozen.rct_id.clone()? }));
        let Some(disks) = tracked.collect::<Option<Vec<_>>>() else {
            return Err(fault::refused("convert to reference point", "not a recovery checkpoint"));
        };
        let point = ReferencePoint {
            id: ReferencePointId(format!("Microsoft:{}", Uuid::new_v4().to_string().to_uppercase())),
            checkpoint: id.clone(),
            name: checkpoint.name,
            created: checkpoint.time,
            disks,
        };
        self.retire(id, Some(point.clone()))?;
        self.settle(&ops);
        Ok(point)
    }

    /// Destroys a reference point.
    pub(super) fn destroy_reference_point(&self, id: &ReferencePointId) -> Result<()> {
        let _ops = self.ops();
        let gone: Vec<_> = self.record().reference_points.into_iter().filter(|p| p.id == *id).collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.update(|record| record.reference_points.retain(|p| p.id != *id))
            .map_err(|e| fault::other("destroy reference point", &e))?;
        self.untrack(gone.into_iter().flat_map(|p| p.disks).map(|d| (d.disk_id, d.rct_id)))
    }

    /// One page of what changed on a disk from `since` to a checkpoint, from `offset` on.
    pub(super) fn changes(
        &self,
        disk: DiskId,
        since: &RctId,
        until: &CheckpointId,
        offset: u64,
    ) -> Result<ChangesPage> {
        let checkpoint = self.checkpoint(until)?;
        let disk = self.disk_by_id(disk)?;
        let lost = |code| HyperVError::TrackingLost { disk: disk.id, code };
        let until =
            checkpoint.disks.iter().find(|frozen| frozen.id == disk.id).and_then(|f| f.rct_id.clone());
        let until = until.ok_or(lost(VHD_INVALID_CHANGE_TRACKING_ID))?;
        let tracker = disk.tracker.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = tracker.changes(since, &until).map_err(lost)?;
        drop(tracker);
        let mut page = ChangesPage { ranges: Vec::new(), processed_to: disk.size, size: disk.size };
        for (start, len) in changed.ranges_from(offset) {
            let end = (start + len).min(disk.size);
            let start = start.max(offset);
            if let Some((from, count)) = page.ranges.last_mut()
                && *from + *count == start
            {
                *count = end - *from;
            } else if page.ranges.len() < RANGES_PER_PAGE {
                page.ranges.push((start, end - start));
            } else {
                page.processed_to = start;
                break;
            }
        }
        Ok(page)
    }

    /// Begins the digests of checkpoints that have none yet, if the host records.
    pub(super) fn record_instants(&self) {
        if !self.setup.record {
            return;
        }
        for checkpoint in self.record().checkpoints.into_iter().filter(|c| !c.merging) {
            let files: Vec<(DiskId, PathBuf)> =
                checkpoint.disks.iter().map(|frozen| (frozen.id, self.path(&frozen.frozen))).collect();
            let instant = Instant {
                checkpoint: checkpoint.id,
                name: checkpoint.name,
                kind: checkpoint.kind,
                time: checkpoint.time,
                digests: instants::none(),
            };
            self.recorder.begin(instant, files);
        }
    }
}
