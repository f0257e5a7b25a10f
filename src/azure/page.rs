//! Page blobs: the replica disks. Every write names the writer's lease.

use std::ops::Range;

use azure_core::http::Etag;
use azure_storage_blob::models::{self as sdk, HttpRange};
use bytes::Bytes;
use futures::TryStreamExt;
use serde::Deserialize;

use crate::{
    BlobError, BlobErrorKind, BlobProperties, Container, Create, Fetched, LeaseId, Metadata, block::Read,
    container::absent, service::lease_text, wire,
};

/// Offsets and lengths are multiples of this.
pub const PAGE: u64 = 512;
/// Longest Put Page.
pub const MAX_PUT_PAGES: u64 = 4 * 1024 * 1024;
/// Longest page blob: 8 TiB.
pub const MAX_PAGE_BLOB: u64 = 8 << 40;

/// How a page blob is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPageBlob {
    /// Bytes, a multiple of [`PAGE`], at most [`MAX_PAGE_BLOB`].
    pub len: u64,
    /// Metadata from the start.
    pub metadata: Metadata,
    /// False: replace what is there.
    pub if_none_match: bool,
}

/// What changed between two snapshots, merged and sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageDiff {
    /// Written.
    pub written: Vec<Range<u64>>,
    /// Cleared to zeros.
    pub cleared: Vec<Range<u64>>,
}

impl Container {
    /// Makes a page blob full of zeros.
    ///
    /// # Errors
    /// Anything but being there already.
    pub async fn create_page_blob(&self, name: &str, new: &NewPageBlob) -> Result<Create, BlobError> {
        const OPERATION: &str = "create page blob";
        if !new.len.is_multiple_of(PAGE) || new.len > MAX_PAGE_BLOB {
            return Err(BlobError::new(OPERATION, &self.path(name), BlobErrorKind::TooLarge));
        }
        let options = sdk::PageBlobClientCreateOptions {
            if_none_match: new.if_none_match.then(|| Etag::from("*".to_owned())),
            metadata: Some(wire::metadata_out(&new.metadata)),
            ..Default::default()
        };
        match self.page_blob(name, &[])?.create(new.len, Some(options)).await {
            Ok(_) => Ok(Create::Created),
            Err(error) => match self.error(&error, OPERATION, name) {
                e if e.kind == BlobErrorKind::AlreadyExists => Ok(Create::AlreadyExists),
                e => Err(e),
            },
        }
    }

    /// Writes at most [`MAX_PUT_PAGES`] at a page boundary; the service checks `crc64`.
    ///
    /// # Errors
    /// `LeaseLost`, `LeaseHeld`, `ChecksumMismatch` and others. Repeating it does no harm.
    pub async fn put_pages(
        &self,
        name: &str,
        offset: u64,
        bytes: Bytes,
        lease: Option<&LeaseId>,
        crc64: u64,
    ) -> Result<(), BlobError> {
        const OPERATION: &str = "put pages";
        let len = bytes.len() as u64;
        if len > MAX_PUT_PAGES {
            return Err(BlobError::new(OPERATION, &self.path(name), BlobErrorKind::TooLarge));
        }
        let range = self.pages(OPERATION, name, offset, len)?;
        let options = sdk::PageBlobClientUploadPagesOptions {
            lease_id: lease_text(lease),
            transactional_content_crc64: Some(crc64.to_le_bytes().to_vec()),
            ..Default::default()
        };
        let blob = self.page_blob(name, &[])?;
        let answer = blob.upload_pages(bytes.into(), len, range, Some(options)).await;
        answer.map(drop).map_err(|e| self.error(&e, OPERATION, name))
    }

    /// Sets pages to zeros; any length.
    ///
    /// # Errors
    /// As [`Container::put_pages`].
    pub async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
    ) -> Result<(), BlobError> {
        const OPERATION: &str = "clear pages";
        let range = self.pages(OPERATION, name, range.start, range.end.saturating_sub(range.start))?;
        let options =
            sdk::PageBlobClientClearPagesOptions { lease_id: lease_text(lease), ..Default::default() };
        let answer = self.page_blob(name, &[])?.clear_pages(range, Some(options)).await;
        answer.map(drop).map_err(|e| self.error(&e, OPERATION, name))
    }

    /// Reads `len` bytes of a page blob or of one of its snapshots; fewer at its end.
    ///
    /// # Errors
    /// Any, also a missing blob.
    pub async fn read_pages(
        &self,
        name: &str,
        snapshot: Option<&str>,
        offset: u64,
        len: u64,
    ) -> Result<Fetched, BlobError> {
        let read = Read { offset, len: Some(len), max: len, snapshot, if_none_match: None };
        self.download("read pages", name, read).await
    }

    /// The ranges that hold data, sorted and merged; the rest is zeros.
    ///
    /// # Errors
    /// Any, also a missing blob.
    pub async fn page_ranges(
        &self,
        name: &str,
        snapshot: Option<&str>,
    ) -> Result<Vec<Range<u64>>, BlobError> {
        let query: Vec<(&str, &str)> = snapshot.map(|id| ("snapshot", id)).into_iter().collect();
        Ok(self.page_list("list page ranges", name, &query).await?.written)
    }

    /// What changed since an older snapshot, up to `snapshot` or the blob itself. Azurite ignores
    /// the older one and answers all ranges, so this is a cross-check, never the only truth.
    ///
    /// # Errors
    /// Any, also a missing blob or snapshot.
    pub async fn page_ranges_diff(
        &self,
        name: &str,
        snapshot: Option<&str>,
        older: &str,
    ) -> Result<PageDiff, BlobError> {
        let mut query = vec![("prevsnapshot", older)];
        query.extend(snapshot.map(|id| ("snapshot", id)));
        self.page_list("list page differences", name, &query).await
    }

    async fn page_list(
        &self,
        operation: &'static str,
        name: &str,
        query: &[(&str, &str)],
    ) -> Result<PageDiff, BlobError> {
        let failed = |e| self.error(&e, operation, name);
        let odd = || BlobError::new(operation, &self.path(name), BlobErrorKind::Protocol);
        // The SDK has no call for differences, but a client keeps the query of its URL.
        let mut pages = self.page_blob(name, query)?.list_page_ranges(None).map_err(failed)?;
        let (mut written, mut cleared) = (Vec::new(), Vec::new());
        while let Some(page) = pages.try_next().await.map_err(failed)? {
            let body = page.into_body();
            let list: RangeList = azure_core::xml::from_xml(&body).map_err(failed)?;
            for entry in list.entries {
                match entry {
                    RangeEntry::PageRange { start, end } => {
                        written.push(range_of(start, end).ok_or_else(odd)?);
                    }
                    RangeEntry::ClearRange { start, end } => {
                        cleared.push(range_of(start, end).ok_or_else(odd)?);
                    }
                    RangeEntry::Other => {}
                }
            }
        }
        Ok(PageDiff { written: merged(written), cleared: merged(cleared) })
    }

    /// Takes a snapshot and gives its id. Repeated after a lost answer it makes a second one:
    /// name the purpose in `metadata` and look for it in a listing first.
    ///
    /// # Errors
    /// Any.
    pub async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        metadata: &Metadata,
    ) -> Result<String, BlobError> {
        const OPERATION: &str = "snapshot";
        let options = sdk::BlobClientCreateSnapshotOptions {
            lease_id: lease_text(lease),
            metadata: (!metadata.is_empty()).then(|| wire::metadata_out(metadata)),
            ..Default::default()
        };
        let answer = self.blob(name, &[])?.create_snapshot(Some(options)).await;
        let answer = answer.map_err(|e| self.error(&e, OPERATION, name))?;
        wire::text(answer.headers(), "x-ms-snapshot")
            .map(str::to_owned)
            .ok_or_else(|| BlobError::new(OPERATION, &self.path(name), BlobErrorKind::Protocol))
    }

    /// Deletes one snapshot; false if there was none.
    ///
    /// # Errors
    /// Anything but absence.
    pub async fn delete_snapshot(&self, name: &str, snapshot: &str) -> Result<bool, BlobError> {
        let options =
            sdk::BlobClientDeleteOptions { snapshot: Some(snapshot.to_owned()), ..Default::default() };
        match self.blob(name, &[])?.delete(Some(options)).await {
            Ok(_) => Ok(true),
            Err(error) => {
                absent(self.error(&error, "delete snapshot", name)).map(|x: Option<()>| x.is_some())
            }
        }
    }

    /// Gives a page blob another length: it is cut, or grows by zeros. Its snapshots keep theirs.
    ///
    /// # Errors
    /// Any; `TooLarge` for a length that no page blob can have.
    pub async fn resize_page_blob(
        &self,
        name: &str,
        len: u64,
        lease: Option<&LeaseId>,
    ) -> Result<(), BlobError> {
        const OPERATION: &str = "resize page blob";
        if !len.is_multiple_of(PAGE) || len > MAX_PAGE_BLOB {
            return Err(BlobError::new(OPERATION, &self.path(name), BlobErrorKind::TooLarge));
        }
        let options = sdk::PageBlobClientResizeOptions { lease_id: lease_text(lease), ..Default::default() };
        let answer = self.page_blob(name, &[])?.resize(len, Some(options)).await;
        answer.map(drop).map_err(|e| self.error(&e, OPERATION, name))
    }

    /// Replaces a blob's metadata.
    ///
    /// # Errors
    /// Any, also a missing blob or a lost lease.
    pub async fn set_blob_metadata(
        &self,
        name: &str,
        metadata: &Metadata,
        lease: Option<&LeaseId>,
    ) -> Result<(), BlobError> {
        let options = sdk::BlobClientSetMetadataOptions { lease_id: lease_text(lease), ..Default::default() };
        let metadata = wire::metadata_out(metadata);
        let answer = self.blob(name, &[])?.set_metadata(&metadata, Some(options)).await;
        answer.map(drop).map_err(|e| self.error(&e, "set metadata", name))
    }

    /// Properties of a blob or of one of its snapshots; `None` if there is none.
    ///
    /// # Errors
    /// Anything but absence.
    pub async fn blob_properties(
        &self,
        name: &str,
        snapshot: Option<&str>,
    ) -> Result<Option<BlobProperties>, BlobError> {
        self.properties_of("read properties", name, snapshot).await
    }

    fn pages(
        &self,
        operation: &'static str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<HttpRange, BlobError> {
        let aligned = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        if !aligned || offset.checked_add(len).is_none_or(|end| end > MAX_PAGE_BLOB) {
            let mut error = BlobError::new(operation, &self.path(name), BlobErrorKind::Protocol);
            error.detail = Some(format!("{offset}+{len} is no range of pages").into());
            return Err(error);
        }
        Ok(HttpRange::new(offset, len))
    }
}

/// A list of ranges. The SDK's own type cannot read one where written and cleared ranges take turns.
#[derive(Deserialize)]
struct RangeList {
    #[serde(rename = "$value", default)]
    entries: Vec<RangeEntry>,
}

#[derive(Deserialize)]
enum RangeEntry {
    PageRange {
        #[serde(rename = "Start")]
        start: u64,
        #[serde(rename = "End")]
        end: u64,
    },
    ClearRange {
        #[serde(rename = "Start")]
        start: u64,
        #[serde(rename = "End")]
        end: u64,
    },
    /// `NextMarker`, which the SDK follows.
    #[serde(other)]
    Other,
}

/// The service counts inclusively.
fn range_of(start: u64, end: u64) -> Option<Range<u64>> {
    let end = end.checked_add(1)?;
    (start < end).then_some(start..end)
}

/// Sorts and joins what touches or overlaps.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut out: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_whatever_their_order() {
        let given = vec![1024..2048, 0..512, 512..1024, 4096..4608, 1536..2560];
        assert_eq!(merged(given), [0..2560, 4096..4608]);
    }

    #[test]
    fn nonsense_ranges_of_a_service_are_refused() {
        assert_eq!(range_of(0, 511), Some(0..512));
        for (start, end) in [(9, 3), (512, 511), (0, u64::MAX)] {
            assert_eq!(range_of(start, end), None, "{start} {end}");
        }
    }
}
