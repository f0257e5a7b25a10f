//! Container SAS: what agents get. By shared key on emulators, by user delegation in Azure.
//! Account SAS are never made.

use azure_core::{http::RequestContent, time::OffsetDateTime};
use azure_storage_blob::models::KeyInfo;
use azure_storage_common::models::UserDelegationKey;
use azure_storage_sas::SasBuilder;
use jiff::Timestamp;

use crate::{BlobError, BlobErrorKind, BlobService, Endpoint, Sas, SharedKey};

/// Version of the service SAS format that is signed here.
const VERSION: &str = "2022-11-02";

/// What a SAS allows, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What.
    pub permissions: Permissions,
    /// From; leave some minutes for clocks that differ.
    pub starts: Timestamp,
    /// Until.
    pub expires: Timestamp,
}

/// The sets that are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permissions {
    /// `c`: write new blobs, see nothing, overwrite nothing.
    Create,
    /// `r`: read blobs whose names are known.
    Read,
    /// `racwdl`: all of it, for tests and the replica server on emulators.
    All,
}

impl Permissions {
    const fn text(self) -> &'static str {
        match self {
            Permissions::Create => "c",
            Permissions::Read => "r",
            Permissions::All => "racwdl",
        }
    }
}

/// A SAS of one container, signed by the account's key: for emulators.
#[must_use]
pub fn service_sas(key: &SharedKey, container: &str, grant: Grant) -> Sas {
    let (sp, st, se) = (grant.permissions.text(), time(grant.starts), time(grant.expires));
    let resource = format!("/blob/{}/{container}", key.account());
    let protocol = "https,http";
    // Identifier, address, snapshot, encryption scope and five response headers stay empty.
    let text = format!("{sp}\n{st}\n{se}\n{resource}\n\n\n{protocol}\n{VERSION}\nc\n\n\n\n\n\n\n");
    let signature = escaped(&key.sign(&text));
    let (st, se) = (escaped(&st), escaped(&se));
    Sas::new(&format!("sv={VERSION}&sr=c&sp={sp}&st={st}&se={se}&spr=https%2Chttp&sig={signature}"))
}

/// A key with which SAS are signed for a while without asking again. Lives at most 7 days.
#[derive(Clone)]
pub struct DelegationKey {
    key: UserDelegationKey,
    expires: Timestamp,
}

impl std::fmt::Debug for DelegationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DelegationKey(redacted, expires {})", self.expires)
    }
}

impl DelegationKey {
    /// End of its life; no SAS made with it works longer.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.expires
    }
}

impl BlobService {
    /// Asks for a user delegation key; needs an identity (`Credential::Token`).
    ///
    /// # Errors
    /// `NotAuthorized` without the right to generate one, and others.
    pub async fn delegation_key(
        &self,
        starts: Timestamp,
        expires: Timestamp,
    ) -> Result<DelegationKey, BlobError> {
        const OPERATION: &str = "get delegation key";
        let odd = || BlobError::new(OPERATION, self.endpoint().account(), BlobErrorKind::Protocol);
        let failed = |e| self.error(&e, OPERATION, self.endpoint().account());
        let info = KeyInfo {
            start: Some(offset_date_time(starts).ok_or_else(odd)?),
            expiry: Some(offset_date_time(expires).ok_or_else(odd)?),
            ..Default::default()
        };
        let body = RequestContent::try_from(info).map_err(failed)?;
        let answer = self.client(OPERATION)?.get_user_delegation_key(body, None).await.map_err(failed)?;
        Ok(DelegationKey { key: answer.into_model().map_err(failed)?, expires })
    }
}

/// A SAS of one container, signed by a user delegation key: for Azure. https only.
///
/// # Errors
/// The key is incomplete or the times are out of range.
pub fn user_delegation_sas(
    key: &DelegationKey,
    endpoint: &Endpoint,
    container: &str,
    grant: Grant,
) -> Result<Sas, BlobError> {
    let odd = || BlobError::new("sign SAS", container, BlobErrorKind::Protocol);
    let expires = offset_date_time(grant.expires).ok_or_else(odd)?;
    let starts = offset_date_time(grant.starts).ok_or_else(odd)?;
    let builder = SasBuilder::new(endpoint.account(), &key.key, expires)
        .map_err(|_| odd())?
        .start(starts)
        .protocol(azure_storage_sas::SasProtocol::Https)
        .container(container);
    let query = match grant.permissions {
        Permissions::Create => builder.create().build(),
        Permissions::Read => builder.read().build(),
        Permissions::All => builder.read().add().create().write().delete().list().build(),
    };
    Ok(Sas::new(&query))
}

fn offset_date_time(time: Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(time.as_second()).ok()
}

/// To the second, as the service wants it.
fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Percent-encodes what base64 and times hold beyond letters and digits.
fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '+' => "%2B".to_owned(),
        '/' => "%2F".to_owned(),
        '=' => "%3D".to_owned(),
        ':' => "%3A".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_create_only_sas_says_so_and_nothing_more() {
        let grant = Grant {
            permissions: Permissions::Create,
            starts: "2026-11-24T00:00:00Z".parse().unwrap(),
            expires: "2026-11-25T00:00:00.9Z".parse().unwrap(),
        };
        let sas = service_sas(&SharedKey::emulator(), "fs-1-up", grant);
        let query = sas.expose();
        assert!(query.contains("&sr=c&sp=c&"), "{query}");
        assert!(query.contains("&se=2026-11-25T00%3A00%3A00Z&"), "{query}");
        assert_eq!(sas.expires(), Some("2026-11-25T00:00:00Z".parse().unwrap()));
        let other = service_sas(&SharedKey::emulator(), "fs-2-up", grant);
        assert_ne!(sas, other, "the signature covers the container");
    }
}
