//! Where an account's blobs are: a base URL without a query.

use azure_core::http::Url;
use thiserror::Error;

/// Base URL of an account's blob service: `https://acct.blob.core.windows.net`, or for emulators
/// `http://127.0.0.1:10000/devstoreaccount1` (the account as first path segment).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Url);

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Not an absolute http or https URL.
    #[error("the blob endpoint is not an absolute http or https URL")]
    Url,
    /// A credential or an option sits in the URL.
    #[error("the blob endpoint must have no user, query or fragment")]
    NotPlain,
    /// Not 3 to 24 lower-case letters and digits.
    #[error("`{0}` is not the name of a storage account")]
    Account(String),
}

impl Endpoint {
    /// Parses a base URL; a trailing slash does not matter.
    ///
    /// # Errors
    /// Not a plain absolute http(s) URL. The text is not repeated: it may hold a signature.
    pub fn parse(text: &str) -> Result<Endpoint, EndpointError> {
        let url = Url::parse(text).map_err(|_| EndpointError::Url)?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(EndpointError::Url);
        }
        let plain = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if plain { Ok(Endpoint(url)) } else { Err(EndpointError::NotPlain) }
    }

    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// True where tokens may travel.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The account's name: first label of the host, or the path segment of an emulator.
    #[must_use]
    pub fn account(&self) -> &str {
        let in_path = self.0.path_segments().and_then(|mut s| s.next()).filter(|s| !s.is_empty());
        let in_host = || self.0.host_str().unwrap_or_default().split('.').next().unwrap_or_default();
        in_path.unwrap_or_else(in_host)
    }

    /// URL of something below: a container, a blob (whose name may hold slashes).
    pub(crate) fn join(&self, parts: &[&str]) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            for part in parts {
                path.extend(part.split('/'));
            }
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulators_account_is_in_the_path_and_azures_in_the_host() {
        let emulator = Endpoint::parse("http://127.0.0.1:10000/devstoreaccount1").unwrap();
        assert_eq!(emulator.account(), "devstoreaccount1");
        let azure = Endpoint::parse("https://acct.blob.core.windows.net/").unwrap();
        assert_eq!(azure.account(), "acct");
        for (endpoint, want) in [
            (&emulator, "http://127.0.0.1:10000/devstoreaccount1/fs-1/points/a%20b.json"),
            (&azure, "https://acct.blob.core.windows.net/fs-1/points/a%20b.json"),
        ] {
            assert_eq!(endpoint.join(&["fs-1", "points/a b.json"]).as_str(), want);
        }
    }

    #[test]
    fn an_endpoint_with_a_signature_is_refused_without_repeating_it() {
        let error = Endpoint::parse("https://a.example/?sv=1&sig=SECRET").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("SECRET"));
        for text in ["", "ftp://x/", "http:", "acct.blob.core.windows.net", "https://u:p@h/"] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
