//! Answers, and the headers that describe a blob.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;

use super::{
    body::Outgoing,
    lease::Lease,
    store::{Copied, Metadata, time_of},
};

/// An answer before it is sent.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: Outgoing,
    /// HEAD: what `content-length` says though no body follows.
    pub(super) promised: Option<u64>,
}

impl Reply {
    pub(super) fn new(status: StatusCode) -> Reply {
        Reply { status, headers: Vec::new(), body: Outgoing::Whole(Bytes::new()), promised: None }
    }

    pub(super) fn xml(text: String) -> Reply {
        let mut reply = Reply::new(StatusCode::OK).with("content-type", "application/xml");
        reply.body = Outgoing::Whole(text.into());
        reply
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((HeaderName::from_static(name), value.into()));
        self
    }

    /// Tag and time of change.
    pub(super) fn tagged(self, tag: u64) -> Reply {
        self.with("etag", etag(tag)).with("last-modified", http_date(time_of(tag)))
    }

    pub(super) fn metadata(mut self, metadata: &Metadata) -> Reply {
        for (name, value) in metadata {
            if let Ok(name) = HeaderName::try_from(format!("x-ms-meta-{name}")) {
                self.headers.push((name, value.clone()));
            }
        }
        self
    }

    pub(super) fn lease(self, lease: &Lease, now: Timestamp) -> Reply {
        let state = lease.state(now);
        let reply = self
            .with("x-ms-lease-state", state.text())
            .with("x-ms-lease-status", if state.locked() { "locked" } else { "unlocked" });
        match state {
            super::lease::LeaseState::Leased => {
                reply.with("x-ms-lease-duration", if lease.is_infinite() { "infinite" } else { "fixed" })
            }
            _ => reply,
        }
    }

    pub(super) fn copied(self, copied: Option<&Copied>) -> Reply {
        let Some(copied) = copied else { return self };
        self.with("x-ms-copy-id", copied.id.clone())
            .with("x-ms-copy-status", "success")
            .with("x-ms-copy-source", copied.source.clone())
            .with("x-ms-copy-progress", format!("{0}/{0}", copied.bytes))
    }
}

/// `"0x8DC..."`
pub(super) fn etag(tag: u64) -> String {
    format!("\"0x{tag:X}\"")
}

/// `Tue, 24 Nov 2026 04:11:29 GMT`
pub(super) fn http_date(time: Timestamp) -> String {
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap_or_default()
}

pub(super) fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_bytes(text.as_bytes()).unwrap_or(HeaderValue::from_static("?"))
}
