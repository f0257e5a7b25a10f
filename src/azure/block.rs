//! Block blobs, each written by one Put Blob: segments, commit records, ledgers, cursors.

use std::num::NonZero;

use azure_core::http::{ClientMethodOptions, Context, Etag, headers::Headers};
use azure_storage_blob::models as sdk;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use jiff::Timestamp;

use crate::{
    BlobError, BlobErrorKind, BlobProperties, Container, ETag, LeaseId, Metadata,
    container::absent,
    service::{Extra, lease_text},
    wire,
};

/// The service takes a Put Blob of up to 5000 MiB; ours are far smaller.
pub const MAX_PUT_BLOB: usize = 256 * 1024 * 1024;

/// CRC-64/NVME, as the service checks it in `x-ms-content-crc64`.
#[must_use]
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// What a create-only write led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutNew {
    /// Written by this call.
    Created(ETag),
    /// The name is taken: by an earlier try of ours whose answer was lost, or by another writer.
    Taken,
    /// Taken, or the SAS allows nothing at all: a create-only SAS gets the same 403 from some
    /// services. [`Container::put_new_probing`] tells the two apart.
    AmbiguousTaken,
}

/// When a write may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Only over this version.
    IfMatch(ETag),
    /// Only if there is no blob of that name.
    IfNoneMatchAny,
    /// Always.
    None,
}

/// A blob's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Content, or the part that was asked for.
    pub bytes: Bytes,
    /// Version that was read.
    pub etag: ETag,
    /// Metadata of the blob.
    pub metadata: Metadata,
    /// The service's clock when it answered.
    pub date: Option<Timestamp>,
}

/// A blob against the version that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetIfChanged {
    /// It is still that version.
    Unchanged,
    /// It is another.
    Changed(Fetched),
    /// It is gone.
    Missing,
}

impl Container {
    /// Writes a new blob in one request that a create-only SAS may make, never over an old one.
    /// The service checks the bytes against `crc64`, which the caller made when it made the bytes.
    ///
    /// # Errors
    /// Anything but a taken name. After `outcome_unknown` the call may simply be repeated.
    pub async fn put_new(&self, name: &str, bytes: Bytes, crc64: u64) -> Result<PutNew, BlobError> {
        match self.put_blob("put new", name, bytes, crc64, &Condition::IfNoneMatchAny).await {
            Ok(etag) => Ok(PutNew::Created(etag)),
            Err(error) => match (&error.kind, error.code.as_deref()) {
                (BlobErrorKind::AlreadyExists | BlobErrorKind::ConditionNotMet, _) => Ok(PutNew::Taken),
                (BlobErrorKind::NotAuthorized, Some("AuthorizationPermissionMismatch")) => {
                    Ok(PutNew::AmbiguousTaken)
                }
                _ => Err(error),
            },
        }
    }

    /// [`Container::put_new`] that never says `AmbiguousTaken`: it then creates `probe/<random>`,
    /// and if that is refused too, the SAS is useless.
    ///
    /// # Errors
    /// `NotAuthorized` for a useless SAS, else as `put_new`.
    pub async fn put_new_probing(&self, name: &str, bytes: Bytes, crc64: u64) -> Result<PutNew, BlobError> {
        let first = self.put_new(name, bytes, crc64).await?;
        if first != PutNew::AmbiguousTaken {
            return Ok(first);
        }
        let probe = format!("probe/{}", uuid::Uuid::new_v4().simple());
        let empty = Bytes::new();
        let crc = self::crc64(&empty);
        match self.put_new(&probe, empty, crc).await? {
            PutNew::Created(_) => Ok(PutNew::Taken),
            PutNew::Taken | PutNew::AmbiguousTaken => {
                let mut error = BlobError::new("put new", &self.path(name), BlobErrorKind::NotAuthorized);
                error.status = Some(403);
                error.code = Some("AuthorizationPermissionMismatch".to_owned());
                Err(error)
            }
        }
    }

    /// Writes a small blob under a condition: ledger, cursor, side file.
    ///
    /// # Errors
    /// `ConditionNotMet` if another version is there (also for `IfNoneMatchAny`), or none where one
    /// was expected. After `outcome_unknown`: read again and compare.
    pub async fn put_if(&self, name: &str, bytes: Bytes, condition: &Condition) -> Result<ETag, BlobError> {
        let crc64 = self::crc64(&bytes);
        let result = self.put_blob("put", name, bytes, crc64, condition).await;
        result.map_err(|mut error| {
            let conditional = *condition != Condition::None;
            if conditional && error.kind == BlobErrorKind::AlreadyExists {
                error.kind = BlobErrorKind::ConditionNotMet;
            }
            error
        })
    }

    async fn put_blob(
        &self,
        operation: &'static str,
        name: &str,
        bytes: Bytes,
        crc64: u64,
        condition: &Condition,
    ) -> Result<ETag, BlobError> {
        if bytes.len() > MAX_PUT_BLOB {
            return Err(BlobError::new(operation, &self.path(name), BlobErrorKind::TooLarge));
        }
        let (if_match, if_none_match) = match condition {
            Condition::IfMatch(etag) => (Some(Etag::from(etag.as_str().to_owned())), None),
            Condition::IfNoneMatchAny => (None, Some(Etag::from("*".to_owned()))),
            Condition::None => (None, None),
        };
        // The SDK has no option for the checksum of a single-shot upload.
        let check = Extra(vec![("x-ms-content-crc64", BASE64_STANDARD.encode(crc64.to_le_bytes()))]);
        let options = sdk::BlobClientUploadOptions {
            if_match,
            if_none_match,
            method_options: ClientMethodOptions { context: Context::new().with_value(check) },
            // Above this size the SDK would switch to Put Block, which a create-only SAS cannot do.
            partition_size: NonZero::new(MAX_PUT_BLOB as u64),
            ..Default::default()
        };
        let blob = self.blob(name, &[])?;
        let answer = blob.upload(bytes.into(), Some(options)).await;
        let answer = answer.map_err(|e| self.error(&e, operation, name))?;
        let etag = answer.etag.map(|etag| ETag::new(etag.to_string()));
        etag.ok_or_else(|| BlobError::new(operation, &self.path(name), BlobErrorKind::Protocol))
    }

    /// A whole blob of at most `max` bytes; `None` if there is none.
    ///
    /// # Errors
    /// `TooLarge` above `max`, and anything but absence.
    pub async fn get(&self, name: &str, max: u64) -> Result<Option<Fetched>, BlobError> {
        match self.download("get", name, Read::whole(max)).await {
            Ok(fetched) => Ok(Some(fetched)),
            Err(error) => absent(error),
        }
    }

    /// A whole blob if it is no longer the version `known`.
    ///
    /// # Errors
    /// `TooLarge` above `max`, and others.
    pub async fn get_if_changed(
        &self,
        name: &str,
        known: &ETag,
        max: u64,
    ) -> Result<GetIfChanged, BlobError> {
        let read = Read { if_none_match: Some(known), ..Read::whole(max) };
        match self.download("get", name, read).await {
            Ok(fetched) => Ok(GetIfChanged::Changed(fetched)),
            Err(error) if error.status == Some(304) => Ok(GetIfChanged::Unchanged),
            Err(error) if error.kind == BlobErrorKind::NotFound => Ok(GetIfChanged::Missing),
            Err(error) => Err(error),
        }
    }

    /// `len` bytes from `offset`, fewer at the end of the blob.
    ///
    /// # Errors
    /// Any, also a missing blob.
    pub async fn get_range(&self, name: &str, offset: u64, len: u64) -> Result<Fetched, BlobError> {
        let read = Read { offset, len: Some(len), ..Read::whole(len) };
        self.download("get range", name, read).await
    }

    /// Length, tag, metadata, lease; `None` if there is no such blob.
    ///
    /// # Errors
    /// Anything but absence.
    pub async fn head(&self, name: &str) -> Result<Option<BlobProperties>, BlobError> {
        self.properties_of("head", name, None).await
    }

    pub(crate) async fn properties_of(
        &self,
        operation: &'static str,
        name: &str,
        snapshot: Option<&str>,
    ) -> Result<Option<BlobProperties>, BlobError> {
        let options = sdk::BlobClientGetPropertiesOptions {
            snapshot: snapshot.map(str::to_owned),
            ..Default::default()
        };
        match self.blob(name, &[])?.get_properties(Some(options)).await {
            Ok(answer) => BlobProperties::from_headers(answer.headers())
                .map(Some)
                .ok_or_else(|| BlobError::new(operation, &self.path(name), BlobErrorKind::Protocol)),
            Err(error) => absent(self.error(&error, operation, name)),
        }
    }

    /// Deletes a blob with its snapshots; false if there was none.
    ///
    /// # Errors
    /// Anything but absence; `LeaseHeld` if it is leased and `lease` is not that lease.
    pub async fn delete(&self, name: &str, lease: Option<&LeaseId>) -> Result<bool, BlobError> {
        let options = sdk::BlobClientDeleteOptions {
            delete_snapshots: Some(sdk::DeleteSnapshotsOptionType::Include),
            lease_id: lease_text(lease),
            ..Default::default()
        };
        match self.blob(name, &[])?.delete(Some(options)).await {
            Ok(_) => Ok(true),
            Err(error) => absent(self.error(&error, "delete", name)).map(|x: Option<()>| x.is_some()),
        }
    }

    pub(crate) async fn download(
        &self,
        operation: &'static str,
        name: &str,
        read: Read<'_>,
    ) -> Result<Fetched, BlobError> {
        let failed = |e: azure_core::Error| self.error(&e, operation, name);
        let error = |kind| BlobError::new(operation, &self.path(name), kind);
        if read.len == Some(0) {
            return Err(error(BlobErrorKind::Protocol));
        }
        // One request: the part is as long as all that is wanted, and one byte more shows an excess.
        let want = read.len.unwrap_or(read.max.saturating_add(1));
        let part = usize::try_from(want).ok().and_then(NonZero::new);
        let options = sdk::BlobClientDownloadOptions {
            if_none_match: read.if_none_match.map(|etag| Etag::from(etag.as_str().to_owned())),
            parallel: NonZero::new(1),
            partition_size: part,
            range: Some(sdk::HttpRange::new(read.offset, want)),
            snapshot: read.snapshot.map(str::to_owned),
            ..Default::default()
        };
        let answer = self.blob(name, &[])?.download(Some(options)).await.map_err(failed)?;
        let (headers, mut body) = (answer.headers, answer.body);
        let promised = wire::text(&headers, "content-length").and_then(|t| t.parse::<u64>().ok());
        if promised.is_some_and(|len| len > read.max) {
            return Err(error(BlobErrorKind::TooLarge));
        }
        let mut bytes = BytesMut::with_capacity(usize::try_from(promised.unwrap_or(0)).unwrap_or(0));
        while let Some(piece) = body.try_next().await.map_err(failed)? {
            if (bytes.len() + piece.len()) as u64 > read.max {
                return Err(error(BlobErrorKind::TooLarge));
            }
            bytes.extend_from_slice(&piece);
        }
        let whole =
            [promised, range_len(&headers)].into_iter().flatten().all(|len| len == bytes.len() as u64);
        if !whole {
            return Err(error(BlobErrorKind::Network(crate::NetworkFault::Reset)));
        }
        fetched(bytes.freeze(), &headers).ok_or_else(|| error(BlobErrorKind::Protocol))
    }
}

/// Length of the part that `content-range` speaks of: `bytes 0-511/1024`.
fn range_len(headers: &Headers) -> Option<u64> {
    let (range, _) = wire::text(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
}

fn fetched(bytes: Bytes, headers: &Headers) -> Option<Fetched> {
    let etag = wire::etag(headers)?;
    Some(Fetched { bytes, etag, metadata: wire::metadata(headers), date: wire::time(headers, "date") })
}

/// Which bytes to read, and how many at most.
pub(crate) struct Read<'a> {
    pub(crate) offset: u64,
    pub(crate) len: Option<u64>,
    pub(crate) max: u64,
    pub(crate) snapshot: Option<&'a str>,
    pub(crate) if_none_match: Option<&'a ETag>,
}

impl Read<'_> {
    fn whole(max: u64) -> Self {
        Read { offset: 0, len: None, max, snapshot: None, if_none_match: None }
    }
}
