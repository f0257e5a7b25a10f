//! HyperVHost: acceptance, namespace and rights, heartbeat (R1.2, DESIGN 9).

pub mod csr;
pub mod rights;
pub mod token;

use std::sync::Arc;

use farshore_api::condition::{self, Draft};
use farshore_api::{Condition, HyperVHost, Time, reason};
use farshore_core::host::{Heartbeat, Pulse};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tracing::{info, warn};

use crate::context::Context;
use crate::protected_vm::show::whole_seconds;
use crate::watch::{Guarded, named};
use crate::write;

/// What is concluded from a host's Leases, and until when that holds.
fn pulse(ctx: &Context, host: &str, now: Timestamp) -> (Pulse, Option<Timestamp>, Option<Timestamp>) {
    let namespace = farshore_core::host::namespace(host);
    let Ok(beats) = ctx.heartbeats.lock() else { return (Pulse::Never, None, None) };
    let mine = beats.iter().filter(|((ns, _), _)| *ns == namespace).map(|(_, beat)| beat);
    let best = mine.max_by_key(|beat| match beat.pulse(ctx.timing.host_lost_after, now).0 {
        Pulse::Fresh => 3,
        Pulse::Unsure => 2,
        Pulse::Lost => 1,
        Pulse::Never => 0,
    });
    let Some(best) = best else { return (Pulse::Never, None, None) };
    let (pulse, until) = best.pulse(ctx.timing.host_lost_after, now);
    (pulse, until, best.last_seen())
}

/// Is the host heard of? Right after a start, what was last written is believed until it can be judged.
pub fn connected(ctx: &Context, host: &HyperVHost, now: Timestamp) -> bool {
    match pulse(ctx, &host.name_any(), now).0 {
        Pulse::Fresh => true,
        Pulse::Unsure => was_connected(host),
        Pulse::Lost | Pulse::Never => false,
    }
}

fn was_connected(host: &HyperVHost) -> bool {
    host.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, condition::CONNECTED))
}

/// A Lease was seen. True if its host should be looked at.
pub fn beat(ctx: &Context, lease: &Lease) -> bool {
    let now = ctx.now();
    let key = (lease.namespace().unwrap_or_default(), lease.name_any());
    let value = lease.spec.as_ref().and_then(|s| s.renew_time.as_ref()).map(|t| t.0);
    let Ok(mut beats) = ctx.heartbeats.lock() else { return false };
    match beats.get_mut(&key) {
        None => {
            beats.insert(key, Heartbeat::first(value, now));
            true
        }
        Some(beat) => {
            let before = beat.pulse(ctx.timing.host_lost_after, now).0;
            beat.look(value, now);
            before != beat.pulse(ctx.timing.host_lost_after, now).0
        }
    }
}

/// The host that a Lease belongs to.
pub fn of_namespace(ctx: &Context, namespace: &str) -> Option<ObjectRef<Guarded<HyperVHost>>> {
    let found = ctx.stores.hosts.find(|h| farshore_core::host::namespace(&h.name_any()) == namespace)?;
    Some(ObjectRef::from_obj(found.as_ref()))
}

/// Reconciles one host.
pub async fn reconcile(object: Arc<Guarded<HyperVHost>>, ctx: Arc<Context>) -> Action {
    let Ok(host) = &object.0 else { return Action::await_change() };
    let now = ctx.now();
    let name = host.name_any();
    let (pulse, until, last_seen) = pulse(&ctx, &name, now);
    let mut failed = None;
    if host.spec.accepted {
        if let Err(error) = rights::give(&ctx, &name).await {
            failed = Some(format!("namespace or rights of the host: {}", write::brief(&error)));
        }
    } else if host.status.as_ref().is_some_and(|s| s.namespace.is_some())
        && let Err(error) = rights::take(&ctx, &name).await
    {
        failed = Some(format!("rights of the host could not be taken back: {}", write::brief(&error)));
    }
    if pulse == Pulse::Fresh {
        // It logs in by its own certificate now.
        token::spend(&ctx, host).await;
    }
    let mismatch = csr::has_other_key(&ctx, host);
    let drafts = drafts(host, pulse, mismatch, failed.as_deref());
    write_status(&ctx, host, drafts, last_seen, now).await;
    if failed.is_some() {
        warn!(host = name, error = failed, "host not reconciled");
        return Action::requeue(ctx.timing.retry_minute.min(ctx.timing.resync_all));
    }
    let until = until.map_or(ctx.timing.resync_all, |t| {
        std::time::Duration::try_from(t.duration_since(now)).unwrap_or_default()
    });
    Action::requeue(until.min(ctx.timing.resync_all))
}

async fn write_status(
    ctx: &Context,
    host: &HyperVHost,
    drafts: Vec<Draft>,
    last_seen: Option<Timestamp>,
    now: Timestamp,
) {
    let name = host.name_any();
    let status = host.status.clone().unwrap_or_default();
    let conditions = condition::merge(&status.conditions, drafts, host.metadata.generation, now);
    let namespace = if host.spec.accepted {
        Some(farshore_core::host::namespace(&name))
    } else {
        status.namespace.clone()
    };
    let is_connected = condition::is_true(&conditions, condition::CONNECTED);
    ctx.metrics.host(&name, is_connected);
    if condition::same(&status.conditions, &conditions) && namespace == status.namespace {
        return;
    }
    let changed = condition::is_true(&status.conditions, condition::CONNECTED) != is_connected;
    let seen = last_seen.filter(|_| changed).map(|t| Time(whole_seconds(t))).or(status.last_seen);
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Ours {
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        last_seen: Option<Time>,
        conditions: Vec<Condition>,
    }
    let api: Api<HyperVHost> = Api::all(ctx.client.clone());
    match write::apply_status(&api, &name, &json!(Ours { namespace, last_seen: seen, conditions })).await {
        Ok(_) if changed => info!(host = name, connected = is_connected, "host heard of or lost"),
        Ok(_) => {}
        Err(error) => warn!(host = name, error = %write::brief(&error), "status not written"),
    }
}

fn drafts(host: &HyperVHost, pulse: Pulse, other_key: bool, failed: Option<&str>) -> Vec<Draft> {
    let name = host.name_any();
    let connected = match pulse {
        Pulse::Fresh => {
            Draft::new(condition::CONNECTED, true, reason::HEARTBEAT_FRESH, "the agent's heartbeat is fresh")
        }
        Pulse::Unsure if was_connected(host) => {
            Draft::new(condition::CONNECTED, true, reason::HEARTBEAT_FRESH, "the agent's heartbeat is fresh")
        }
        Pulse::Lost => Draft::new(
            condition::CONNECTED,
            false,
            reason::HEARTBEAT_LOST,
            "the agent's heartbeat stopped: check that the host is up, its way to the API, and the service farshore-agent",
        ),
        Pulse::Unsure | Pulse::Never => Draft::new(
            condition::CONNECTED,
            false,
            reason::NO_HEARTBEAT_YET,
            "no heartbeat of the agent was seen yet",
        ),
    };
    let blocked: Vec<String> = host
        .status
        .iter()
        .flat_map(|s| &s.endpoints)
        .filter(|e| !e.reachable)
        .map(|e| format!("{} ({})", e.name, e.url))
        .collect();
    let is_connected = connected.status == condition::Status::True;
    let (ready, why, what) = if !host.spec.accepted {
        let what = format!(
            "compare spec.keyFingerprint with what the agent on {name} shows, then: kubectl patch hypervhost {name} \
             --type merge -p '{{\"spec\":{{\"accepted\":true}}}}'"
        );
        (false, reason::NOT_ACCEPTED, what)
    } else if other_key {
        let what = "the host asks for a certificate with another key than spec.keyFingerprint: if it was set up anew, \
                    compare the key that its agent shows and correct spec.keyFingerprint";
        (false, reason::KEY_MISMATCH, what.to_owned())
    } else if let Some(failed) = failed {
        (false, reason::IN_PROGRESS, failed.to_owned())
    } else if !is_connected {
        (false, connected.reason, connected.message.clone())
    } else if blocked.is_empty() {
        (true, reason::ACCEPTED, "accepted and connected".to_owned())
    } else {
        let what = format!("the host cannot reach {}: open them for outbound HTTPS", blocked.join(", "));
        (false, reason::ENDPOINT_BLOCKED, what)
    };
    vec![Draft::new(condition::READY, ready, why, what), connected]
}

/// The site of a host, to be woken when the host changes.
pub fn site_of(ctx: &Context, host: &HyperVHost) -> Option<ObjectRef<Guarded<farshore_api::HyperVSite>>> {
    named(&ctx.stores.sites, &host.spec.site).map(|site| ObjectRef::new(&site.name_any()))
}

#[cfg(test)]
mod tests {
    use farshore_api::{EndpointCheck, HyperVHostSpec, HyperVHostStatus};

    use super::*;

    fn host(accepted: bool) -> HyperVHost {
        let spec = HyperVHostSpec { site: "ams".into(), accepted, key_fingerprint: "aa".into() };
        HyperVHost { status: Some(HyperVHostStatus::default()), ..HyperVHost::new("h1", spec) }
    }

    // R3.2
    #[test]
    fn a_host_is_ready_when_accepted_connected_and_not_blocked() {
        let mut blocked = host(true);
        let check = |reachable| EndpointCheck {
            name: "Storage".into(),
            url: "https://a.blob.core.windows.net".into(),
            reachable,
            code: None,
            message: None,
        };
        blocked.status.as_mut().unwrap().endpoints = vec![check(true), check(false)];
        for (name, host, pulse, other_key, want) in [
            ("new", host(false), Pulse::Never, false, ("False", reason::NOT_ACCEPTED)),
            ("accepted", host(true), Pulse::Never, false, ("False", reason::NO_HEARTBEAT_YET)),
            ("connected", host(true), Pulse::Fresh, false, ("True", reason::ACCEPTED)),
            ("just started", host(true), Pulse::Unsure, false, ("False", reason::NO_HEARTBEAT_YET)),
            ("lost", host(true), Pulse::Lost, false, ("False", reason::HEARTBEAT_LOST)),
            ("other key", host(true), Pulse::Fresh, true, ("False", reason::KEY_MISMATCH)),
            ("blocked", blocked, Pulse::Fresh, false, ("False", reason::ENDPOINT_BLOCKED)),
        ] {
            let drafts = drafts(&host, pulse, other_key, None);
            let ready = drafts.iter().find(|d| d.type_ == condition::READY).unwrap();
            assert_eq!((ready.status.as_str(), ready.reason), want, "{name}");
        }
    }
}
