//! Who may do what: shared key and service SAS, checked as the service documents them.
//!
//! Written apart from the client's signing on purpose, so that one mistake cannot hide the other.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac as _};
use http::{HeaderMap, Method, Uri};
use jiff::Timestamp;
use sha2::Sha256;

use super::{
    refusal::{self, Refusal},
    request::{Operation, Target},
};

/// Signed versions before this one have other fields.
const OLDEST_SAS: &str = "2020-12-06";
const MAX_SKEW_SECONDS: i64 = 15 * 60;

/// The account.
#[derive(Clone)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) key: Vec<u8>,
    /// Off: everybody may do everything.
    pub(super) check: bool,
}

/// What a request may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Access {
    /// The account's owner.
    Owner,
    /// The letters of a SAS.
    Granted(String),
}

impl Access {
    pub(super) fn has(&self, letter: char) -> bool {
        match self {
            Access::Owner => true,
            Access::Granted(letters) => letters.contains(letter),
        }
    }

    fn allows(&self, operation: Operation) -> bool {
        match self {
            Access::Owner => true,
            Access::Granted(letters) => operation.permissions().contains(|c| letters.contains(c)),
        }
    }
}

/// One request to be judged.
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) target: &'a Target,
    pub(super) operation: Operation,
    /// The double's (perhaps skewed) clock.
    pub(super) now: Timestamp,
}

impl Account {
    pub(super) fn judge(&self, asked: &Asked<'_>) -> Result<Access, Refusal> {
        if !self.check {
            return Ok(Access::Owner);
        }
        let access = if let Some(value) = asked.headers.get("authorization") {
            let value = value.to_str().unwrap_or_default();
            let signed = value.strip_prefix(&format!("SharedKey {}:", self.name));
            if signed != Some(self.sign(&self.text_of_request(asked)).as_str()) {
                return Err(refusal::authentication_failed());
            }
            check_date(asked)?;
            Access::Owner
        } else if asked.target.query("sig").is_some() {
            self.judge_sas(asked.target, asked.now)?
        } else {
            return Err(refusal::no_authentication());
        };
        match asked.operation.permissions() {
            "" if access != Access::Owner => Err(refusal::resource_mismatch()),
            _ if access.allows(asked.operation) => Ok(access),
            _ => Err(refusal::permission_mismatch()),
        }
    }

    fn sign(&self, text: &str) -> String {
        // HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else { return String::new() };
        mac.update(text.as_bytes());
        BASE64_STANDARD.encode(mac.finalize().into_bytes())
    }

    /// Also for the source of a copy.
    pub(super) fn judge_sas(&self, target: &Target, now: Timestamp) -> Result<Access, Refusal> {
        let q = |name| target.query(name).unwrap_or_default();
        let version = q("sv");
        let resource = match q("sr") {
            "c" => format!("/blob/{}/{}", self.name, target.container),
            "b" | "bs" => format!("/blob/{}/{}/{}", self.name, target.container, target.blob),
            _ => return Err(refusal::authentication_failed()),
        };
        if version < OLDEST_SAS {
            return Err(refusal::authentication_failed());
        }
        let snapshot = if q("sr") == "bs" { q("snapshot") } else { "" };
        let text = [
            q("sp"),
            q("st"),
            q("se"),
            &resource,
            q("si"),
            q("sip"),
            q("spr"),
            version,
            q("sr"),
            snapshot,
            q("ses"),
            q("rscc"),
            q("rscd"),
            q("rsce"),
            q("rscl"),
            q("rsct"),
        ]
        .join("\n");
        if self.sign(&text) != q("sig") {
            return Err(refusal::authentication_failed());
        }
        let time = |name| q(name).parse::<Timestamp>().ok();
        let expires = time("se").ok_or_else(refusal::authentication_failed)?;
        if now >= expires || time("st").is_some_and(|starts| now < starts) {
            let mut refusal = refusal::authentication_failed();
            let detail = format!(
                "Signature not valid in the specified time frame: Start [{}] - Expiry [{}] - Current [{now}]",
                q("st"),
                q("se")
            );
            refusal.detail = Some(("AuthenticationErrorDetail", detail));
            return Err(refusal);
        }
        Ok(Access::Granted(q("sp").to_owned()))
    }

    fn text_of_request(&self, asked: &Asked<'_>) -> String {
        let header = |name: &str| asked.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let length = match header("content-length") {
            "0" => "",
            length => length,
        };
        let date = if asked.headers.contains_key("x-ms-date") { "" } else { header("date") };
        let mut text = format!(
            "{}\n{}\n{}\n{length}\n{}\n{}\n{date}\n{}\n{}\n{}\n{}\n{}\n",
            asked.method,
            header("content-encoding"),
            header("content-language"),
            header("content-md5"),
            header("content-type"),
            header("if-modified-since"),
            header("if-match"),
            header("if-none-match"),
            header("if-unmodified-since"),
            header("range"),
        );
        let own: BTreeMap<&str, &str> = asked
            .headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-ms-"))
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
            .collect();
        for (name, value) in own {
            text.push_str(&format!("{name}:{}\n", value.trim()));
        }
        text.push_str(&format!("/{}{}", self.name, asked.uri.path()));
        let mut query: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (name, value) in &asked.target.query {
            query.entry(name.to_ascii_lowercase()).or_default().push(value);
        }
        for (name, mut values) in query {
            values.sort_unstable();
            text.push_str(&format!("\n{name}:{}", values.join(",")));
        }
        text
    }
}

fn check_date(asked: &Asked<'_>) -> Result<(), Refusal> {
    let name = if asked.headers.contains_key("x-ms-date") { "x-ms-date" } else { "date" };
    let date = asked.headers.get(name).and_then(|v| v.to_str().ok());
    let date = date.and_then(|text| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok());
    match date {
        Some(date) if (date.as_second() - asked.now.as_second()).abs() <= MAX_SKEW_SECONDS => Ok(()),
        _ => Err(refusal::authentication_failed()),
    }
}
