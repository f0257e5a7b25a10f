//! One slice of initial replication: changes of what was copied before, then further data, straight from the
//! frozen files into storage.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use farshore_core::cycle::{Slice, SliceEnd, coarsen, margin, slice_ends};
use farshore_core::format::list::MAX_RANGES;
use farshore_core::ids::DiskId;
use farshore_core::relationship::{FrozenDisk, Instant, Running, Stage, check_space};
use farshore_disk::extents::Extents;
use farshore_hyperv::Hypervisor;
use futures::StreamExt;
use std::pin::pin;

use super::begin::{Ranges, frozen_path};
use super::{Assignment, Engine, Next, Progress, blocking, host};
use crate::crash::CrashPoint;
use crate::fault::{OrFault, Result};
use crate::journal::{Part, Sent};
use crate::store::Store;
use crate::transfer::{ChainSource, DiskPlan, Plan};

/// How often a running slice is measured.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// One frozen disk and what is to be read from it.
struct Disk {
    frozen: FrozenDisk,
    source: Arc<ChainSource>,
    /// Ranges that hold bytes.
    allocated: Extents,
    /// Where this slice begins to copy; `None` if the disk is wholly copied.
    from: Option<u64>,
    changed: Ranges,
}

impl<H: Hypervisor + 'static, S: Store> Engine<H, S> {
    /// Copies until everything is copied or the slice must end, then notes how far it came.
    pub(super) async fn copy_slice(&mut self, goal: &Assignment) -> Result<Next> {
        self.set_step("CopyingDisks");
        let running = self.running()?.clone();
        let Some(instant) = running.instant.clone() else { return Ok(Next::Now) };
        let journals = self.context.journals.clone();
        let (vm, cycle, checkpoint) = (self.vm, running.id, instant.checkpoint_id.clone());
        let (mut log, done) = blocking(move || journals.segments(vm, cycle, &checkpoint).or_fault()).await?;
        let mut far = Positions::of(&done);
        let disks = self.open(&instant).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let plan = plan(&disks, &far, Arc::clone(&stop));
        let mut measure = Measure::new(&disks, &far);
        self.show_copy(&measure, 0);

        let transfer = self.transfer(goal, cycle);
        let mut measured = tokio::time::Instant::now();
        self.end_if_needed(goal, &running, &instant, &measure, &stop).await?;
        {
            let mut results = pin!(Arc::clone(&transfer).run(plan));
            while let Some(sent) = results.next().await {
                let sent = sent?;
                log.append(&sent).or_fault()?;
                self.context.crash.pass(CrashPoint::SegmentNoted);
                far.note(&sent);
                measure.note(&sent);
                self.show_copy(&measure, transfer.bytes_sent.load(Ordering::Relaxed));
                if measured.elapsed() >= MEASURE_EVERY {
                    measured = tokio::time::Instant::now();
                    self.end_if_needed(goal, &running, &instant, &measure, &stop).await?;
                }
            }
        }
        blocking(move || log.sync().or_fault()).await?;
        let stopped = stop.load(Ordering::Relaxed);
        let copied_up_to = far.copied_up_to(&disks, stopped);
        // The chain is closed before the checkpoint is converted.
        drop(disks);
        self.context.crash.pass(CrashPoint::SliceCopied);
        self.note_ready(copied_up_to, BTreeMap::new()).await?;
        Ok(Next::Now)
    }

    /// Opens the frozen disks and asks what changed below what was copied before.
    async fn open(&self, instant: &Instant) -> Result<Vec<Disk>> {
        let mut disks = Vec::new();
        for frozen in &instant.disks {
            let from = self.journal()?.copied_up_to(frozen.disk_id);
            let below = Extents::one(0, from.unwrap_or(frozen.virtual_size));
            let changed = self.changes(frozen, &instant.checkpoint_id).await?;
            let changed: Extents =
                changed.into_iter().map(|(o, l)| farshore_disk::Extent::new(o, l)).collect();
            let changed = changed.intersect(&below).iter().map(|e| (e.offset, e.len)).collect();
            let path: PathBuf = frozen_path(frozen).to_owned();
            let size = frozen.virtual_size;
            let (source, allocated) = blocking(move || {
                let source = ChainSource::open(&path)?;
                let allocated = source.0.allocated().or_fault()?.align_out(512).clip(size);
                Ok((Arc::new(source), allocated))
            })
            .await?;
            disks.push(Disk { frozen: frozen.clone(), source, allocated, from, changed });
        }
        Ok(disks)
    }

    /// Measures the slice and sets `stop` when it must end.
    async fn end_if_needed(
        &self,
        goal: &Assignment,
        running: &Running,
        instant: &Instant,
        measure: &Measure,
        stop: &AtomicBool,
    ) -> Result<()> {
        let avhdx =
            self.host.avhdx_bytes(self.vm, &instant.checkpoint_id.as_str().into()).await.or_fault()?;
        let space =
            host::space(&*self.host, instant.disks.iter().map(|d| d.path.as_str()), goal.reserve).await?;
        self.report.send_modify(|r| r.tracking = space.tracking(avhdx, 0));
        let slice = Slice {
            // By the host's clock at both ends would be better; ours is the host's.
            age: Duration::try_from(self.now().duration_since(instant.time)).unwrap_or_default(),
            copied: measure.copied_now,
            avhdx_bytes: avhdx,
            disk_bytes: instant.disks.iter().map(|d| d.virtual_size).sum(),
            free: space.free,
            reserve: space.reserve,
            asked: self.is_asked_to_end(goal),
        };
        let end = slice_ends(&slice, self.context.timing.slice_age);
        if let Some(why) = end
            && !stop.swap(true, Ordering::Relaxed)
        {
            tracing::info!(
                vm.id = %self.vm, cycle = %running.id, ?why, slice.copied, slice.avhdx_bytes, slice.free,
                "the slice ends"
            );
        }
        // Changes that must be sent whole, or nothing copied at all, and no room: such a slice is of no use.
        if end == Some(SliceEnd::Space) && (measure.changes_left > 0 || measure.copied_now == 0) {
            let (volume, free, reserve) = (&space.volume, space.free, space.reserve);
            return check_space(volume, margin(reserve).saturating_add(1), free, reserve);
        }
        Ok(())
    }

    fn show_copy(&self, measure: &Measure, sent: u64) {
        let progress = Progress { total: measure.total, copied: measure.copied, sent };
        self.report.send_modify(|r| r.progress = Some(progress));
    }

    /// Ends a slice that cannot go on now (storage away, or stopped) with what it has copied, so that its
    /// checkpoint can be let go of. False if its changes are not all sent: then it can only be dropped.
    pub(super) async fn close_slice(&mut self) -> Result<bool> {
        let running = self.running()?.clone();
        let Some(instant) = running.instant.clone().filter(|_| running.stage == Stage::Frozen) else {
            return Ok(false);
        };
        let journals = self.context.journals.clone();
        let (vm, cycle, checkpoint) = (self.vm, running.id, instant.checkpoint_id.clone());
        let (_, done) = blocking(move || journals.segments(vm, cycle, &checkpoint).or_fault()).await?;
        let far = Positions::of(&done);
        let disks = self.open(&instant).await?;
        if disks.iter().any(|d| !far.changes_are_done(d)) {
            return Ok(false);
        }
        let copied_up_to = far.copied_up_to(&disks, true);
        self.note_ready(copied_up_to, BTreeMap::new()).await?;
        Ok(true)
    }
}

/// How far each part of each disk is.
#[derive(Debug, Default)]
struct Positions {
    at: BTreeMap<(DiskId, Part), u64>,
    segments: BTreeMap<DiskId, u32>,
}

impl Positions {
    fn of(done: &[Sent]) -> Self {
        let mut far = Self::default();
        done.iter().for_each(|sent| far.note(sent));
        far
    }

    fn note(&mut self, sent: &Sent) {
        self.at.insert((sent.disk, sent.part), sent.up_to);
        if sent.entry.is_some() {
            *self.segments.entry(sent.disk).or_default() += 1;
        }
    }

    fn get(&self, disk: DiskId, part: Part) -> u64 {
        self.at.get(&(disk, part)).copied().unwrap_or(0)
    }

    fn changes_are_done(&self, disk: &Disk) -> bool {
        let end = disk.changed.last().map_or(0, |(offset, len)| offset + len);
        self.get(disk.frozen.disk_id, Part::Changes) >= end
    }

    /// What the commit will say: disks that are not wholly copied, and up to where they are.
    fn copied_up_to(&self, disks: &[Disk], stopped: bool) -> BTreeMap<DiskId, u64> {
        let mut out = BTreeMap::new();
        for disk in disks {
            let (id, size) = (disk.frozen.disk_id, disk.frozen.virtual_size);
            let Some(from) = disk.from else { continue };
            let at = self.get(id, Part::Copy).max(from);
            let all = copy_ranges(disk, at).is_empty();
            if stopped && at < size && !all {
                out.insert(id, at);
            }
        }
        out
    }
}

/// Ranges of a disk that hold bytes and were never sent, from `at` on.
fn copy_ranges(disk: &Disk, at: u64) -> Ranges {
    let size = disk.frozen.virtual_size;
    let rest = disk.allocated.intersect(&Extents::one(at, size.saturating_sub(at)));
    rest.iter().map(|e| (e.offset, e.len)).collect()
}

/// All changes first, since a cycle without them cannot be committed; then the disks one by one (R5.2).
fn plan(disks: &[Disk], far: &Positions, stop: Arc<AtomicBool>) -> Plan {
    let mut parts = Vec::new();
    for disk in disks {
        let id = disk.frozen.disk_id;
        let at = far.get(id, Part::Changes);
        let left = |(offset, len): &(u64, u64)| {
            let end = offset + len;
            (end > at).then(|| (at.max(*offset), end - at.max(*offset)))
        };
        parts.push(DiskPlan {
            disk: id,
            part: Part::Changes,
            source: Arc::clone(&disk.source) as _,
            ranges: disk.changed.iter().filter_map(left).collect(),
            end: disk.changed.last().map_or(0, |(offset, len)| offset + len),
        });
    }
    for disk in disks {
        let Some(from) = disk.from else { continue };
        let at = far.get(disk.frozen.disk_id, Part::Copy).max(from);
        parts.push(DiskPlan {
            disk: disk.frozen.disk_id,
            part: Part::Copy,
            source: Arc::clone(&disk.source) as _,
            ranges: coarsen(&copy_ranges(disk, at), MAX_RANGES / 3),
            end: disk.frozen.virtual_size,
        });
    }
    Plan { parts, segments: far.segments.clone(), stop }
}

/// Bytes of initial replication, for status and for the end of the slice.
#[derive(Debug, Default)]
struct Measure {
    /// All disks' ranges that hold bytes.
    total: u64,
    /// Of those, in storage.
    copied: u64,
    /// Of those, copied for the first time by this process in this slice.
    copied_now: u64,
    /// Parts with changes that are not sent yet.
    changes_left: usize,
    at: BTreeMap<DiskId, (u64, Extents)>,
    ends: BTreeMap<DiskId, u64>,
}

impl Measure {
    fn new(disks: &[Disk], far: &Positions) -> Self {
        let mut measure = Self::default();
        for disk in disks {
            let id = disk.frozen.disk_id;
            let at = disk.from.map_or(disk.frozen.virtual_size, |from| far.get(id, Part::Copy).max(from));
            measure.total += disk.allocated.total();
            measure.copied += disk.allocated.clip(at).total();
            measure.at.insert(id, (at, disk.allocated.clone()));
            if !far.changes_are_done(disk) {
                measure.changes_left += 1;
                measure.ends.insert(id, disk.changed.last().map_or(0, |(offset, len)| offset + len));
            }
        }
        measure
    }

    fn note(&mut self, sent: &Sent) {
        match sent.part {
            Part::Changes => {
                if self.ends.get(&sent.disk).is_some_and(|end| sent.up_to >= *end) {
                    self.ends.remove(&sent.disk);
                    self.changes_left = self.ends.len();
                }
            }
            Part::Copy => {
                let Some((at, allocated)) = self.at.get_mut(&sent.disk) else { return };
                let new = allocated.intersect(&Extents::one(*at, sent.up_to.saturating_sub(*at))).total();
                *at = sent.up_to;
                self.copied += new;
                self.copied_now += new;
            }
        }
    }
}
