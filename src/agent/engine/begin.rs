//! The beginning of streams and cycles: prerequisites, space, checkpoint, logs.

use std::collections::BTreeMap;
use std::path::Path;

use farshore_core::cycle::{coarsen, log_bytes, margin};
use farshore_core::fault::{Code, Fault};
use farshore_core::format::Record;
use farshore_core::format::commit::{Consistency, Kind};
use farshore_core::format::cursor::Cursor;
use farshore_core::format::list::MAX_RANGES;
use farshore_core::format::side::SideRecord;
use farshore_core::ids::DiskId;
use farshore_core::names;
use farshore_core::relationship::{
    FrozenDisk, Instant, Journal, Running, SideSays, Stage, check_space, read_side, unmet,
};
use farshore_hyperv::{Consistency as Wanted, Hypervisor, RctId, VmInfo};
use jiff::Timestamp;
use uuid::Uuid;

use super::{Assignment, Engine, Next, blocking, host, logs};
use crate::crash::CrashPoint;
use crate::fault::{OrFault, Result};
use crate::store::Store;

/// Changed ranges of one disk.
pub(super) type Ranges = Vec<(u64, u64)>;

impl<H: Hypervisor + 'static, S: Store> Engine<H, S> {
    /// Begins the stream of the goal: from its base, or from nothing. What the stream before left uncommitted
    /// is dropped: no journal names it any more, so its checkpoint is a leftover and its logs are swept.
    pub(super) async fn begin_stream(&mut self, goal: &Assignment) -> Result<()> {
        let previous = match &goal.base {
            Some(_) => None,
            None => self.cursor().await?.and_then(|cursor| cursor.verified).map(|verified| verified.commit),
        };
        let writer = (goal.term, goal.stream);
        let journal = Journal::begin(self.vm, writer, goal.base.as_ref(), previous, self.journal.as_ref());
        tracing::info!(
            vm.id = %self.vm, term = %goal.term, stream = %goal.stream,
            continues = ?journal.previous.map(|p| p.id), copies = journal.since.is_none(), "a stream begins"
        );
        self.swept = false;
        self.trusted_logs = false;
        self.save(journal).await?;
        self.context.crash.pass(CrashPoint::StreamBegun);
        Ok(())
    }

    pub(super) async fn cursor(&self) -> Result<Option<Cursor>> {
        let bytes = self.store.get(names::CURSOR, Cursor::MAX as u64).await.or_fault()?;
        bytes.map(|bytes| Cursor::decode(&bytes).or_fault()).transpose()
    }

    /// Removes logs beside the disks that no cycle needs; once per stream and process.
    pub(super) async fn sweep(&mut self, goal: &Assignment) -> Result<()> {
        if self.swept {
            return Ok(());
        }
        let vm = self.host.vm(self.vm).await.or_fault()?;
        self.remove_all_logs(&vm, &goal.disks).await?;
        self.swept = true;
        Ok(())
    }

    pub(super) async fn remove_all_logs(&self, vm: &VmInfo, disks: &[DiskId]) -> Result<()> {
        let paths: Vec<(String, DiskId)> = vm
            .disks
            .iter()
            .filter(|d| !d.pass_through && disks.contains(&d.disk_id))
            .map(|d| (d.path.clone(), d.disk_id))
            .collect();
        blocking(move || paths.iter().try_for_each(|(path, disk)| logs::sweep(path, *disk, &[])).or_fault())
            .await
    }

    /// Begins a cycle at a tick, unless something stands against it.
    pub(super) async fn begin_cycle(
        &mut self,
        goal: &Assignment,
        tick: Timestamp,
        missed: u64,
    ) -> Result<Next> {
        self.set_step("CheckingPrerequisites");
        let vm = self.host.vm(self.vm).await.or_fault()?;
        let unmet = unmet(&host::facts(&vm, Some(&goal.disks)));
        self.report.send_if_modified(|r| std::mem::replace(&mut r.unmet, unmet.clone()) != unmet);
        if let Some(first) = unmet.first() {
            let all: Vec<&str> = unmet.iter().map(|f| f.message.as_str()).collect();
            return Err(Fault::new(first.code, all.join("; ")));
        }
        let Some(side_seq) = self.side_allows().await? else {
            // A new stream or term is on its way; until its goal arrives nothing is written.
            self.set_step("WaitingForStream");
            let again = self.now().checked_add(self.context.timing.verify_poll).unwrap_or(Timestamp::MAX);
            return Ok(Next::At(again));
        };
        let paths = vm.disks.iter().filter(|d| goal.disks.contains(&d.disk_id)).map(|d| d.path.as_str());
        let space = host::space(&*self.host, paths, goal.reserve).await?;
        self.report.send_modify(|r| r.tracking = space.tracking(0, 0));
        check_space(&space.volume, margin(space.reserve), space.free, space.reserve)?;

        self.set_step("CreatingCheckpoint");
        let (id, kind) = self.journal()?.next_cycle();
        self.trusted_logs = false;
        self.edit(|j| {
            j.side_seq = j.side_seq.max(side_seq);
            j.missed_cycles = j.missed_cycles.saturating_add(missed);
            // The skipped ticks are counted; a cycle that is made again serves this one.
            j.next_tick = Some(tick);
            j.running = Some(Running {
                id,
                kind,
                stage: Stage::Intent,
                tick,
                instant: None,
                copied_up_to: BTreeMap::new(),
                reference_point_id: None,
                commit: None,
            });
        })
        .await?;
        self.context.crash.pass(CrashPoint::IntentNoted);
        self.freeze(goal, &vm).await?;
        match kind {
            Kind::Base => Ok(Next::Now),
            _ => self.write_logs(goal).await.map(|()| Next::Now),
        }
    }

    /// `side.json`'s seq if cycles of this term and stream may go on, `None` if they are superseded.
    async fn side_allows(&self) -> Result<Option<u64>> {
        let bytes = self.store.get(names::SIDE, SideRecord::MAX as u64).await.or_fault()?;
        let missing = || Fault::new(Code::StorageUnavailable, "side.json is not in the download container");
        let side = SideRecord::decode(&bytes.ok_or_else(missing)?).or_fault()?;
        match read_side(self.journal()?, &side) {
            SideSays::GoOn => Ok(Some(side.seq)),
            SideSays::Superseded => Ok(None),
            SideSays::Refuse(fault) => Err(fault),
        }
    }

    /// Takes the checkpoint and notes its instant.
    async fn freeze(&mut self, goal: &Assignment, vm: &VmInfo) -> Result<()> {
        let running = self.running()?.clone();
        let name = names::checkpoint(running.id);
        let checkpoint = self.host.create_checkpoint(self.vm, &name, Wanted::Crash).await.or_fault()?;
        self.context.crash.pass(CrashPoint::CheckpointCreated);
        let disks: Vec<FrozenDisk> = checkpoint
            .disks
            .iter()
            .filter(|disk| goal.disks.contains(&disk.disk_id))
            .map(|disk| FrozenDisk {
                disk_id: disk.disk_id,
                path: disk.path.clone(),
                virtual_size: disk.size,
                rct_id: disk.rct_id.0.clone(),
                log: (running.kind != Kind::Base)
                    .then(|| logs::path(&disk.path, disk.disk_id, running.id).to_string_lossy().into_owned()),
            })
            .collect();
        if let Some(disk) = goal.disks.iter().find(|id| disks.iter().all(|d| d.disk_id != **id)) {
            return Err(Fault::new(Code::DiskMissing, format!("disk {disk} is not in the checkpoint")));
        }
        if let Some(since) = &self.journal()?.since
            && let Some(new) = disks.iter().find(|d| !since.rct_ids.contains_key(&d.disk_id))
        {
            let message = format!("disk {} was not in cycle {}", new.disk_id, since.commit.id);
            return Err(Fault::new(Code::ChangeTrackingLost, message));
        }
        let instant = Instant {
            checkpoint_id: checkpoint.id.0,
            time: checkpoint.time,
            consistency: Consistency::Crash,
            disks,
            configuration: host::configuration(vm, &goal.disks),
        };
        self.edit(|j| {
            if let Some(running) = &mut j.running {
                running.instant = Some(instant);
                running.stage = Stage::Frozen;
            }
        })
        .await?;
        self.context.crash.pass(CrashPoint::CheckpointNoted);
        Ok(())
    }

    /// What changed on a disk since the last committed cycle, few enough ranges for one list.
    pub(super) async fn changes(&self, disk: &FrozenDisk, checkpoint: &str) -> Result<Ranges> {
        let Some(since) = &self.journal()?.since else { return Ok(Vec::new()) };
        let lost = || Fault::new(Code::ChangeTrackingLost, format!("disk {} was not tracked", disk.disk_id));
        let since = RctId(since.rct_ids.get(&disk.disk_id).ok_or_else(lost)?.clone());
        let changed =
            self.host.query_changes(self.vm, disk.disk_id, &since, &checkpoint.into()).await.or_fault()?;
        let ranges: Ranges =
            changed.clip(disk.virtual_size).align_out(512).iter().map(|e| (e.offset, e.len)).collect();
        Ok(coarsen(&ranges, MAX_RANGES / 2))
    }

    /// Writes and seals one log per disk, all of one instant, then notes that all is read.
    async fn write_logs(&mut self, goal: &Assignment) -> Result<()> {
        self.set_step("WritingLogs");
        let running = self.running()?.clone();
        let Some(instant) = running.instant.clone() else { return Ok(()) };
        let mut changes: Vec<(FrozenDisk, Ranges)> = Vec::new();
        for disk in &instant.disks {
            changes.push((disk.clone(), self.changes(disk, &instant.checkpoint_id).await?));
        }
        let data = |ranges: &Ranges| ranges.iter().map(|r| r.1).sum::<u64>();
        let need = changes.iter().map(|(_, ranges)| log_bytes(data(ranges), ranges.len() as u64)).sum();
        let paths = instant.disks.iter().map(|d| d.path.as_str());
        let space = host::space(&*self.host, paths, goal.reserve).await?;
        // Disks on several volumes: the need of all is asked of the fullest. That refuses early, never late.
        check_space(&space.volume, need, space.free, space.reserve)?;

        let mut ids: BTreeMap<DiskId, Uuid> = BTreeMap::new();
        let total = changes.iter().map(|(_, ranges)| data(ranges)).sum();
        for (disk, ranges) in changes {
            let journal = self.journal()?;
            let base = journal.since.as_ref().and_then(|s| s.rct_ids.get(&disk.disk_id).cloned());
            let spec = logs::LogSpec {
                vm: self.vm,
                cycle: running.id,
                previous: journal.last_logs.get(&disk.disk_id).copied(),
                base_rct_id: base,
                ranges,
                time: instant.time,
                crash: self.context.crash.clone(),
                disk,
            };
            let disk = spec.disk.disk_id;
            ids.insert(disk, blocking(move || logs::write(&spec)).await?);
        }
        self.context.crash.pass(CrashPoint::LogsSealed);
        self.trusted_logs = true;
        self.note_ready(BTreeMap::new(), ids).await?;
        self.report.send_modify(|r| {
            r.progress = Some(super::Progress { total, copied: 0, sent: 0 });
            r.tracking = space.tracking(0, logs::bytes(&running));
        });
        Ok(())
    }

    /// Notes that everything of the cycle is read.
    pub(super) async fn note_ready(
        &mut self,
        copied_up_to: BTreeMap<DiskId, u64>,
        log_ids: BTreeMap<DiskId, Uuid>,
    ) -> Result<()> {
        self.edit(|j| {
            j.last_logs.extend(log_ids);
            if let Some(running) = &mut j.running {
                running.copied_up_to = copied_up_to;
                running.stage = Stage::Ready;
            }
        })
        .await?;
        self.context.crash.pass(CrashPoint::ReadyNoted);
        Ok(())
    }

    /// Turns the checkpoint into a reference point: the VM's files are merged, nothing of the cycle is on the
    /// host any more but its logs.
    pub(super) async fn convert(&mut self, checkpoint: &str) -> Result<Next> {
        self.set_step("ConvertingCheckpoint");
        let point = self.host.convert_to_reference_point(self.vm, &checkpoint.into()).await.or_fault()?;
        self.context.crash.pass(CrashPoint::CheckpointConverted);
        self.note_point(point.id.0).await
    }

    pub(super) async fn note_point(&mut self, id: String) -> Result<Next> {
        self.edit(|j| {
            j.own_points.insert(id.clone());
            if let Some(running) = &mut j.running {
                running.reference_point_id = Some(id);
                running.stage = Stage::Converted;
            }
        })
        .await?;
        self.context.crash.pass(CrashPoint::ReferencePointNoted);
        Ok(Next::Now)
    }
}

/// The path of a frozen file.
pub(super) fn frozen_path(disk: &FrozenDisk) -> &Path {
    Path::new(&disk.path)
}
