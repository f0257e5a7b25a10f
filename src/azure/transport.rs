//! The HTTP transport under the SDK's clients.
//!
//! The SDK's own transport would end an upload 60 s after it began however fast it runs, and its
//! errors show signatures. This one has a connect timeout, no read timeout, and a watchdog that
//! ends a request when no byte has moved for a while. It follows no redirects, and it is the only
//! place where a signature or key meets a request; its errors are free of URLs.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use azure_core::{
    error::ErrorKind,
    http::{
        AsyncRawResponse, Body, HttpClient, Method, Request,
        headers::{HeaderName, HeaderValue, Headers},
    },
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use tokio::time::Instant;

use crate::{BlobErrorKind, Credential, NetworkFault, sign, wire};

/// A body goes to the socket in pieces of this size; each piece taken counts as progress.
const PIECE: usize = 64 * 1024;
/// Answers that are buffered whole (lists, errors) may be this long; blob reads have the caller's limit.
const MAX_BUFFERED: u64 = 64 * 1024 * 1024;

/// How connections are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Further trusted certificates (PEM), beside the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Longest time for TCP and TLS together.
    pub connect_timeout: Duration,
    /// Longest time without one byte moving. What the kernel has buffered counts as moved, so
    /// leave a slow link time for about 4 MiB.
    pub stall_timeout: Duration,
    /// A proxy; the environment's (`HTTPS_PROXY`, `NO_PROXY`) are honoured if there is none.
    pub proxy: Option<String>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            ca_bundle: None,
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            proxy: None,
        }
    }
}

/// Why no HTTP client could be made.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The CA bundle cannot be read.
    #[error("the CA bundle {path} cannot be read")]
    CaBundle {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CA bundle holds no certificate that can be used.
    #[error("the CA bundle {0} is not a PEM file of certificates")]
    NotPem(PathBuf),
    /// The proxy's URL cannot be used (not repeated: it may hold a password).
    #[error("the proxy's URL cannot be used")]
    Proxy,
    /// TLS could not be set up.
    #[error("TLS could not be set up: {0}")]
    Tls(String),
}

/// A connection pool, shared by any number of services and credentials. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    stall_timeout: Duration,
}

impl Http {
    /// Makes a pool. Installs `ring` as the process's TLS provider if there is none yet.
    ///
    /// # Errors
    /// The CA bundle, the proxy or the system's certificates cannot be used.
    pub fn new(options: &HttpOptions) -> Result<Http, HttpError> {
        // Loses only against an earlier, equally good choice of the program.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(options.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .tcp_keepalive(Duration::from_secs(30))
            .pool_idle_timeout(Duration::from_secs(60));
        if let Some(path) = &options.ca_bundle {
            let pem =
                std::fs::read(path).map_err(|source| HttpError::CaBundle { path: path.clone(), source })?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(|| HttpError::NotPem(path.clone()))?;
            builder = builder.tls_certs_merge(certificates);
        }
        if let Some(url) = &options.proxy {
            builder = builder.proxy(reqwest::Proxy::all(url).map_err(|_| HttpError::Proxy)?);
        }
        let client = builder.build().map_err(|e| HttpError::Tls(chain(&e.without_url())))?;
        Ok(Http { client, stall_timeout: options.stall_timeout })
    }
}

/// A request that got no usable answer. Our only error type below the SDK.
#[derive(Clone, Debug, Error)]
#[error("{detail}")]
pub(crate) struct TransportFault {
    pub(crate) kind: BlobErrorKind,
    pub(crate) detail: String,
}

impl TransportFault {
    fn network(fault: NetworkFault, detail: impl Into<String>) -> TransportFault {
        TransportFault { kind: BlobErrorKind::Network(fault), detail: detail.into() }
    }

    fn stalled(after: Duration) -> TransportFault {
        TransportFault::network(NetworkFault::Stalled, format!("no byte moved for {after:?}"))
    }

    fn into_sdk(self) -> azure_core::Error {
        azure_core::Error::new(ErrorKind::Io, self)
    }
}

/// The service's clock against ours, from `Date` headers.
#[derive(Debug)]
pub(crate) struct ClockOffset(AtomicI64);

impl ClockOffset {
    const UNKNOWN: i64 = i64::MIN;

    pub(crate) fn unknown() -> Arc<ClockOffset> {
        Arc::new(ClockOffset(AtomicI64::new(Self::UNKNOWN)))
    }

    pub(crate) fn get(&self) -> Option<SignedDuration> {
        let millis = self.0.load(Ordering::Relaxed);
        (millis != Self::UNKNOWN).then(|| SignedDuration::from_millis(millis))
    }

    fn set(&self, headers: &Headers) {
        if let Some(date) = wire::time(headers, "date") {
            // `Date` is cut to the second: on average half a second too old.
            let server = date.as_millisecond() + 500;
            self.0.store(server - Timestamp::now().as_millisecond(), Ordering::Relaxed);
        }
    }
}

/// The SDK's `HttpClient` for one credential.
pub(crate) struct Transport {
    pub(crate) http: Http,
    pub(crate) credential: Credential,
    pub(crate) clock: Arc<ClockOffset>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

/// What the trait's `async fn` stands for.
type Answer<'t> = Pin<Box<dyn Future<Output = azure_core::Result<AsyncRawResponse>> + Send + 't>>;

impl HttpClient for Transport {
    fn execute_request<'a, 'b, 't>(&'a self, request: &'b Request) -> Answer<'t>
    where
        'a: 't,
        'b: 't,
        Self: 't,
    {
        Box::pin(async move { self.execute(request).await.map_err(TransportFault::into_sdk) })
    }
}

impl Transport {
    async fn execute(&self, request: &Request) -> Result<AsyncRawResponse, TransportFault> {
        let stall = self.http.stall_timeout;
        let progress = Arc::new(Progress::new());
        let prepared = self.prepare(request, &progress)?;
        let answer = self.http.client.execute(prepared);
        tokio::pin!(answer);
        let answer = loop {
            tokio::select! {
                answer = &mut answer => break answer,
                () = tokio::time::sleep_until(progress.last() + stall) => {
                    if progress.last() + stall <= Instant::now() {
                        return Err(TransportFault::stalled(stall));
                    }
                }
            }
        };
        let answer = answer.map_err(fault)?;
        let status = answer.status().as_u16();
        let headers = to_headers(answer.headers());
        self.clock.set(&headers);
        let limit = if is_blob_read(request, status) { u64::MAX } else { MAX_BUFFERED };
        let body = body_stream(answer, stall, limit);
        Ok(AsyncRawResponse::new(status.into(), headers, body))
    }

    /// Puts secret and body on the request.
    fn prepare(
        &self,
        request: &Request,
        progress: &Arc<Progress>,
    ) -> Result<reqwest::Request, TransportFault> {
        let broken = |detail: &str| TransportFault {
            kind: BlobErrorKind::Protocol,
            detail: format!("the request cannot be sent: {detail}"),
        };
        let Body::Bytes(body) = request.body() else { return Err(broken("its body is a stream")) };
        let mut url = request.url().clone();
        let mut headers = request.headers().clone();
        let method = reqwest::Method::from_bytes(request.method().as_str().as_bytes())
            .map_err(|_| broken("its method is unknown"))?;
        match &self.credential {
            Credential::Sas(sas) => {
                let query = match url.query() {
                    Some(query) if !query.is_empty() => format!("{query}&{}", sas.expose()),
                    _ => sas.expose().to_owned(),
                };
                url.set_query(Some(&query));
            }
            Credential::SharedKey(key) => {
                headers.insert("x-ms-date", http_date(Timestamp::now()));
                let len = body.len() as u64;
                let value = sign::authorization(key, method.as_str(), &url, &headers, len);
                headers.insert("authorization", value);
            }
            Credential::Token(_) => {} // The SDK's own policy has put the token in.
        }
        let mut out = self.http.client.request(method, url);
        for (name, value) in headers.iter() {
            out = out.header(name.as_str(), value.as_str());
        }
        if !body.is_empty() {
            let body = Upload { rest: body.clone(), progress: Arc::clone(progress) };
            out = out.body(reqwest::Body::wrap(body));
        }
        out.build().map_err(|e| broken(&chain(&e.without_url())))
    }
}

/// A plain read of a blob's bytes: its length is the caller's business.
fn is_blob_read(request: &Request, status: u16) -> bool {
    let ok = matches!(status, 200 | 206) && request.method() == Method::Get;
    ok && !request.url().query_pairs().any(|(name, _)| name == "comp")
}

fn to_headers(map: &reqwest::header::HeaderMap) -> Headers {
    let pairs = map.iter().filter_map(|(name, value)| {
        let value = value.to_str().ok()?;
        Some((HeaderName::from(name.as_str().to_owned()), HeaderValue::from(value.to_owned())))
    });
    Headers::from(pairs.collect::<HashMap<_, _>>())
}

/// `Tue, 24 Nov 2026 04:11:29 GMT`.
fn http_date(now: Timestamp) -> String {
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now).unwrap_or_default()
}

type BodyStream = Pin<Box<dyn futures::Stream<Item = azure_core::Result<Bytes>> + Send>>;

/// The answer's body, watched for stalls and cut off above `limit`.
fn body_stream(answer: reqwest::Response, stall: Duration, limit: u64) -> BodyStream {
    let start = Some((answer, 0_u64));
    Box::pin(futures::stream::unfold(start, move |state| async move {
        let (mut answer, before) = state?;
        let piece = match tokio::time::timeout(stall, answer.chunk()).await {
            Err(_) => Err(TransportFault::stalled(stall)),
            Ok(Err(error)) => Err(fault(error)),
            Ok(Ok(None)) => return None,
            Ok(Ok(Some(piece))) => Ok(piece),
        };
        let total = before + piece.as_ref().map_or(0, |p| p.len() as u64);
        let piece = piece.and_then(|p| if total > limit { Err(too_large(limit)) } else { Ok(p) });
        match piece {
            Ok(piece) => Some((Ok(piece), Some((answer, total)))),
            Err(fault) => Some((Err(fault.into_sdk()), None)),
        }
    }))
}

fn too_large(limit: u64) -> TransportFault {
    TransportFault {
        kind: BlobErrorKind::TooLarge,
        detail: format!("the answer is longer than {limit} bytes"),
    }
}

/// When a byte last moved: milliseconds since the request began.
struct Progress {
    start: Instant,
    last: AtomicU64,
}

impl Progress {
    fn new() -> Progress {
        Progress { start: Instant::now(), last: AtomicU64::new(0) }
    }

    fn mark(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// A body of known length, handed out piece by piece without copying.
struct Upload {
    rest: Bytes,
    progress: Arc<Progress>,
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.progress.mark();
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// Says what kind of loss an error of the HTTP client is, without its URL.
fn fault(error: reqwest::Error) -> TransportFault {
    let error = error.without_url();
    let detail = chain(&error);
    // A proxy that answers CONNECT with 407 is only told apart by this text of hyper-util.
    if detail.contains("proxy authorization required") {
        return TransportFault { kind: BlobErrorKind::ProxyAuthRequired, detail };
    }
    let kind = if is_tls(&error) {
        NetworkFault::Tls
    } else if error.is_connect() {
        NetworkFault::Connect
    } else if error.is_timeout() {
        NetworkFault::Stalled
    } else {
        NetworkFault::Reset
    };
    TransportFault::network(kind, detail)
}

fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    if error.is::<rustls::Error>() {
        return true;
    }
    // An I/O error hides what it wraps from `source`.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref());
    wrapped.is_some_and(|e| is_tls(e)) || error.source().is_some_and(is_tls)
}

/// The messages of an error and its sources; anything that looks like a signature is cut off.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !out.ends_with(&text) {
            out = format!("{out}: {text}");
        }
        source = error.source();
    }
    match out.find("sig=") {
        Some(at) => format!("{}(cut)", out.get(..at).unwrap_or_default()),
        None => out,
    }
}
