//! `/_admin/...`: faults, settings and statistics while it runs, as JSON. No authorization: the
//! double listens on loopback.
//!
//! ```text
//! GET    /_admin/stats        POST /_admin/stats/reset
//! GET    /_admin/faults       POST /_admin/faults  {match, skip, count, action}   DELETE /_admin/faults
//! GET    /_admin/settings     PUT  /_admin/settings  {latencyMs, bandwidthMbit, ...}
//! ```

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::{Serialize, de::DeserializeOwned};

use super::{body::Body, faults::Fault, server::Shared};

pub(super) async fn serve(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    body: Incoming,
) -> Response<Body> {
    const MAX_BODY: usize = 64 * 1024;
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return answer(StatusCode::BAD_REQUEST, &"the body cannot be read");
    };
    let body = body.to_bytes();
    match (method.as_str(), path) {
        ("GET", "stats") => answer(StatusCode::OK, &shared.counters.snapshot()),
        ("POST", "stats/reset") => {
            shared.counters.reset();
            answer(StatusCode::OK, &())
        }
        ("GET", "faults") => answer(StatusCode::OK, &shared.faults.all()),
        ("POST", "faults") => with::<Fault>(&body, |fault| answer(StatusCode::OK, &shared.faults.add(fault))),
        ("DELETE", "faults") => {
            shared.faults.clear();
            answer(StatusCode::OK, &())
        }
        ("GET", "settings") => answer(StatusCode::OK, &shared.settings()),
        ("PUT", "settings") => with(&body, |settings| {
            shared.set(settings);
            answer(StatusCode::OK, &())
        }),
        _ => answer(StatusCode::NOT_FOUND, &"no such path"),
    }
}

fn with<T: DeserializeOwned>(body: &Bytes, then: impl FnOnce(T) -> Response<Body>) -> Response<Body> {
    match serde_json::from_slice(body) {
        Ok(value) => then(value),
        Err(error) => answer(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn answer(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
