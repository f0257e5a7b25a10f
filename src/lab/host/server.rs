//! The host's socket: HTTP/1.1, one JSON call per request, answered on the blocking pool.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use farshore_hyperv::{HyperVError, Result, wire};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use super::admin;
use super::console::Host;

/// Longest request: writes of some MiB as base64.
const MAX_BODY: usize = 64 << 20;

/// Serves until SIGTERM or SIGINT, then closes everything cleanly.
pub(super) async fn serve(socket: &Path, host: Arc<Host>) -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    tracing::info!(socket = %socket.display(), "host is up");
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                let host = Arc::clone(&host);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&host), request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                        tracing::debug!(%error, "connection ended");
                    }
                });
            }
        }
    }
    tokio::task::spawn_blocking(move || host.suspend()).await?;
    std::fs::remove_file(socket)?;
    // Calls under way are cut: whoever waits for one asks again.
    std::process::exit(0)
}

async fn answer(
    host: Arc<Host>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match call(host, request).await {
        Ok(value) => (StatusCode::OK, serde_json::to_vec(&value)),
        Err(error) => (StatusCode::CONFLICT, serde_json::to_vec(&error)),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.unwrap_or_default())));
    *response.status_mut() = status;
    Ok(response)
}

async fn call(host: Arc<Host>, request: Request<Incoming>) -> Result<Value> {
    let protocol = |message: String| HyperVError::Protocol { message };
    let path = request.uri().path().to_owned();
    let body =
        Limited::new(request.into_body(), MAX_BODY).collect().await.map_err(|e| protocol(e.to_string()))?;
    let call: Value = serde_json::from_slice(&body.to_bytes()).map_err(|e| protocol(e.to_string()))?;
    let done = tokio::task::spawn_blocking(move || match path.as_str() {
        wire::PATH => host.hyperv(&call),
        admin::PATH => host.admin(&call),
        other => Err(HyperVError::Protocol { message: format!("no such path {other}") }),
    });
    done.await.unwrap_or_else(|e| Err(protocol(format!("call failed: {e}"))))
}
