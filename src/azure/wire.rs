//! Small values that responses carry, and how they are read from headers.

use std::collections::{BTreeMap, HashMap};

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
    let pairs = headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().to_ascii_lowercase();
        Some((name.strip_prefix("x-ms-meta-")?.to_owned(), value.as_str().to_owned()))
    });
    metadata_in(pairs)
}

/// Metadata as it came.
pub(crate) fn metadata_in(pairs: impl IntoIterator<Item = (String, String)>) -> Metadata {
    pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), plain(&value))).collect()
}

/// Metadata as it travels: the service takes ASCII only, and a VM may be called anything.
pub(crate) fn metadata_out(metadata: &Metadata) -> HashMap<String, String> {
    metadata.iter().map(|(name, value)| (name.to_ascii_lowercase(), escaped(value))).collect()
}

/// Percent-encodes what a header cannot carry, `%` itself, and spaces at the ends.
fn escaped(value: &str) -> String {
    let last = value.len().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (at, byte) in value.bytes().enumerate() {
        let at_an_end = byte == b' ' && (at == 0 || at == last);
        if byte == b'%' || at_an_end || !(b' '..=b'~').contains(&byte) {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            out.push(char::from(byte));
        }
    }
    out
}

/// Undoes [`escaped`]; what is no such text stays as it is.
fn plain(value: &str) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(code) if byte == b'%' => {
                out.push(code);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| value.to_owned())
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
        headers.insert("x-ms-meta-term", "7");
        let got = BlobProperties::from_headers(&headers).unwrap();
        assert_eq!((got.len, got.kind), (512, BlobKind::Page));
        assert_eq!(got.metadata, Metadata::from([("term".into(), "7".into())]));
    }

    #[test]
    fn metadata_of_any_text_survives_the_way_through_headers() {
        for value in ["", "plain text", "100 %", "Münster-SQL ①", " ends ", "a%2Gb", "line\nbreak", "+"] {
            let given = Metadata::from([("vmname".to_owned(), value.to_owned())]);
            let travelling = metadata_out(&given);
            assert!(travelling.values().all(|v| v.bytes().all(|b| (32..127).contains(&b))), "{value}");
            assert_eq!(metadata_in(travelling), given, "{value}");
        }
        let mixed = Metadata::from([("VmName".to_owned(), "x".to_owned())]);
        assert!(metadata_out(&mixed).contains_key("vmname"));
    }
}
