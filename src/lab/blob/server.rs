//! One request from its head to its answer: faults, limits, authorization, operation.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};

use super::{
    admin,
    auth::{Access, Account, Asked},
    blobs,
    body::{Body, Failure, Intake, Outgoing},
    containers,
    faults::{Action, Faults},
    pages_ops,
    refusal::{self, Refusal},
    reply::{Reply, header_value, http_date},
    request::{Operation, Target},
    stats::Counters,
    store::Store,
    throttle::{Bandwidth, BlobLimit, BlobLimits},
};

/// What all connections share.
pub(super) struct Shared {
    pub(super) account: Account,
    pub(super) store: Store,
    pub(super) null: bool,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    pub(super) inbound: Bandwidth,
    pub(super) outbound: Bandwidth,
    pub(super) blob_limits: BlobLimits,
    pub(super) settings: Mutex<Settings>,
    pub(super) requests: AtomicU64,
}

/// What may be changed while it runs, at `/_admin/settings`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Settings {
    /// Milliseconds before each request is looked at.
    pub latency_ms: u64,
    /// Megabits a second, each way; 0: no limit.
    pub bandwidth_mbit: u64,
    /// Seconds by which its clock is fast.
    pub clock_skew_seconds: i64,
    /// What one blob may do in a second.
    pub per_blob: Option<BlobLimit>,
    /// What a create-only SAS gets for a name that is taken.
    pub taken: Taken,
}

/// Answers to a create-only SAS for a name that is taken; services differ.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "camelCase")]
pub enum Taken {
    /// 403 UnauthorizedBlobOverwrite.
    #[default]
    Overwrite,
    /// 409 BlobAlreadyExists.
    Conflict,
    /// 403 AuthorizationPermissionMismatch, as Azurite.
    Mismatch,
}

impl Shared {
    pub(super) fn settings(&self) -> Settings {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, settings: Settings) {
        let rate = settings.bandwidth_mbit * 1_000_000 / 8;
        self.inbound.set(rate);
        self.outbound.set(rate);
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Its clock.
    pub(super) fn now(&self) -> Timestamp {
        let skew = SignedDuration::from_secs(self.settings().clock_skew_seconds);
        Timestamp::now().checked_add(skew).unwrap_or_else(|_| Timestamp::now())
    }
}

/// A request that is allowed, for the operations.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
    pub(super) access: Access,
    pub(super) body: Intake,
    /// The true time, for leases.
    pub(super) now: Timestamp,
}

impl Call {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Headers `x-ms-meta-*`.
    pub(super) fn metadata(&self) -> super::store::Metadata {
        let pairs = self.headers.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-ms-meta-")?;
            Some((name.to_owned(), value.to_str().ok()?.to_owned()))
        });
        pairs.collect()
    }
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("dropped on purpose, or the client is gone")]
pub(super) struct Dropped;

/// Serves one request.
pub(super) async fn serve(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Dropped> {
    let (head, body) = request.into_parts();
    if let Some(path) = head.uri.path().strip_prefix("/_admin/") {
        return Ok(admin::serve(&shared, &head.method, path, body).await);
    }
    let host = head.headers.get("host").and_then(|v| v.to_str().ok()).or(head.uri.host());
    let target = Target::parse(&head.uri, host, &shared.account.name);
    let operation = target.as_ref().map(|target| Operation::of(&head.method, target, &head.headers));
    let known = operation.as_ref().and_then(|o| o.as_ref().ok()).copied();
    let name = known.map_or_else(|| "Unknown".to_owned(), |o| format!("{o:?}"));
    shared.counters.change(|stats| *stats.requests.entry(name).or_default() += 1);

    let path = target.as_ref().map(Target::path).unwrap_or_default();
    let comp = target.as_ref().and_then(|t| t.query("comp")).unwrap_or_default();
    let fault = shared.faults.take(head.method.as_str(), known, comp, &path);
    wait(&shared, fault.as_ref()).await;
    let cut = match fault {
        Some(Action::CutUpload(at)) => Some(at),
        _ => None,
    };
    let mut body = Intake::new(body, Arc::clone(&shared), cut);
    let result = match (before(&fault), operation.zip(target)) {
        (Some(refusal), _) => {
            // A refused body is read all the same, or the client might not hear why.
            body.drain().await.map_err(|_| Dropped)?;
            Err(refusal.into())
        }
        (None, Some((Ok(operation), target))) => {
            let asked = Head { method: &head.method, uri: &head.uri, headers: &head.headers };
            admitted(&shared, asked, operation, target, body).await
        }
        (None, other) => {
            body.drain().await.map_err(|_| Dropped)?;
            let unknown = || refusal::invalid_query("account");
            Err(other.map_or_else(unknown, |(o, _)| o.err().unwrap_or_else(unknown)).into())
        }
    };
    if matches!(fault, Some(Action::DropBefore | Action::DropAfter)) {
        return Err(Dropped);
    }
    if matches!(fault, Some(Action::StallAnswer)) {
        std::future::pending::<()>().await;
    }
    let reply = match result {
        Ok(reply) => reply,
        Err(Failure::Refused(refusal)) => refused(&refusal, &head.method),
        Err(Failure::Gone) => return Err(Dropped),
    };
    Ok(finish(&shared, &head.headers, &head.method, reply, fault.as_ref()))
}

async fn wait(shared: &Shared, fault: Option<&Action>) {
    let mut millis = shared.settings().latency_ms;
    match fault {
        Some(Action::Delay(more)) => millis += more,
        Some(Action::StallUpload) => std::future::pending().await,
        _ => {}
    }
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

/// A fault that takes the place of the operation.
fn before(fault: &Option<Action>) -> Option<Refusal> {
    match fault {
        Some(Action::Status { status, code, retry_after }) => {
            let mut refusal = Refusal::new(*status, code.clone(), "refused on purpose");
            if let Some(seconds) = retry_after {
                refusal.headers.push((http::header::RETRY_AFTER, seconds.to_string()));
            }
            Some(refusal)
        }
        Some(Action::DropBefore) => Some(refusal::busy()),
        _ => None,
    }
}

struct Head<'a> {
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
}

async fn admitted(
    shared: &Arc<Shared>,
    head: Head<'_>,
    operation: Operation,
    target: Target,
    body: Intake,
) -> Result<Reply, Failure> {
    let Head { method, uri, headers } = head;
    let asked = Asked { method, uri, headers, target: &target, operation, now: shared.now() };
    let access = match (limited(shared, operation, &target, headers), shared.account.judge(&asked)) {
        (false, judged) => judged,
        (true, _) => Err(refusal::busy()),
    };
    let mut body = body;
    let access = match access {
        Ok(access) => access,
        Err(refusal) => {
            body.drain().await?;
            return Err(refusal.into());
        }
    };
    let now = Timestamp::now();
    let mut call = Call { shared: Arc::clone(shared), target, headers: headers.clone(), access, body, now };
    let result = perform(&mut call, operation).await;
    if matches!(result, Err(Failure::Refused(_))) {
        call.body.drain().await?;
    }
    result
}

/// Above its blob's own limits?
fn limited(shared: &Shared, operation: Operation, target: &Target, headers: &HeaderMap) -> bool {
    let Some(limit) = shared.settings().per_blob.filter(|_| operation.is_blob()) else { return false };
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let bytes = text("content-length").and_then(|t| t.parse().ok()).unwrap_or(0);
    !shared.blob_limits.admit(limit, &target.path(), bytes, tokio::time::Instant::now())
}

async fn perform(call: &mut Call, operation: Operation) -> Result<Reply, Failure> {
    use Operation as O;
    match operation {
        O::ServiceProperties => Ok(containers::service_properties()),
        O::ListContainers => Ok(containers::list(call)),
        O::CreateContainer => containers::create(call),
        O::ContainerProperties => containers::properties(call),
        O::SetContainerMetadata => containers::set_metadata(call),
        O::DeleteContainer => containers::delete(call),
        O::ListBlobs => super::list::blobs(call),
        O::PutBlob => blobs::put(call).await,
        O::CopyBlob => blobs::copy(call).await,
        O::GetBlob => blobs::get(call).await,
        O::BlobProperties => blobs::properties(call),
        O::SetBlobMetadata => blobs::set_metadata(call).await,
        O::SetBlobProperties => blobs::set_properties(call).await,
        O::SnapshotBlob => blobs::snapshot(call).await,
        O::LeaseBlob => blobs::lease(call).await,
        O::DeleteBlob => blobs::delete(call).await,
        O::CreatePageBlob => pages_ops::create(call).await,
        O::PutPage => pages_ops::put(call).await,
        O::ClearPages => pages_ops::clear(call).await,
        O::PageRanges => pages_ops::ranges(call),
    }
}

fn refused(refusal: &Refusal, method: &Method) -> Reply {
    let mut reply = Reply::new(refusal.status).with("x-ms-error-code", refusal.code.clone());
    reply.headers.extend(refusal.headers.iter().cloned());
    if method != Method::HEAD && refusal.status != http::StatusCode::NOT_MODIFIED {
        reply = reply.with("content-type", "application/xml");
        reply.body = Outgoing::Whole(refusal.xml().into());
    }
    reply
}

fn finish(
    shared: &Arc<Shared>,
    asked: &HeaderMap,
    method: &Method,
    reply: Reply,
    fault: Option<&Action>,
) -> Response<Body> {
    let mut len = reply.promised.unwrap_or_else(|| reply.body.len());
    if let Some(Action::Truncate(at)) = fault {
        len = len.min(*at);
    }
    let status = reply.status;
    shared.counters.change(|stats| *stats.statuses.entry(status.as_u16()).or_default() += 1);
    let body = if method == Method::HEAD { Outgoing::Whole(bytes::Bytes::new()) } else { reply.body };
    let mut response = Response::new(body.send(shared, fault));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in reply.headers {
        headers.append(name, header_value(&value));
    }
    let number = shared.requests.fetch_add(1, Ordering::Relaxed);
    for (name, value) in [
        ("date", http_date(shared.now())),
        ("server", "farshore-lab".to_owned()),
        ("x-ms-request-id", format!("fa25504e-0000-4000-8000-{number:012x}")),
        ("x-ms-version", "2026-04-06".to_owned()),
    ] {
        headers.insert(name, header_value(&value));
    }
    if status != http::StatusCode::NOT_MODIFIED {
        headers.insert("content-length", len.into());
    }
    if let Some(id) = asked.get("x-ms-client-request-id") {
        headers.insert("x-ms-client-request-id", id.clone());
    }
    response
}
