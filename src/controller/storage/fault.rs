//! What a failed storage or API call means, in codes of the catalogue.

use farshore_azure::{BlobError, BlobErrorKind};
use farshore_core::fault::{Code, Fault};

/// A failed storage call. The message holds operation, container and the service's code, never a secret.
pub fn of_blob(error: &BlobError) -> Fault {
    let code = match &error.kind {
        BlobErrorKind::NotAuthorized => Code::NotAuthorized,
        BlobErrorKind::CredentialExpired => Code::CredentialExpired,
        BlobErrorKind::ProxyAuthRequired => Code::ProxyAuthenticationRequired,
        BlobErrorKind::Throttled { .. } => Code::Throttled,
        BlobErrorKind::Server => Code::StorageUnavailable,
        BlobErrorKind::Network(_) | BlobErrorKind::ChecksumMismatch => Code::NetworkError,
        BlobErrorKind::NotFound => Code::ContainerMissing,
        BlobErrorKind::ConditionNotMet
        | BlobErrorKind::AlreadyExists
        | BlobErrorKind::LeaseHeld
        | BlobErrorKind::LeaseLost
        | BlobErrorKind::TooLarge
        | BlobErrorKind::Protocol => Code::Unknown,
    };
    let retry_after_seconds = match &error.kind {
        BlobErrorKind::Throttled { retry_after } => retry_after.map(|d| d.as_secs()),
        _ => None,
    };
    Fault { code, message: error.to_string(), retry_after_seconds }
}
