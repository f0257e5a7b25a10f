//! Puts verified cycles into the replica: the newest bytes of each range once, under the leases of all disks.
//!
//! ```text
//!  leases ─▶ ledger, cursor read again ─▶ claim {target, token} in the cursor
//!         ─▶ pages of every disk ─▶ metadata of every disk ─▶ cursor.applied, claim taken back ─▶ set, if due
//! ```
//! A crash anywhere before `cursor.applied` leaves the claim: the next worker makes exactly the same merge
//! again, and the same bytes win. Nobody reads the replica meanwhile: snapshots are taken only without a claim.
//!
//! **Base cycles** are verified while they are applied, so that the bulk of a VM is fetched once. That is safe
//! because a Base cycle is never a point: if it turns out to be bad, it is refused and the claim stays, so no
//! snapshot can be taken before a later cycle is whole. What it left behind is overwritten: below the offset
//! copied so far the next stream sends all that changed since the last verified cycle; above it, the first
//! cycle of a stream is preceded by clearing (see [`Job::clear`]), since ranges without data are not sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use farshore_azure::{BlobError, BlobErrorKind, Create, LeaseId, Metadata, NewPageBlob, PAGE, crc64};
use farshore_core::fault::{Code, Fault};
use farshore_core::format::commit::{CommitDisk, Kind};
use farshore_core::format::list::SegmentEntry;
use farshore_core::ids::{Cycle as CycleNo, CycleId, DiskId};
use farshore_core::names;
use farshore_core::points::{Piece, RangePlan, newest_wins};
use farshore_disk::vhd;
use futures::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::chain::Cycle;
use crate::context::Context;
use crate::crash::CrashPoint;
use crate::halt::{Halt, again};
use crate::lease::Leases;
use crate::pace::Pace;
use crate::segment::{self, Source, decode, fetch};
use crate::write::{Assembler, Write};

/// Segments of one disk on their way at the same time; [`crate::Budget`] bounds their bytes.
const SEGMENTS: usize = 8;
/// Puts of one segment on their way at the same time.
const PUTS: usize = 16;
/// Disks of one VM written at the same time: a page blob takes 60 MiB/s, an account far more.
const DISKS: usize = 4;

/// Makes the page blobs that are not there yet. Their footers are written under the leases.
pub(crate) async fn create_blobs(ctx: &Context, disks: &[CommitDisk]) -> Result<(), Halt> {
    for disk in disks {
        let blob = names::disk_blob(disk.disk_id);
        if again(|| ctx.store.replica.head(&blob)).await?.is_some() {
            continue;
        }
        let new = NewPageBlob { len: blob_len(disk), metadata: Metadata::new(), if_none_match: true };
        if again(|| ctx.store.replica.create_page_blob(&blob, &new)).await? == Create::Created {
            tracing::info!(vm.id = %ctx.vm, disk.id = %disk.disk_id, len = new.len, "made a replica disk");
            ctx.crash.at(CrashPoint::BlobCreated);
        }
    }
    Ok(())
}

fn blob_len(disk: &CommitDisk) -> u64 {
    vhd::padded_size(disk.virtual_size).saturating_add(vhd::FOOTER_SIZE)
}

/// The metadata of a blob whose bytes are those after `cycle`.
pub(crate) fn metadata(cycle: CycleId) -> Metadata {
    Metadata::from([
        ("term".to_owned(), cycle.term.0.to_string()),
        ("stream".to_owned(), cycle.stream.0.to_string()),
        ("cycle".to_owned(), cycle.cycle.0.to_string()),
    ])
}

/// What is applied at once: cycles in their order, oldest first.
pub(crate) struct Job<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) leases: &'a Leases,
    pub(crate) batch: &'a [Cycle],
    /// How far each disk was copied before, if not whole.
    pub(crate) copied: &'a BTreeMap<DiskId, u64>,
}

impl Job<'_> {
    /// Writes all pages, then the metadata.
    pub(crate) async fn run(&self) -> Result<(), Halt> {
        let Some(target) = self.batch.last() else { return Ok(()) };
        // Disks that left the VM meanwhile are kept as they are: their points stay, nothing new is written.
        stream::iter(target.disks.clone())
            .map(|disk| self.disk(disk))
            .buffer_unordered(DISKS)
            .try_collect::<()>()
            .await?;
        let metadata = metadata(target.id());
        for disk in &target.disks {
            let (blob, lease) = (names::disk_blob(disk.disk_id), self.leases.of(disk.disk_id)?);
            again(|| self.ctx.store.replica.set_blob_metadata(&blob, &metadata, Some(lease))).await?;
            self.ctx.crash.at(CrashPoint::MetadataSet);
        }
        Ok(())
    }

    async fn disk(&self, disk: CommitDisk) -> Result<(), Halt> {
        let (ctx, disk) = (self.ctx, &disk);
        let anew = self.batch.first().is_some_and(|first| first.full_copy.contains(&disk.disk_id));
        let pages = Pages::open(ctx, disk, self.leases.of(disk.disk_id)?, anew).await?;
        self.clear(disk, &pages, anew).await?;
        let ranges = self.batch.iter().map(|c| c.pending.ranges).fold(0, u64::saturating_add);
        let _planned = ctx.budget.plan(ranges).await;
        let (sources, plan) = self.plan(disk.disk_id).await?;
        // What a Base cycle carries was not verified before: then every segment is fetched, needed or not.
        let base = self.batch.iter().any(|c| c.pending.kind == Kind::Base);
        let needed = sources.into_iter().zip(0_u32..).filter_map(|((source, entry), number)| {
            let live = plan.of(number);
            (base || !live.is_empty()).then(|| (source, entry, live.to_vec()))
        });
        stream::iter(needed)
            .map(|(source, entry, live)| pages.segment(source, entry, live))
            .buffer_unordered(SEGMENTS)
            .try_collect::<()>()
            .await?;
        ctx.crash.at(CrashPoint::DiskWritten);
        Ok(())
    }

    /// Before the first cycle of a stream that copies: what a disk may hold that no later cycle overwrites.
    /// For a full copy that is everything. Otherwise it is what lies beyond the offset copied so far, where a
    /// cycle of the stream before, refused half-way, may have left data that the disk does not hold any more.
    async fn clear(&self, disk: &CommitDisk, pages: &Pages<'_>, anew: bool) -> Result<(), Halt> {
        let Some(first) = self.batch.first() else { return Ok(()) };
        let from = if anew {
            0
        } else if first.pending.kind == Kind::Base && first.id().cycle == CycleNo::FIRST {
            match self.copied.get(&disk.disk_id) {
                Some(copied) => copied.next_multiple_of(PAGE),
                None => return Ok(()),
            }
        } else {
            return Ok(());
        };
        let end = vhd::padded_size(disk.virtual_size);
        if from < end {
            pages.clear(from, end - from).await?;
            self.ctx.crash.at(CrashPoint::DiskCleared);
        }
        Ok(())
    }

    /// Every segment of this disk in the batch, oldest first, and who wins where.
    async fn plan(&self, disk: DiskId) -> Result<(Vec<(Source, SegmentEntry)>, RangePlan), Halt> {
        let mut sources: Vec<(Source, SegmentEntry)> = Vec::new();
        for cycle in self.batch {
            let Some(listed) = cycle.disks.iter().find(|d| d.disk_id == disk) else { continue };
            let list = self.ctx.store.list(cycle.id(), listed, &self.ctx.budget).await?;
            sources.extend(list.segments.into_iter().zip(0_u32..).map(|(mut entry, index)| {
                entry.ranges.shrink_to_fit();
                (Source::new(cycle.id(), disk, index, &entry), entry)
            }));
        }
        segment::blocking(move || {
            let ranges = sources.iter().zip(0_u32..).flat_map(|((_, entry), number)| {
                entry.ranges.iter().map(move |&(offset, len)| (number, offset, len))
            });
            let plan = newest_wins(ranges);
            (sources, plan)
        })
        .await
    }
}

/// The page blob of one disk, under its lease.
struct Pages<'a> {
    ctx: &'a Context,
    blob: String,
    lease: &'a LeaseId,
    pace: Pace,
}

impl<'a> Pages<'a> {
    /// Looks at the blob. One that no apply was ever finished on gets its footer; one that is copied `anew` may
    /// be of another size than before.
    async fn open(ctx: &'a Context, disk: &CommitDisk, lease: &'a LeaseId, anew: bool) -> Result<Self, Halt> {
        let pages = Self { ctx, blob: names::disk_blob(disk.disk_id), lease, pace: Pace::default() };
        let found = again(|| ctx.store.replica.head(&pages.blob)).await?;
        let found = found.ok_or_else(|| Halt::unknown(format!("{} is gone", pages.blob)))?;
        let len = blob_len(disk);
        if found.len != len {
            if !anew {
                let message = format!("{} has {} bytes, not {len}", pages.blob, found.len);
                return Err(Fault::new(Code::Unknown, message).into());
            }
            again(|| ctx.store.replica.resize_page_blob(&pages.blob, len, Some(lease))).await?;
            tracing::info!(vm.id = %ctx.vm, disk.id = %disk.disk_id, len, "resized a replica disk");
        }
        if anew || !found.metadata.contains_key("cycle") {
            let size = vhd::padded_size(disk.virtual_size);
            // No time and no random id in it: a footer written again is the same footer.
            let footer = vhd::footer(size, disk.disk_id.0, 0);
            pages.write(Write::Put { offset: size, bytes: footer.to_vec().into() }).await?;
            ctx.crash.at(CrashPoint::FooterWritten);
        }
        Ok(pages)
    }

    async fn clear(&self, offset: u64, len: u64) -> Result<(), Halt> {
        self.write(Write::Clear { offset, len }).await
    }

    async fn write(&self, write: Write) -> Result<(), Halt> {
        let (replica, blob, lease) = (&self.ctx.store.replica, &self.blob, Some(self.lease));
        let _request = self.ctx.budget.request().await;
        match write {
            Write::Put { offset, bytes } => {
                let crc = crc64(&bytes);
                let len = bytes.len() as u64;
                again(|| self.paced(len, replica.put_pages(blob, offset, bytes.clone(), lease, crc))).await?;
            }
            Write::Clear { offset, len } => {
                let range = offset..offset.saturating_add(len);
                again(|| self.paced(0, replica.clear_pages(blob, range.clone(), lease))).await?;
            }
        }
        self.ctx.crash.at(CrashPoint::PagesWritten);
        Ok(())
    }

    /// Sends one request in its turn, and learns from a refusal.
    async fn paced<T>(
        &self,
        bytes: u64,
        request: impl Future<Output = Result<T, BlobError>>,
    ) -> Result<T, BlobError> {
        self.pace.turn(bytes).await;
        let answer = request.await;
        if matches!(&answer, Err(error) if matches!(error.kind, BlobErrorKind::Throttled { .. })) {
            self.pace.refused(Instant::now());
        }
        answer
    }

    /// Writes what one segment wins. A thread decodes while the Puts before are on their way.
    async fn segment(&self, source: Source, entry: SegmentEntry, live: Vec<Piece>) -> Result<(), Halt> {
        let stored = fetch(self.ctx, source).await?;
        let _decoding = self.ctx.budget.decoder().await;
        let (send, mut writes) = mpsc::channel(1);
        let (bytes, id) = (stored.bytes, segment::id(self.ctx, &stored.source));
        let (budget, runtime) = (self.ctx.budget.clone(), tokio::runtime::Handle::current());
        let decoding = segment::blocking(move || {
            // The closed channel is how a thread learns that nobody wants its writes any more.
            let mut assembler = Assembler::new(&live, |write| {
                let len = if let Write::Put { bytes, .. } = &write { bytes.len() as u64 } else { 0 };
                let permit = runtime.block_on(budget.put(len));
                send.blocking_send((write, permit)).map_err(|_| Halt::Stopped)
            });
            decode(bytes, &source, &id, &entry, |frame| assembler.push(&frame))?;
            assembler.finish()
        });
        let mut on_their_way = FuturesUnordered::new();
        let mut decoding = std::pin::pin!(decoding);
        let mut decoded = None;
        loop {
            tokio::select! {
                result = &mut decoding, if decoded.is_none() => decoded = Some(result),
                next = writes.recv(), if on_their_way.len() < PUTS => match next {
                    Some((write, permit)) => on_their_way.push(async move {
                        let written = self.write(write).await;
                        drop(permit);
                        written
                    }),
                    None => break,
                },
                Some(written) = on_their_way.next() => written?,
            }
        }
        while let Some(written) = on_their_way.next().await {
            written?;
        }
        let decoded = match decoded {
            Some(result) => result,
            None => decoding.await,
        };
        drop(stored.permit);
        decoded?
    }
}

/// Every disk that an apply of these cycles touches.
pub(crate) fn disks_of(batch: &[Cycle]) -> BTreeSet<DiskId> {
    batch.last().into_iter().flat_map(|c| &c.disks).map(|d| d.disk_id).collect()
}

/// Shared so that a batch outlives the borrow of the task that it was taken from.
pub(crate) type Batch = Arc<[Cycle]>;
