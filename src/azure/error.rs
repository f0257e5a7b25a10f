//! What can go wrong at the blob store, in kinds that the fault catalogue can tell apart.

use std::time::Duration;

use azure_core::{error::ErrorKind, http::headers::Headers};
use jiff::Timestamp;
use thiserror::Error;

use crate::{Credential, transport::TransportFault, wire};

/// A failed operation. `Debug`, `Display` and the source chain hold no secret: there is no source,
/// and URLs are never part of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{operation} of {blob} failed: {kind}{}", suffix(self))]
pub struct BlobError {
    /// What a caller decides by.
    pub kind: BlobErrorKind,
    /// The service's own error code.
    pub code: Option<String>,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What was tried: `put blob`, `acquire lease`.
    pub operation: &'static str,
    /// Container and blob.
    pub blob: String,
    /// The service's id of the request, for a support case.
    pub request_id: Option<Box<str>>,
    /// The cause below HTTP, for a person.
    pub detail: Option<Box<str>>,
}

fn suffix(error: &BlobError) -> String {
    let code = error.code.as_deref().unwrap_or("no code");
    match (error.status, &error.detail) {
        (Some(status), _) => format!(" (HTTP {status}, {code})"),
        (None, Some(detail)) => format!(" ({detail})"),
        (None, None) => String::new(),
    }
}

/// The kinds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BlobErrorKind {
    /// No such blob, container or snapshot.
    #[error("not found")]
    NotFound,
    /// If-Match, If-None-Match or the blob's state said no.
    #[error("its condition is not met")]
    ConditionNotMet,
    /// It is there already.
    #[error("it exists already")]
    AlreadyExists,
    /// Somebody else holds the lease, and we named none.
    #[error("somebody else holds its lease")]
    LeaseHeld,
    /// The lease that we named is not (or no longer) ours.
    #[error("the lease is lost")]
    LeaseLost,
    /// The credential does not allow it.
    #[error("not authorised")]
    NotAuthorized,
    /// The signature is outside its time, or the clocks differ too much.
    #[error("the credential is not valid at this time")]
    CredentialExpired,
    /// A proxy wants a login (R3.3); never retried.
    #[error("a proxy asks for authentication")]
    ProxyAuthRequired,
    /// The service asks for patience.
    #[error("throttled")]
    Throttled {
        /// How long, if it said so.
        retry_after: Option<Duration>,
    },
    /// The service failed.
    #[error("the service failed")]
    Server,
    /// No answer: whether a write landed is unknown.
    #[error("{0}")]
    Network(NetworkFault),
    /// More bytes than the caller or the service allows.
    #[error("too large")]
    TooLarge,
    /// What arrived is not what was sent.
    #[error("the checksum differs")]
    ChecksumMismatch,
    /// An answer or a request that makes no sense.
    #[error("unexpected answer")]
    Protocol,
}

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NetworkFault {
    /// No connection: nothing was sent.
    #[error("no connection")]
    Connect,
    /// The server's certificate is not trusted; nothing was sent.
    #[error("the server's certificate is not trusted")]
    Tls,
    /// The connection ended in the middle.
    #[error("the connection was lost")]
    Reset,
    /// No byte moved for the stall timeout.
    #[error("the connection stalled")]
    Stalled,
}

impl BlobError {
    /// True if the operation may have taken effect although it failed: go and look.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match &self.kind {
            BlobErrorKind::Network(fault) => {
                matches!(fault, NetworkFault::Reset | NetworkFault::Stalled)
            }
            BlobErrorKind::Server => true,
            _ => false,
        }
    }

    pub(crate) fn new(operation: &'static str, blob: &str, kind: BlobErrorKind) -> BlobError {
        BlobError {
            kind,
            code: None,
            status: None,
            operation,
            blob: blob.to_owned(),
            request_id: None,
            detail: None,
        }
    }

    /// From the SDK's error, keeping only what is safe to show.
    pub(crate) fn from_sdk(
        error: &azure_core::Error,
        operation: &'static str,
        blob: &str,
        credential: &Credential,
    ) -> BlobError {
        let mut out = BlobError::new(operation, blob, BlobErrorKind::Protocol);
        if let Some(fault) = transport_fault(error) {
            out.kind = fault.kind.clone();
            out.detail = Some(fault.detail.clone().into());
            return out;
        }
        match error.kind() {
            ErrorKind::HttpResponse { status, error_code, raw_response } => {
                let status = u16::from(*status);
                let none = Headers::new();
                let headers = raw_response.as_ref().map_or(&none, |r| r.headers());
                out.status = Some(status);
                out.code = wire::text(headers, "x-ms-error-code").map(str::to_owned).or(error_code.clone());
                out.request_id = wire::text(headers, "x-ms-request-id").map(Into::into);
                out.kind = kind_of(status, out.code.as_deref().unwrap_or_default(), headers, credential);
            }
            ErrorKind::Credential => {
                out.kind = BlobErrorKind::NotAuthorized;
                out.detail = Some("no token could be had for the identity".into());
            }
            ErrorKind::Connection => out.kind = BlobErrorKind::Network(NetworkFault::Connect),
            ErrorKind::Io => out.kind = BlobErrorKind::Network(NetworkFault::Reset),
            ErrorKind::DataConversion | ErrorKind::Other => {
                out.detail = Some("the answer could not be read".into());
            }
        }
        out
    }
}

/// Our transport's own error, wherever the SDK wrapped it.
fn transport_fault(error: &azure_core::Error) -> Option<&TransportFault> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(fault) = error.downcast_ref::<TransportFault>() {
            return Some(fault);
        }
        source = error.source();
    }
    None
}

/// Shared key requests are refused when the clocks differ by more than this.
const MAX_CLOCK_SKEW_SECONDS: i64 = 15 * 60;

fn kind_of(status: u16, code: &str, headers: &Headers, credential: &Credential) -> BlobErrorKind {
    use BlobErrorKind as K;
    match (status, code) {
        (304 | 412, _) if !code.starts_with("Lease") => K::ConditionNotMet,
        (412, "LeaseIdMissing") => K::LeaseHeld,
        (412, _) => K::LeaseLost,
        (404, _) => K::NotFound,
        (
            409,
            "LeaseAlreadyPresent"
            | "LeaseIsBreakingAndCannotBeAcquired"
            | "LeaseIsBreakingAndCannotBeChanged"
            | "LeaseAlreadyBroken",
        ) => K::LeaseHeld,
        (409, "ContainerBeingDeleted" | "ResourceBeingDeleted") => K::Throttled { retry_after: None },
        (409, "SnapshotsPresent" | "PendingCopyOperation") => K::ConditionNotMet,
        (409, _) if code.starts_with("Lease") => K::LeaseLost,
        (409, _) if code.ends_with("AlreadyExists") => K::AlreadyExists,
        (403, "UnauthorizedBlobOverwrite") => K::AlreadyExists,
        (401 | 403, _) if out_of_time(headers, credential) => K::CredentialExpired,
        (401 | 403, _) => K::NotAuthorized,
        (407, _) => K::ProxyAuthRequired,
        (413, _) => K::TooLarge,
        (429 | 503, _) => K::Throttled { retry_after: retry_after(headers) },
        (400, "Md5Mismatch" | "Crc64Mismatch") => K::ChecksumMismatch,
        (408 | 500..=599, _) => K::Server,
        _ => K::Protocol,
    }
}

/// By the service's own clock, which came with the refusal: is it the time that is wrong?
fn out_of_time(headers: &Headers, credential: &Credential) -> bool {
    let Some(server) = wire::time(headers, "date") else { return false };
    match credential {
        Credential::Sas(sas) => !sas.valid_at(server),
        Credential::SharedKey(_) => {
            (server.as_second() - Timestamp::now().as_second()).abs() > MAX_CLOCK_SKEW_SECONDS
        }
        Credential::Token(_) => false,
    }
}

fn retry_after(headers: &Headers) -> Option<Duration> {
    let millis = |name| wire::text(headers, name)?.parse().ok().map(Duration::from_millis);
    let seconds = || wire::text(headers, "retry-after")?.parse().ok().map(Duration::from_secs);
    millis("x-ms-retry-after-ms").or_else(|| millis("retry-after-ms")).or_else(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sas;

    fn credential() -> Credential {
        Credential::Sas(Sas::new("st=2026-01-01T00:00:00Z&se=2026-01-02T00:00:00Z&sig=x"))
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in pairs {
            headers.insert(*name, *value);
        }
        headers
    }

    #[test]
    fn statuses_and_codes_become_kinds() {
        use BlobErrorKind as K;
        for (status, code, want) in [
            (304, "", K::ConditionNotMet),
            (400, "Crc64Mismatch", K::ChecksumMismatch),
            (400, "Md5Mismatch", K::ChecksumMismatch),
            (400, "InvalidHeaderValue", K::Protocol),
            (403, "AuthorizationPermissionMismatch", K::NotAuthorized),
            (403, "UnauthorizedBlobOverwrite", K::AlreadyExists),
            (404, "BlobNotFound", K::NotFound),
            (404, "ContainerNotFound", K::NotFound),
            (407, "", K::ProxyAuthRequired),
            (409, "BlobAlreadyExists", K::AlreadyExists),
            (409, "ContainerAlreadyExists", K::AlreadyExists),
            (409, "ContainerBeingDeleted", K::Throttled { retry_after: None }),
            (409, "LeaseAlreadyPresent", K::LeaseHeld),
            (409, "LeaseIdMismatchWithLeaseOperation", K::LeaseLost),
            (409, "InvalidBlobType", K::Protocol),
            (412, "ConditionNotMet", K::ConditionNotMet),
            (412, "LeaseIdMissing", K::LeaseHeld),
            (412, "LeaseIdMismatchWithBlobOperation", K::LeaseLost),
            (412, "LeaseNotPresentWithBlobOperation", K::LeaseLost),
            (413, "RequestBodyTooLarge", K::TooLarge),
            (416, "InvalidRange", K::Protocol),
            (500, "OperationTimedOut", K::Server),
            (503, "ServerBusy", K::Throttled { retry_after: None }),
        ] {
            assert_eq!(kind_of(status, code, &Headers::new(), &credential()), want, "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_outside_the_sas_time_is_expiry_by_the_servers_clock() {
        use BlobErrorKind as K;
        for (date, want) in [
            ("Thu, 01 Jan 2026 12:00:00 GMT", K::NotAuthorized),
            ("Fri, 02 Jan 2026 00:00:01 GMT", K::CredentialExpired),
            ("Wed, 31 Dec 2025 23:59:00 GMT", K::CredentialExpired),
        ] {
            let got = kind_of(403, "AuthenticationFailed", &headers(&[("date", date)]), &credential());
            assert_eq!(got, want, "{date}");
        }
    }

    #[test]
    fn the_servers_wish_for_patience_is_kept() {
        let wait = |pairs: &[_]| kind_of(503, "ServerBusy", &headers(pairs), &credential());
        let throttled = |d| BlobErrorKind::Throttled { retry_after: Some(d) };
        assert_eq!(wait(&[("retry-after", "7")]), throttled(Duration::from_secs(7)));
        assert_eq!(wait(&[("x-ms-retry-after-ms", "70")]), throttled(Duration::from_millis(70)));
    }
}
