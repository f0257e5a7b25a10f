//! A ProtectedVM that is being deleted (DESIGN 4, "Deletion x state").
//!
//! | policy          | host                                   | ledger, replica, points        |
//! |-----------------|----------------------------------------|--------------------------------|
//! | Retain          | stops; reference points stay 7 days    | stay; `Released`               |
//! | StopReplication | stops; nothing of ours is left         | stay; `Released`               |
//! | Purge           | as StopReplication                     | removed, once confirmed        |
//!
//! Hosts are told and not waited for. Storage is waited for until `farshore.dev/abandon` is set. Away from
//! Protected all three leave everything as it is.

use jiff::{SignedDuration, Timestamp};

use super::jobs;
use super::ledger_edit::{LedgerEdit, LedgerExt};
use super::observed::{Finding, Goal, Observed, Relationship, Storage, Wish};
use super::plan::{Action, Plan, after};
use super::replicate::host_of;
use super::resolve::{Ownership, Resolved, ownership};
use super::stands::{Stand, stand};
use super::status::{Condition, Kind, Status, reason};
use crate::fault::{Class, Code};
use crate::format::ledger::{DeletionPolicy, Ledger, LedgerState};
use crate::intent::Standing;
use crate::timing::Timing;

/// How long the host keeps our reference points after deletion with Retain.
const KEEP_POINTS: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What deletion comes to.
enum Way {
    /// These steps.
    Go(Vec<Action>),
    /// Nothing can be done until somebody acts or storage answers.
    Wait { reason: &'static str, message: String, stalled: bool },
}

/// Decides for an object that is being deleted.
pub(super) fn plan(o: &Observed, resolved: &Resolved<'_>, timing: &Timing, now: Timestamp) -> Plan {
    let owned = ownership(o);
    let ledger = match &owned {
        Ownership::Mine(ledger) => Some(*ledger),
        Ownership::Unknown | Ownership::Nobody | Ownership::NotMine(_) | Ownership::Unusable(_) => None,
    };
    let way = if o.me.finalizer { way(o, &owned, now) } else { Way::Go(vec![]) };
    let findings = match &o.storage {
        Storage::Failed(fault) => vec![Finding::from(fault.clone())],
        Storage::NotLookedAt | Storage::Seen(_) => vec![],
    };
    let (vm_id, report) = (resolved.vm_id, resolved.report);
    let stand_now = Stand { o, vm_id, report, ledger, findings, prerequisites: false, young: false };
    let mut status = stand(&stand_now, timing, now);
    let (actions, waits) = match way {
        Way::Go(actions) => {
            show(&mut status, reason::DELETING, "the ProtectedVM is being deleted", false);
            (actions, None)
        }
        Way::Wait { reason, message, stalled } => {
            show(&mut status, reason, &message, stalled);
            (vec![], Some(message))
        }
    };
    let jobs = jobs::disabling(o, resolved.vm_id, policy(o, ledger), waits.as_deref());
    let next_check = match (&o.storage, &o.failures) {
        (Storage::Failed(_), Some(failures)) => failures.next_at,
        (Storage::Failed(_) | Storage::NotLookedAt | Storage::Seen(_), _) => {
            after(now, timing.retry_minute.min(timing.resync_all))
        }
    };
    Plan { actions, status, jobs, next_check }
}

/// Deletion is what the three summary conditions speak of.
fn show(status: &mut Status, reason: &str, message: &str, stalled: bool) {
    status.conditions.retain(|c| !matches!(c.kind, Kind::Ready | Kind::Reconciling | Kind::Stalled));
    status.conditions.push(Condition::new(Kind::Ready, false, reason, message));
    status.conditions.push(Condition::new(Kind::Reconciling, !stalled, reason, message));
    let why = if stalled { reason } else { super::status::reason::NOT_STALLED };
    status.conditions.push(Condition::new(Kind::Stalled, stalled, why, if stalled { message } else { "" }));
}

/// A stale manifest does not change what deletion does.
fn policy(o: &Observed, ledger: Option<&Ledger>) -> DeletionPolicy {
    match ledger {
        Some(ledger) if o.me.intent.standing(ledger) == Standing::Stale => ledger.deletion_policy,
        Some(_) | None => o.me.deletion_policy,
    }
}

fn way(o: &Observed, owned: &Ownership<'_>, now: Timestamp) -> Way {
    let ledger = match owned {
        Ownership::Mine(ledger) => Some(*ledger),
        Ownership::Unknown | Ownership::Nobody | Ownership::NotMine(_) | Ownership::Unusable(_) => None,
    };
    if ledger.is_some_and(|l| {
        !matches!(l.state, LedgerState::Enabling | LedgerState::Protected | LedgerState::Released)
    }) {
        return Way::Go(vec![Action::ReleaseFinalizer]);
    }
    let policy = policy(o, ledger);
    let confirmed = confirmed(o);
    let purge = policy == DeletionPolicy::Purge;
    let begun = ledger.is_some_and(|l| l.state != LedgerState::Released);
    if purge && !confirmed && begun && !o.me.abandon {
        return purge_not_confirmed(o);
    }
    let mut actions = stop_hosts(o, policy, now);
    match owned {
        Ownership::Mine(ledger) if ledger.state != LedgerState::Released => {
            let mut edit = LedgerEdit { state: Some(LedgerState::Released), ..LedgerEdit::default() };
            edit.deletion_policy = Some(policy);
            edit.note(format!("deleted with {policy:?}{}", if o.me.abandon { ", abandoned" } else { "" }));
            edit.purging = (purge && confirmed).then_some(true);
            actions.push(Action::WriteLedger(Box::new(edit)));
        }
        Ownership::Mine(ledger) if ledger.purging() && !o.me.abandon => {
            actions.push(Action::RemoveContainers(ledger.vm_id));
        }
        Ownership::Nobody if purge && confirmed && !o.me.abandon && has_containers(o) => {
            actions.extend(o.me.settled_vm().map(Action::RemoveContainers));
        }
        Ownership::Mine(_) | Ownership::Nobody | Ownership::NotMine(_) => {
            actions.push(Action::ReleaseFinalizer)
        }
        Ownership::Unusable(finding) if finding.code == Code::ContainerMissing => {
            actions.push(Action::ReleaseFinalizer);
        }
        Ownership::Unusable(_) | Ownership::Unknown if o.me.abandon || nothing_made(o) => {
            actions.push(Action::ReleaseFinalizer);
        }
        Ownership::Unusable(finding) => return wait(actions, &finding.message, true),
        Ownership::Unknown => {
            let (why, stalled) = match &o.storage {
                Storage::Failed(fault) => (fault.message.clone(), fault.class() == Class::Unrecoverable),
                Storage::NotLookedAt | Storage::Seen(_) if o.vault.is_none() => {
                    (format!("RecoveryVault {} does not exist", o.me.vault), true)
                }
                Storage::NotLookedAt | Storage::Seen(_) => {
                    ("nobody knows where the containers are".into(), true)
                }
            };
            return wait(actions, &why, stalled);
        }
    }
    Way::Go(actions)
}

/// The hosts are told at once; only the ledger waits.
fn wait(actions: Vec<Action>, why: &str, stalled: bool) -> Way {
    if !actions.is_empty() {
        return Way::Go(actions);
    }
    let message = format!(
        "the ledger cannot be written: {why}. Bring the storage account back; or let go of it by the annotation \
         farshore.dev/abandon: \"true\" (the replica stays)"
    );
    Way::Wait { reason: reason::DELETION_WAITS, message, stalled }
}

fn purge_not_confirmed(o: &Observed) -> Way {
    let id = o.me.settled_vm().map_or_else(|| "<vmID>".to_owned(), |id| id.to_string());
    let message = format!(
        "Purge removes the replica and every recovery point: confirm it by the annotation \
         farshore.dev/confirm-purge: {id}, or set spec.deletionPolicy to Retain. Replication goes on until then"
    );
    Way::Wait { reason: reason::PURGE_NOT_CONFIRMED, message, stalled: true }
}

fn confirmed(o: &Observed) -> bool {
    let id = o.me.settled_vm().map(|id| id.to_string());
    o.me.confirm_purge.as_deref().is_some_and(|c| Some(c.to_ascii_lowercase()) == id)
}

fn has_containers(o: &Observed) -> bool {
    o.stored().is_some_and(|s| s.replica.is_some())
}

/// Neither its own status nor a host knows of anything that was ever made for it.
fn nothing_made(o: &Observed) -> bool {
    !o.me.began() && o.relationships.is_empty()
}

/// Tells every host to stop, and takes its SAS away.
fn stop_hosts(o: &Observed, policy: DeletionPolicy, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    for r in &o.relationships {
        let goal = stopped(r, policy, now);
        if r.wish.goal != goal {
            actions.push(Action::ApplyRelationship(host_of(r), Box::new(Wish { goal, ..r.wish.clone() })));
        }
        if r.sas.is_some() {
            actions.push(Action::RevokeSas(host_of(r), r.wish.vm_id));
        }
    }
    actions
}

fn stopped(r: &Relationship, policy: DeletionPolicy, now: Timestamp) -> Goal {
    let keep_points_until = match (policy, r.wish.goal) {
        (DeletionPolicy::StopReplication | DeletionPolicy::Purge, _) => None,
        (DeletionPolicy::Retain, Goal::StopReplicating { keep_points_until: Some(until) }) => Some(until),
        // The API keeps whole seconds.
        (DeletionPolicy::Retain, Goal::StopReplicating { keep_points_until: None } | Goal::Replicate) => {
            let until = now.checked_add(KEEP_POINTS).unwrap_or(Timestamp::MAX);
            Timestamp::from_second(until.as_second()).ok()
        }
    };
    Goal::StopReplicating { keep_points_until }
}
