//! Why a step ended before its end, and how storage's errors become faults of the catalogue.

use std::time::Duration;

use farshore_azure::{BlobError, BlobErrorKind};
use farshore_core::fault::{Code, Fault};
use farshore_core::format::FormatError;
use farshore_core::ids::CycleId;

/// Why a step ended early.
#[derive(Debug)]
pub(crate) enum Halt {
    /// Something failed: try again on the ladder.
    Fault(Fault),
    /// This cycle cannot be used: note it in the cursor.
    Refused { cycle: CycleId, code: Code, message: String },
    /// Somebody else moved on (cursor, leases): look again.
    Overtaken(&'static str),
    /// Somebody else holds a lease: wait a little.
    Busy,
    /// The process is to end.
    Stopped,
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<BlobError> for Halt {
    fn from(error: BlobError) -> Self {
        match error.kind {
            BlobErrorKind::LeaseHeld => Self::Busy,
            BlobErrorKind::LeaseLost => Self::Overtaken("a lease is lost"),
            _ => Self::Fault(fault(&error)),
        }
    }
}

impl Halt {
    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self::Fault(Fault::new(Code::Unknown, message))
    }
}

/// The catalogue's name for what storage said.
pub(crate) fn fault(error: &BlobError) -> Fault {
    let code = match &error.kind {
        BlobErrorKind::NotFound if error.code.as_deref() == Some("ContainerNotFound") => {
            Code::ContainerMissing
        }
        BlobErrorKind::NotAuthorized => Code::NotAuthorized,
        BlobErrorKind::CredentialExpired => Code::CredentialExpired,
        BlobErrorKind::ProxyAuthRequired => Code::ProxyAuthenticationRequired,
        BlobErrorKind::Throttled { .. } => Code::Throttled,
        BlobErrorKind::Server => Code::StorageUnavailable,
        BlobErrorKind::Network(_) => Code::NetworkError,
        BlobErrorKind::NotFound
        | BlobErrorKind::ConditionNotMet
        | BlobErrorKind::AlreadyExists
        | BlobErrorKind::LeaseHeld
        | BlobErrorKind::LeaseLost
        | BlobErrorKind::TooLarge
        | BlobErrorKind::ChecksumMismatch
        | BlobErrorKind::Protocol => Code::Unknown,
    };
    let mut fault = Fault::new(code, error.to_string());
    if let BlobErrorKind::Throttled { retry_after } = error.kind {
        fault.retry_after_seconds = retry_after.map(|d| d.as_secs());
    }
    fault
}

/// The code under which a record in `-up` is refused.
pub(crate) fn refusal(error: &FormatError) -> Code {
    match error {
        FormatError::TooNew { .. } => Code::UnreadableFormat,
        FormatError::TooLarge { .. } | FormatError::Malformed { .. } | FormatError::Inconsistent { .. } => {
            Code::CorruptCommit
        }
    }
}

/// How often one request is tried before the whole step counts as failed.
const ATTEMPTS: u32 = 5;

/// Tries a request that may be repeated again after a passing failure: a lost answer, a busy or failing
/// server. Waits 0.2, 0.4, 0.8 and 1.6 seconds, or what the server asked for, up to ten.
pub(crate) async fn again<T, F>(mut request: impl FnMut() -> F) -> Result<T, BlobError>
where
    F: Future<Output = Result<T, BlobError>>,
{
    let mut attempt = 1;
    loop {
        let error = match request().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let asked = match &error.kind {
            BlobErrorKind::Throttled { retry_after } => retry_after.unwrap_or_default(),
            BlobErrorKind::Server | BlobErrorKind::Network(_) | BlobErrorKind::ChecksumMismatch => {
                Duration::ZERO
            }
            _ => return Err(error),
        };
        if attempt == ATTEMPTS {
            return Err(error);
        }
        let wait = Duration::from_millis(100 << attempt).max(asked.min(Duration::from_secs(10)));
        tracing::debug!(attempt, error.kind = %error.kind, operation = error.operation, "try again");
        tokio::time::sleep(wait).await;
        attempt += 1;
    }
}
