//! Faults on demand: which requests they hit, how often, and what happens to those.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::request::Operation;

/// One fault, as posted to `/_admin/faults`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Which requests; nothing said: all.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// Requests that match are let through before it begins.
    #[serde(default)]
    pub skip: u64,
    /// How many it hits; `null`: all from then on.
    #[serde(default = "once")]
    pub count: Option<u64>,
    /// What happens to them.
    pub action: Action,
}

// By hand, because serde's default for an Option is None.
#[expect(clippy::unnecessary_wraps, reason = "the type of the field")]
fn once() -> Option<u64> {
    Some(1)
}

/// All that is given must fit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// `PUT`
    pub method: Option<String>,
    /// `PutPage`, `GetBlob`, ...
    pub operation: Option<String>,
    /// Value of `comp` in the query; empty: none.
    pub comp: Option<String>,
    /// How `/container/blob` begins.
    pub prefix: Option<String>,
    /// What is in `/container/blob`.
    pub contains: Option<String>,
    /// How `/container/blob` ends.
    pub suffix: Option<String>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Action {
    /// Refused instead of done.
    #[serde(rename_all = "camelCase")]
    Status {
        /// HTTP status.
        status: u16,
        /// Storage error code.
        #[serde(default)]
        code: String,
        /// Seconds.
        retry_after: Option<u64>,
    },
    /// The connection ends after the body was read; nothing is done.
    DropBefore,
    /// Done, but the answer is lost with the connection.
    DropAfter,
    /// The connection ends when so many bytes of the request's body have come; nothing is done.
    CutUpload(u64),
    /// The connection ends after so many bytes of the answer's body.
    CutDownload(u64),
    /// The answer is whole as HTTP, but holds only so many bytes.
    Truncate(u64),
    /// The bits of this byte of the answer's body are inverted.
    Corrupt(u64),
    /// The request's body is not read and nothing is answered as long as the client waits.
    StallUpload,
    /// Done, but the answer does not come as long as the client waits.
    StallAnswer,
    /// The answer's body stops after so many bytes as long as the client waits.
    StallDownload(u64),
    /// Milliseconds before it is done.
    Delay(u64),
}

/// A fault and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Armed {
    /// Given back when it was posted.
    pub id: u64,
    /// How many requests it hit.
    pub hits: u64,
    /// How many requests matched, hit or let through.
    pub matched: u64,
    /// The fault.
    pub fault: Fault,
}

impl Match {
    fn fits(&self, method: &str, operation: Option<Operation>, comp: &str, path: &str) -> bool {
        let name = operation.map(|o| format!("{o:?}")).unwrap_or_default();
        let is = |want: &Option<String>, has: &str| want.as_ref().is_none_or(|want| want == has);
        is(&self.method, method)
            && is(&self.operation, &name)
            && is(&self.comp, comp)
            && self.prefix.as_ref().is_none_or(|want| path.starts_with(want))
            && self.contains.as_ref().is_none_or(|want| path.contains(want))
            && self.suffix.as_ref().is_none_or(|want| path.ends_with(want))
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<(u64, Vec<Armed>)>);

impl Faults {
    pub(super) fn add(&self, fault: Fault) -> u64 {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 += 1;
        let id = inner.0;
        inner.1.push(Armed { id, hits: 0, matched: 0, fault });
        id
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clear();
    }

    pub(super) fn all(&self) -> Vec<Armed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// What happens to this request: the first fault that fits and is not used up.
    pub(super) fn take(
        &self,
        method: &str,
        operation: Option<Operation>,
        comp: &str,
        path: &str,
    ) -> Option<Action> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for armed in &mut inner.1 {
            let used_up = armed.fault.count.is_some_and(|count| armed.hits >= count);
            if used_up || !armed.fault.matches.fits(method, operation, comp, path) {
                continue;
            }
            armed.matched += 1;
            if armed.matched > armed.fault.skip {
                armed.hits += 1;
                return Some(armed.fault.action.clone());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_skips_then_hits_then_is_used_up() {
        let faults = Faults::default();
        let text = r#"{"match": {"operation": "PutPage", "prefix": "/fs-1/"}, "skip": 1, "count": 2,
            "action": {"status": {"status": 503, "code": "ServerBusy", "retryAfter": 2}}}"#;
        faults.add(serde_json::from_str(text).unwrap());
        faults.add(serde_json::from_str(r#"{"match": {"method": "GET"}, "action": "dropAfter"}"#).unwrap());
        let put = |path| faults.take("PUT", Some(Operation::PutPage), "page", path);
        assert_eq!(put("/fs-1/a"), None);
        assert_eq!(put("/fs-2/a"), None);
        let busy = Action::Status { status: 503, code: "ServerBusy".into(), retry_after: Some(2) };
        assert_eq!([put("/fs-1/a"), put("/fs-1/b"), put("/fs-1/c")], [Some(busy.clone()), Some(busy), None]);
        assert_eq!(faults.take("GET", Some(Operation::GetBlob), "", "/x/y"), Some(Action::DropAfter));
        assert_eq!(faults.take("GET", Some(Operation::GetBlob), "", "/x/y"), None);
        assert_eq!(faults.all().iter().map(|a| (a.matched, a.hits)).collect::<Vec<_>>(), [(3, 2), (1, 1)]);
    }
}
