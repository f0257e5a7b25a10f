//! Operations on blobs of either kind.

use std::{fs::File, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{StatusCode, Uri};
use jiff::Timestamp;

use super::{
    auth::Access,
    body::{Failure, Outgoing, Source, blocking},
    containers::found,
    lease::Lease,
    pages::PageStore,
    refusal::{self, Refusal},
    reply::{Reply, etag},
    request::{self, Target},
    server::{Call, Taken},
    store::{Blob, Container, Content, Copied, Metadata, Snapshot, State, time_of},
};

/// A Put Blob may be this long: 5000 MiB.
const MAX_PUT_BLOB: u64 = 5000 << 20;
/// Content headers: as they are set, and as they come back.
const CONTENT: [(&str, &str); 6] = [
    ("x-ms-blob-content-type", "content-type"),
    ("x-ms-blob-content-encoding", "content-encoding"),
    ("x-ms-blob-content-language", "content-language"),
    ("x-ms-blob-content-disposition", "content-disposition"),
    ("x-ms-blob-cache-control", "cache-control"),
    ("x-ms-blob-content-md5", "content-md5"),
];

/// The blob of the URL.
pub(super) fn existing(call: &Call) -> Result<Arc<Blob>, Failure> {
    found(call)?.blob(&call.target.blob).ok_or_else(|| refusal::blob_not_found().into())
}

/// Its present state.
pub(super) fn state_of(blob: &Blob) -> Result<State, Failure> {
    blob.state().clone().ok_or_else(|| refusal::blob_not_found().into())
}

/// A blob or snapshot to be read.
struct Version {
    etag: u64,
    created: u64,
    metadata: Metadata,
    headers: std::collections::BTreeMap<String, String>,
    lease: Option<Lease>,
    copy: Option<Copied>,
    is_page: bool,
    len: u64,
    source: Source,
}

fn version(call: &Call, blob: &Blob) -> Result<Version, Failure> {
    let state = state_of(blob)?;
    let of_block = |number| File::open(blob.block_path(number)).map(|file| Source::Block(Arc::new(file)));
    let Some(id) = call.target.query("snapshot") else {
        let source = match &state.content {
            Content::Block { number } => of_block(*number)?,
            Content::Page { pages, .. } => Source::Pages(Arc::clone(pages), pages.map()),
        };
        return Ok(Version {
            etag: state.etag,
            created: state.created,
            is_page: state.content.is_page(),
            metadata: state.metadata,
            headers: state.headers,
            lease: Some(state.lease),
            copy: state.copy,
            len: state.len,
            source,
        });
    };
    let snapshot = find_snapshot(&state, id).ok_or_else(refusal::blob_not_found)?;
    let source = match (&snapshot.content, snapshot.pages()) {
        (Content::Block { number }, _) => of_block(*number)?,
        (Content::Page { .. }, Some((pages, map))) => Source::Pages(pages, map),
        (Content::Page { .. }, None) => return Err(refusal::blob_not_found().into()),
    };
    Ok(Version {
        etag: snapshot.etag,
        created: state.created,
        is_page: snapshot.content.is_page(),
        metadata: snapshot.metadata.clone(),
        headers: snapshot.headers.clone(),
        lease: None,
        copy: None,
        len: snapshot.len,
        source,
    })
}

pub(super) fn find_snapshot<'a>(state: &'a State, id: &str) -> Option<&'a Snapshot> {
    state.snapshots.iter().find(|snapshot| snapshot.id == id)
}

/// The conditional headers against what is there.
pub(super) fn conditions(call: &Call, tag: Option<u64>, reading: bool) -> Result<(), Refusal> {
    let same = |text: &str, tag: u64| text == "*" || text.trim_matches('"') == etag(tag).trim_matches('"');
    if call.header("if-match").is_some_and(|text| !tag.is_some_and(|tag| same(text, tag))) {
        return Err(refusal::condition_not_met());
    }
    let Some(tag) = tag else { return Ok(()) };
    let date = |name| {
        let text = call.header(name)?;
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Some(date.as_second())
    };
    let modified = time_of(tag).as_second();
    let known = call.header("if-none-match").is_some_and(|text| same(text, tag))
        || date("if-modified-since").is_some_and(|since| modified <= since);
    if known && reading {
        return Err(Refusal::new(304, "ConditionNotMet", ""));
    }
    if known || date("if-unmodified-since").is_some_and(|since| modified > since) {
        return Err(refusal::condition_not_met());
    }
    Ok(())
}

/// May this request put a blob here?
pub(super) fn may_put(call: &Call, state: Option<&State>) -> Result<(), Refusal> {
    let Some(state) = state else { return conditions(call, None, false) };
    let create_only = call.header("if-none-match") == Some("*");
    if !call.access.has('w') {
        return Err(match call.shared.settings().taken {
            Taken::Overwrite => refusal::overwrite_refused(),
            Taken::Conflict => refusal::blob_exists(),
            Taken::Mismatch => refusal::permission_mismatch(),
        });
    }
    if create_only {
        return Err(refusal::blob_exists());
    }
    conditions(call, Some(state.etag), false)?;
    state.lease.admit(call.header("x-ms-lease-id"), call.now)
}

/// May this request change the blob?
pub(super) fn may_change(call: &Call, state: &State) -> Result<(), Refusal> {
    conditions(call, Some(state.etag), false)?;
    state.lease.admit(call.header("x-ms-lease-id"), call.now)
}

fn content_headers(call: &Call) -> std::collections::BTreeMap<String, String> {
    let given =
        CONTENT.iter().filter_map(|(set, get)| Some(((*get).to_owned(), call.header(set)?.to_owned())));
    given.collect()
}

/// A state that replaces another: snapshots and lease stay.
pub(super) fn replaced(call: &Call, old: Option<State>, tag: u64, content: Content, len: u64) -> State {
    let (snapshots, mut lease) = old.map(|old| (old.snapshots, old.lease)).unwrap_or_default();
    lease.written(call.now);
    State {
        etag: tag,
        created: tag,
        metadata: call.metadata(),
        headers: content_headers(call),
        lease,
        content,
        len,
        snapshots,
        copy: None,
    }
}

pub(super) async fn put(call: &mut Call) -> Result<Reply, Failure> {
    let container = found(call)?;
    call.shared.counters.begin_write();
    let tag = call.shared.store.tag();
    if call.shared.null {
        let len: usize = call.body.collect(MAX_PUT_BLOB, &call.headers).await?.iter().map(|f| f.len()).sum();
        call.shared.counters.end_write(false, len as u64);
        return Ok(Reply::new(StatusCode::CREATED).tagged(tag));
    }
    let blob = container.slot(&call.target.blob);
    may_put(call, blob.state().as_ref())?;
    // Nobody else's file has this number, so it may be written before the decision.
    let number = Blob::next_number(blob.state().as_ref(), tag);
    let path = blob.block_path(number);
    let file = {
        // A deletion would take the folder away in between.
        let _gate = blob.gate.read().await;
        std::fs::create_dir_all(&blob.folder)?;
        Arc::new(File::create_new(&path)?)
    };
    let len = match call.body.store(MAX_PUT_BLOB, &call.headers, &file).await {
        Ok(len) => len,
        Err(failure) => {
            let _ = std::fs::remove_file(&path);
            return Err(failure);
        }
    };
    let _gate = blob.gate.write().await;
    let old = blob.state().clone();
    if let Err(refusal) = may_put(call, old.as_ref()) {
        let _ = std::fs::remove_file(&path);
        return Err(refusal.into());
    }
    let tag = call.shared.store.tag();
    blob.commit(replaced(call, old, tag, Content::Block { number }, len))?;
    call.shared.counters.end_write(false, len);
    let reply = Reply::new(StatusCode::CREATED).tagged(tag).with("x-ms-request-server-encrypted", "true");
    Ok(match call.header("x-ms-content-crc64") {
        Some(crc) => {
            let crc = crc.to_owned();
            reply.with("x-ms-content-crc64", crc)
        }
        None => reply,
    })
}

pub(super) async fn get(call: &Call) -> Result<Reply, Failure> {
    /// A range of at most this length may ask for its checksum.
    const CHECKED: u64 = 4 << 20;
    let blob = existing(call)?;
    let _gate = blob.gate.read().await;
    let version = version(call, &blob)?;
    conditions(call, Some(version.etag), true)?;
    let asked = request::range(&call.headers)?;
    let range = match &asked {
        Some(range) if range.start >= version.len => return Err(refusal::invalid_range().into()),
        Some(range) => range.start..range.end.min(version.len),
        None => 0..version.len,
    };
    let mut reply = described(call, &version);
    if asked.is_some() {
        reply.status = StatusCode::PARTIAL_CONTENT;
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, version.len);
        reply = reply.with("content-range", text);
    }
    if call.header("x-ms-range-get-content-crc64") == Some("true") {
        if asked.is_none() || range.end - range.start > CHECKED {
            return Err(refusal::invalid_header("x-ms-range-get-content-crc64").into());
        }
        let (source, range) = (version.source.clone(), range.clone());
        let bytes = blocking(usize::MAX, move || source.bytes(range)).await?;
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes);
        reply = reply.with("x-ms-content-crc64", BASE64_STANDARD.encode(crc.to_le_bytes()));
    }
    reply.body = Outgoing::Read { source: version.source, range };
    Ok(reply)
}

pub(super) fn properties(call: &Call) -> Result<Reply, Failure> {
    let blob = existing(call)?;
    let version = version(call, &blob)?;
    conditions(call, Some(version.etag), true)?;
    let mut reply = described(call, &version);
    reply.promised = Some(version.len);
    Ok(reply)
}

fn described(call: &Call, version: &Version) -> Reply {
    let mut reply = Reply::new(StatusCode::OK)
        .tagged(version.etag)
        .metadata(&version.metadata)
        .copied(version.copy.as_ref())
        .with("x-ms-creation-time", super::reply::http_date(time_of(version.created)))
        .with("x-ms-blob-type", if version.is_page { "PageBlob" } else { "BlockBlob" })
        .with("x-ms-server-encrypted", "true")
        .with("accept-ranges", "bytes");
    if version.is_page {
        reply = reply.with("x-ms-blob-sequence-number", "0");
    }
    if let Some(lease) = &version.lease {
        reply = reply.lease(lease, call.now);
    }
    let stored = |name: &str| version.headers.get(name).cloned();
    for (_, name) in CONTENT {
        if let Some(value) = stored(name) {
            reply = reply.with(name, value);
        }
    }
    if stored("content-type").is_none() {
        reply = reply.with("content-type", "application/octet-stream");
    }
    reply
}

/// Changes a blob's state under its gate.
async fn change(call: &Call, change: impl FnOnce(&mut State) -> Result<(), Failure>) -> Result<u64, Failure> {
    let blob = existing(call)?;
    let _gate = blob.gate.write().await;
    let mut state = state_of(&blob)?;
    may_change(call, &state)?;
    state.etag = call.shared.store.tag();
    state.lease.written(call.now);
    change(&mut state)?;
    let tag = state.etag;
    blob.commit(state)?;
    Ok(tag)
}

pub(super) async fn set_metadata(call: &Call) -> Result<Reply, Failure> {
    let metadata = call.metadata();
    let tag = change(call, |state| {
        state.metadata = metadata;
        Ok(())
    });
    Ok(Reply::new(StatusCode::OK).tagged(tag.await?))
}

pub(super) async fn set_properties(call: &Call) -> Result<Reply, Failure> {
    let len = match call.header("x-ms-blob-content-length") {
        Some(text) => Some(super::pages_ops::blob_len(text)?),
        None => None,
    };
    let tag = change(call, |state| {
        match (len, &state.content) {
            (Some(len), Content::Page { pages, .. }) => {
                if len < state.len {
                    pages.truncate(len, state.etag)?;
                }
                state.len = len;
            }
            (Some(_), Content::Block { .. }) => return Err(refusal::wrong_kind().into()),
            (None, _) => state.headers = content_headers(call),
        }
        Ok(())
    });
    Ok(Reply::new(StatusCode::OK).tagged(tag.await?).with("x-ms-blob-sequence-number", "0"))
}

pub(super) async fn snapshot(call: &Call) -> Result<Reply, Failure> {
    let blob = existing(call)?;
    let _gate = blob.gate.write().await;
    let mut state = state_of(&blob)?;
    conditions(call, Some(state.etag), false)?;
    if let Some(id) = call.header("x-ms-lease-id") {
        state.lease.admit(Some(id), call.now)?;
    }
    let generation = match &state.content {
        Content::Page { pages, .. } => pages.snapshot(state.etag)?,
        Content::Block { .. } => 0,
    };
    let given = call.metadata();
    let id = time_of(call.shared.store.tag()).strftime("%Y-%m-%dT%H:%M:%S%.7fZ").to_string();
    state.snapshots.push(Snapshot {
        id: id.clone(),
        etag: state.etag,
        metadata: if given.is_empty() { state.metadata.clone() } else { given },
        headers: state.headers.clone(),
        content: state.content.clone(),
        len: state.len,
        generation,
    });
    let tag = state.etag;
    blob.commit(state)?;
    Ok(Reply::new(StatusCode::CREATED).tagged(tag).with("x-ms-snapshot", id))
}

pub(super) async fn lease(call: &Call) -> Result<Reply, Failure> {
    let blob = existing(call)?;
    let _gate = blob.gate.write().await;
    let mut state = state_of(&blob)?;
    conditions(call, Some(state.etag), false)?;
    let required = |name: &'static str| call.header(name).ok_or_else(|| refusal::invalid_header(name));
    let (now, lease) = (Timestamp::now(), &mut state.lease);
    let reply = Reply::new(StatusCode::OK).tagged(state.etag);
    let reply = match required("x-ms-lease-action")? {
        "acquire" => {
            let seconds = required("x-ms-lease-duration")?.parse().unwrap_or(0);
            let fresh = uuid::Uuid::new_v4().to_string();
            let proposed = call.header("x-ms-proposed-lease-id").unwrap_or(&fresh);
            lease.acquire(seconds, proposed, now)?;
            let mut reply = reply.with("x-ms-lease-id", proposed);
            reply.status = StatusCode::CREATED;
            reply
        }
        "renew" => {
            let id = required("x-ms-lease-id")?;
            lease.renew(id, now)?;
            reply.with("x-ms-lease-id", id)
        }
        "change" => {
            let proposed = required("x-ms-proposed-lease-id")?;
            lease.change(required("x-ms-lease-id")?, proposed, now)?;
            reply.with("x-ms-lease-id", proposed)
        }
        "release" => {
            lease.release(required("x-ms-lease-id")?)?;
            reply
        }
        "break" => {
            let after = call.header("x-ms-lease-break-period").and_then(|t| t.parse().ok());
            let left = lease.break_after(after, now)?;
            let mut reply = reply.with("x-ms-lease-time", left.to_string());
            reply.status = StatusCode::ACCEPTED;
            reply
        }
        _ => return Err(refusal::invalid_header("x-ms-lease-action").into()),
    };
    blob.commit(state)?;
    Ok(reply)
}

pub(super) async fn delete(call: &Call) -> Result<Reply, Failure> {
    let blob = existing(call)?;
    let _gate = blob.gate.write().await;
    let mut state = state_of(&blob)?;
    let how = call.header("x-ms-delete-snapshots");
    if let Some(id) = call.target.query("snapshot") {
        let before = state.snapshots.len();
        state.snapshots.retain(|snapshot| snapshot.id != id);
        if state.snapshots.len() == before {
            return Err(refusal::blob_not_found().into());
        }
        blob.commit(state)?;
        return Ok(Reply::new(StatusCode::ACCEPTED));
    }
    may_change(call, &state)?;
    match how {
        Some("only") => {
            state.snapshots.clear();
            blob.commit(state)?;
        }
        Some("include") => blob.delete()?,
        None if state.snapshots.is_empty() => blob.delete()?,
        None => return Err(refusal::snapshots_present().into()),
        Some(_) => return Err(refusal::invalid_header("x-ms-delete-snapshots").into()),
    }
    Ok(Reply::new(StatusCode::ACCEPTED))
}

/// Copy Blob within the account; done at once.
pub(super) async fn copy(call: &Call) -> Result<Reply, Failure> {
    let container = found(call)?;
    let text = call.header("x-ms-copy-source").unwrap_or_default().to_owned();
    let (source, from) = copy_source(call, &text)?;
    let from_state = {
        let _gate = from.gate.read().await;
        state_of(&from)?
    };
    let snapshot = source.query("snapshot").map(|id| find_snapshot(&from_state, id).cloned());
    let snapshot = match snapshot {
        Some(None) => return Err(refusal::blob_not_found().into()),
        Some(Some(snapshot)) => Some(snapshot),
        None => None,
    };
    let (content, len) = match &snapshot {
        Some(snapshot) => (snapshot.content.clone(), snapshot.len),
        None => (from_state.content.clone(), from_state.len),
    };
    let slot = container.slot(&call.target.blob);
    let _gate = slot.gate.write().await;
    let old = slot.state().clone();
    may_put(call, old.as_ref())?;
    let tag = call.shared.store.tag();
    let number = Blob::next_number(old.as_ref(), tag);
    let (to, reader) = (Arc::clone(&slot), Arc::clone(&from));
    let content = blocking(usize::MAX, move || {
        std::fs::create_dir_all(&to.folder)?;
        match content {
            Content::Block { number: old } => {
                std::fs::copy(reader.block_path(old), to.block_path(number))?;
                Ok(Content::Block { number })
            }
            Content::Page { pages, .. } => {
                let at_snapshot = snapshot.as_ref().and_then(|s| pages.version(s.generation));
                let map = at_snapshot.unwrap_or_else(|| pages.map());
                let copy = PageStore::create(&to.folder, number)?;
                for range in map.present() {
                    copy_range(&pages, &map, &copy, range, tag)?;
                }
                Ok(Content::Page { number, pages: Arc::new(copy) })
            }
        }
    });
    let content = content.await?;
    let mut state = replaced(call, old, tag, content, len);
    if state.metadata.is_empty() {
        state.metadata = from_state.metadata;
    }
    state.headers = from_state.headers;
    let copied = Copied { id: uuid::Uuid::new_v4().to_string(), source: public(&text), bytes: len };
    state.copy = Some(copied.clone());
    slot.commit(state)?;
    let reply = Reply::new(StatusCode::ACCEPTED).tagged(tag);
    Ok(reply.with("x-ms-copy-id", copied.id).with("x-ms-copy-status", "success"))
}

fn copy_range(
    from: &PageStore,
    map: &super::pagemap::PageMap,
    to: &PageStore,
    range: std::ops::Range<u64>,
    tag: u64,
) -> std::io::Result<()> {
    const PIECE: u64 = 4 << 20;
    let mut at = range.start;
    while at < range.end {
        let end = (at + PIECE).min(range.end);
        to.write(at, &[from.read(map, at..end)?.into()], tag)?;
        at = end;
    }
    Ok(())
}

/// The source's URL, and its blob if this request may read it.
fn copy_source(call: &Call, text: &str) -> Result<(Target, Arc<Blob>), Failure> {
    let odd = || refusal::invalid_header("x-ms-copy-source");
    let uri: Uri = text.parse().map_err(|_| odd())?;
    let account = &call.shared.account;
    let source = Target::parse(&uri, uri.host(), &account.name).ok_or_else(odd)?;
    let readable = match source.query("sig") {
        Some(_) => account.judge_sas(&source, call.shared.now())?.has('r'),
        None => call.access == Access::Owner,
    };
    if !readable {
        return Err(refusal::source_refused().into());
    }
    let container: Option<Arc<Container>> = call.shared.store.container(&source.container);
    let blob = container.and_then(|c| c.blob(&source.blob)).ok_or_else(refusal::blob_not_found)?;
    Ok((source, blob))
}

/// A URL without its signature.
fn public(url: &str) -> String {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    match query.split('&').find(|pair| pair.starts_with("snapshot=")) {
        Some(snapshot) => format!("{path}?{snapshot}"),
        None => path.to_owned(),
    }
}
