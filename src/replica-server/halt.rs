//! Why a step ended before its end, and how storage's errors become faults of the catalogue.

use std::time::Duration;

use farshore_azure::{BlobError, BlobErrorKind};
use farshore_core::fault::{Code, Fault};
use farshore_core::format::FormatError;
use farshore_core::ids::CycleId;
use tokio::time::Instant;

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
/// How long one request may be refused as too fast before the step counts as failed. Much is under way in a
/// step: starting it over because of one slow blob would never end.
const THROTTLED: Duration = Duration::from_secs(60);
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Tries a request that may be repeated again after a passing failure: a lost answer, a failing or a busy
/// server. Waits 0.2, 0.4, 0.8 and 1.6 seconds, or what the server asked for, up to ten. Being told to slow
/// down is no failed attempt.
pub(crate) async fn again<T, F>(mut request: impl FnMut() -> F) -> Result<T, BlobError>
where
    F: Future<Output = Result<T, BlobError>>,
{
    let started = Instant::now();
    let (mut attempt, mut refusals) = (1, 0);
    loop {
        let error = match request().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let wait = match &error.kind {
            BlobErrorKind::Throttled { retry_after } if started.elapsed() < THROTTLED => {
                refusals += 1;
                backoff(refusals).max(retry_after.unwrap_or_default())
            }
            BlobErrorKind::Server | BlobErrorKind::Network(_) | BlobErrorKind::ChecksumMismatch
                if attempt < ATTEMPTS =>
            {
                attempt += 1;
                backoff(attempt - 1)
            }
            _ => return Err(error),
        };
        tracing::debug!(attempt, refusals, error.kind = %error.kind, operation = error.operation, "try again");
        tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
    }
}

/// 0.2, 0.4, 0.8, ... seconds.
fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(100).saturating_mul(1 << attempt.min(16))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use farshore_azure::NetworkFault;

    use super::*;

    fn error(kind: BlobErrorKind) -> BlobError {
        BlobError {
            kind,
            code: None,
            status: None,
            operation: "Put Page",
            blob: "disk".into(),
            request_id: None,
            detail: None,
        }
    }

    async fn attempts_until(kind: BlobErrorKind, give_way_after: u32) -> (u32, bool) {
        let tried = Cell::new(0);
        let done = again(|| {
            tried.set(tried.get() + 1);
            let answer = if tried.get() > give_way_after { Ok(()) } else { Err(error(kind.clone())) };
            async { answer }
        })
        .await;
        (tried.get(), done.is_ok())
    }

    // R9.2
    #[tokio::test(start_paused = true)]
    async fn being_told_to_slow_down_is_no_failed_attempt_but_does_not_last_for_ever() {
        let throttled = BlobErrorKind::Throttled { retry_after: None };
        assert_eq!(attempts_until(throttled.clone(), 8).await, (9, true));
        assert!(!attempts_until(throttled, 1000).await.1);
        let reset = BlobErrorKind::Network(NetworkFault::Reset);
        assert_eq!(attempts_until(reset.clone(), 4).await, (5, true));
        assert_eq!(attempts_until(reset, 5).await, (5, false));
    }
}
