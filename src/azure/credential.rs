//! Who we are towards the storage account. Nothing here prints its secret.

use std::{fmt, sync::Arc};

pub use azure_core::credentials::TokenCredential;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;

/// How requests are authorised.
#[derive(Clone)]
pub enum Credential {
    /// A shared access signature; agents have nothing else.
    Sas(Sas),
    /// The account's key; emulators only.
    SharedKey(SharedKey),
    /// An Entra identity; https only.
    Token(Arc<dyn TokenCredential>),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Sas(sas) => sas.fmt(f),
            Credential::SharedKey(key) => key.fmt(f),
            Credential::Token(_) => f.write_str("Token"),
        }
    }
}

impl From<Sas> for Credential {
    fn from(sas: Sas) -> Self {
        Credential::Sas(sas)
    }
}

/// A shared access signature: the query string, without a leading `?`.
#[derive(Clone, PartialEq, Eq)]
pub struct Sas {
    query: String,
    starts: Option<Timestamp>,
    expires: Option<Timestamp>,
}

impl Sas {
    /// Takes a query string (`sv=...&sig=...`), with or without `?`; its times are read, nothing else.
    #[must_use]
    pub fn new(query: &str) -> Sas {
        let query = query.trim().trim_start_matches('?').to_owned();
        let time = |name: &str| {
            let value = query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='))?;
            value.replace("%3A", ":").replace("%3a", ":").parse().ok()
        };
        let (starts, expires) = (time("st"), time("se"));
        Sas { query, starts, expires }
    }

    /// The query string: a secret. For the Secret that hands it to an agent, never for a log.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.query
    }

    /// End of its life (`se`).
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires
    }

    /// False when the service's clock says that it is too early or too late for it.
    pub(crate) fn valid_at(&self, now: Timestamp) -> bool {
        self.starts.is_none_or(|t| t <= now) && self.expires.is_none_or(|t| now < t)
    }
}

impl fmt::Debug for Sas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expires = self.expires.map_or_else(|| "?".to_owned(), |t| t.to_string());
        write!(f, "Sas(redacted, expires {expires})")
    }
}

/// An account and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey {
    account: String,
    key: Vec<u8>,
}

impl SharedKey {
    /// `key` is base64, as portals and emulators show it; `None` if it is not.
    #[must_use]
    pub fn new(account: &str, key: &str) -> Option<SharedKey> {
        let key = BASE64_STANDARD.decode(key.trim()).ok()?;
        Some(SharedKey { account: account.to_owned(), key })
    }

    /// The account and the public, well-known key of all storage emulators.
    #[must_use]
    pub fn emulator() -> SharedKey {
        const KEY: &str =
            "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
        let key = BASE64_STANDARD.decode(KEY).unwrap_or_default();
        SharedKey { account: "devstoreaccount1".to_owned(), key }
    }

    /// The account's name.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// HMAC-SHA256 of a text under the key, base64.
    pub(crate) fn sign(&self, text: &str) -> String {
        use hmac::{Hmac, Mac};
        let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(&self.key) else {
            unreachable!("HMAC takes keys of any length")
        };
        mac.update(text.as_bytes());
        BASE64_STANDARD.encode(mac.finalize().into_bytes())
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedKey({}, redacted)", self.account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // R2: secrets never in logs.
    #[test]
    fn debug_shows_no_secret() {
        let sas = Sas::new("?sv=2022-11-02&se=2030-01-01T00%3A00%3A00Z&sp=c&sig=SECRET%3D");
        let key = SharedKey::new("acct", "U0VDUkVU").unwrap();
        let shown =
            format!("{sas:?} {:?} {:?}", Credential::from(sas.clone()), Credential::SharedKey(key.clone()));
        for secret in ["SECRET", "sig=", "U0VDUkVU"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert_eq!(sas.expires(), Some("2030-01-01T00:00:00Z".parse().unwrap()));
    }

    #[test]
    fn a_sas_is_valid_from_its_start_until_before_its_end() {
        let sas = Sas::new("st=2030-01-01T00:00:00Z&se=2030-01-02T00:00:00Z&sig=x");
        for (now, want) in [
            ("2029-12-31T23:59:59Z", false),
            ("2030-01-01T00:00:00Z", true),
            ("2030-01-01T23:59:59Z", true),
            ("2030-01-02T00:00:00Z", false),
        ] {
            assert_eq!(sas.valid_at(now.parse().unwrap()), want, "{now}");
        }
    }
}
