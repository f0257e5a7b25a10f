//! From bytes on the host to segments in storage: read, encode, upload, several at a time, in bounded memory.
//!
//! ```text
//! plans --cut--> jobs --> [ blocking thread: read + encode ] --> [ put_new ] --> Sent, in the order of jobs
//!                 ^ waits for memory and a core (Budget)
//! ```
//! Results come in the order of the work, so what is done is always one offset per disk and part. A segment
//! gets its index when its first byte that is not skipped is found: indexes have no gaps though work that
//! turns out to hold nothing makes no segment.

mod budget;
mod plan;
mod source;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use farshore_core::fault::{Code, Fault};
use farshore_core::format::list::SegmentEntry;
use farshore_core::ids::{CycleId, Hash, VmId};
use farshore_core::names;
use farshore_disk::segment::{Compression, Encoder, Sealed, SegmentId};
use futures::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::task::AbortOnDropHandle;

pub use budget::Budget;
pub use plan::{DiskPlan, Plan};
pub use source::{ChainSource, LogSource, Source};

use crate::crash::{Crash, CrashPoint};
use crate::fault::{OrFault, Result};
use crate::journal::Sent;
use crate::store::{self, Put, Store};
use plan::Job;

/// What all segments of one cycle have in common.
#[derive(Debug)]
pub struct Transfer<S> {
    /// Whose disks.
    pub vm: VmId,
    /// Which cycle.
    pub cycle: CycleId,
    /// Where segments go.
    pub store: Arc<S>,
    /// Shared by all VMs of the process.
    pub budget: Budget,
    /// How data is packed.
    pub compression: Compression,
    /// Segments under way at the same time.
    pub parallelism: u32,
    /// The most disk data in one segment.
    pub segment_bytes: u64,
    /// What a second lasts (see [`store::put_patiently`]).
    pub second: Duration,
    /// Where to die.
    pub crash: Crash,
    /// Stored bytes of all segments that were put by this process.
    pub bytes_sent: AtomicU64,
}

/// A job with what it may use.
struct Work {
    job: Job,
    memory: OwnedSemaphorePermit,
    core: OwnedSemaphorePermit,
}

impl<S: Store> Transfer<S> {
    /// Runs a plan. Each item is one job that is done; the caller notes it, in this order. Ends early when
    /// the plan was told to stop, or after the first fault. Dropping it ends the work under way.
    pub fn run(self: Arc<Self>, plan: Plan) -> impl Stream<Item = Result<Sent>> + Send {
        let parallelism = usize::try_from(self.parallelism.clamp(1, 32)).unwrap_or(1);
        let jobs = plan.jobs(self.segment_bytes);
        let this = Arc::clone(&self);
        // Memory and core are taken here, in the order of the jobs: a job waits for its index from the one
        // before, which therefore must never wait for memory that a later one holds.
        let work = stream::unfold(jobs, move |mut jobs| {
            let this = Arc::clone(&this);
            async move {
                let memory = this.budget.memory(this.segment_bytes).await?;
                let core = this.budget.core().await?;
                let job = jobs.next()?;
                Some((Work { job, memory, core }, jobs))
            }
        });
        work.map(move |work| AbortOnDropHandle::new(tokio::spawn(Arc::clone(&self).one(work))))
            .buffered(parallelism)
            .map(|done| {
                done.unwrap_or_else(|e| Err(Fault::new(Code::Unknown, format!("transfer ended: {e}"))))
            })
    }

    async fn one(self: Arc<Self>, work: Work) -> Result<Sent> {
        let Work { job, memory, core } = work;
        let (disk, part, up_to) = (job.disk, job.part, job.up_to);
        let this = Arc::clone(&self);
        let begun = Instant::now();
        let encoded = tokio::task::spawn_blocking(move || {
            let encoded = this.encode(job);
            drop(core);
            encoded
        });
        let encoded =
            encoded.await.map_err(|e| Fault::new(Code::Unknown, format!("encoder ended: {e}")))??;
        let Some((index, sealed)) = encoded else {
            return Ok(Sent { disk, part, up_to, entry: None });
        };
        let encode_ms = begun.elapsed().as_millis();
        let hash = Hash(*sealed.blake3.as_bytes());
        let name = names::segment(self.cycle, disk, index, &hash);
        let stored = sealed.bytes.len() as u64;
        let put = store::put_patiently(&*self.store, &name, sealed.bytes, sealed.crc64, self.second).await;
        // A taken name is the hash of these very bytes: it is there already.
        let (Put::Created | Put::Taken) = put.or_fault()?;
        drop(memory);
        self.bytes_sent.fetch_add(stored, Ordering::Relaxed);
        self.crash.pass(CrashPoint::SegmentUploaded);
        let ranges = sealed.ranges.iter().map(|e| (e.offset, e.len)).collect();
        let upload_ms = begun.elapsed().as_millis() - encode_ms;
        tracing::debug!(
            vm.id = %self.vm, disk.id = %disk, cycle = %self.cycle, index,
            disk_bytes = sealed.disk_bytes, stored, encode_ms, upload_ms, "segment is in storage"
        );
        Ok(Sent { disk, part, up_to, entry: Some(SegmentEntry { hash, stored, ranges }) })
    }

    /// Reads and encodes one job. `None` if it holds nothing that must be sent.
    fn encode(&self, job: Job) -> Result<Option<(u32, Sealed)>> {
        let Job { disk, source, ranges, skip_zero, before, after, .. } = job;
        let mut index = Index { before: Some(before), after: Some(after) };
        let mut open: Option<(u32, Encoder)> = None;
        for (offset, len) in ranges {
            source.read(offset, len, &mut |at, bytes| {
                for (at, run) in runs(at, bytes, skip_zero) {
                    let (_, encoder) = match &mut open {
                        Some(open) => open,
                        None => {
                            let index = index.take(1)?;
                            let id = self.segment_id(disk.0, index);
                            let encoder =
                                Encoder::new(id, self.compression, self.segment_bytes).or_fault()?;
                            open.insert((index, encoder))
                        }
                    };
                    encoder.push(at, run).or_fault()?;
                }
                Ok(())
            })?;
        }
        match open {
            Some((index, encoder)) => Ok(Some((index, encoder.finish().or_fault()?))),
            None => index.take(0).map(|_| None),
        }
    }

    fn segment_id(&self, disk: uuid::Uuid, index: u32) -> SegmentId {
        SegmentId {
            vm: self.vm.0,
            disk,
            term: self.cycle.term.0,
            stream: self.cycle.stream.0,
            cycle: self.cycle.cycle.0,
            index,
        }
    }
}

/// The place of a job in the row of its disk's segments.
struct Index {
    before: Option<oneshot::Receiver<u32>>,
    after: Option<oneshot::Sender<u32>>,
}

impl Index {
    /// Waits until the job before knows how many segments there are, and tells the next: this many more.
    fn take(&mut self, more: u32) -> Result<u32> {
        let ended = || Fault::new(Code::Unknown, "the segment before was given up");
        let index = self.before.take().and_then(|before| before.blocking_recv().ok()).ok_or_else(ended)?;
        if let Some(after) = self.after.take() {
            // Nobody waits after the last job.
            let _ = after.send(index.saturating_add(more));
        }
        Ok(index)
    }
}

/// Zeros are looked for in pieces of this size; shorter runs cost a marker in the segment.
const ZERO_PIECE: usize = 64 << 10;

/// The parts of `bytes` to send: all of it, or the runs of pieces that are not zero.
fn runs(offset: u64, bytes: &[u8], skip_zero: bool) -> impl Iterator<Item = (u64, &[u8])> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(from..).filter(|rest| !rest.is_empty())?;
        if !skip_zero {
            from = bytes.len();
            return Some((offset, rest));
        }
        let zeros: usize = rest.chunks(ZERO_PIECE).take_while(|p| is_zero(p)).map(<[u8]>::len).sum();
        let rest = rest.get(zeros..).filter(|rest| !rest.is_empty())?;
        let data: usize = rest.chunks(ZERO_PIECE).take_while(|p| !is_zero(p)).map(<[u8]>::len).sum();
        let at = from + zeros;
        from = at + data;
        Some((offset + at as u64, rest.get(..data)?))
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_le_bytes(*word) == 0) && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests;
