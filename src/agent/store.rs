//! The VM's two containers as its host may use them: create in one, read from the other.
//!
//! The SAS come from a Secret that the controller renews. Any 403 makes the agent read the Secret again
//! before the refusal counts (DESIGN 9).

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use farshore_azure::{
    BlobError, BlobErrorKind, BlobService, Container, Credential, Endpoint, Http, PutNew, Sas, crc64,
};
use farshore_core::retry;

/// What a create-only write led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Written by this call.
    Created,
    /// The name is taken.
    Taken,
}

/// Where cycles go and answers come from.
pub trait Store: Send + Sync + 'static {
    /// Writes a new blob in the upload container, never over an old one.
    fn put_new(
        &self,
        name: &str,
        bytes: Bytes,
        crc64: u64,
    ) -> impl Future<Output = Result<Put, BlobError>> + Send;

    /// A blob of the download container; `None` if there is none.
    fn get(&self, name: &str, max: u64) -> impl Future<Output = Result<Option<Bytes>, BlobError>> + Send;

    /// Are there other credentials than when they were last refused?
    fn renewed(&self) -> impl Future<Output = bool> + Send {
        async { false }
    }
}

/// The two signatures, as the Secret holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SasPair {
    /// For the upload container.
    pub up: Sas,
    /// For the download container.
    pub down: Sas,
}

/// Where the signatures come from.
pub trait SasSource: Send + Sync + 'static {
    /// Reads them now; `None` if they are not there or cannot be read, which is logged by the source.
    fn read(&self) -> impl Future<Output = Option<SasPair>> + Send;
}

/// Signatures that never change: benches and tests.
impl SasSource for SasPair {
    async fn read(&self) -> Option<SasPair> {
        Some(self.clone())
    }
}

/// The containers behind signatures that are renewed.
#[derive(Debug)]
pub struct SasStore<C> {
    http: Http,
    endpoint: Endpoint,
    up: String,
    down: String,
    source: C,
    current: Mutex<Option<Current>>,
}

#[derive(Clone, Debug)]
struct Current {
    pair: SasPair,
    up: Container,
    down: Container,
}

impl<C: SasSource> SasStore<C> {
    /// The containers `up` and `down` of the account at `endpoint`.
    pub fn new(http: Http, endpoint: Endpoint, up: &str, down: &str, source: C) -> Self {
        Self { http, endpoint, up: up.into(), down: down.into(), source, current: Mutex::new(None) }
    }

    fn held(&self) -> Option<Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the source has now, if it is not what `known` holds.
    async fn newer(&self, known: Option<&Current>) -> Option<Current> {
        let pair = self.source.read().await?;
        if known.is_some_and(|known| known.pair == pair) {
            return None;
        }
        let service = |sas: &Sas| {
            BlobService::with_http(&self.http, self.endpoint.clone(), Credential::Sas(sas.clone()))
        };
        let fresh = Current {
            up: service(&pair.up).container(&self.up),
            down: service(&pair.down).container(&self.down),
            pair,
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        Some(fresh)
    }

    /// Runs `operation`, and once more with newer signatures if the first are refused.
    async fn with<T, F: Future<Output = Result<T, BlobError>> + Send>(
        &self,
        operation: impl Fn(Current) -> F + Send + Sync,
    ) -> Result<T, BlobError> {
        let current = match self.held() {
            Some(current) => current,
            None => self.newer(None).await.ok_or_else(|| no_sas(&self.up))?,
        };
        let refused = match operation(current.clone()).await {
            Err(e) if matches!(e.kind, BlobErrorKind::NotAuthorized | BlobErrorKind::CredentialExpired) => e,
            other => return other,
        };
        match self.newer(Some(&current)).await {
            Some(fresh) => operation(fresh).await,
            None => Err(refused),
        }
    }
}

impl<C: SasSource> Store for SasStore<C> {
    async fn put_new(&self, name: &str, bytes: Bytes, crc64: u64) -> Result<Put, BlobError> {
        let put = self
            .with(|current| {
                let bytes = bytes.clone();
                async move { current.up.put_new_probing(name, bytes, crc64).await }
            })
            .await?;
        Ok(match put {
            PutNew::Created(_) => Put::Created,
            PutNew::Taken | PutNew::AmbiguousTaken => Put::Taken,
        })
    }

    async fn get(&self, name: &str, max: u64) -> Result<Option<Bytes>, BlobError> {
        let found = self.with(|current| async move { current.down.get(name, max).await }).await?;
        Ok(found.map(|fetched| fetched.bytes))
    }

    async fn renewed(&self) -> bool {
        let held = self.held();
        self.newer(held.as_ref()).await.is_some()
    }
}

/// No Secret yet: the controller hands one out; until then it is as if it had expired.
pub(crate) fn no_sas(container: &str) -> BlobError {
    BlobError {
        kind: BlobErrorKind::CredentialExpired,
        code: None,
        status: None,
        operation: "read of the SAS secret",
        blob: container.to_owned(),
        request_id: None,
        detail: Some("there is none yet".into()),
    }
}

/// Tries in place before a failure counts: most are over after a moment, and a long copy must not start its
/// ladder (R9.2) for each of them.
const TRIES: u32 = 4;

/// [`Store::put_new`], tried again after 1, 2 and 4 seconds if the network or the service failed.
///
/// A write whose answer was lost is found as `Taken` by the next try.
///
/// # Errors
/// As `put_new`, after the last try.
pub async fn put_patiently<S: Store>(
    store: &S,
    name: &str,
    bytes: Bytes,
    crc64: u64,
    second: Duration,
) -> Result<Put, BlobError> {
    let mut tries = 1;
    loop {
        match store.put_new(name, bytes.clone(), crc64).await {
            Err(e) if tries < TRIES && is_passing(&e) => {
                let asked = match &e.kind {
                    BlobErrorKind::Throttled { retry_after } => retry_after.unwrap_or_default(),
                    _ => Duration::ZERO,
                };
                tracing::debug!(blob = %name, error = %e, tries, "upload failed, trying again");
                tokio::time::sleep(retry::interval(tries, second).max(asked)).await;
                tries += 1;
            }
            other => return other,
        }
    }
}

/// [`put_patiently`] for small bytes whose checksum is not known yet.
///
/// # Errors
/// As there.
pub async fn put_small<S: Store>(
    store: &S,
    name: &str,
    bytes: Vec<u8>,
    second: Duration,
) -> Result<Put, BlobError> {
    let crc = crc64(&bytes);
    put_patiently(store, name, bytes.into(), crc, second).await
}

fn is_passing(error: &BlobError) -> bool {
    matches!(
        error.kind,
        BlobErrorKind::Network(_)
            | BlobErrorKind::Server
            | BlobErrorKind::Throttled { .. }
            | BlobErrorKind::ChecksumMismatch
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::VecDeque;

    use super::*;

    pub(crate) fn blob_error(kind: BlobErrorKind) -> BlobError {
        BlobError { kind, operation: "put new", ..no_sas("c") }
    }

    /// Answers from a script.
    struct Script {
        answers: Mutex<VecDeque<Result<Put, BlobError>>>,
        tried: Mutex<usize>,
    }

    impl Store for Script {
        async fn put_new(&self, _: &str, _: Bytes, _: u64) -> Result<Put, BlobError> {
            *self.tried.lock().unwrap() += 1;
            self.answers.lock().unwrap().pop_front().unwrap()
        }

        async fn get(&self, _: &str, _: u64) -> Result<Option<Bytes>, BlobError> {
            Ok(None)
        }
    }

    async fn patiently(answers: Vec<Result<Put, BlobError>>) -> (Result<Put, BlobErrorKind>, usize) {
        let script = Script { answers: Mutex::new(answers.into()), tried: Mutex::new(0) };
        let got = put_small(&script, "a", vec![1], Duration::from_millis(1)).await;
        let tried = *script.tried.lock().unwrap();
        (got.map_err(|e| e.kind), tried)
    }

    #[tokio::test]
    async fn passing_failures_are_tried_again_a_few_times_and_others_are_not() {
        use BlobErrorKind as K;
        let fail = |kind| Err(blob_error(kind));
        let reset = || fail(K::Network(farshore_azure::NetworkFault::Reset));
        assert_eq!(patiently(vec![reset(), fail(K::Server), Ok(Put::Taken)]).await, (Ok(Put::Taken), 3));
        assert_eq!(patiently(vec![fail(K::NotAuthorized)]).await, (Err(K::NotAuthorized), 1));
        let (got, tried) = patiently(vec![reset(), reset(), reset(), reset()]).await;
        assert!(got.is_err() && tried == 4);
    }
}
