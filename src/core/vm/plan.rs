//! What is done about one ProtectedVM now.
//!
//! ```text
//!              no finalizer ---------> AddFinalizer
//!              no ledger ------------> containers, then CreateLedger            (Enabling)
//! ledger mine: relationship differs -> side.json, relationship, SAS
//!              ledger differs -------> WriteLedger                              (last, alone of its kind)
//!              being deleted --------> hosts told to stop, WriteLedger Released, ReleaseFinalizer
//! ```
//!
//! Actions are carried out in order and stop at the first failure. At most one of a plan cannot be undone, and
//! it is the last: the next plan is made after its effect was seen.

use std::time::Duration;

use jiff::Timestamp;

use super::deletion;
use super::jobs::{self, Job};
use super::ledger_edit::LedgerEdit;
use super::observed::{Finding, Goal, Host, Observed, Owner, Report, Storage, Wish};
use super::prerequisite;
use super::replicate;
use super::resolve::{self, Ownership, Resolved};
use super::stands::{Stand, stand};
use super::status::Status;
use super::transition::{self, Answer};
use crate::fault::Code;
use crate::format::Extra;
use crate::format::FORMAT_VERSION;
use crate::format::ledger::{IntentRecord, Ledger, LedgerState, PolicySettings};
use crate::format::side::Side;
use crate::ids::{DiskId, Stream, Term, VmId};
use crate::timing::Timing;

/// One of a VM's three containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// Ledger, replica, points.
    Replica,
    /// What the host uploads.
    Up,
    /// What the host reads.
    Down,
}

/// One step towards what is wished. Every one may be carried out again without harm.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put the controller's finalizer on the object.
    AddFinalizer,
    /// Create a container with this metadata; one that exists must have the same.
    CreateContainer(VmId, Container, Owner),
    /// Write the first ledger, create-only. Its nonce is the executor's.
    CreateLedger(Box<Ledger>),
    /// Replace the ledger that was observed, under its ETag; then copy its side.
    WriteLedger(Box<LedgerEdit>),
    /// Copy the observed ledger's side to side.json, over a lower seq only.
    CopySide,
    /// Make the relationship in the host's namespace what is wished.
    ApplyRelationship(Host, Box<Wish>),
    /// Hand the host new SAS for the VM's containers.
    IssueSas(Host, VmId),
    /// Take the host's SAS away.
    RevokeSas(Host, VmId),
    /// Remove the relationship of a host that no longer runs the VM.
    RemoveRelationship(Host, VmId),
    /// Remove the VM's containers; the one with the ledger last.
    RemoveContainers(VmId),
    /// Let the object go.
    ReleaseFinalizer,
}

impl Action {
    /// Its failure holds up nothing: a host that is to stop is told, not waited for.
    #[must_use]
    pub fn is_best_effort(&self) -> bool {
        match self {
            Self::ApplyRelationship(_, wish) => wish.goal != Goal::Replicate,
            Self::RevokeSas(..) | Self::RemoveRelationship(..) => true,
            Self::AddFinalizer
            | Self::CreateContainer(..)
            | Self::CreateLedger(_)
            | Self::WriteLedger(_)
            | Self::CopySide
            | Self::IssueSas(..)
            | Self::RemoveContainers(_)
            | Self::ReleaseFinalizer => false,
        }
    }

    /// Nothing that is done later takes it back.
    #[must_use]
    pub const fn is_irreversible(&self) -> bool {
        match self {
            Self::CreateLedger(_)
            | Self::WriteLedger(_)
            | Self::RemoveContainers(_)
            | Self::ReleaseFinalizer => true,
            Self::AddFinalizer
            | Self::CreateContainer(..)
            | Self::CopySide
            | Self::ApplyRelationship(..)
            | Self::IssueSas(..)
            | Self::RevokeSas(..)
            | Self::RemoveRelationship(..) => false,
        }
    }
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// As it stands before the actions; [`Status::conditions`] are complete.
    pub status: Status,
    /// Operations that a person can watch (R4.3).
    pub jobs: Vec<Job>,
    /// When to look again at the latest.
    pub next_check: Timestamp,
}

/// Decides. Total: everything that is wrong is a finding in the status.
#[must_use]
pub fn plan(o: &Observed, timing: &Timing, now: Timestamp) -> Plan {
    let resolved = resolve::resolve(o);
    if o.me.deleting_since.is_some() {
        return deletion::plan(o, &resolved, timing, now);
    }
    let Resolved { vm_id, report, mut findings } = resolved;
    let mut next_check = after(now, timing.cursor_poll.min(timing.resync_all));
    let mut actions = Vec::new();
    let mut ledger = None;
    let mut waiting_for_prerequisites = false;
    if !o.me.finalizer {
        actions.push(Action::AddFinalizer);
    } else {
        match resolve::ownership(o) {
            Ownership::Unknown => {
                actions = replicate::without_storage(o);
                if let Storage::Failed(fault) = &o.storage {
                    findings.insert(0, Finding::from(fault.clone()));
                    next_check =
                        o.failures.as_ref().map_or_else(|| after(now, timing.retry_minute), |f| f.next_at);
                }
            }
            Ownership::NotMine(finding) => put_first(&mut findings, finding),
            Ownership::Unusable(finding) => findings.insert(0, finding),
            Ownership::Nobody => {
                (actions, waiting_for_prerequisites) =
                    enter(o, report.zip(vm_id).map(|(r, _)| r), &mut findings, now);
            }
            Ownership::Mine(mine) => {
                ledger = Some(mine);
                let work = replicate::plan(o, mine, report, &mut findings, timing, now);
                actions = work.actions;
                waiting_for_prerequisites = work.prerequisites_unmet;
                next_check = next_check.min(work.next_check.unwrap_or(next_check));
            }
        }
    }
    let stand_now = Stand {
        o,
        vm_id,
        report,
        ledger,
        findings,
        prerequisites: waiting_for_prerequisites,
        young: young(o, timing, now),
    };
    let status = stand(&stand_now, timing, now);
    let jobs = jobs::enabling(&stand_now, &status);
    Plan { actions, status, jobs, next_check }
}

/// A rival in this cluster says more than the containers' owner does.
fn put_first(findings: &mut Vec<Finding>, finding: Finding) {
    if !findings.iter().any(|f| f.code == Code::DuplicateProtection) {
        findings.insert(0, finding);
    }
}

/// Hosts report their VMs once per refresh: a VM that was made just before its manifest is not missed at once.
fn young(o: &Observed, timing: &Timing, now: Timestamp) -> bool {
    !o.me.began() && now < after(o.me.created_at, timing.inventory_refresh.saturating_mul(2))
}

pub(super) fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// No ledger yet: containers, then the ledger. The second value says that prerequisites are what is missing.
fn enter(
    o: &Observed,
    report: Option<&Report>,
    findings: &mut Vec<Finding>,
    now: Timestamp,
) -> (Vec<Action>, bool) {
    if transition::ask(None, o.me.desired) == Answer::ProtectFirst {
        findings.push(Finding::new(
            Code::ProtectFirst,
            format!("desiredState is {} and the VM has no ledger", o.me.desired.as_str()),
        ));
    }
    let (Some(report), Some(policy), Some(stored)) = (report, &o.policy, o.stored()) else {
        return (vec![], false);
    };
    let disks = match prerequisite::check(report, &o.me.exclude) {
        Ok(disks) => disks,
        Err(unmet) => {
            let only = findings.is_empty();
            findings.extend(unmet);
            return (vec![], only);
        }
    };
    if !findings.is_empty() {
        return (vec![], false);
    }
    let settings = PolicySettings {
        name: o.me.policy.clone(),
        replication_interval_seconds: policy.interval_seconds,
        recovery_point_spacing_seconds: policy.spacing_seconds,
        recovery_point_retention_seconds: policy.retention_seconds,
    };
    let mut actions = containers(o, report.vm_id, &report.vm_name);
    let ledger = first_ledger(o, report, disks, settings, stored.account.name.clone(), now);
    actions.push(Action::CreateLedger(Box::new(ledger)));
    (actions, false)
}

/// All three, whether there or not: a container that exists must only be this object's.
pub(super) fn containers(o: &Observed, vm_id: VmId, vm_name: &str) -> Vec<Action> {
    let owner = Owner {
        namespace: o.me.namespace.clone(),
        name: o.me.name.clone(),
        site: o.me.site.clone(),
        vm_name: vm_name.to_owned(),
        vm_id: vm_id.to_string(),
        cluster_id: o.cluster_id.clone(),
    };
    [Container::Replica, Container::Up, Container::Down]
        .into_iter()
        .map(|container| Action::CreateContainer(vm_id, container, owner.clone()))
        .collect()
}

/// A VM whose containers were purged may have left a relationship behind: what a host was given never goes back.
fn first_stream(o: &Observed) -> Stream {
    let left = o.relationships.iter().chain(&o.leftovers).filter(|r| r.wish.term == Term::FIRST);
    left.map(|r| r.wish.stream.next()).max().unwrap_or(Stream::FIRST)
}

fn first_ledger(
    o: &Observed,
    report: &Report,
    disks: Vec<DiskId>,
    policy: PolicySettings,
    storage_account: String,
    now: Timestamp,
) -> Ledger {
    let record = IntentRecord { epoch: o.me.intent.epoch, hash: o.me.intent.hash() };
    Ledger {
        format_version: FORMAT_VERSION,
        min_reader: 1,
        seq: 0,
        nonce: String::new(),
        vm_id: report.vm_id,
        state: LedgerState::Enabling,
        epoch: o.me.intent.epoch,
        intents: [(o.me.intent.source.clone(), record)].into(),
        term: Term::FIRST,
        stream: first_stream(o),
        attempt: 0,
        cut: None,
        owner: Side::OnPremises,
        claim: report.host.claim(),
        cluster_id: o.cluster_id.clone(),
        configuration: None,
        policy,
        deletion_policy: o.me.deletion_policy,
        disks,
        storage_account,
        last_contact: None,
        last_move_at: None,
        handled_tokens: [].into(),
        actor: String::new(),
        created_at: now,
        written_at: now,
        history: vec![],
        extra: Extra::new(),
    }
}
