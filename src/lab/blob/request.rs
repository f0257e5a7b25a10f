//! What a request is about: container, blob, operation, and what a SAS must allow for it.

use http::{HeaderMap, Method, Uri};

use super::refusal::{self, Refusal};

/// What the URL names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Empty for the account itself.
    pub(super) container: String,
    /// Empty for a container.
    pub(super) blob: String,
    /// Decoded, in order.
    pub(super) query: Vec<(String, String)>,
}

impl Target {
    /// `/account/container/blob`, or `/container/blob` where the host names the account.
    pub(super) fn parse(uri: &Uri, host: Option<&str>, account: &str) -> Option<Target> {
        let path = uri.path().strip_prefix('/')?;
        let by_host = host.is_some_and(|h| h.strip_prefix(account).is_some_and(|rest| rest.starts_with('.')));
        let rest = if by_host {
            path
        } else {
            let rest = path.strip_prefix(account)?;
            rest.strip_prefix('/').or(rest.is_empty().then_some(""))?
        };
        let (container, blob) = rest.split_once('/').unwrap_or((rest, ""));
        let query = uri.query().unwrap_or_default();
        Some(Target {
            container: decode(container, false)?,
            blob: decode(blob, false)?,
            query: query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    Some((decode(name, true)?, decode(value, true)?))
                })
                .collect::<Option<_>>()?,
        })
    }

    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `/container/blob`: what faults and limits go by.
    pub(super) fn path(&self) -> String {
        if self.blob.is_empty() {
            format!("/{}", self.container)
        } else {
            format!("/{}/{}", self.container, self.blob)
        }
    }
}

/// Undoes percent-encoding; `None` if that is broken or no UTF-8.
pub(super) fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            b'+' if plus_is_space => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Operation {
    ServiceProperties,
    ListContainers,
    CreateContainer,
    ContainerProperties,
    SetContainerMetadata,
    DeleteContainer,
    ListBlobs,
    PutBlob,
    CreatePageBlob,
    CopyBlob,
    PutPage,
    ClearPages,
    PageRanges,
    GetBlob,
    BlobProperties,
    SetBlobMetadata,
    SetBlobProperties,
    SnapshotBlob,
    LeaseBlob,
    DeleteBlob,
}

impl Operation {
    pub(super) fn of(method: &Method, target: &Target, headers: &HeaderMap) -> Result<Operation, Refusal> {
        use Operation as O;
        let comp = target.query("comp").unwrap_or_default();
        let header = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let operation = if target.container.is_empty() {
            match (method.as_str(), comp) {
                ("GET", "list") => O::ListContainers,
                ("GET", "properties") => O::ServiceProperties,
                _ => return Err(refusal::not_implemented()),
            }
        } else if target.blob.is_empty() {
            match (method.as_str(), comp) {
                ("PUT", "") => O::CreateContainer,
                ("PUT", "metadata") => O::SetContainerMetadata,
                ("GET" | "HEAD", "" | "metadata") => O::ContainerProperties,
                ("GET", "list") => O::ListBlobs,
                ("DELETE", "") => O::DeleteContainer,
                _ => return Err(refusal::not_implemented()),
            }
        } else {
            match (method.as_str(), comp) {
                ("PUT", "") if headers.contains_key("x-ms-copy-source") => O::CopyBlob,
                ("PUT", "") => match header("x-ms-blob-type") {
                    "PageBlob" => O::CreatePageBlob,
                    "BlockBlob" => O::PutBlob,
                    _ => return Err(refusal::invalid_header("x-ms-blob-type")),
                },
                ("PUT", "page") => match header("x-ms-page-write") {
                    "update" if headers.contains_key("x-ms-copy-source") => {
                        return Err(refusal::not_implemented());
                    }
                    "update" => O::PutPage,
                    "clear" => O::ClearPages,
                    _ => return Err(refusal::invalid_header("x-ms-page-write")),
                },
                ("PUT", "metadata") => O::SetBlobMetadata,
                ("PUT", "properties") => O::SetBlobProperties,
                ("PUT", "snapshot") => O::SnapshotBlob,
                ("PUT", "lease") => O::LeaseBlob,
                ("GET", "") => O::GetBlob,
                ("HEAD", "") | ("GET" | "HEAD", "metadata") => O::BlobProperties,
                ("GET", "pagelist") => O::PageRanges,
                ("DELETE", "") => O::DeleteBlob,
                _ => return Err(refusal::not_implemented()),
            }
        };
        Ok(operation)
    }

    /// Any one of these letters in a SAS allows it; none: no SAS does.
    pub(super) fn permissions(self) -> &'static str {
        use Operation as O;
        match self {
            O::ServiceProperties
            | O::ListContainers
            | O::CreateContainer
            | O::SetContainerMetadata
            | O::DeleteContainer => "",
            O::ContainerProperties => "rl",
            O::ListBlobs => "l",
            // With `c` alone only where there is nothing yet.
            O::PutBlob | O::CreatePageBlob | O::CopyBlob => "wc",
            O::SnapshotBlob => "wc",
            O::PutPage | O::ClearPages | O::SetBlobMetadata | O::SetBlobProperties | O::LeaseBlob => "w",
            O::GetBlob | O::BlobProperties | O::PageRanges => "r",
            O::DeleteBlob => "d",
        }
    }

    /// Counts against a blob's own limits.
    pub(super) fn is_blob(self) -> bool {
        use Operation as O;
        !matches!(
            self,
            O::ServiceProperties
                | O::ListContainers
                | O::CreateContainer
                | O::ContainerProperties
                | O::SetContainerMetadata
                | O::DeleteContainer
                | O::ListBlobs
        )
    }
}

/// `bytes=a-b` of `x-ms-range` or `range`; the end is exclusive, open ends are `u64::MAX`.
pub(super) fn range(headers: &HeaderMap) -> Result<Option<std::ops::Range<u64>>, Refusal> {
    let name = if headers.contains_key("x-ms-range") { "x-ms-range" } else { "range" };
    let Some(value) = headers.get(name) else { return Ok(None) };
    let parse = || {
        let (start, end) = value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let start: u64 = start.parse().ok()?;
        let end = if end.is_empty() { u64::MAX } else { end.parse::<u64>().ok()?.checked_add(1)? };
        (start < end).then_some(start..end)
    };
    parse().map(Some).ok_or_else(|| refusal::invalid_header("Range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_in_the_path_or_in_the_host() {
        let want = Target {
            container: "fs-1".into(),
            blob: "a b/c".into(),
            query: vec![("comp".into(), "page".into()), ("sig".into(), "a+b".into())],
        };
        let query = "?comp=page&sig=a%2Bb";
        let by_path: Uri = format!("/acct/fs-1/a%20b/c{query}").parse().unwrap();
        assert_eq!(Target::parse(&by_path, Some("127.0.0.1:1"), "acct"), Some(want.clone()));
        let by_host: Uri = format!("/fs-1/a%20b%2Fc{query}").parse().unwrap();
        assert_eq!(Target::parse(&by_host, Some("acct.blob.localhost:1"), "acct"), Some(want.clone()));
        assert_eq!(Target::parse(&by_host, Some("127.0.0.1:1"), "acct"), None);
        assert_eq!(want.path(), "/fs-1/a b/c");
    }
}
