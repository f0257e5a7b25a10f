//! The blob store: what Farshore needs of Azure Storage, and nothing of the SDK's types.
//!
//! A [`BlobService`] is one account behind one credential; a [`Container`] is one container of it.
//! Both are cheap clones. Nothing here retries: callers own the retry schedule, because only they
//! know what a lost answer of a conditional write means. Every error is a [`BlobError`], typed so
//! that it can be mapped to the fault catalogue, and free of signatures and tokens.
//!
//! Secrets meet the request in the last step, the transport, so no SDK object, log line or error
//! can ever show them.

mod block;
pub mod clouds;
mod container;
mod credential;
mod endpoint;
mod error;
mod lease;
mod page;
pub mod sas;
mod service;
mod sign;
mod transport;
mod wire;

pub use block::{Condition, Fetched, GetIfChanged, MAX_PUT_BLOB, PutNew, crc64};
pub use clouds::Cloud;
pub use container::{Create, Include, Listed, ListedPage};
pub use credential::{Credential, Sas, SharedKey, TokenCredential};
pub use endpoint::{Endpoint, EndpointError};
pub use error::{BlobError, BlobErrorKind, NetworkFault};
pub use lease::LeaseId;
pub use page::{MAX_PAGE_BLOB, MAX_PUT_PAGES, NewPageBlob, PAGE, PageDiff};
pub use service::{BlobService, Container};
pub use transport::{Http, HttpError, HttpOptions};
pub use wire::{BlobKind, BlobProperties, ETag, LeaseState, Metadata};

#[cfg(test)]
mod tests;
