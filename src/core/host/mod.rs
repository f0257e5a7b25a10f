//! Hosts: which certificate requests are honoured, what a host's namespace is called, whether it lives (DESIGN 9).
//!
//! ```text
//! token --CSR--> HyperVHost (not accepted) --an admin compares the key, accepts--> namespace, rights --> CSR approved
//!                                                                       renewals: only with the accepted key
//! ```

mod heartbeat;

pub use heartbeat::{Heartbeat, Pulse};

use crate::ids::Hash;

/// The only signer whose certificates the API server takes for clients.
pub const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// Organization of every host's certificate.
pub const ORGANIZATION: &str = "farshore:hosts";
/// A host's user name is this and its name.
pub const USER_PREFIX: &str = "farshore:host:";
/// Group of every bootstrap token.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers:farshore";
/// User name of a bootstrap token is this and the token's id.
const TOKEN_USER_PREFIX: &str = "system:bootstrap:";

/// A certificate request, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Signer that is asked.
    pub signer: String,
    /// Who asks, by the API server's word.
    pub user: String,
    /// Groups of who asks, by the API server's word.
    pub groups: Vec<String>,
    /// Usages that are asked for.
    pub usages: Vec<String>,
    /// What the request itself says; absent if it cannot be parsed or its own signature is wrong.
    pub subject: Option<Subject>,
}

/// Subject and key of a certificate request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Common names.
    pub common_names: Vec<String>,
    /// Organizations.
    pub organizations: Vec<String>,
    /// Asks for alternative names.
    pub alternative_names: bool,
    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex.
    pub fingerprint: String,
}

/// A HyperVHost, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its site.
    pub site: String,
    /// An administrator has accepted it.
    pub accepted: bool,
    /// Key that was accepted, or is to be.
    pub fingerprint: String,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not Farshore's.
    Ignore,
    /// Refused for good; the sentence is for the host's administrator.
    Deny(String),
    /// A HyperVHost is made from it; then it waits.
    Introduce {
        /// Name of the host.
        name: String,
        /// Site of the token.
        site: String,
        /// Key of the request.
        fingerprint: String,
        /// Id of the token.
        token: String,
    },
    /// An administrator has to accept the host.
    Wait,
    /// The HyperVHost has another key: an administrator has to look.
    KeyMismatch,
    /// Signed, once namespace and rights exist.
    Approve(String),
}

/// Decides about a request. `host` is the HyperVHost of the name in the request; `bound_to` the host that the token
/// has already introduced.
#[must_use]
pub fn decide(request: &Request, host: Option<&Known>, bound_to: Option<&str>) -> Decision {
    let bootstrapper = request.groups.iter().any(|g| g == BOOTSTRAPPERS);
    let renewal = request.groups.iter().any(|g| g == ORGANIZATION);
    if request.signer != SIGNER || !(bootstrapper || renewal) {
        return Decision::Ignore;
    }
    let (name, fingerprint) = match well_formed(request) {
        Ok(ok) => ok,
        Err(why) => return Decision::Deny(why.into()),
    };
    if !bootstrapper {
        return renew(request, host, &name, &fingerprint);
    }
    let Some(site) = request.groups.iter().find_map(|g| g.strip_prefix(BOOTSTRAPPERS)?.strip_prefix(':'))
    else {
        return Decision::Deny(
            "the token names no site: make one with farshore-controller host-token --site".into(),
        );
    };
    let Some(token) = request.user.strip_prefix(TOKEN_USER_PREFIX) else {
        return Decision::Deny("only a bootstrap token may introduce a host".into());
    };
    if let Some(other) = bound_to.filter(|b| *b != name) {
        return Decision::Deny(format!("the token was used for host {other}: every host needs its own"));
    }
    match host {
        None => Decision::Introduce { name, site: site.into(), fingerprint, token: token.into() },
        Some(known) if known.site != site => {
            Decision::Deny(format!("host {name} is of site {}, the token of site {site}", known.site))
        }
        Some(known) if known.fingerprint != fingerprint => Decision::KeyMismatch,
        Some(known) if known.accepted => Decision::Approve(name),
        Some(_) => Decision::Wait,
    }
}

fn renew(request: &Request, host: Option<&Known>, name: &str, fingerprint: &str) -> Decision {
    if request.user != format!("{USER_PREFIX}{name}") {
        return Decision::Deny("a host may renew only its own certificate".into());
    }
    match host {
        None => Decision::Deny(format!("there is no HyperVHost {name}")),
        Some(known) if !known.accepted => Decision::Deny(format!("host {name} is not accepted")),
        Some(known) if known.fingerprint != fingerprint => {
            Decision::Deny(format!("host {name} was accepted with another key"))
        }
        Some(_) => Decision::Approve(name.to_owned()),
    }
}

/// Name and key, if the request asks for exactly what a host may have.
fn well_formed(request: &Request) -> Result<(String, String), &'static str> {
    const ALLOWED: [&str; 3] = ["client auth", "digital signature", "key encipherment"];
    let subject = request
        .subject
        .as_ref()
        .ok_or("the certificate request cannot be read, or is not signed by its key")?;
    let [common_name] = subject.common_names.as_slice() else {
        return Err("it needs exactly one common name");
    };
    let name = common_name.strip_prefix(USER_PREFIX).ok_or("its common name must be farshore:host:<name>")?;
    if !is_host_name(name) {
        return Err("the host's name must be a DNS name in lower case, at most 63 characters");
    }
    if subject.organizations != [ORGANIZATION] {
        return Err("its only organization must be farshore:hosts");
    }
    if subject.alternative_names {
        return Err("it must not ask for alternative names");
    }
    if !request.usages.iter().any(|u| u == "client auth")
        || request.usages.iter().any(|u| !ALLOWED.contains(&u.as_str()))
    {
        return Err("its usages must be client auth, and digital signature or key encipherment");
    }
    Ok((name.to_owned(), subject.fingerprint.clone()))
}

fn is_host_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 63 && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last())
}

/// Namespace of a host: readable, and different for hosts whose names differ only in what is not.
#[must_use]
pub fn namespace(host: &str) -> String {
    let slug: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(40)
        .collect();
    let hash: String = Hash::of(host.as_bytes()).to_string().chars().take(8).collect();
    format!("farshore-host-{}-{hash}", slug.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            signer: SIGNER.into(),
            user: "system:bootstrap:abcdef".into(),
            groups: vec![BOOTSTRAPPERS.into(), format!("{BOOTSTRAPPERS}:ams"), "system:authenticated".into()],
            usages: vec!["client auth".into(), "digital signature".into()],
            subject: Some(Subject {
                common_names: vec![format!("{USER_PREFIX}h1.example")],
                organizations: vec![ORGANIZATION.into()],
                alternative_names: false,
                fingerprint: "aa".into(),
            }),
        }
    }

    fn renewal() -> Request {
        Request { user: format!("{USER_PREFIX}h1.example"), groups: vec![ORGANIZATION.into()], ..request() }
    }

    fn known(accepted: bool) -> Known {
        Known { site: "ams".into(), accepted, fingerprint: "aa".into() }
    }

    // R1.2, DESIGN 9
    #[test]
    fn a_host_is_introduced_waits_and_is_approved_only_with_the_accepted_key() {
        let introduce = Decision::Introduce {
            name: "h1.example".into(),
            site: "ams".into(),
            fingerprint: "aa".into(),
            token: "abcdef".into(),
        };
        let other_key = Known { fingerprint: "bb".into(), ..known(true) };
        let approve = Decision::Approve("h1.example".into());
        for (name, request, host, want) in [
            ("unknown", request(), None, introduce),
            ("not accepted", request(), Some(known(false)), Decision::Wait),
            ("accepted", request(), Some(known(true)), approve.clone()),
            ("another key", request(), Some(other_key.clone()), Decision::KeyMismatch),
            ("renewal", renewal(), Some(known(true)), approve),
        ] {
            assert_eq!(decide(&request, host.as_ref(), None), want, "{name}");
        }
        for (name, request, host, bound) in [
            ("renewal with another key", renewal(), Some(other_key), None),
            ("renewal, no longer accepted", renewal(), Some(known(false)), None),
            ("renewal, host deleted", renewal(), None, None),
            ("token of another site", request(), Some(Known { site: "fra".into(), ..known(true) }), None),
            ("token used for another host", request(), None, Some("h2")),
        ] {
            assert!(matches!(decide(&request, host.as_ref(), bound), Decision::Deny(_)), "{name}");
        }
    }

    #[test]
    fn a_request_that_asks_for_more_than_a_host_may_have_is_denied() {
        type Break = fn(&mut Request);
        let cases: [(&str, Break); 10] = [
            ("cluster admin", |r| r.subject.as_mut().unwrap().organizations.push("system:masters".into())),
            ("another organization", |r| {
                r.subject.as_mut().unwrap().organizations = vec!["system:nodes".into()]
            }),
            ("another user", |r| r.subject.as_mut().unwrap().common_names = vec!["admin".into()]),
            ("two users", |r| r.subject.as_mut().unwrap().common_names.push("admin".into())),
            ("a bad name", |r| r.subject.as_mut().unwrap().common_names = vec![format!("{USER_PREFIX}H1/x")]),
            ("alternative names", |r| r.subject.as_mut().unwrap().alternative_names = true),
            ("a server's usage", |r| r.usages.push("server auth".into())),
            ("no client's usage", |r| r.usages = vec!["digital signature".into()]),
            ("no site", |r| r.groups.retain(|g| !g.ends_with(":ams"))),
            ("unreadable", |r| r.subject = None),
        ];
        for (name, break_it) in cases {
            let mut r = request();
            break_it(&mut r);
            assert!(matches!(decide(&r, Some(&known(true)), None), Decision::Deny(_)), "{name}");
        }
        let renews_another = Request { user: format!("{USER_PREFIX}h2"), ..renewal() };
        assert!(matches!(decide(&renews_another, Some(&known(true)), None), Decision::Deny(_)));
    }

    #[test]
    fn requests_of_others_are_none_of_our_business() {
        let node = Request { groups: vec!["system:nodes".into()], ..request() };
        let serving = Request { signer: "kubernetes.io/kubelet-serving".into(), ..request() };
        assert_eq!(decide(&node, None, None), Decision::Ignore);
        assert_eq!(decide(&serving, None, None), Decision::Ignore);
    }

    #[test]
    fn namespaces_are_labels_and_differ_when_hosts_do() {
        for host in ["h1", "hv-01.corp.example", &"x".repeat(63), "a.-.b"] {
            let ns = namespace(host);
            assert!(ns.len() <= 63 && ns.starts_with("farshore-host-") && !ns.contains('.'), "{ns}");
        }
        assert_ne!(namespace("a.b"), namespace("a-b"));
    }
}
