//! Small values that responses carry, and how they are read from headers.

use std::collections::BTreeMap;

use azure_core::http::headers::{HeaderName, Headers};
use jiff::{Timestamp, fmt::rfc2822};

/// Metadata of a container, blob or snapshot; names are lower case.
pub type Metadata = BTreeMap<String, String>;

/// An entity tag, as the service wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(pub(crate) String);

impl ETag {
    /// A tag that was kept somewhere.
    #[must_use]
    pub fn new(tag: impl Into<String>) -> ETag {
        ETag(tag.into())
    }

    /// The text, quotes included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobKind {
    /// Block blob.
    Block,
    /// Page blob.
    Page,
    /// Append blob.
    Append,
}

/// State of a blob's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Nobody holds it.
    Available,
    /// Somebody holds it.
    Leased,
    /// It ran out.
    Expired,
    /// It is being broken.
    Breaking,
    /// It was broken.
    Broken,
}

/// What is known of a blob or snapshot without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobProperties {
    /// Bytes.
    pub len: u64,
    /// Its tag.
    pub etag: ETag,
    /// Last change.
    pub last_modified: Option<Timestamp>,
    /// Kind.
    pub kind: BlobKind,
    /// Metadata.
    pub metadata: Metadata,
    /// Lease, `None` for snapshots.
    pub lease: Option<LeaseState>,
    /// The service's clock when it answered.
    pub date: Option<Timestamp>,
}

impl BlobProperties {
    /// From the headers of HEAD; `None` if length, tag or kind is missing.
    pub(crate) fn from_headers(headers: &Headers) -> Option<BlobProperties> {
        Some(BlobProperties {
            len: text(headers, "content-length")?.parse().ok()?,
            etag: etag(headers)?,
            last_modified: time(headers, "last-modified"),
            kind: match text(headers, "x-ms-blob-type")? {
                "BlockBlob" => BlobKind::Block,
                "PageBlob" => BlobKind::Page,
                "AppendBlob" => BlobKind::Append,
                _ => return None,
            },
            metadata: metadata(headers),
            lease: text(headers, "x-ms-lease-state").and_then(lease_state),
            date: time(headers, "date"),
        })
    }
}

pub(crate) fn lease_state(text: &str) -> Option<LeaseState> {
    Some(match text {
        "available" => LeaseState::Available,
        "leased" => LeaseState::Leased,
        "expired" => LeaseState::Expired,
        "breaking" => LeaseState::Breaking,
        "broken" => LeaseState::Broken,
        _ => return None,
    })
}

pub(crate) fn text<'a>(headers: &'a Headers, name: &'static str) -> Option<&'a str> {
    headers.get_optional_str(&HeaderName::from_static(name))
}

pub(crate) fn etag(headers: &Headers) -> Option<ETag> {
    text(headers, "etag").map(ETag::new)
}

/// An HTTP date: `Tue, 24 Nov 2026 04:11:29 GMT`.
pub(crate) fn time(headers: &Headers, name: &'static str) -> Option<Timestamp> {
    parse_date(text(headers, name)?)
}

pub(crate) fn parse_date(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// `x-ms-meta-*`; names come in any case and are folded.
pub(crate) fn metadata(headers: &Headers) -> Metadata {
    headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str().to_ascii_lowercase();
            let key = name.strip_prefix("x-ms-meta-")?;
            Some((key.to_owned(), value.as_str().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_are_read() {
        let want: Timestamp = "2026-11-24T04:11:29Z".parse().unwrap();
        assert_eq!(parse_date("Tue, 24 Nov 2026 04:11:29 GMT"), Some(want));
        assert_eq!(parse_date("yesterday"), None);
    }

    #[test]
    fn properties_without_a_length_are_refused() {
        let mut headers = Headers::new();
        headers.insert("etag", "\"1\"");
        headers.insert("x-ms-blob-type", "PageBlob");
        assert_eq!(BlobProperties::from_headers(&headers), None);
        headers.insert("content-length", "512");
        headers.insert("x-ms-meta-Term", "7");
        let got = BlobProperties::from_headers(&headers).unwrap();
        assert_eq!((got.len, got.kind), (512, BlobKind::Page));
        assert_eq!(got.metadata, Metadata::from([("term".into(), "7".into())]));
    }
}
