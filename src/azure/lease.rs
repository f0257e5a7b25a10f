//! Leases: one writer per blob. A replica server takes the lease of each disk before it reads the
//! cursor, and names it in every write.

use std::time::Duration;

use azure_storage_blob::models as sdk;

use crate::{BlobError, BlobErrorKind, Container, wire};

/// A lease's id: a GUID. Proposed by the holder, so that a lost answer is no loss.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(String);

impl LeaseId {
    /// A new random one.
    #[must_use]
    pub fn random() -> LeaseId {
        LeaseId(uuid::Uuid::new_v4().to_string())
    }

    /// One that was kept somewhere; `None` if it is no GUID.
    #[must_use]
    pub fn parse(text: &str) -> Option<LeaseId> {
        uuid::Uuid::parse_str(text).ok().map(|id| LeaseId(id.to_string()))
    }

    /// The GUID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Container {
    /// Takes a blob's lease for 15 to 60 s, or for ever (`None`). Taking it again under the same
    /// id succeeds and prolongs it, so this may be repeated after a lost answer.
    ///
    /// # Errors
    /// `LeaseHeld` if somebody else has it.
    pub async fn acquire_lease(
        &self,
        name: &str,
        duration: Option<Duration>,
        proposed: &LeaseId,
    ) -> Result<(), BlobError> {
        let seconds = match duration {
            Some(duration) => i32::try_from(duration.as_secs()).unwrap_or(i32::MAX),
            None => -1,
        };
        let options = sdk::BlobClientAcquireLeaseOptions {
            proposed_lease_id: Some(proposed.0.clone()),
            ..Default::default()
        };
        let blob = self.blob(name, &[])?;
        let answer = blob.acquire_lease(seconds, Some(options)).await;
        answer.map(drop).map_err(|e| self.error(&e, "acquire lease", name))
    }

    /// Prolongs a lease by its own duration.
    ///
    /// # Errors
    /// `LeaseLost` if it is somebody else's by now, or was broken.
    pub async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<(), BlobError> {
        let answer = self.blob(name, &[])?.renew_lease(lease.0.clone(), None).await;
        answer.map(drop).map_err(|e| self.error(&e, "renew lease", name))
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// `LeaseLost` if it is not ours any more.
    pub async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<(), BlobError> {
        let answer = self.blob(name, &[])?.release_lease(lease.0.clone(), None).await;
        answer.map(drop).map_err(|e| self.error(&e, "release lease", name))
    }

    /// Ends somebody's lease, at once (`Some(0)`) or when its time is over; says how long that is.
    ///
    /// # Errors
    /// There is no lease, or no right to break it.
    pub async fn break_lease(&self, name: &str, after: Option<Duration>) -> Result<Duration, BlobError> {
        let break_period = after.map(|d| i32::try_from(d.as_secs()).unwrap_or(i32::MAX));
        let options = sdk::BlobClientBreakLeaseOptions { break_period, ..Default::default() };
        let answer = self.blob(name, &[])?.break_lease(Some(options)).await;
        let answer = answer.map_err(|e| self.error(&e, "break lease", name))?;
        let left = wire::text(answer.headers(), "x-ms-lease-time").and_then(|t| t.parse().ok());
        left.map(Duration::from_secs)
            .ok_or_else(|| BlobError::new("break lease", &self.path(name), BlobErrorKind::Protocol))
    }
}
