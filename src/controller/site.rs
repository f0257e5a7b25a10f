//! HyperVSite and ReplicationPolicy: who uses them.

use std::sync::Arc;

use farshore_api::condition::{self, Draft};
use farshore_api::{HyperVSite, HyperVSiteStatus, ReplicationPolicy, ReplicationPolicyStatus, reason};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt as _};
use tracing::warn;

use crate::context::Context;
use crate::host;
use crate::watch::{Guarded, all};
use crate::write;

/// Reconciles one site.
pub async fn site(object: Arc<Guarded<HyperVSite>>, ctx: Arc<Context>) -> Action {
    let Ok(site) = &object.0 else { return Action::await_change() };
    let (name, now) = (site.name_any(), ctx.now());
    let hosts = all(&ctx.stores.hosts);
    let accepted: Vec<_> = hosts
        .iter()
        .filter_map(|h| h.0.as_ref().ok())
        .filter(|h| h.spec.site == name && h.spec.accepted)
        .collect();
    let connected = accepted.iter().filter(|h| host::connected(&ctx, h, now)).count();
    let waiting = hosts
        .iter()
        .filter_map(|h| h.0.as_ref().ok())
        .filter(|h| h.spec.site == name && !h.spec.accepted)
        .count();
    let message = match waiting {
        0 => String::new(),
        n => format!("{n} hosts wait for acceptance: kubectl get hypervhosts"),
    };
    let old = site.status.clone().unwrap_or_default();
    let drafts = vec![Draft::new(condition::READY, true, reason::AS_DESIRED, message)];
    let next = HyperVSiteStatus {
        hosts: count(accepted.len()),
        connected_hosts: count(connected),
        conditions: condition::merge(&old.conditions, drafts, site.metadata.generation, now),
    };
    let same = (old.hosts, old.connected_hosts) == (next.hosts, next.connected_hosts)
        && condition::same(&old.conditions, &next.conditions);
    if !same {
        let api: Api<HyperVSite> = Api::all(ctx.client.clone());
        told(write::apply_status(&api, &name, &next).await, &name);
    }
    Action::requeue(ctx.timing.resync_all)
}

/// Reconciles one policy.
pub async fn policy(object: Arc<Guarded<ReplicationPolicy>>, ctx: Arc<Context>) -> Action {
    let Ok(policy) = &object.0 else { return Action::await_change() };
    let (name, now) = (policy.name_any(), ctx.now());
    let vms = ctx.stores.vms.state_filter(|vm| vm.0.as_ref().is_ok_and(|vm| vm.spec.policy == name));
    let old = policy.status.clone().unwrap_or_default();
    let drafts = vec![Draft::new(condition::READY, true, reason::AS_DESIRED, "")];
    let next = ReplicationPolicyStatus {
        protected_vms: count(vms.len()),
        conditions: condition::merge(&old.conditions, drafts, policy.metadata.generation, now),
    };
    if old.protected_vms != next.protected_vms || !condition::same(&old.conditions, &next.conditions) {
        let api: Api<ReplicationPolicy> = Api::all(ctx.client.clone());
        told(write::apply_status(&api, &name, &next).await, &name);
    }
    Action::requeue(ctx.timing.resync_all)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn told<K>(result: kube::Result<K>, name: &str) {
    if let Err(error) = result {
        warn!(name, error = %write::brief(&error), "status not written");
    }
}
