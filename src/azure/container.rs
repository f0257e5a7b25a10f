//! Containers: create, describe, list, delete.

use azure_core::http::pager::PagerOptions;
use azure_storage_blob::models as sdk;
use futures::TryStreamExt;
use jiff::Timestamp;

use crate::{BlobError, BlobErrorKind, Container, ETag, Metadata, wire};

/// What creating something that may be there already led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// It is new.
    Created,
    /// It was there; nothing was changed.
    AlreadyExists,
}

/// What a listing shows beside names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Include {
    /// Metadata of each blob.
    pub metadata: bool,
    /// Snapshots, oldest first, each before its base blob.
    pub snapshots: bool,
}

/// One blob or snapshot of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// A snapshot's id; `None` for the blob itself.
    pub snapshot: Option<String>,
    /// Bytes.
    pub len: u64,
    /// Its tag.
    pub etag: ETag,
    /// Last change.
    pub last_modified: Option<Timestamp>,
    /// Empty unless asked for.
    pub metadata: Metadata,
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPage {
    /// In the order of the service: by name.
    pub blobs: Vec<Listed>,
    /// Where the next part begins; `None` at the end.
    pub next: Option<String>,
}

impl Container {
    /// Makes the container; what is there already stays as it is, metadata too.
    ///
    /// # Errors
    /// Anything but being there already.
    pub async fn create(&self, metadata: &Metadata) -> Result<Create, BlobError> {
        let options = sdk::BlobContainerClientCreateOptions {
            metadata: Some(wire::metadata_out(metadata)),
            ..Default::default()
        };
        match self.client()?.create(Some(options)).await {
            Ok(_) => Ok(Create::Created),
            Err(error) => match self.error(&error, "create container", "") {
                e if e.kind == BlobErrorKind::AlreadyExists => Ok(Create::AlreadyExists),
                e => Err(e),
            },
        }
    }

    /// Its metadata and tag; `None` if there is no such container.
    ///
    /// # Errors
    /// Anything but its absence.
    pub async fn metadata(&self) -> Result<Option<(Metadata, ETag)>, BlobError> {
        const OPERATION: &str = "read container";
        match self.client()?.get_properties(None).await {
            Ok(answer) => {
                let headers = answer.headers();
                let etag = wire::etag(headers)
                    .ok_or_else(|| BlobError::new(OPERATION, self.name(), BlobErrorKind::Protocol))?;
                Ok(Some((wire::metadata(headers), etag)))
            }
            Err(error) => absent(self.error(&error, OPERATION, "")),
        }
    }

    /// Replaces its metadata. The service has no If-Match here: whoever needs one decides in a blob.
    ///
    /// # Errors
    /// Any.
    pub async fn set_metadata(&self, metadata: &Metadata) -> Result<(), BlobError> {
        let metadata = wire::metadata_out(metadata);
        let answer = self.client()?.set_metadata(&metadata, None).await;
        answer.map(drop).map_err(|e| self.error(&e, "set container metadata", ""))
    }

    /// Deletes it with all it holds; false if there was none.
    ///
    /// # Errors
    /// Anything but its absence.
    pub async fn delete_container(&self) -> Result<bool, BlobError> {
        match self.client()?.delete(None).await {
            Ok(_) => Ok(true),
            Err(error) => absent(self.error(&error, "delete container", "")).map(|x: Option<()>| x.is_some()),
        }
    }

    /// All blobs whose names begin with `prefix`. For containers that strangers can write to, use
    /// [`Container::list_page`] and stop at a bound.
    ///
    /// # Errors
    /// Any, also a missing container.
    pub async fn list(&self, prefix: &str, include: Include) -> Result<Vec<Listed>, BlobError> {
        let mut all = Vec::new();
        let mut marker = None;
        loop {
            let page = self.list_page(prefix, include, marker.as_deref(), None).await?;
            all.extend(page.blobs);
            match page.next {
                Some(next) => marker = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// One part of the listing: at most `max` blobs (the service's own limit is 5000).
    ///
    /// # Errors
    /// Any, also a missing container.
    pub async fn list_page(
        &self,
        prefix: &str,
        include: Include,
        marker: Option<&str>,
        max: Option<u32>,
    ) -> Result<ListedPage, BlobError> {
        const OPERATION: &str = "list";
        let items = [
            (include.metadata, sdk::ListBlobsIncludeItem::Metadata),
            (include.snapshots, sdk::ListBlobsIncludeItem::Snapshots),
        ];
        let items: Vec<_> = items.into_iter().filter_map(|(on, item)| on.then_some(item)).collect();
        let options = sdk::BlobContainerClientListBlobsOptions {
            include: (!items.is_empty()).then_some(items),
            marker: marker.map(str::to_owned),
            maxresults: max.map(|n| i32::try_from(n).unwrap_or(i32::MAX)),
            prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
            method_options: PagerOptions::default(),
            ..Default::default()
        };
        let failed = |e| self.error(&e, OPERATION, "");
        let odd = || BlobError::new(OPERATION, self.name(), BlobErrorKind::Protocol);
        let mut pages = self.client()?.list_blobs(Some(options)).map_err(failed)?.into_pages();
        let page = pages.try_next().await.map_err(failed)?.ok_or_else(odd)?;
        let page = page.into_model().map_err(failed)?;
        let blobs: Option<Vec<Listed>> = page.blob_items.into_iter().map(listed).collect();
        let next = page.next_marker.filter(|marker| !marker.is_empty());
        let mut blobs = blobs.ok_or_else(odd)?;
        // Services differ in whether the blob or its snapshots come first.
        for of_one_name in blobs.chunk_by_mut(|a, b| a.name == b.name) {
            of_one_name.sort_by(|a, b| {
                (a.snapshot.is_none(), &a.snapshot).cmp(&(b.snapshot.is_none(), &b.snapshot))
            });
        }
        Ok(ListedPage { blobs, next })
    }
}

fn listed(item: sdk::BlobItem) -> Option<Listed> {
    let properties = item.properties?;
    let metadata = item.metadata.and_then(|m| m.values).unwrap_or_default();
    Some(Listed {
        name: item.name?,
        snapshot: item.snapshot,
        len: properties.content_length?,
        etag: ETag::new(properties.etag?.to_string()),
        last_modified: properties.last_modified.and_then(|t| Timestamp::from_second(t.unix_timestamp()).ok()),
        metadata: wire::metadata_in(metadata),
    })
}

/// `None` for "not found", the error otherwise.
pub(crate) fn absent<T>(error: BlobError) -> Result<Option<T>, BlobError> {
    if error.kind == BlobErrorKind::NotFound { Ok(None) } else { Err(error) }
}
