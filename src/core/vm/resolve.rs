//! From names to things: which VM is meant, whose it is, and what stands in the way.
//!
//! Total: whatever is wrong becomes a [`Finding`]; a VM that is protected already goes on meanwhile with what
//! its ledger records.

use std::collections::BTreeSet;

use super::observed::{Finding, Goal, Me, Observed, Owner, Record, Report, Storage};
use crate::fault::Code;
use crate::format::ledger::Ledger;
use crate::ids::VmId;
use crate::names;

/// What the names of a ProtectedVM mean.
#[derive(Debug)]
pub struct Resolved<'a> {
    /// The VM, as soon as it is known which.
    pub vm_id: Option<VmId>,
    /// The VM on the host that is believed to run it.
    pub report: Option<&'a Report>,
    /// What stands in the way; the most basic first.
    pub findings: Vec<Finding>,
}

/// Which VM is meant, as far as its id is settled or the hosts' reports tell. Also says where to look for
/// containers, so it needs nothing from storage.
///
/// # Errors
/// It is not known yet; the finding says why.
pub fn vm_id(me: &Me, reports: &[Report]) -> Result<VmId, Finding> {
    if let Some(id) = me.settled_vm() {
        return Ok(id);
    }
    let name = me.vm_name.as_deref().unwrap_or_default();
    let ids: BTreeSet<VmId> = reports.iter().map(|r| r.vm_id).collect();
    let mut ids = ids.into_iter();
    match (ids.next(), ids.next()) {
        (None, _) => Err(Finding::new(
            Code::VMNotFound,
            format!("no accepted host of site {} reports a VM named {name}", me.site),
        )),
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => {
            let which: Vec<String> =
                reports.iter().map(|r| format!("{} on {}", r.vm_id, r.host.name)).collect();
            Err(Finding::new(
                Code::VMAmbiguous,
                format!("site {} has several VMs named {name}: {}", me.site, which.join(", ")),
            ))
        }
    }
}

/// Resolves every name.
#[must_use]
pub fn resolve(o: &Observed) -> Resolved<'_> {
    let mut findings = references(o);
    let claim = o.ledger().map(|l| l.claim.as_str());
    let (vm_id, report) = match vm_id(&o.me, &o.reports) {
        Ok(id) => {
            let (report, finding) = believed(o, id, claim);
            findings.extend(finding.filter(|_| o.site.is_some()));
            (Some(id), report)
        }
        Err(finding) => {
            findings.extend(Some(finding).filter(|_| o.site.is_some()));
            (None, None)
        }
    };
    findings.extend(rival(o));
    if let Some(report) = report.filter(|r| !r.host.connected) {
        findings
            .push(Finding::new(Code::HostLost, format!("host {} has not been heard of", report.host.name)));
    }
    Resolved { vm_id, report, findings }
}

fn references(o: &Observed) -> Vec<Finding> {
    let me = &o.me;
    let mut findings = Vec::new();
    let mut look = |kind: &str, name: &str, missing: Code, allowed: Option<bool>| match allowed {
        None => findings.push(Finding::new(missing, format!("{kind} {name} does not exist"))),
        Some(false) => findings.push(Finding::new(
            Code::NamespaceNotAllowed,
            format!("{kind} {name} does not list namespace {} in allowedNamespaces", me.namespace),
        )),
        Some(true) => {}
    };
    look("HyperVSite", &me.site, Code::SiteNotFound, o.site.as_ref().map(|s| s.allowed));
    look("ReplicationPolicy", &me.policy, Code::PolicyNotFound, o.policy.as_ref().map(|p| p.allowed));
    look("RecoveryVault", &me.vault, Code::VaultNotFound, o.vault.as_ref().map(|v| v.allowed));
    if let Some(why) = o.vault.as_ref().and_then(|v| v.unusable.as_ref()) {
        findings.push(Finding::new(Code::VaultUnusable, format!("RecoveryVault {}: {why}", me.vault)));
    }
    findings
}

/// Which host is believed to run the VM (DESIGN 5, claims): the owner named by annotation, else the one that the
/// ledger's claim names, else the only one that reports it.
fn believed<'a>(o: &'a Observed, id: VmId, claim: Option<&str>) -> (Option<&'a Report>, Option<Finding>) {
    let reports: Vec<&Report> = o.reports.iter().filter(|r| r.vm_id == id).collect();
    if reports.is_empty() {
        let what = format!("no accepted host of site {} reports VM {id}", o.me.site);
        return (None, Some(Finding::new(Code::VMNotFound, what)));
    }
    if let Some(report) = reports.iter().find(|r| Some(&r.host.name) == o.me.owner_host.as_ref()) {
        return (Some(report), None);
    }
    let hosts = || reports.iter().map(|r| r.host.name.clone()).collect::<Vec<_>>().join(", ");
    let twice = |what: String| Some(Finding::new(Code::VMClaimedTwice, what));
    let of_claim = |report: &Report, claim: &str| {
        report.host.claim() == claim || claim == format!("host/{}", report.host.name)
    };
    let (mine, others): (Vec<&Report>, Vec<&Report>) = match claim {
        Some(claim) => reports.iter().partition(|r| of_claim(r, claim)),
        None => {
            let claims: BTreeSet<String> = reports.iter().map(|r| r.host.claim()).collect();
            if claims.len() > 1 {
                return (None, twice(format!("VM {id} is reported by {}", hosts())));
            }
            (reports.clone(), vec![])
        }
    };
    let current = |r: &&&Report| o.relationships.iter().any(|rel| rel.host == r.host.name);
    let best = mine.iter().find(current).or_else(|| mine.iter().find(|r| r.host.connected)).or(mine.first());
    let finding = if others.is_empty() {
        None
    } else {
        twice(format!("VM {id} belongs to {}, and is reported by {}", claim.unwrap_or_default(), hosts()))
    };
    (best.copied(), finding)
}

/// Another ProtectedVM that comes first: the one for which the containers were made, else the older one.
fn rival(o: &Observed) -> Option<Finding> {
    let owner = o
        .stored()
        .and_then(|s| s.replica.as_ref())
        .map(|owner| format!("{}/{}", owner.namespace, owner.name));
    let me = format!("{}/{}", o.me.namespace, o.me.name);
    if owner.as_ref() == Some(&me) {
        return None;
    }
    let first = o
        .rivals
        .iter()
        .find(|r| Some(&r.name) == owner.as_ref())
        .or_else(|| o.rivals.iter().find(|r| (r.created_at, &r.uid) < (o.me.created_at, &o.me.uid)))?;
    Some(Finding::new(Code::DuplicateProtection, format!("ProtectedVM {} protects this VM", first.name)))
}

/// Whose the VM's containers are.
#[derive(Debug, PartialEq)]
pub enum Ownership<'a> {
    /// Nobody knows where to look, or storage does not answer.
    Unknown,
    /// There is no ledger, and none is missing.
    Nobody,
    /// They are this object's.
    Mine(&'a Ledger),
    /// They are somebody else's: nothing may be touched.
    NotMine(Finding),
    /// They are this object's, but cannot be relied on.
    Unusable(Finding),
}

/// Decides whose the VM's containers are.
#[must_use]
pub fn ownership(o: &Observed) -> Ownership<'_> {
    let stored = match &o.storage {
        Storage::NotLookedAt | Storage::Failed(_) => return Ownership::Unknown,
        Storage::Seen(stored) => stored,
    };
    let Some(owner) = &stored.replica else {
        return if began(o) { Ownership::Unusable(missing(o)) } else { Ownership::Nobody };
    };
    if (&owner.namespace, &owner.name) != (&o.me.namespace, &o.me.name) {
        return Ownership::NotMine(Finding::new(Code::AlreadyProtected, of_whom(owner)));
    }
    match &stored.ledger {
        Record::Absent if began(o) => Ownership::Unusable(missing(o)),
        Record::Absent if owner.cluster_id != o.cluster_id => {
            Ownership::NotMine(foreign(&owner.cluster_id, o))
        }
        Record::Absent => Ownership::Nobody,
        Record::Unreadable(why) => Ownership::Unusable(Finding::new(Code::LedgerUnreadable, why.clone())),
        Record::Read(ledger) if ledger.cluster_id != o.cluster_id => {
            Ownership::NotMine(foreign(&ledger.cluster_id, o))
        }
        Record::Read(ledger) => match behind(o, ledger) {
            Some(what) => Ownership::Unusable(Finding::new(Code::LedgerBehind, what)),
            None => Ownership::Mine(ledger),
        },
    }
}

/// There was a ledger: its own status says so, or a host replicates, which no host does without one.
fn began(o: &Observed) -> bool {
    o.me.began() || o.relationships.iter().any(|r| r.wish.goal == Goal::Replicate)
}

fn of_whom(owner: &Owner) -> String {
    if owner.name.is_empty() {
        return "the containers of this VM exist and do not say whose they are".into();
    }
    format!("the containers of this VM belong to ProtectedVM {}/{}", owner.namespace, owner.name)
}

fn foreign(id: &str, o: &Observed) -> Finding {
    Finding::new(
        Code::OwnedByAnotherCluster,
        format!("the ledger belongs to management cluster {id}, this is {}", o.cluster_id),
    )
}

fn missing(o: &Observed) -> Finding {
    let container = o.me.settled_vm().map_or_else(String::new, names::replica_container);
    Finding::new(Code::ContainerMissing, format!("container {container} or its ledger is gone"))
}

/// Anything that was derived from a later ledger than this one.
fn behind(o: &Observed, ledger: &Ledger) -> Option<String> {
    let here = (ledger.term, ledger.stream);
    let at = |t, s| {
        format!("the ledger is at term {}, stream {}; ", ledger.term, ledger.stream) + &format!("{t}, {s}")
    };
    let stored = o.stored()?;
    if let Some(side) = stored.side.read().filter(|side| side.seq > ledger.seq) {
        return Some(format!("the ledger has number {}, side.json was copied from {}", ledger.seq, side.seq));
    }
    if let Some(cursor) = stored.cursor.read().filter(|c| (c.term, c.stream) > here) {
        return Some(at(
            format!("the cursor follows term {}", cursor.term),
            format!("stream {}", cursor.stream),
        ));
    }
    let rel = o.relationships.iter().find(|r| (r.wish.term, r.wish.stream) > here)?;
    Some(at(
        format!("host {} was given term {}", rel.host, rel.wish.term),
        format!("stream {}", rel.wish.stream),
    ))
}
