//! Intents: what a person asked for, and whether it is new, known or stale.

use serde::Serialize;
use serde_json::Value;

use crate::format::ledger::{IntentRecord, Ledger};
use crate::ids::{Epoch, Hash};

/// `desiredState` + `failover` + `failback` of one source, with its epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// `ProtectedVM/namespace/name`.
    pub source: String,
    /// The source's epoch.
    pub epoch: Epoch,
    /// The parts of the spec that make the intent; fields at their default are left out.
    pub content: Value,
}

/// What the ledger says about an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Above the ledger's epoch: to be accepted.
    New,
    /// The same epoch and hash as the ledger holds for that source: in force already.
    Known,
    /// Anything else at or below: never acted on.
    Stale,
}

impl Intent {
    /// An intent from the parts of a spec.
    ///
    /// # Errors
    /// If the content cannot be expressed as JSON.
    pub fn new(source: String, epoch: Epoch, content: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self { source, epoch, content: serde_json::to_value(content)? })
    }

    /// BLAKE3 of the canonical JSON: keys sorted, no white space, nulls and empty objects left out.
    #[must_use]
    pub fn hash(&self) -> Hash {
        let mut text = String::new();
        canonical(&self.content, &mut text);
        Hash::of(text.as_bytes())
    }

    /// How the ledger sees it.
    #[must_use]
    pub fn standing(&self, ledger: &Ledger) -> Standing {
        if self.epoch > ledger.epoch {
            return Standing::New;
        }
        let mine = IntentRecord { epoch: self.epoch, hash: self.hash() };
        if ledger.intents.get(&self.source) == Some(&mine) { Standing::Known } else { Standing::Stale }
    }
}

fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().filter(|(_, v)| !is_absent(v)).collect();
            fields.sort_by_key(|(k, _)| *k);
            out.push('{');
            for (i, (key, value)) in fields.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_absent),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::format::ledger::tests::protected;

    fn intent(epoch: u64, content: Value) -> Intent {
        Intent { source: "ProtectedVM/shop/sql01".into(), epoch: Epoch(epoch), content }
    }

    // R0.3, DESIGN 4: what CEL cannot see, the ledger decides.
    #[test]
    fn an_intent_is_new_only_above_the_ledger_and_known_only_if_it_is_the_same() {
        let known = intent(5, json!({"desiredState": "Protected"}));
        let mut ledger = protected();
        ledger.epoch = Epoch(5);
        ledger.intents.insert(known.source.clone(), IntentRecord { epoch: Epoch(5), hash: known.hash() });
        let moved = json!({"desiredState": "FailedOver"});
        for (name, given, want) in [
            ("the same again", known.clone(), Standing::Known),
            ("higher", intent(6, moved.clone()), Standing::New),
            ("same epoch, other content", intent(5, moved.clone()), Standing::Stale),
            ("yesterday's", intent(4, json!({"desiredState": "Protected"})), Standing::Stale),
            (
                "another source at this epoch",
                Intent { source: "ProtectedVM/x/y".into(), ..known },
                Standing::Stale,
            ),
        ] {
            assert_eq!(given.standing(&ledger), want, "{name}");
        }
    }

    #[test]
    fn the_hash_ignores_order_and_absent_fields() {
        let a = intent(1, json!({"desiredState": "Protected", "failover": {"type": null}, "failback": {}}));
        let b = intent(1, json!({"failback": null, "desiredState": "Protected"}));
        assert_eq!(a.hash(), b.hash());
        assert_ne!(a.hash(), intent(1, json!({"desiredState": "FailedOver"})).hash());
    }
}
