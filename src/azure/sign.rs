//! Shared key authorisation: the string to sign of a request. Emulators only; in Azure identities
//! and user delegation SAS are used.

use azure_core::http::{Url, headers::Headers};

use crate::{SharedKey, wire};

/// Headers whose values stand in fixed places of the string to sign, in this order, after the
/// content length. `date` stays empty: `x-ms-date` is always sent.
const BEFORE_LENGTH: [&str; 2] = ["content-encoding", "content-language"];
const AFTER_LENGTH: [&str; 8] = [
    "content-md5",
    "content-type",
    "",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// Value of `Authorization` for a request that carries exactly these headers.
pub(crate) fn authorization(
    key: &SharedKey,
    method: &str,
    url: &Url,
    headers: &Headers,
    body_len: u64,
) -> String {
    let text = string_to_sign(key.account(), method, url, headers, body_len);
    format!("SharedKey {}:{}", key.account(), key.sign(&text))
}

fn string_to_sign(account: &str, method: &str, url: &Url, headers: &Headers, body_len: u64) -> String {
    let value =
        |name: &'static str| if name.is_empty() { "" } else { wire::text(headers, name).unwrap_or("") };
    let mut lines = vec![method.to_owned()];
    lines.extend(BEFORE_LENGTH.map(|name| value(name).to_owned()));
    lines.push(if body_len == 0 { String::new() } else { body_len.to_string() });
    lines.extend(AFTER_LENGTH.map(|name| value(name).to_owned()));
    let mut own: Vec<(String, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str().to_ascii_lowercase(), value.as_str()))
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .collect();
    own.sort();
    lines.extend(own.into_iter().map(|(name, value)| format!("{name}:{}", value.trim())));
    lines.push(canonical_resource(account, url));
    lines.join("\n")
}

/// `/account/path`, then the query as sorted `name:values` lines.
fn canonical_resource(account: &str, url: &Url) -> String {
    let mut query: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    for (name, value) in url.query_pairs() {
        query.entry(name.to_ascii_lowercase()).or_default().push(value.into_owned());
    }
    let mut out = format!("/{account}{}", url.path());
    for (name, mut values) in query {
        values.sort();
        out.push_str(&format!("\n{name}:{}", values.join(",")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_string_to_sign_is_the_documented_one() {
        let url =
            "http://127.0.0.1:10000/devstoreaccount1/fs-1?restype=container&comp=list&include=snapshots";
        let mut headers = Headers::new();
        headers.insert("x-ms-version", "2026-04-06");
        headers.insert("x-ms-date", "Tue, 24 Nov 2026 04:11:29 GMT");
        headers.insert("range", "bytes=0-511");
        headers.insert("accept", "application/xml");
        let got = string_to_sign("devstoreaccount1", "GET", &url.parse().unwrap(), &headers, 0);
        let want = "GET\n\n\n\n\n\n\n\n\n\n\nbytes=0-511\n\
            x-ms-date:Tue, 24 Nov 2026 04:11:29 GMT\nx-ms-version:2026-04-06\n\
            /devstoreaccount1/devstoreaccount1/fs-1\ncomp:list\ninclude:snapshots\nrestype:container";
        assert_eq!(got, want);
    }
}
