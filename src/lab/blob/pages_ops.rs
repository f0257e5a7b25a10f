//! Operations on page blobs.

use std::{fmt::Write as _, ops::Range, sync::Arc};

use http::StatusCode;

use super::{
    blobs::{conditions, existing, find_snapshot, may_change, may_put, replaced, state_of},
    body::{Failure, blocking},
    containers::found,
    pagemap::PageMap,
    pages::PageStore,
    refusal::{self, Refusal},
    reply::Reply,
    request,
    server::Call,
    store::{Blob, Content, State},
};

const PAGE: u64 = 512;
const MAX_PUT_PAGE: u64 = 4 << 20;
const MAX_PAGE_BLOB: u64 = 8 << 40;
/// The service's own limit for a list of ranges.
const MOST_RANGES: usize = 10_000;

/// A page blob's length from a header.
pub(super) fn blob_len(text: &str) -> Result<u64, Refusal> {
    let len = text.parse::<u64>().ok().filter(|len| len.is_multiple_of(PAGE) && *len <= MAX_PAGE_BLOB);
    len.ok_or_else(|| refusal::invalid_header("x-ms-blob-content-length"))
}

pub(super) async fn create(call: &Call) -> Result<Reply, Failure> {
    let container = found(call)?;
    let len = blob_len(call.header("x-ms-blob-content-length").unwrap_or_default())?;
    let blob = container.slot(&call.target.blob);
    let _gate = blob.gate.write().await;
    let old = blob.state().clone();
    may_put(call, old.as_ref())?;
    let tag = call.shared.store.tag();
    let number = Blob::next_number(old.as_ref(), tag);
    std::fs::create_dir_all(&blob.folder)?;
    let pages = Arc::new(PageStore::create(&blob.folder, number)?);
    blob.commit(replaced(call, old, tag, Content::Page { number, pages }, len))?;
    Ok(Reply::new(StatusCode::CREATED).tagged(tag).with("x-ms-request-server-encrypted", "true"))
}

fn page_range(call: &Call) -> Result<Range<u64>, Refusal> {
    let range = request::range(&call.headers)?.ok_or_else(|| refusal::invalid_header("Range"))?;
    let whole = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
    if whole { Ok(range) } else { Err(refusal::invalid_page_range()) }
}

fn pages_of(state: &State) -> Result<Arc<PageStore>, Refusal> {
    match &state.content {
        Content::Page { pages, .. } => Ok(Arc::clone(pages)),
        Content::Block { .. } => Err(refusal::wrong_kind()),
    }
}

pub(super) async fn put(call: &mut Call) -> Result<Reply, Failure> {
    let blob = existing(call)?;
    let range = page_range(call)?;
    let len = range.end - range.start;
    if len > MAX_PUT_PAGE {
        return Err(refusal::too_large().into());
    }
    if call.header("content-length").and_then(|t| t.parse().ok()) != Some(len) {
        return Err(refusal::invalid_header("Content-Length").into());
    }
    call.shared.counters.begin_write();
    let frames = call.body.collect(MAX_PUT_PAGE, &call.headers).await?;
    let writing = Writing::begin(call, &blob, &range).await?;
    if !call.shared.null {
        let (pages, tag, start) = (Arc::clone(&writing.pages), writing.tag, range.start);
        blocking(super::pages::index(len), move || pages.write(start, &frames, tag)).await?;
    }
    let tag = writing.end(call, &blob);
    call.shared.counters.end_write(true, len);
    let reply = Reply::new(StatusCode::CREATED).tagged(tag).with("x-ms-blob-sequence-number", "0");
    Ok(match call.header("x-ms-content-crc64") {
        Some(crc) => {
            let crc = crc.to_owned();
            reply.with("x-ms-content-crc64", crc)
        }
        None => reply,
    })
}

pub(super) async fn clear(call: &Call) -> Result<Reply, Failure> {
    let blob = existing(call)?;
    let range = page_range(call)?;
    let writing = Writing::begin(call, &blob, &range).await?;
    if !call.shared.null {
        writing.pages.clear(range, writing.tag)?;
    }
    let tag = writing.end(call, &blob);
    Ok(Reply::new(StatusCode::CREATED).tagged(tag).with("x-ms-blob-sequence-number", "0"))
}

/// A change of pages between its check and its end. Many may be under way at once, unless one has
/// a condition; all else waits for them.
struct Writing<'a> {
    pages: Arc<PageStore>,
    tag: u64,
    _gate: Gate<'a>,
}

#[expect(dead_code, reason = "held, not read")]
enum Gate<'a> {
    Shared(tokio::sync::RwLockReadGuard<'a, ()>),
    Alone(tokio::sync::RwLockWriteGuard<'a, ()>),
}

impl<'a> Writing<'a> {
    async fn begin(call: &Call, blob: &'a Blob, range: &Range<u64>) -> Result<Writing<'a>, Failure> {
        let conditional = ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"];
        let gate = if conditional.iter().any(|name| call.headers.contains_key(*name)) {
            Gate::Alone(blob.gate.write().await)
        } else {
            Gate::Shared(blob.gate.read().await)
        };
        let guard = blob.state();
        let state = guard.as_ref().ok_or_else(refusal::blob_not_found)?;
        may_change(call, state)?;
        if range.end > state.len {
            return Err(refusal::invalid_page_range().into());
        }
        Ok(Writing { pages: pages_of(state)?, tag: call.shared.store.tag(), _gate: gate })
    }

    /// The tag of the blob now; perhaps of a later write.
    fn end(self, call: &Call, blob: &Blob) -> u64 {
        let mut guard = blob.state();
        if let Some(state) = guard.as_mut() {
            state.etag = state.etag.max(self.tag);
            state.lease.written(call.now);
        }
        self.tag
    }
}

/// A list entry; cleared ranges only in differences.
type Entry = (Range<u64>, bool);

pub(super) fn ranges(call: &Call) -> Result<Reply, Failure> {
    let blob = existing(call)?;
    let state = state_of(&blob)?;
    conditions(call, Some(state.etag), true)?;
    let newer = call.target.query("snapshot");
    let (map, len, tag) = match newer.map(|id| find_snapshot(&state, id)) {
        None => (pages_of(&state)?.map(), state.len, state.etag),
        Some(found) => {
            let snapshot = found.ok_or_else(refusal::blob_not_found)?;
            let (_, map) = snapshot.pages().ok_or_else(refusal::wrong_kind)?;
            (map, snapshot.len, snapshot.etag)
        }
    };
    let entries = match call.target.query("prevsnapshot") {
        Some(older) => difference(&state, &map, newer, older)?,
        None => map.present().into_iter().map(|range| (range, true)).collect(),
    };
    let window = request::range(&call.headers)?.unwrap_or(0..u64::MAX);
    let marker = call.target.query("marker").filter(|m| !m.is_empty()).map(str::parse::<u64>);
    let from = marker.transpose().map_err(|_| refusal::invalid_query("marker"))?.unwrap_or(0);
    let most = call.target.query("maxresults").and_then(|t| t.parse().ok()).unwrap_or(MOST_RANGES);
    let window = window.start.max(from)..window.end;
    let cut = |(range, written): Entry| {
        let range = range.start.max(window.start)..range.end.min(window.end);
        (!range.is_empty()).then_some((range, written))
    };
    let mut entries: Vec<Entry> = entries.into_iter().filter_map(cut).collect();
    let next = entries.get(most.clamp(1, MOST_RANGES)).map(|(range, _)| range.start);
    entries.truncate(most.clamp(1, MOST_RANGES));
    Ok(Reply::xml(page_list(&entries, next)).tagged(tag).with("x-ms-blob-content-length", len.to_string()))
}

fn difference(state: &State, map: &PageMap, newer: Option<&str>, older: &str) -> Result<Vec<Entry>, Refusal> {
    let older = find_snapshot(state, older).ok_or_else(refusal::previous_not_found)?;
    let content = match newer.and_then(|id| find_snapshot(state, id)) {
        Some(newer) if newer.id < older.id => return Err(refusal::previous_newer()),
        Some(newer) => &newer.content,
        None => &state.content,
    };
    // The blob was replaced in between: its pages have another history.
    if content.number() != older.content.number() {
        return Err(refusal::previous_not_found());
    }
    let (_, before) = older.pages().ok_or_else(refusal::previous_not_found)?;
    let (written, cleared) = map.since(&before, older.generation);
    let written = written.into_iter().map(|range| (range, true));
    let mut entries: Vec<Entry> = written.chain(cleared.into_iter().map(|range| (range, false))).collect();
    entries.sort_by_key(|(range, _)| range.start);
    Ok(entries)
}

fn page_list(entries: &[Entry], next: Option<u64>) -> String {
    let mut out = "<?xml version=\"1.0\" encoding=\"utf-8\"?><PageList>".to_owned();
    for (range, written) in entries {
        let name = if *written { "PageRange" } else { "ClearRange" };
        let (start, end) = (range.start, range.end - 1);
        let _ = write!(out, "<{name}><Start>{start}</Start><End>{end}</End></{name}>");
    }
    if let Some(next) = next {
        let _ = write!(out, "<NextMarker>{next}</NextMarker>");
    }
    out.push_str("</PageList>");
    out
}
