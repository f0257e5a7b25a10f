//! What a person would want in a timeline: one event per transition, from one status to the next.

use super::status::{Is, Kind, Status};
use crate::format::ledger::LedgerState;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// A person should look.
    pub warning: bool,
    /// One word for programs.
    pub reason: String,
    /// What was going on.
    pub action: &'static str,
    /// What happened and what comes next.
    pub note: String,
}

/// What happened between two statuses that were written.
#[must_use]
pub fn events(before: &Status, after: &Status) -> Vec<Event> {
    let mut events = Vec::new();
    if before.state != after.state {
        events.extend(after.state.and_then(moved));
    }
    let stalled = |s: &Status| s.condition(Kind::Stalled).filter(|c| c.is == Is::True).cloned();
    match (stalled(before), stalled(after)) {
        (was, Some(is)) if was.as_ref().map(|w| &w.reason) != Some(&is.reason) => {
            events.push(Event { warning: true, reason: is.reason, action: "Reconcile", note: is.message });
        }
        (Some(was), None) => events.push(Event {
            warning: false,
            reason: "NotStalled".into(),
            action: "Reconcile",
            note: format!("no longer stalled by {}", was.reason),
        }),
        _ => {}
    }
    let error = |s: &Status| s.last_error.as_ref().map(|e| e.code);
    if let Some(e) =
        after.last_error.as_ref().filter(|e| error(before) != Some(e.code) && !after.is(Kind::Stalled))
    {
        let note = format!("{}. {}", e.message, e.code.entry().remedy);
        events.push(Event { warning: true, reason: e.code.to_string(), action: "Replicate", note });
    }
    for (kind, action, yes, no) in [
        (
            Kind::LedgerReachable,
            "ReadLedger",
            "the ledger is reachable again",
            "the ledger cannot be reached",
        ),
        (
            Kind::RecoveryPointsCurrent,
            "Replicate",
            "recovery points are current",
            "recovery points are no longer current",
        ),
        (
            Kind::ResynchronizationRequired,
            "Resynchronize",
            "the disks are copied again from the start; recovery points stay",
            "the disks have been copied again",
        ),
    ] {
        let (Some(was), Some(is)) = (before.condition(kind), after.condition(kind)) else { continue };
        let good = if kind == Kind::ResynchronizationRequired { Is::False } else { Is::True };
        let note = match (was.is, is.is) {
            (Is::False | Is::Unknown, Is::True) if kind != Kind::LedgerReachable || was.is == Is::False => {
                yes
            }
            (Is::True, Is::False) => no,
            _ => continue,
        };
        events.push(Event { warning: is.is != good, reason: is.reason.clone(), action, note: note.into() });
    }
    events
}

fn moved(state: LedgerState) -> Option<Event> {
    let (reason, action, note) = match state {
        LedgerState::Enabling => (
            "Enabling",
            "EnableProtection",
            "containers and ledger exist; the host copies the disks, then the first recovery point is made",
        ),
        LedgerState::Protected => (
            "Protected",
            "FinalizeProtection",
            "the first recovery point exists; changes are sent on the policy's schedule",
        ),
        LedgerState::FailedOver
        | LedgerState::FailoverCommitted
        | LedgerState::FailbackSynchronized
        | LedgerState::FailedBack
        | LedgerState::FailbackCommitted
        | LedgerState::Released => return None,
    };
    Some(Event { warning: false, reason: reason.into(), action, note: note.into() })
}
