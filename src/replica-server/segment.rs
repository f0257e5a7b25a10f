//! One segment: fetched, checked against its list, decoded.

use bytes::Bytes;
use farshore_azure::BlobErrorKind;
use farshore_core::fault::Code;
use farshore_core::format::list::SegmentEntry;
use farshore_core::ids::{CycleId, DiskId, Hash};
use farshore_core::names;
use farshore_disk::segment::{Decoder, Frame, SegmentError, SegmentId};

use crate::budget::Permit;
use crate::context::Context;
use crate::halt::{Halt, again};
use crate::store::refused;

/// A segment as its list names it, without its ranges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) cycle: CycleId,
    pub(crate) disk: DiskId,
    pub(crate) index: u32,
    pub(crate) hash: Hash,
    pub(crate) stored: u64,
}

impl Source {
    pub(crate) fn new(cycle: CycleId, disk: DiskId, index: u32, entry: &SegmentEntry) -> Self {
        Self { cycle, disk, index, hash: entry.hash, stored: entry.stored }
    }

    pub(crate) fn name(&self) -> String {
        names::segment(self.cycle, self.disk, self.index, &self.hash)
    }

    fn key(&self, ctx: &Context) -> String {
        format!("{}/{}", ctx.vm, self.name())
    }

    fn id(&self, ctx: &Context) -> SegmentId {
        SegmentId {
            vm: ctx.vm.0,
            disk: self.disk.0,
            term: self.cycle.term.0,
            stream: self.cycle.stream.0,
            cycle: self.cycle.cycle.0,
            index: self.index,
        }
    }

    /// What the decoder says: damage, or a version that this reader does not know.
    fn undecodable(&self, error: &SegmentError) -> Halt {
        match error {
            SegmentError::Version { .. } => {
                refused(self.cycle, Code::UnreadableFormat, format!("{}: {error}", self.name()))
            }
            _ => self.corrupt(error),
        }
    }

    pub(crate) fn corrupt(&self, what: impl std::fmt::Display) -> Halt {
        refused(self.cycle, Code::CorruptSegment, format!("{}: {what}", self.name()))
    }
}

/// The stored bytes of a segment, whose hash is right; the permit says that they are counted.
pub(crate) struct Stored {
    pub(crate) source: Source,
    pub(crate) bytes: Bytes,
    pub(crate) permit: Permit,
}

/// From the cache or from storage.
pub(crate) async fn fetch(ctx: &Context, source: Source) -> Result<Stored, Halt> {
    let permit = ctx.budget.segment(source.stored).await;
    if let Some(bytes) = ctx.budget.kept(&source.key(ctx)) {
        return Ok(Stored { source, bytes, permit });
    }
    let name = source.name();
    let fetched = match again(|| ctx.store.up.get(&name, source.stored)).await {
        Ok(Some(fetched)) => fetched,
        Ok(None) => return Err(refused(source.cycle, Code::MissingSegment, format!("{name} is not there"))),
        Err(e) if e.kind == BlobErrorKind::TooLarge => {
            return Err(source.corrupt(format_args!("it is longer than its {} bytes", source.stored)));
        }
        Err(e) => return Err(e.into()),
    };
    let bytes = fetched.bytes;
    if bytes.len() as u64 != source.stored {
        return Err(source.corrupt(format_args!(
            "it has {} bytes, its list says {}",
            bytes.len(),
            source.stored
        )));
    }
    let (bytes, hash) = blocking(move || {
        let hash = Hash::of(&bytes);
        (bytes, hash)
    })
    .await?;
    if hash != source.hash {
        return Err(source.corrupt("its bytes do not hash to what its list says"));
    }
    Ok(Stored { source, bytes, permit })
}

/// Fetches and decodes a segment and compares what it carries with its list. With `keep`, its bytes are kept
/// for the apply that follows.
pub(crate) async fn verify(
    ctx: &Context,
    source: Source,
    entry: SegmentEntry,
    keep: bool,
) -> Result<(), Halt> {
    let stored = fetch(ctx, source).await?;
    let _decoding = ctx.budget.decoder().await;
    let (bytes, id) = (stored.bytes.clone(), source.id(ctx));
    blocking(move || decode(bytes, &source, &id, &entry, |_| Ok(()))).await??;
    if keep {
        ctx.budget.keep(source.key(ctx), stored.bytes);
    }
    Ok(())
}

/// Decodes a segment on this thread, hands every frame to `sink` and compares what it carries with its list.
pub(crate) fn decode(
    bytes: Bytes,
    source: &Source,
    id: &SegmentId,
    entry: &SegmentEntry,
    mut sink: impl FnMut(Frame) -> Result<(), Halt>,
) -> Result<(), Halt> {
    let mut seen = Ranges { listed: entry.ranges.iter(), open: None };
    for frame in Decoder::open(bytes, id).map_err(|e| source.undecodable(&e))? {
        let frame = frame.map_err(|e| source.undecodable(&e))?;
        if !seen.take(frame.offset, frame.len) {
            return Err(
                source.corrupt(format_args!("it carries a range at {} that is not listed", frame.offset))
            );
        }
        sink(frame)?;
    }
    if !seen.done() {
        return Err(source.corrupt("it does not carry all that is listed"));
    }
    Ok(())
}

/// Walks the listed ranges along with the frames, which may cut them into pieces.
struct Ranges<'a> {
    listed: std::slice::Iter<'a, (u64, u64)>,
    /// What is left of the current one.
    open: Option<(u64, u64)>,
}

impl Ranges<'_> {
    fn take(&mut self, offset: u64, len: u64) -> bool {
        let Some((at, left)) = self.open.or_else(|| self.listed.next().copied()) else { return false };
        if at != offset || len > left || len == 0 {
            return false;
        }
        self.open = (left > len).then(|| (at.saturating_add(len), left - len));
        true
    }

    fn done(&mut self) -> bool {
        self.open.is_none() && self.listed.next().is_none()
    }
}

/// The id that the segment must carry.
pub(crate) fn id(ctx: &Context, source: &Source) -> SegmentId {
    source.id(ctx)
}

/// Runs what keeps a core busy away from the reactor.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Halt> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Halt::unknown("decoding ended early"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_must_cut_the_listed_ranges_exactly() {
        let listed = [(0, 1024), (4096, 512)];
        let fits = |frames: &[(u64, u64)]| {
            let mut ranges = Ranges { listed: listed.iter(), open: None };
            frames.iter().all(|&(offset, len)| ranges.take(offset, len)) && ranges.done()
        };
        assert!(fits(&[(0, 1024), (4096, 512)]));
        assert!(fits(&[(0, 512), (512, 512), (4096, 512)]));
        for bad in [
            vec![],
            vec![(0, 1024)],
            vec![(0, 1536), (4096, 512)],
            vec![(0, 512), (1024, 512), (4096, 512)],
            vec![(4096, 512), (0, 1024)],
            vec![(0, 1024), (4096, 512), (8192, 512)],
        ] {
            assert!(!fits(&bad), "{bad:?}");
        }
    }
}
