//! Bodies: what comes in, counted, paced and checked; what goes out, the same, with its faults.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use futures::stream;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use md5::{Digest as _, Md5};

use super::{
    faults::Action,
    pagemap::PageMap,
    pages::{PageStore, index},
    refusal::{self, Refusal},
    server::Shared,
};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A request that is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Answered with an error.
    Refused(Box<Refusal>),
    /// The connection ends without an answer.
    Gone,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(Box::new(refusal))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        refusal::internal(&error).into()
    }
}

/// The body of a request.
pub(super) struct Intake {
    body: Incoming,
    shared: Arc<Shared>,
    /// The connection ends after so many bytes.
    cut: Option<u64>,
    seen: u64,
}

impl Intake {
    pub(super) fn new(body: Incoming, shared: Arc<Shared>, cut: Option<u64>) -> Intake {
        Intake { body, shared, cut, seen: 0 }
    }

    /// The next piece.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(frame) = self.body.frame().await {
            let Ok(data) = frame.map_err(|_| Failure::Gone)?.into_data() else { continue };
            self.shared.inbound.pass(data.len()).await;
            self.seen += data.len() as u64;
            self.shared.counters.change(|stats| stats.bytes_in += data.len() as u64);
            if self.cut.is_some_and(|cut| self.seen >= cut) {
                return Err(Failure::Gone);
            }
            return Ok(Some(data));
        }
        Ok(None)
    }

    /// Reads and forgets the rest, so that the client gets to hear the answer.
    pub(super) async fn drain(&mut self) -> Result<(), Failure> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// All of it, checked; nothing is copied.
    pub(super) async fn collect(&mut self, max: u64, headers: &HeaderMap) -> Result<Vec<Bytes>, Failure> {
        let mut checks = Checks::of(headers)?;
        let (mut frames, mut len) = (Vec::new(), 0);
        while let Some(frame) = self.next().await? {
            len += frame.len() as u64;
            if len > max {
                self.drain().await?;
                return Err(refusal::too_large().into());
            }
            checks.add(&frame);
            frames.push(frame);
        }
        checks.done()?;
        Ok(frames)
    }

    /// All of it into a file; its length.
    pub(super) async fn store(
        &mut self,
        max: u64,
        headers: &HeaderMap,
        file: &Arc<File>,
    ) -> Result<u64, Failure> {
        /// Written at once.
        const BATCH: usize = 1 << 20;
        let mut checks = Checks::of(headers)?;
        let (mut batch, mut waiting, mut len) = (Vec::new(), 0, 0_u64);
        loop {
            let frame = self.next().await?;
            let end = frame.is_none();
            if let Some(frame) = frame {
                checks.add(&frame);
                waiting += frame.len();
                batch.push(frame);
            }
            if len + waiting as u64 > max {
                self.drain().await?;
                return Err(refusal::too_large().into());
            }
            if waiting >= BATCH || end {
                let (frames, file, at) = (std::mem::take(&mut batch), Arc::clone(file), len);
                len += waiting as u64;
                blocking(std::mem::take(&mut waiting), move || write_frames(&file, &frames, at)).await?;
            }
            if end {
                checks.done()?;
                return Ok(len);
            }
        }
    }
}

fn write_frames(file: &File, frames: &[Bytes], mut at: u64) -> io::Result<()> {
    for frame in frames {
        file.write_all_at(frame, at)?;
        at += frame.len() as u64;
    }
    Ok(())
}

/// Little goes straight to the page cache; more goes to a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    const INLINE: usize = 64 * 1024;
    if bytes <= INLINE {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// What the client says its bytes are.
struct Checks {
    crc64: Option<(Vec<u8>, Digest)>,
    md5: Option<(Vec<u8>, Md5)>,
}

impl Checks {
    fn of(headers: &HeaderMap) -> Result<Checks, Refusal> {
        let expected = |name: &str, len: usize| {
            let Some(value) = headers.get(name) else { return Ok(None) };
            let bytes = BASE64_STANDARD.decode(value.as_bytes()).ok().filter(|bytes| bytes.len() == len);
            bytes.map(Some).ok_or_else(|| refusal::invalid_header(name))
        };
        Ok(Checks {
            crc64: expected("x-ms-content-crc64", 8)?
                .map(|want| (want, Digest::new(CrcAlgorithm::Crc64Nvme))),
            md5: expected("content-md5", 16)?.map(|want| (want, Md5::new())),
        })
    }

    fn add(&mut self, frame: &[u8]) {
        if let Some((_, digest)) = &mut self.crc64 {
            digest.update(frame);
        }
        if let Some((_, digest)) = &mut self.md5 {
            digest.update(frame);
        }
    }

    fn done(self) -> Result<(), Refusal> {
        if self.crc64.is_some_and(|(want, digest)| digest.finalize().to_le_bytes() != want.as_slice()) {
            return Err(refusal::crc_mismatch());
        }
        if self.md5.is_some_and(|(want, digest)| digest.finalize().as_slice() != want) {
            return Err(refusal::md5_mismatch());
        }
        Ok(())
    }
}

/// The body of an answer.
pub(super) enum Outgoing {
    /// Made in memory.
    Whole(Bytes),
    /// Read while it is sent.
    Read { source: Source, range: std::ops::Range<u64> },
}

/// Where a blob's bytes are.
#[derive(Clone)]
pub(super) enum Source {
    Block(Arc<File>),
    Pages(Arc<PageStore>, Arc<PageMap>),
}

impl Outgoing {
    pub(super) fn len(&self) -> u64 {
        match self {
            Outgoing::Whole(bytes) => bytes.len() as u64,
            Outgoing::Read { range, .. } => range.end - range.start,
        }
    }

    /// As HTTP, with what a fault makes of it. The length that the headers promise is the
    /// caller's business.
    pub(super) fn send(self, shared: &Arc<Shared>, fault: Option<&Action>) -> Body {
        let plain = matches!(self, Outgoing::Whole(_)) && fault.is_none() && shared.outbound.rate() == 0;
        if let (true, Outgoing::Whole(bytes)) = (plain, &self) {
            shared.counters.change(|stats| stats.bytes_out += bytes.len() as u64);
            return Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync();
        }
        let end = match fault {
            Some(Action::CutDownload(at)) => End::Cut(*at),
            Some(Action::StallDownload(at)) => End::Stall(*at),
            Some(Action::Truncate(at)) => End::Clean(*at),
            _ => End::Clean(self.len()),
        };
        let corrupt = match fault {
            Some(Action::Corrupt(at)) => Some(*at),
            _ => None,
        };
        let sender = Sender { shared: Arc::clone(shared), body: self, at: 0, end, corrupt };
        StreamBody::new(stream::unfold(sender, Sender::next)).boxed_unsync()
    }
}

/// How an answer's body ends.
#[derive(Clone, Copy)]
enum End {
    Clean(u64),
    Cut(u64),
    Stall(u64),
}

struct Sender {
    shared: Arc<Shared>,
    body: Outgoing,
    at: u64,
    end: End,
    corrupt: Option<u64>,
}

impl Sender {
    async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Sender)> {
        /// Read and sent at once: small on a slow link, so that it flows evenly.
        const PIECES: [u64; 2] = [1 << 20, 32 << 10];
        let (End::Clean(limit) | End::Cut(limit) | End::Stall(limit)) = self.end;
        let limit = limit.min(self.body.len());
        if self.at >= limit {
            match self.end {
                End::Clean(_) => return None,
                End::Stall(_) => std::future::pending().await,
                End::Cut(_) => {}
            }
            let cut = io::Error::new(io::ErrorKind::ConnectionAborted, "cut on purpose");
            self.end = End::Clean(0);
            return Some((Err(cut), self));
        }
        let [fast, slow] = PIECES;
        let piece = if self.shared.outbound.rate() == 0 { fast } else { slow };
        let to = (self.at + piece).min(limit);
        let mut bytes = match self.read(to).await {
            Ok(bytes) => bytes,
            Err(error) => return Some((Err(error), self)),
        };
        if let Some(at) = self.corrupt.filter(|at| (self.at..to).contains(at)) {
            let mut changed = bytes.to_vec();
            if let Some(byte) = changed.get_mut(index(at - self.at)) {
                *byte = !*byte;
            }
            bytes = changed.into();
        }
        self.shared.outbound.pass(bytes.len()).await;
        self.shared.counters.change(|stats| stats.bytes_out += bytes.len() as u64);
        self.at = to;
        Some((Ok(Frame::data(bytes)), self))
    }

    async fn read(&self, to: u64) -> io::Result<Bytes> {
        match &self.body {
            Outgoing::Whole(bytes) => Ok(bytes.slice(index(self.at)..index(to))),
            Outgoing::Read { source, range } => {
                let (source, range) = (source.clone(), range.start + self.at..range.start + to);
                let len = index(to - self.at);
                blocking(len, move || source.bytes(range)).await.map(Bytes::from)
            }
        }
    }
}

impl Source {
    pub(super) fn bytes(&self, range: std::ops::Range<u64>) -> io::Result<Vec<u8>> {
        match self {
            Source::Pages(pages, map) => pages.read(map, range),
            Source::Block(file) => {
                let mut out = vec![0; index(range.end - range.start)];
                file.read_exact_at(&mut out, range.start)?;
                Ok(out)
            }
        }
    }
}
