//! An account behind one credential, and its containers.

use std::{fmt, sync::Arc};

use azure_core::http::{
    ClientOptions, LoggingOptions, RetryOptions, Transport as SdkTransport, Url,
    headers::HeaderValue,
    policies::{Policy, PolicyResult},
};
use azure_storage_blob::{
    BlobClient, BlobClientOptions, BlobContainerClient, BlobContainerClientOptions, BlobServiceClient,
    BlobServiceClientOptions, PageBlobClient, PageBlobClientOptions,
};
use jiff::SignedDuration;

use crate::{
    BlobError, BlobErrorKind, Credential, Endpoint, Http, HttpError, HttpOptions, LeaseId, TokenCredential,
    transport::{ClockOffset, Transport},
};

/// One storage account, one credential. Cheap to clone.
#[derive(Clone)]
pub struct BlobService(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    credential: Credential,
    clock: Arc<ClockOffset>,
    options: ClientOptions,
}

impl fmt::Debug for BlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobService({}, {:?})", self.0.endpoint.as_str(), self.0.credential)
    }
}

impl BlobService {
    /// With a connection pool of its own.
    ///
    /// # Errors
    /// The options cannot be used (CA bundle, proxy).
    pub fn new(
        endpoint: Endpoint,
        credential: Credential,
        options: &HttpOptions,
    ) -> Result<BlobService, HttpError> {
        Ok(BlobService::with_http(&Http::new(options)?, endpoint, credential))
    }

    /// On a shared connection pool: for a new SAS, or many accounts.
    #[must_use]
    pub fn with_http(http: &Http, endpoint: Endpoint, credential: Credential) -> BlobService {
        let clock = ClockOffset::unknown();
        let transport =
            Transport { http: http.clone(), credential: credential.clone(), clock: Arc::clone(&clock) };
        let options = ClientOptions {
            per_call_policies: vec![Arc::new(ExtraHeaders)],
            retry: RetryOptions::none(),
            transport: Some(SdkTransport::new(Arc::new(transport))),
            logging: LoggingOptions::default(),
            ..Default::default()
        };
        BlobService(Arc::new(Inner { endpoint, credential, clock, options }))
    }

    /// A container, existing or not.
    #[must_use]
    pub fn container(&self, name: &str) -> Container {
        Container { service: self.clone(), name: name.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// The service's clock minus ours, from the last answer's `Date`; right to about a second.
    #[must_use]
    pub fn server_time_offset(&self) -> Option<SignedDuration> {
        self.0.clock.get()
    }

    /// The credential that the SDK applies itself.
    fn token(&self) -> Option<Arc<dyn TokenCredential>> {
        match &self.0.credential {
            Credential::Token(token) => Some(Arc::clone(token)),
            Credential::Sas(_) | Credential::SharedKey(_) => None,
        }
    }

    pub(crate) fn client(&self, operation: &'static str) -> Result<BlobServiceClient, BlobError> {
        let options =
            BlobServiceClientOptions { client_options: self.0.options.clone(), ..Default::default() };
        BlobServiceClient::new(self.0.endpoint.join(&[]), self.token(), Some(options))
            .map_err(|_| unusable(operation, self.0.endpoint.as_str()))
    }

    pub(crate) fn error(&self, error: &azure_core::Error, operation: &'static str, what: &str) -> BlobError {
        BlobError::from_sdk(error, operation, what, &self.0.credential)
    }
}

/// The SDK refuses a URL only when a token would travel over http.
fn unusable(operation: &'static str, what: &str) -> BlobError {
    let mut error = BlobError::new(operation, what, BlobErrorKind::Protocol);
    error.detail = Some("an identity's token may only travel over https".into());
    error
}

/// One container of one account. Cheap to clone.
#[derive(Clone)]
pub struct Container {
    service: BlobService,
    name: Arc<str>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Container({} of {:?})", self.name, self.service)
    }
}

impl Container {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its account.
    #[must_use]
    pub fn service(&self) -> &BlobService {
        &self.service
    }

    /// Container and blob, for messages.
    pub(crate) fn path(&self, blob: &str) -> String {
        if blob.is_empty() { self.name.to_string() } else { format!("{}/{blob}", self.name) }
    }

    pub(crate) fn error(&self, error: &azure_core::Error, operation: &'static str, blob: &str) -> BlobError {
        self.service.error(error, operation, &self.path(blob))
    }

    pub(crate) fn client(&self) -> Result<BlobContainerClient, BlobError> {
        let inner = &self.service.0;
        let options =
            BlobContainerClientOptions { client_options: inner.options.clone(), ..Default::default() };
        let url = inner.endpoint.join(&[&self.name]);
        BlobContainerClient::new(url, self.service.token(), Some(options))
            .map_err(|_| unusable("open", &self.name))
    }

    /// A client of one blob; `query` reaches operations that the SDK lacks (a client keeps it).
    pub(crate) fn blob(&self, name: &str, query: &[(&str, &str)]) -> Result<BlobClient, BlobError> {
        let options =
            BlobClientOptions { client_options: self.service.0.options.clone(), ..Default::default() };
        BlobClient::new(self.url(name, query), self.service.token(), Some(options))
            .map_err(|_| unusable("open", &self.path(name)))
    }

    pub(crate) fn page_blob(&self, name: &str, query: &[(&str, &str)]) -> Result<PageBlobClient, BlobError> {
        let options =
            PageBlobClientOptions { client_options: self.service.0.options.clone(), ..Default::default() };
        PageBlobClient::new(self.url(name, query), self.service.token(), Some(options))
            .map_err(|_| unusable("open", &self.path(name)))
    }

    fn url(&self, name: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.service.0.endpoint.join(&[&self.name, name]);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }
}

/// Headers that an operation needs and the SDK's options lack; handed over in the call's context.
#[derive(Clone, Debug)]
pub(crate) struct Extra(pub(crate) Vec<(&'static str, String)>);

/// Puts [`Extra`] headers on the request.
#[derive(Debug)]
struct ExtraHeaders;

type Sent<'t> = std::pin::Pin<Box<dyn Future<Output = PolicyResult> + Send + 't>>;

impl Policy for ExtraHeaders {
    fn send<'a, 'b, 'd, 'e, 't>(
        &'a self,
        ctx: &'b azure_core::http::Context<'_>,
        request: &'d mut azure_core::http::Request,
        next: &'e [Arc<dyn Policy>],
    ) -> Sent<'t>
    where
        'a: 't,
        'b: 't,
        'd: 't,
        'e: 't,
        Self: 't,
    {
        Box::pin(async move {
            if let Some(Extra(headers)) = ctx.value::<Extra>() {
                for (name, value) in headers {
                    request.insert_header(*name, HeaderValue::from(value.clone()));
                }
            }
            match next.split_first() {
                Some((first, rest)) => first.send(ctx, request, rest).await,
                None => unreachable!("the transport is always the last policy"),
            }
        })
    }
}

/// For the SDK's option structs.
pub(crate) fn lease_text(lease: Option<&LeaseId>) -> Option<String> {
    lease.map(|lease| lease.as_str().to_owned())
}
