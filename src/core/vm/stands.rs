//! How a ProtectedVM stands: its status from what was observed and found.

use jiff::Timestamp;

use super::ledger_edit::LedgerExt;
use super::observed::{
    AgentReport, Finding, Goal, Observed, Relationship, ReplicationState, Report, Storage,
};
use super::replicate::{has_point, needs_resync};
use super::status::{
    Condition, DiskStatus, Effective, InitialReplication, Is, Kind, POINTS_CAP, Status, reason,
};
use super::transition;
use crate::fault::{Class, Code, Health};
use crate::format::ledger::{Ledger, LedgerState};
use crate::ids::VmId;
use crate::timing::Timing;

/// All that a status is made of.
pub(super) struct Stand<'a> {
    pub o: &'a Observed,
    pub vm_id: Option<VmId>,
    pub report: Option<&'a Report>,
    /// The ledger, if it is this object's.
    pub ledger: Option<&'a Ledger>,
    /// What stands in the way, the most basic first.
    pub findings: Vec<Finding>,
    /// Nothing but prerequisites stand in the way.
    pub prerequisites: bool,
    /// The object is so new that the host may not have reported its VM yet.
    pub young: bool,
}

impl Stand<'_> {
    /// Only a person can put it right, as far as is known now.
    fn stops(&self, f: &Finding) -> bool {
        f.code.entry().class == Class::Unrecoverable && !self.waits(f)
    }

    /// It is likely to pass by itself, and not worth a word yet.
    fn waits(&self, f: &Finding) -> bool {
        self.young && f.code == Code::VMNotFound
    }

    pub(super) fn relationship(&self) -> Option<&Relationship> {
        let host = self.report.map(|r| &r.host.name);
        self.o.relationships.iter().find(|r| Some(&r.host) == host).or_else(|| self.o.relationships.first())
    }

    /// What the agent reports, if that is about the ledger's stream and not about a stream before it.
    pub(super) fn agent(&self) -> Option<&AgentReport> {
        let ledger = self.ledger?;
        let report = &self.relationship()?.report;
        (report.observed == Some((ledger.term, ledger.stream))).then_some(report)
    }
}

/// How old the newest point is and may be.
struct Points {
    age: Option<i64>,
    current_up_to: i64,
    kept_for: i64,
}

/// Makes the whole status.
pub(super) fn stand(s: &Stand<'_>, timing: &Timing, now: Timestamp) -> Status {
    let agent = s.agent();
    let mut findings = s.findings.clone();
    if s.ledger.is_some() && s.o.me.deleting_since.is_none() {
        findings.extend(agent.iter().flat_map(|a| a.unmet.iter().cloned()));
        let error = agent.and_then(|a| a.error.as_ref());
        findings.extend(error.map(|e| Finding::new(e.code, e.message.clone())));
        findings.extend(refused(s));
        let mut seen = Vec::new();
        findings.retain(|f| {
            !seen.contains(&f.code) && {
                seen.push(f.code);
                true
            }
        });
    }
    let points = points(s, timing, now);
    let initial = initial(s, agent, now);
    let mut status = Status {
        observed_generation: s.o.me.generation,
        state: s.ledger.map(|l| l.state).filter(|state| *state != LedgerState::Released),
        health: None,
        replication_state: Some(replication_state(s, agent, &findings)),
        effective: s.ledger.and_then(effective),
        allowed: s.ledger.map(|l| transition::allowed(l.state)).unwrap_or_default(),
        vm_id: s.vm_id,
        host: s.report.map(|r| r.host.name.clone()).or_else(|| s.relationship().map(|r| r.host.clone())),
        storage_account: s.ledger.map(|l| l.storage_account.clone()),
        rpo_seconds: points.age.map(|age| u32::try_from(age).unwrap_or(u32::MAX)),
        points: s
            .o
            .stored()
            .map(|st| st.points.iter().take(POINTS_CAP).cloned().collect())
            .unwrap_or_default(),
        initial,
        tracking: agent.and_then(|a| a.tracking),
        disks: disks(s),
        last_error: findings.iter().find(|f| !s.waits(f)).cloned(),
        conditions: vec![],
    };
    if s.ledger.is_none() {
        keep(&mut status, &s.o.me.written);
    }
    status.conditions = conditions(s, &status, &findings, &points);
    status.health = Some(health(s, &status, &findings));
    status
}

/// While the ledger cannot be read or relied on, what it said last is shown, and not that there is nothing: that
/// protection once began is what keeps it from being started over.
fn keep(status: &mut Status, written: &Status) {
    status.state = written.state;
    status.effective.clone_from(&written.effective);
    status.allowed.clone_from(&written.allowed);
    status.vm_id = status.vm_id.or(written.vm_id);
    status.storage_account.clone_from(&written.storage_account);
    status.points.clone_from(&written.points);
    status.initial = written.initial;
    status.disks.clone_from(&written.disks);
    status.replication_state = written.replication_state;
}

fn refused(s: &Stand<'_>) -> Option<Finding> {
    let ledger = s.ledger?;
    let refused =
        s.o.stored()?.cursor.read()?.refused.as_ref().filter(|r| r.id.is_of(ledger.term, ledger.stream))?;
    let code = refused.code.parse().unwrap_or(Code::Unknown);
    Some(Finding::new(code, format!("cycle {} was refused: {}", refused.id, refused.message)))
}

fn effective(ledger: &Ledger) -> Option<Effective> {
    let set_by =
        ledger.intents.iter().find(|(_, i)| i.epoch == ledger.epoch).map(|(source, _)| source.clone());
    Some(Effective {
        place: transition::place(ledger.state)?,
        epoch: ledger.epoch,
        set_by: set_by.unwrap_or_default(),
    })
}

fn disks(s: &Stand<'_>) -> Vec<DiskStatus> {
    let Some(ledger) = s.ledger else { return vec![] };
    let reported = |id| s.report.and_then(|r| r.disks.iter().find(|d| d.id == Some(id)));
    let written = |id| s.o.me.written.disks.iter().find(|d| d.id == id).cloned();
    ledger
        .disks
        .iter()
        .filter_map(|id| match reported(*id) {
            Some(d) => Some(DiskStatus { id: *id, path: d.path.clone(), virtual_size: d.virtual_size }),
            None => written(*id),
        })
        .collect()
}

fn points(s: &Stand<'_>, timing: &Timing, now: Timestamp) -> Points {
    let secs = |d: std::time::Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    let (interval, retention) = match (s.ledger, &s.o.policy) {
        (Some(l), _) => (l.policy.replication_interval_seconds, l.policy.recovery_point_retention_seconds),
        (None, Some(p)) => (p.interval_seconds, p.retention_seconds),
        (None, None) => (300, 86_400),
    };
    let cursor = s.o.stored().and_then(|st| st.cursor.read()).filter(|_| s.ledger.is_some());
    let newest = cursor.and_then(|c| c.newest_point.as_ref()).map(|p| p.time);
    let newest = newest.max(s.o.stored().and_then(|st| st.points.first()).map(|p| p.time));
    let newest =
        newest.or_else(|| s.o.me.written.points.first().filter(|_| s.o.stored().is_none()).map(|p| p.time));
    // Two intervals, and the time that a finished cycle takes to be seen here.
    let seen_after = timing.commit_poll_max.saturating_add(timing.cursor_poll);
    Points {
        age: newest.map(|t| now.duration_since(t).as_secs().max(0)),
        current_up_to: secs(timing.policy(interval.saturating_mul(2)).saturating_add(seen_after)),
        kept_for: secs(timing.policy(retention)),
    }
}

fn initial(s: &Stand<'_>, agent: Option<&AgentReport>, now: Timestamp) -> Option<InitialReplication> {
    let ledger = s.ledger?;
    if ledger.state != LedgerState::Enabling || has_point(s.o, ledger) {
        return None;
    }
    let (total, copied) = agent.and_then(|a| a.progress).unwrap_or((0, 0));
    // The rate since the ledger came to this state, which is when the copy began, give or take a poll.
    let since =
        ledger.history.iter().rev().take_while(|h| h.state == LedgerState::Enabling).last().map(|h| h.at);
    let eta = since.and_then(|since| {
        let passed = u128::try_from(now.duration_since(since).as_secs()).ok().filter(|s| *s > 0)?;
        let left = u128::from(total.saturating_sub(copied));
        let seconds = (left * passed).checked_div(u128::from(copied))?;
        now.checked_add(jiff::SignedDuration::from_secs(i64::try_from(seconds).ok()?)).ok()
    });
    Some(InitialReplication { total, copied, eta })
}

fn replication_state(s: &Stand<'_>, agent: Option<&AgentReport>, findings: &[Finding]) -> ReplicationState {
    let stopped = s.relationship().is_none_or(|r| r.wish.goal != Goal::Replicate);
    let Some(ledger) = s.ledger.filter(|l| l.state != LedgerState::Released) else {
        return ReplicationState::Disabled;
    };
    if findings
        .iter()
        .any(|f| f.code.entry().class == Class::Unrecoverable && f.code.entry().health == Health::Critical)
    {
        return ReplicationState::Critical;
    }
    if needs_resync(s.o, ledger).is_some() {
        return ReplicationState::WaitingToStartResynchronization;
    }
    if s.o.me.paused {
        return ReplicationState::Suspended;
    }
    let copied = has_point(s.o, ledger);
    if ledger.resynchronization().is_some() && ledger.full_copy() && !copied {
        return ReplicationState::Resynchronizing;
    }
    match agent.and_then(|a| a.state) {
        Some(state) if !stopped => state,
        Some(_) | None if copied => ReplicationState::Replicating,
        Some(_) | None if stopped => ReplicationState::ReadyForReplication,
        Some(_) | None => ReplicationState::WaitingToCompleteInitialReplication,
    }
}

/// A finding in one sentence with what to do.
pub(super) fn sentence(f: &Finding) -> String {
    format!("{}: {}. {}", f.code, f.message, f.code.entry().remedy)
}

fn sentences(findings: &[&Finding]) -> String {
    findings.iter().map(|f| sentence(f)).collect::<Vec<_>>().join(" ")
}

fn conditions(s: &Stand<'_>, status: &Status, findings: &[Finding], points: &Points) -> Vec<Condition> {
    let (stopping, passing): (Vec<&Finding>, Vec<&Finding>) = findings.iter().partition(|f| s.stops(f));
    let protected = protected(status, points);
    let mut list = vec![
        stalled(s, &stopping),
        ready(s, &stopping, &passing, &protected),
        reconciling(s, &stopping, &passing, &protected),
        current(s, points),
        ledger_reachable(s),
    ];
    list.extend(resynchronization(s));
    list.push(protected);
    list
}

fn stalled(s: &Stand<'_>, stopping: &[&Finding]) -> Condition {
    match stopping.first() {
        None => Condition::new(Kind::Stalled, false, reason::NOT_STALLED, ""),
        Some(first) if s.prerequisites && stopping.iter().any(|f| f.code != first.code) => {
            Condition::new(Kind::Stalled, true, reason::PREREQUISITES_NOT_MET, sentences(stopping))
        }
        Some(first) => Condition::new(Kind::Stalled, true, first.code.to_string(), sentences(stopping)),
    }
}

fn ready(s: &Stand<'_>, stopping: &[&Finding], passing: &[&Finding], protected: &Condition) -> Condition {
    let c = |is: bool, why: &str, message: String| Condition::new(Kind::Ready, is, why, message);
    if !stopping.is_empty() {
        let stalled = stalled(s, stopping);
        return c(false, &stalled.reason, stalled.message);
    }
    let at_rest = s.ledger.is_some_and(|l| l.state == LedgerState::Protected);
    let critical = passing.iter().find(|f| f.code.entry().health == Health::Critical && !s.waits(f));
    match critical {
        Some(f) => c(false, &f.code.to_string(), sentence(f)),
        None if !at_rest || protected.is != Is::True => match passing.first() {
            Some(f) => c(false, &f.code.to_string(), sentence(f)),
            None => c(false, under_way(s, protected), under_way_message(s, protected)),
        },
        None if s.o.me.paused => c(true, reason::PAUSED, "replication is paused by spec.paused".into()),
        None => c(true, reason::AS_DESIRED, "protected".into()),
    }
}

fn under_way(s: &Stand<'_>, protected: &Condition) -> &'static str {
    match s.ledger.map(|l| l.state) {
        Some(LedgerState::Enabling) => reason::INITIAL_REPLICATION,
        Some(LedgerState::Protected) if protected.reason == reason::RECOVERY_POINT_TOO_OLD => {
            reason::RECOVERY_POINT_TOO_OLD
        }
        Some(_) | None => reason::IN_PROGRESS,
    }
}

fn under_way_message(s: &Stand<'_>, protected: &Condition) -> String {
    match (s.ledger.map(|l| l.state), s.agent().and_then(|a| a.step.as_deref())) {
        (Some(LedgerState::Enabling), Some(step)) => format!("initial replication: {step}"),
        (Some(LedgerState::Enabling), None) if s.relationship().is_some() => {
            "initial replication: waiting for the host's agent to take it up".into()
        }
        (Some(LedgerState::Enabling), None) => "the relationship is being created".into(),
        (Some(_), _) => protected.message.clone(),
        (None, _) => "protection is being enabled".into(),
    }
}

fn reconciling(
    s: &Stand<'_>,
    stopping: &[&Finding],
    passing: &[&Finding],
    protected: &Condition,
) -> Condition {
    let c = |is: bool, why: &str, message: String| Condition::new(Kind::Reconciling, is, why, message);
    if !stopping.is_empty() {
        return c(false, reason::IDLE, "stalled".into());
    }
    if let Some(f) = passing.first() {
        return c(true, reason::RETRYING, sentence(f));
    }
    let at_rest = s.ledger.is_some_and(|l| l.state == LedgerState::Protected) && protected.is == Is::True;
    if at_rest {
        c(false, reason::IDLE, String::new())
    } else {
        c(true, under_way(s, protected), under_way_message(s, protected))
    }
}

fn protected(status: &Status, points: &Points) -> Condition {
    let c = |is: bool, why: &str, message: String| Condition::new(Kind::Protected, is, why, message);
    let listed = status.points.first();
    match (listed, points.age) {
        (Some(p), Some(age)) if age <= points.kept_for => {
            c(true, reason::REPLICATING, format!("the newest recovery point is {} or a later cycle", p.name))
        }
        (Some(p), _) => c(
            false,
            reason::RECOVERY_POINT_TOO_OLD,
            format!("the newest recovery point, {}, is older than the policy keeps points", p.name),
        ),
        (None, _) => c(false, reason::NO_RECOVERY_POINT, "there is no recovery point yet".into()),
    }
}

fn current(s: &Stand<'_>, points: &Points) -> Condition {
    let c =
        |is: Is, why: &str, message: String| Condition::new(Kind::RecoveryPointsCurrent, is, why, message);
    let paused = s.o.me.paused;
    match points.age {
        None => c(Is::False, reason::NO_RECOVERY_POINT, "there is no recovery point yet".into()),
        Some(age) if age <= points.current_up_to => c(
            Is::True,
            reason::RECOVERY_POINT_CURRENT,
            "the newest recovery point is at most two intervals old".into(),
        ),
        Some(_) => c(
            Is::False,
            if paused { reason::PAUSED } else { reason::RECOVERY_POINT_TOO_OLD },
            "the newest recovery point is more than two intervals old".into(),
        ),
    }
}

fn ledger_reachable(s: &Stand<'_>) -> Condition {
    let c = |is: Is, why: &str, message: String| Condition::new(Kind::LedgerReachable, is, why, message);
    match &s.o.storage {
        Storage::Failed(fault) => c(Is::False, reason::LEDGER_UNREACHABLE, fault.message.clone()),
        Storage::NotLookedAt => {
            c(Is::Unknown, reason::NOT_CHECKED_YET, "the VM's containers are not known yet".into())
        }
        Storage::Seen(_) if s.ledger.is_some() => c(Is::True, reason::LEDGER_REACHABLE, String::new()),
        Storage::Seen(_) => {
            c(Is::Unknown, reason::NOT_CHECKED_YET, "there is no ledger of this ProtectedVM".into())
        }
    }
}

fn resynchronization(s: &Stand<'_>) -> Option<Condition> {
    let ledger = s.ledger?;
    let c = |is: bool, why: &str, message: String| {
        Condition::new(Kind::ResynchronizationRequired, is, why, message)
    };
    if let Some(found) = needs_resync(s.o, ledger) {
        return Some(c(true, &found.code.to_string(), sentence(&found)));
    }
    let running = ledger.resynchronization().filter(|_| ledger.full_copy() && !has_point(s.o, ledger));
    Some(match running {
        Some(r) => c(true, &r.code.to_string(), format!("everything is copied again: {}", r.message)),
        None => c(false, reason::IDLE, String::new()),
    })
}

fn health(s: &Stand<'_>, status: &Status, findings: &[Finding]) -> Health {
    let mut health = findings
        .iter()
        .filter(|f| !s.waits(f))
        .map(|f| f.code.entry().health)
        .max()
        .unwrap_or(Health::Normal);
    let protected_before = status.state == Some(LedgerState::Protected);
    if protected_before && !status.is(Kind::Protected) {
        health = health.max(Health::Critical);
    }
    let late = protected_before && !status.is(Kind::RecoveryPointsCurrent);
    if late || s.o.me.paused || status.is(Kind::ResynchronizationRequired) {
        health = health.max(Health::Warning);
    }
    health
}
