//! From what was read to a commit in storage: segments of logs, lists, the commit record, and its fate.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farshore_core::cycle::next_tick;
use farshore_core::fault::{Code, Fault};
use farshore_core::format::commit::{Commit, CommitDisk, CommitRef, Kind};
use farshore_core::format::list::{SegmentEntry, SegmentList};
use farshore_core::format::{Extra, FORMAT_VERSION, Record};
use farshore_core::ids::{DiskId, Hash};
use farshore_core::names;
use farshore_core::relationship::{Instant, Running, Stage, read_cursor};
use farshore_hyperv::Hypervisor;
use futures::StreamExt;
use jiff::Timestamp;

use super::{Assignment, Engine, Next, blocking};
use crate::crash::CrashPoint;
use crate::fault::{OrFault, Result};
use crate::journal::{Part, Sent};
use crate::store::{Put, Store, put_small};
use crate::transfer::{DiskPlan, LogSource, Plan};

type Entries = BTreeMap<DiskId, Vec<SegmentEntry>>;

impl<H: Hypervisor + 'static, S: Store> Engine<H, S> {
    /// Uploads what is missing of a converted cycle, fixes the commit's bytes and puts them.
    pub(super) async fn upload(&mut self, goal: &Assignment) -> Result<Next> {
        self.set_step("UploadingSegments");
        let running = self.running()?.clone();
        let (Some(instant), Some(point)) = (running.instant.clone(), running.reference_point_id.clone())
        else {
            return Err(Fault::new(Code::Unknown, "a converted cycle without its instant"));
        };
        let journals = self.context.journals.clone();
        let (vm, cycle, checkpoint) = (self.vm, running.id, instant.checkpoint_id.clone());
        let (mut log, mut sent) =
            blocking(move || journals.segments(vm, cycle, &checkpoint).or_fault()).await?;
        if running.kind != Kind::Base {
            let plan = log_plan(&instant, &sent).await?;
            let transfer = self.transfer(goal, cycle);
            let mut results = pin!(Arc::clone(&transfer).run(plan));
            while let Some(result) = results.next().await {
                let result = result?;
                log.append(&result).or_fault()?;
                self.context.crash.pass(CrashPoint::SegmentNoted);
                self.show_upload(&result, transfer.bytes_sent.load(Ordering::Relaxed));
                sent.push(result);
            }
        }
        let mut entries = Entries::new();
        for Sent { disk, entry, .. } in sent {
            entries.entry(disk).or_default().extend(entry);
        }
        let lists = self.put_lists(&running, &instant, entries).await?;
        let commit = self.commit_record(goal, &running, &instant, point, &lists)?;
        let bytes = commit.encode().or_fault()?;
        let text = String::from_utf8(bytes).map_err(|e| Fault::new(Code::Unknown, e.to_string()))?;
        // From here on exactly these bytes are put under this name, also after a restart: whether an earlier
        // try landed can be told by their hash alone.
        self.edit(|j| {
            if let Some(running) = &mut j.running {
                running.commit = Some(text);
                running.stage = Stage::Committing;
            }
        })
        .await?;
        self.context.crash.pass(CrashPoint::CommitNoted);
        Ok(Next::Now)
    }

    fn show_upload(&self, sent: &Sent, bytes: u64) {
        let new = sent.entry.as_ref().map_or(0, SegmentEntry::disk_bytes);
        self.report.send_modify(|r| {
            let progress = r.progress.get_or_insert_default();
            progress.copied = progress.copied.saturating_add(new);
            progress.total = progress.total.max(progress.copied);
            progress.sent = bytes;
        });
    }

    async fn put_lists(
        &self,
        running: &Running,
        instant: &Instant,
        mut entries: Entries,
    ) -> Result<BTreeMap<DiskId, Hash>> {
        let mut lists = BTreeMap::new();
        for disk in &instant.disks {
            let list = SegmentList {
                format_version: FORMAT_VERSION,
                min_reader: 1,
                disk_id: disk.disk_id,
                segments: entries.remove(&disk.disk_id).unwrap_or_default(),
                extra: Extra::new(),
            };
            let bytes = list.encode().or_fault()?;
            let hash = Hash::of(&bytes);
            let name = names::list(running.id, disk.disk_id, &hash);
            // A taken name is the hash of these very bytes.
            let (Put::Created | Put::Taken) =
                put_small(&*self.store, &name, bytes, self.second()).await.or_fault()?;
            self.context.crash.pass(CrashPoint::ListUploaded);
            lists.insert(disk.disk_id, hash);
        }
        Ok(lists)
    }

    fn commit_record(
        &self,
        goal: &Assignment,
        running: &Running,
        instant: &Instant,
        reference_point_id: String,
        lists: &BTreeMap<DiskId, Hash>,
    ) -> Result<Commit> {
        let journal = self.journal()?;
        let disks = instant.disks.iter().map(|disk| {
            let list = lists.get(&disk.disk_id).copied();
            Ok(CommitDisk {
                disk_id: disk.disk_id,
                virtual_size: disk.virtual_size,
                list: list.ok_or_else(|| Fault::new(Code::Unknown, "a disk without a list"))?,
                rct_id: disk.rct_id.clone(),
                copied_up_to: running.copied_up_to.get(&disk.disk_id).copied(),
            })
        });
        let from_nothing = running.kind == Kind::Base && journal.since.is_none();
        Ok(Commit {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            vm_id: self.vm,
            term: running.id.term,
            stream: running.id.stream,
            cycle: running.id.cycle,
            kind: running.kind,
            consistency: instant.consistency,
            point_time: instant.time,
            next_cycle_at: self.next_tick_after(goal, running).unwrap_or_else(|| self.now()),
            previous: journal.previous,
            configuration: instant.configuration.clone(),
            reference_point_id,
            own_point_ids: journal.own_points.iter().cloned().collect(),
            disks: disks.collect::<Result<_>>()?,
            full_copy: if from_nothing { lists.keys().copied().collect() } else { Vec::new() },
            extra: Extra::new(),
        })
    }

    /// After a slice of initial replication the next cycle follows at once.
    fn next_tick_after(&self, goal: &Assignment, running: &Running) -> Option<Timestamp> {
        (running.kind != Kind::Base).then(|| next_tick(running.tick, goal.interval))
    }

    /// Puts the commit, or finds out from the cursor what became of an earlier try.
    pub(super) async fn put_commit(&mut self, goal: &Assignment) -> Result<Next> {
        self.set_step("Committing");
        let running = self.running()?.clone();
        let text = running.commit.clone().unwrap_or_default();
        let commit = CommitRef { id: running.id, hash: Hash::of(text.as_bytes()) };
        let name = names::commit(running.id);
        let put = put_small(&*self.store, &name, text.into_bytes(), self.second()).await.or_fault()?;
        if put == Put::Taken && !self.is_ours(commit).await? {
            self.set_step("WaitingForCommit");
            let again = self.now().checked_add(self.context.timing.verify_poll).unwrap_or(Timestamp::MAX);
            return Ok(Next::At(again));
        }
        self.context.crash.pass(CrashPoint::CommitPut);
        let now = self.now();
        let journal = self.journal()?.committed(commit, self.next_tick_after(goal, &running), now);
        self.save(journal).await?;
        self.context.crash.pass(CrashPoint::Committed);
        self.trusted_logs = false;
        self.failed_generation = None;
        tracing::info!(
            vm.id = %self.vm, cycle = %running.id, kind = ?running.kind,
            copied = running.copied_up_to.is_empty(), "the cycle is committed"
        );
        self.remove_logs(&running).await?;
        self.context.crash.pass(CrashPoint::LogsDeleted);
        self.report.send_modify(|r| {
            r.tracking.logs = 0;
            r.tracking.avhdx = 0;
        });
        Ok(Next::Now)
    }

    /// The name is taken: by an earlier try of ours, or by another writer? `false` while the cursor does not say.
    async fn is_ours(&mut self, commit: CommitRef) -> Result<bool> {
        let Some(cursor) = self.cursor().await? else { return Ok(false) };
        let news = read_cursor(self.journal()?, &cursor, Some(commit));
        match (news.commit_is_ours, news.fault) {
            (Some(true), _) => Ok(true),
            (_, Some(fault)) => Err(fault),
            (_, None) => Ok(false),
        }
    }
}

/// What is left to upload of the sealed logs.
async fn log_plan(instant: &Instant, sent: &[Sent]) -> Result<Plan> {
    let mut plan = Plan { stop: Arc::new(AtomicBool::new(false)), ..Plan::default() };
    for disk in &instant.disks {
        let done = sent.iter().filter(|s| s.disk == disk.disk_id);
        let at = done.clone().map(|s| s.up_to).max().unwrap_or(0);
        let segments = done.filter(|s| s.entry.is_some()).count();
        plan.segments.insert(disk.disk_id, u32::try_from(segments).unwrap_or(u32::MAX));
        let log = disk.log.clone().unwrap_or_default();
        let source = blocking(move || LogSource::open(Path::new(&log))).await?;
        let ranges: Vec<(u64, u64)> = source
            .ranges()
            .into_iter()
            .filter(|(offset, len)| offset + len > at)
            .map(|(offset, len)| (offset.max(at), offset + len - offset.max(at)))
            .collect();
        let end = ranges.last().map_or(at, |(offset, len)| offset + len);
        plan.parts.push(DiskPlan {
            disk: disk.disk_id,
            part: Part::Changes,
            source: Arc::new(source),
            ranges,
            end,
        });
    }
    Ok(plan)
}
