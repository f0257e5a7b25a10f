//! A VM whose ledger is this object's: keep the ledger true to what is wished and seen, and the relationship
//! true to the ledger.

use jiff::{SignedDuration, Timestamp};

use super::ledger_edit::{LedgerEdit, LedgerExt, NewStream, Resynchronization, ShorterRetention};
use super::observed::{
    AgentError, Base, Finding, Goal, Host, Observed, Relationship, Report, Schedule, Stored, Wish,
};
use super::plan::{Action, after, containers};
use super::prerequisite;
use super::transition::{self, Answer};
use crate::fault::{Class, Code};
use crate::format::ledger::{IntentRecord, Ledger, LedgerState, PolicySettings};
use crate::ids::CycleId;
use crate::intent::Standing;
use crate::retry;
use crate::timing::Timing;

/// A shorter retention comes into force after this long.
const SHORTER_RETENTION_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// What is to be done.
pub(super) struct Work {
    /// In order.
    pub actions: Vec<Action>,
    /// An earlier look than usual is needed.
    pub next_check: Option<Timestamp>,
    /// Nothing but prerequisites keeps the VM from being protected again.
    pub prerequisites_unmet: bool,
}

/// Decides for a ledger that is this object's.
pub(super) fn plan(
    o: &Observed,
    ledger: &Ledger,
    report: Option<&Report>,
    findings: &mut Vec<Finding>,
    timing: &Timing,
    now: Timestamp,
) -> Work {
    let mut edit = LedgerEdit::default();
    let in_force = intent(o, ledger, findings, &mut edit);
    if ledger.state == LedgerState::Released {
        return re_enter(o, ledger, report, findings, edit, in_force);
    }
    if in_force {
        settings(o, ledger, &mut edit, now);
    }
    let mut next_check = stream(o, ledger, report, findings, &mut edit, timing, now);
    if ledger.state == LedgerState::Enabling && has_point(o, ledger) {
        edit.state = Some(LedgerState::Protected);
        edit.note("protected: the first recovery point exists");
    }
    let mut actions = Vec::new();
    if o.stored().is_some_and(|s| s.side.read().is_none_or(|side| side.seq < ledger.seq)) {
        actions.push(Action::CopySide);
    }
    if edit.stream.is_none() {
        let (mut more, sas_at) = relationship(o, ledger, report, timing, now);
        actions.append(&mut more);
        next_check = [next_check, sas_at].into_iter().flatten().min();
    }
    if !edit.is_empty() {
        actions.push(Action::WriteLedger(Box::new(edit)));
    }
    Work { actions, next_check, prerequisites_unmet: false }
}

/// Accepts a new intent that asks for no move, reports any other. True if the spec may be believed.
fn intent(o: &Observed, ledger: &Ledger, findings: &mut Vec<Finding>, edit: &mut LedgerEdit) -> bool {
    let me = &o.me;
    let standing = me.intent.standing(ledger);
    if standing == Standing::Stale {
        let known = ledger.intents.get(&me.intent.source);
        findings.push(Finding::new(
            Code::StaleDesiredState,
            format!(
                "spec has epoch {} and desiredState {}; the ledger is at epoch {}{}",
                me.intent.epoch,
                me.desired.as_str(),
                ledger.epoch,
                if known.is_some_and(|k| k.epoch == me.intent.epoch) { " with another content" } else { "" }
            ),
        ));
        return false;
    }
    match transition::ask(Some(ledger.state), me.desired) {
        Answer::Stay => {
            if standing == Standing::New {
                let record = IntentRecord { epoch: me.intent.epoch, hash: me.intent.hash() };
                edit.intent = Some((me.intent.source.clone(), record));
                edit.note(format!("epoch {} accepted", me.intent.epoch));
            }
        }
        Answer::Go(_) | Answer::NotImplementedYet => findings.push(Finding::new(
            Code::NotImplementedYet,
            format!("the way to {} does not exist in this version", me.desired.as_str()),
        )),
        Answer::ProtectFirst => findings.push(Finding::new(
            Code::ProtectFirst,
            format!("desiredState is {} and protection of the VM was ended", me.desired.as_str()),
        )),
        Answer::NotAllowed { instead } => {
            let instead = instead.map(|i| format!(": {i}")).unwrap_or_default();
            let what = format!("there is no way from here to {}{instead}", me.desired.as_str());
            findings.push(Finding::new(Code::TransitionNotAllowed, what));
        }
    }
    true
}

/// Protection was ended and is wished again: the containers and what is in them are adopted.
fn re_enter(
    o: &Observed,
    ledger: &Ledger,
    report: Option<&Report>,
    findings: &mut Vec<Finding>,
    mut edit: LedgerEdit,
    in_force: bool,
) -> Work {
    let mut work = Work { actions: vec![], next_check: None, prerequisites_unmet: false };
    let (Some(report), true) = (report, in_force) else { return work };
    let disks = match prerequisite::check(report, &o.me.exclude) {
        Ok(disks) => disks,
        Err(unmet) => {
            work.prerequisites_unmet = findings.is_empty();
            findings.extend(unmet);
            return work;
        }
    };
    let (true, Some(policy)) = (findings.is_empty(), &o.policy) else { return work };
    let goes_on = start(o, ledger) == NewStream::Continue && disks == ledger.disks && !ledger.purging();
    edit.note(if goes_on {
        "created again: goes on from the last verified cycle"
    } else {
        "created again: everything is copied"
    });
    edit.state = Some(LedgerState::Enabling);
    edit.stream = Some(if goes_on { NewStream::Continue } else { NewStream::FullCopy });
    edit.claim = Some(report.host.claim());
    edit.disks = Some(disks);
    edit.deletion_policy = Some(o.me.deletion_policy);
    edit.policy = Some(PolicySettings {
        name: o.me.policy.clone(),
        replication_interval_seconds: policy.interval_seconds,
        recovery_point_spacing_seconds: policy.spacing_seconds,
        recovery_point_retention_seconds: policy.retention_seconds,
    });
    edit.shorter_retention = Some(None);
    edit.purging = Some(false);
    work.actions = containers(o, report.vm_id, &report.vm_name);
    work.actions.push(Action::WriteLedger(Box::new(edit)));
    work
}

/// Records the policy and the deletion policy that are in force from now on.
fn settings(o: &Observed, ledger: &Ledger, edit: &mut LedgerEdit, now: Timestamp) {
    if o.me.deletion_policy != ledger.deletion_policy {
        edit.deletion_policy = Some(o.me.deletion_policy);
        edit.note(format!("deletionPolicy is {:?}", o.me.deletion_policy));
    }
    let Some(policy) = o.policy.as_ref().filter(|p| p.allowed) else { return };
    let old = ledger.policy.recovery_point_retention_seconds;
    let waits = ledger.shorter_retention();
    let mut retention = policy.retention_seconds;
    let mut still_waits = None;
    if policy.retention_seconds < old {
        let from = waits.filter(|w| w.seconds == policy.retention_seconds).map(|w| w.from);
        let from = from.unwrap_or_else(|| now.checked_add(SHORTER_RETENTION_AFTER).unwrap_or(Timestamp::MAX));
        if now < from {
            retention = old;
            still_waits = Some(ShorterRetention { seconds: policy.retention_seconds, from });
        }
    }
    if still_waits != waits {
        edit.shorter_retention = Some(still_waits);
        edit.note(match still_waits {
            Some(w) => format!("a retention of {} s comes into force at {}", w.seconds, w.from),
            None => "no shorter retention waits".to_owned(),
        });
    }
    let in_force = PolicySettings {
        name: o.me.policy.clone(),
        replication_interval_seconds: policy.interval_seconds,
        recovery_point_spacing_seconds: policy.spacing_seconds,
        recovery_point_retention_seconds: retention,
    };
    if in_force != ledger.policy {
        edit.note(format!("policy {} is in force", in_force.name));
        edit.policy = Some(in_force);
    }
}

/// Is there a recovery point of the ledger's own stream?
pub(super) fn has_point(o: &Observed, ledger: &Ledger) -> bool {
    o.stored().is_some_and(|s| s.points.iter().any(|p| p.cycle.is_of(ledger.term, ledger.stream)))
}

/// A new stream: another host, a lost journal, or disks that must be copied again. Returns when a full copy that
/// has to wait may begin.
fn stream(
    o: &Observed,
    ledger: &Ledger,
    report: Option<&Report>,
    findings: &mut Vec<Finding>,
    edit: &mut LedgerEdit,
    timing: &Timing,
    now: Timestamp,
) -> Option<Timestamp> {
    let current = |r: &&Relationship| (r.wish.term, r.wish.stream) == (ledger.term, ledger.stream);
    if let Some(report) = report {
        let claim = report.host.claim();
        if ledger.claim != claim {
            edit.note(format!("the VM belongs to {claim}, no longer to {}", ledger.claim));
            edit.claim = Some(claim);
        }
        let elsewhere = o.relationships.iter().filter(current).find(|r| r.host != report.host.name);
        if let Some(elsewhere) = elsewhere {
            edit.note(format!(
                "new stream: the VM runs on {}, no longer on {}",
                report.host.name, elsewhere.host
            ));
            edit.stream = Some(start(o, ledger));
        }
    }
    if let Some(found) = needs_resync(o, ledger) {
        let before = ledger.resynchronization().filter(|_| !has_point(o, ledger));
        if let Some(wait) = before.as_ref().map(|b| b.failures.next_at).filter(|at| now < *at) {
            findings.push(found);
            return Some(wait);
        }
        let failures =
            retry::after_failure(before.as_ref().map(|b| &b.failures), timing.retry_minute, None, 1.0, now);
        edit.note(format!("new stream: everything is copied again, {}: {}", found.code, found.message));
        edit.stream = Some(NewStream::FullCopy);
        edit.resynchronization =
            Some(Resynchronization { code: found.code, message: found.message.clone(), failures });
        findings.push(found);
        return None;
    }
    let lost = o
        .relationships
        .iter()
        .filter(current)
        .find(|r| r.report.journal_lost && r.report.observed == Some((ledger.term, ledger.stream)));
    if let (Some(lost), None) = (lost, edit.stream) {
        edit.note(format!("new stream: the agent on {} lost its journal", lost.host));
        edit.stream = Some(start(o, ledger));
    }
    None
}

/// Something that only a comparison or a copy of the disks puts right, found in the ledger's own stream.
pub(super) fn needs_resync(o: &Observed, ledger: &Ledger) -> Option<Finding> {
    let stored = o.stored()?;
    let refused = stored.cursor.read().and_then(|c| c.refused.as_ref());
    if let Some(refused) = refused.filter(|r| r.id.is_of(ledger.term, ledger.stream)) {
        let code = refused.code.parse().unwrap_or(Code::Unknown);
        let message = format!("cycle {} was refused: {}", refused.id, refused.message);
        if class(code) == Class::NeedsResync {
            return Some(Finding::new(code, message));
        }
    }
    let at = Some((ledger.term, ledger.stream));
    let error: &AgentError =
        o.relationships.iter().filter(|r| r.report.observed == at).find_map(|r| r.report.error.as_ref())?;
    (class(error.code) == Class::NeedsResync).then(|| Finding::new(error.code, error.message.clone()))
}

fn class(code: Code) -> Class {
    code.entry().class
}

/// What a new stream starts from: the last verified cycle, unless there is none, or the ledger's own stream was to
/// start from nothing and nothing of it is verified yet: then the cursor still speaks of a chain that is not to be
/// continued.
fn start(o: &Observed, ledger: &Ledger) -> NewStream {
    let verified = o.stored().and_then(|s| s.cursor.read()).and_then(|c| c.verified.as_ref());
    let of_this_stream = |id: CycleId| id.is_of(ledger.term, ledger.stream);
    match verified {
        Some(verified) if !ledger.full_copy() || of_this_stream(verified.commit.id) => NewStream::Continue,
        Some(_) | None => NewStream::FullCopy,
    }
}

/// Makes the relationship what the ledger says. The second value: when the SAS are to be renewed.
fn relationship(
    o: &Observed,
    ledger: &Ledger,
    report: Option<&Report>,
    timing: &Timing,
    now: Timestamp,
) -> (Vec<Action>, Option<Timestamp>) {
    let existing = match report {
        Some(report) => o.relationships.iter().find(|r| r.host == report.host.name),
        None => o.relationships.first(),
    };
    let host = match (report, existing) {
        (Some(report), _) => report.host.clone(),
        (None, Some(existing)) => host_of(existing),
        (None, None) => return (vec![], None),
    };
    let Some(stored) = o.stored() else { return (vec![], None) };
    // For whom a relationship is made cannot be changed: one of an object that is gone makes room first.
    let in_the_way: Vec<Action> = o
        .leftovers
        .iter()
        .filter(|r| r.host == host.name && r.wish.goal != Goal::Replicate)
        .map(|r| Action::RemoveRelationship(host_of(r), ledger.vm_id))
        .collect();
    if !in_the_way.is_empty() {
        return (in_the_way, None);
    }
    let mut actions = Vec::new();
    let wish = wish(o, ledger, stored, existing);
    if existing.is_none_or(|e| e.wish != wish) {
        actions.push(Action::ApplyRelationship(host.clone(), Box::new(wish)));
    }
    let (issue, sas_at) = sas_due(o, existing, timing, now);
    if issue {
        actions.push(Action::IssueSas(host.clone(), ledger.vm_id));
    }
    let left = o.relationships.iter().filter(|r| r.host != host.name);
    actions.extend(left.map(|r| Action::RemoveRelationship(host_of(r), ledger.vm_id)));
    (actions, sas_at)
}

/// The host of a relationship, as far as the relationship knows it.
pub(super) fn host_of(r: &Relationship) -> Host {
    Host { name: r.host.clone(), namespace: r.namespace.clone(), failover_cluster: None, connected: false }
}

fn wish(o: &Observed, ledger: &Ledger, stored: &Stored, existing: Option<&Relationship>) -> Wish {
    let before = existing.map(|e| &e.wish);
    let same_stream = before.filter(|w| (w.term, w.stream) == (ledger.term, ledger.stream));
    let base = match same_stream {
        Some(before) => before.base.clone(),
        None if ledger.full_copy() => None,
        None => base(stored),
    };
    let (parallelism, reserve) = match (&o.site, before) {
        (Some(site), _) => (site.upload_parallelism, site.reserve_bytes),
        (None, Some(before)) => (before.upload_parallelism, before.reserve_bytes),
        (None, None) => (4, 0),
    };
    let ca_bundle = match &o.vault {
        Some(vault) => vault.ca_bundle.clone(),
        None => before.and_then(|b| b.ca_bundle.clone()),
    };
    let me = &o.me;
    Wish {
        vm_id: ledger.vm_id,
        // The reference cannot change; an object that was created again has another uid, and that is no matter.
        protected_vm: before.map_or_else(
            || (me.namespace.clone(), me.name.clone(), me.uid.clone()),
            |b| b.protected_vm.clone(),
        ),
        goal: Goal::Replicate,
        term: ledger.term,
        stream: ledger.stream,
        disks: ledger.disks.clone(),
        schedule: Schedule {
            interval_seconds: ledger.policy.replication_interval_seconds,
            paused: me.paused,
            spacing_seconds: ledger.policy.recovery_point_spacing_seconds,
            retention_seconds: ledger.policy.recovery_point_retention_seconds,
        },
        blob: stored.account.endpoint.clone(),
        ca_bundle,
        vault: me.vault.clone(),
        account: stored.account.name.clone(),
        compress: o.policy.as_ref().map_or_else(|| before.is_none_or(|b| b.compress), |p| p.compress),
        upload_parallelism: parallelism,
        reserve_bytes: reserve,
        base,
    }
}

/// What a new stream goes on from: the last verified cycle.
fn base(stored: &Stored) -> Option<Base> {
    let verified = stored.cursor.read()?.verified.as_ref()?;
    Some(Base {
        commit: verified.commit,
        reference_point_id: verified.reference_point_id.clone(),
        rct_ids: verified.rct_ids.iter().map(|(d, id)| (*d, id.clone())).collect(),
        copied_up_to: verified.copied_up_to.iter().map(|(d, at)| (*d, *at)).collect(),
        own_point_ids: verified.own_point_ids.clone(),
    })
}

/// Are new SAS due now, and if not, when?
fn sas_due(
    o: &Observed,
    existing: Option<&Relationship>,
    timing: &Timing,
    now: Timestamp,
) -> (bool, Option<Timestamp>) {
    let Some(vault) = o.vault.as_ref().filter(|v| v.unusable.is_none()) else { return (false, None) };
    let Some(existing) = existing else { return (true, None) };
    let Some(sas) = &existing.sas else { return (true, None) };
    if sas.signer != vault.signer {
        return (true, None);
    }
    // The agent was refused with what it has; not more often than the ladder's first step.
    let refused = existing.report.error.as_ref().is_some_and(|e| {
        matches!(e.code, Code::CredentialExpired | Code::NotAuthorized) && e.since >= sas.issued_at
    });
    let life =
        if refused { timing.retry_minute } else { (timing.upload_sas / 2).min(timing.download_sas_renew) };
    let at = after(sas.issued_at, life);
    if at <= now { (true, None) } else { (false, Some(at)) }
}

/// Storage does not answer or nobody knows where it is: what needs none of it goes on, that is pausing.
pub(super) fn without_storage(o: &Observed) -> Vec<Action> {
    o.relationships
        .iter()
        .filter(|r| r.wish.goal == Goal::Replicate && r.wish.schedule.paused != o.me.paused)
        .map(|r| {
            let schedule = Schedule { paused: o.me.paused, ..r.wish.schedule };
            Action::ApplyRelationship(host_of(r), Box::new(Wish { schedule, ..r.wish.clone() }))
        })
        .collect()
}
