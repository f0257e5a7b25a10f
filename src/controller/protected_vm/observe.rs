//! Gathers the facts about one ProtectedVM: stores first, then its containers. No policy here.

use std::collections::BTreeMap;

use farshore_api::{ProtectedVM, ReplicationRelationship};
use farshore_core::ids::VmId;
use farshore_core::retry;
use farshore_core::vm::observed::{self, Observed, Relationship, Report, Rival, Storage};
use farshore_core::vm::resolve;
use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};

use super::facts;
use super::memory::Memory;
use crate::context::Context;
use crate::host;
use crate::storage;
use crate::vault::connect::ConnectedAccount;
use crate::watch::{all, named};

/// The facts, and the account that they were read from.
pub(super) struct Seen {
    /// For the plan.
    pub observed: Observed,
    /// For the executor.
    pub account: Option<ConnectedAccount>,
}

/// Gathers the facts.
pub(super) async fn observe(vm: &ProtectedVM, ctx: &Context, memory: &mut Memory, now: Timestamp) -> Seen {
    let written = memory.written.clone().unwrap_or_else(|| facts::written(vm.status.as_ref()));
    let me = facts::me(vm, written);
    let site = named(&ctx.stores.sites, &me.site).map(|s| facts::site(&s, &me.namespace));
    let policy = named(&ctx.stores.policies, &me.policy).map(|p| facts::policy(&p, &me.namespace));
    let reports = reports(ctx, &me, now);
    let vm_id = resolve::vm_id(&me, &reports).ok();
    let (relationships, leftovers) = relationships(ctx, &me, vm_id, memory);
    let rivals = rivals(ctx, &me, &reports);

    let mut accounts = Vec::new();
    let mut vault = None;
    if let Some(found) = named(&ctx.stores.vaults, &me.vault) {
        let connected = ctx.vaults.get(&found, now).await;
        let allowed =
            farshore_api::namespace_allowed(found.spec.allowed_namespaces.as_deref(), &me.namespace);
        let (unusable, signer) = match &connected {
            Ok(connected) => (None, connected.signer.clone()),
            Err(why) => (Some(why.to_string()), String::new()),
        };
        accounts = connected.map(|c| c.accounts.clone()).unwrap_or_default();
        order(&mut accounts, ctx, &me, &relationships);
        vault = Some(observed::Vault {
            allowed,
            accounts: accounts.iter().map(|a| a.account.clone()).collect(),
            unusable,
            ca_bundle: found.spec.ca_bundle.clone(),
            signer,
        });
    }
    let spacing = policy.as_ref().map_or(900, |p| p.spacing_seconds);
    let allowed = vault.as_ref().is_some_and(|v| v.allowed) || me.written.state.is_some();
    let storage = match vm_id {
        Some(id) if allowed => {
            let services: Vec<_> = accounts.iter().map(|a| (a.account.clone(), a.service.clone())).collect();
            storage::observe(&services, id, ctx.timing.policy(spacing), &mut memory.known).await
        }
        Some(_) | None => Storage::NotLookedAt,
    };
    climb(memory, &storage, ctx, &me.vault, now);
    let account = match &storage {
        Storage::Seen(stored) => accounts.into_iter().find(|a| a.account == stored.account),
        Storage::NotLookedAt | Storage::Failed(_) => None,
    };
    let observed = Observed {
        me,
        cluster_id: ctx.cluster_id.clone(),
        site,
        policy,
        vault,
        reports,
        rivals,
        relationships,
        leftovers,
        storage,
        failures: memory.failures.clone(),
    };
    Seen { observed, account }
}

/// Notes a failed look, but not twice for one rung of the ladder: a change elsewhere may wake us in between.
fn climb(memory: &mut Memory, storage: &Storage, ctx: &Context, vault: &str, now: Timestamp) {
    let Storage::Failed(fault) = storage else { return };
    if memory.failures.as_ref().is_some_and(|f| now < f.next_at) {
        return;
    }
    // The credentials may have been renewed.
    ctx.vaults.forget(vault);
    note(memory, fault, ctx, now);
}

/// Notes a failure.
pub(super) fn note(memory: &mut Memory, fault: &farshore_core::fault::Fault, ctx: &Context, now: Timestamp) {
    let at_least = fault.retry_after_seconds.map(std::time::Duration::from_secs);
    let jitter = rand::random::<f64>();
    memory.failures =
        Some(retry::after_failure(memory.failures.as_ref(), ctx.timing.retry_minute, at_least, jitter, now));
    ctx.metrics.retry(super::show::class(fault.class()));
}

/// Those made for this object, and those of the same VM made for another.
fn relationships(
    ctx: &Context,
    me: &observed::Me,
    vm_id: Option<VmId>,
    memory: &Memory,
) -> (Vec<Relationship>, Vec<Relationship>) {
    let is_mine = |r: &ReplicationRelationship| {
        let owner = &r.spec.protected_vm;
        owner.namespace == me.namespace && owner.name == me.name
    };
    let id = vm_id.map(|id| id.to_string());
    let found = ctx.stores.relationships.state_filter(|r| {
        let of_interest = |r: &ReplicationRelationship| is_mine(r) || Some(&r.spec.vm_id) == id.as_ref();
        r.0.as_ref().is_ok_and(|r| r.meta().deletion_timestamp.is_none() && of_interest(r))
    });
    let (mine, others): (Vec<_>, Vec<_>) =
        found.iter().filter_map(|r| r.0.as_ref().ok()).partition(|r| is_mine(r));
    let mut list: Vec<Relationship> = mine.into_iter().filter_map(facts::relationship).collect();
    let leftovers = others.into_iter().filter_map(facts::relationship).collect();
    list.sort_by(|a, b| a.host.cmp(&b.host));
    if let Some((uid, sas)) = &memory.sas {
        for r in list.iter_mut().filter(|r| r.uid == *uid) {
            let newer = r.sas.as_ref().is_none_or(|old| old.issued_at < sas.issued_at);
            if newer {
                r.sas = Some(sas.clone());
            }
        }
    }
    (list, leftovers)
}

/// VMs of the site's accepted hosts that have the settled id, or else the name. One pass over all reports: there are
/// many, and hosts only matter for the few that match.
fn reports(ctx: &Context, me: &observed::Me, now: Timestamp) -> Vec<Report> {
    let found = ctx.stores.reports.state_filter(|vm| vm.0.as_ref().is_ok_and(|vm| means(me, &vm.spec)));
    if found.is_empty() {
        return vec![];
    }
    let mut hosts = BTreeMap::new();
    for host in all(&ctx.stores.hosts).iter().filter_map(|h| h.0.as_ref().ok()) {
        if host.spec.site == me.site && host.spec.accepted {
            let facts = facts::host(host, host::connected(ctx, host, now));
            hosts.insert(facts.namespace.clone(), facts);
        }
    }
    let mut reports: Vec<Report> = found
        .iter()
        .filter_map(|vm| vm.0.as_ref().ok())
        .filter_map(|vm| facts::report(vm, hosts.get(&vm.namespace()?)?.clone()))
        .collect();
    reports.sort_by(|a, b| (a.vm_id, &a.host.name).cmp(&(b.vm_id, &b.host.name)));
    reports
}

/// Is this VM the one that is meant? Hyper-V's names ignore case.
fn means(me: &observed::Me, vm: &farshore_api::HyperVVMSpec) -> bool {
    match me.settled_vm() {
        Some(id) => vm.vm_id.eq_ignore_ascii_case(&id.to_string()),
        None => me.vm_name.as_deref().is_some_and(|name| vm.vm_name.to_lowercase() == name.to_lowercase()),
    }
}

/// Other ProtectedVMs that mean the same VM.
fn rivals(ctx: &Context, me: &observed::Me, reports: &[Report]) -> Vec<Rival> {
    let Ok(id) = resolve::vm_id(me, reports) else { return vec![] };
    let name = reports.iter().find(|r| r.vm_id == id).map(|r| r.vm_name.to_lowercase());
    let others = ctx.stores.vms.state_filter(|other| {
        other.0.as_ref().is_ok_and(|other| {
            let source = &other.spec.source;
            let status = other.status.as_ref().and_then(|s| s.vm_id.as_deref());
            let same = match source.vm_id.as_deref().or(status) {
                Some(other) => other.eq_ignore_ascii_case(&id.to_string()),
                None => {
                    source.site == me.site
                        && name.is_some()
                        && source.vm_name.as_deref().map(str::to_lowercase) == name
                }
            };
            same && other.uid().as_deref() != Some(&me.uid) && other.meta().deletion_timestamp.is_none()
        })
    });
    others
        .iter()
        .filter_map(|other| other.0.as_ref().ok())
        .map(|other| Rival {
            name: format!("{}/{}", other.namespace().unwrap_or_default(), other.name_any()),
            uid: other.uid().unwrap_or_default(),
            created_at: other.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        })
        .collect()
}

/// The account that the VM is on comes first; for a new VM the one with the fewest VMs.
fn order(
    accounts: &mut [ConnectedAccount],
    ctx: &Context,
    me: &observed::Me,
    relationships: &[Relationship],
) {
    let pinned =
        me.written.storage_account.as_ref().or_else(|| relationships.first().map(|r| &r.wish.account));
    let load = |account: &str| {
        ctx.stores
            .vms
            .state_filter(|vm| {
                let status = vm.0.as_ref().ok().and_then(|vm| vm.status.as_ref());
                status.and_then(|s| s.storage_account.as_deref()) == Some(account)
            })
            .len()
    };
    if accounts.len() > 1 {
        accounts.sort_by_cached_key(|a| (Some(&a.account.name) != pinned, load(&a.account.name)));
    }
}
