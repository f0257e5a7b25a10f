//! Tidies up what no object's reconcile sees: relationships without ProtectedVM, old jobs, namespaces of hosts that
//! were deleted, memories.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use farshore_api::{RecoveryJob, ReplicationRelationship, annotation};
use farshore_core::vm::orphan::{Sweep, sweep};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tracing::{info, warn};

use crate::context::Context;
use crate::host::rights;
use crate::protected_vm::facts;
use crate::watch::{all, named};
use crate::write;

/// Jobs that ended are kept for this long.
const KEEP_JOBS: SignedDuration = SignedDuration::from_hours(14 * 24);

/// Sweeps again and again.
pub async fn run(ctx: Arc<Context>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        once(&ctx).await;
    }
}

/// One sweep.
pub async fn once(ctx: &Context) {
    let now = ctx.now();
    relationships(ctx, now).await;
    jobs(ctx, now).await;
    if let Err(error) = namespaces(ctx).await {
        warn!(error = %write::brief(&error), "namespaces of hosts not looked at");
    }
    let alive: BTreeSet<String> = ctx.stores.vms.state().iter().filter_map(|vm| vm.uid()).collect();
    ctx.memories.retain(|uid| alive.contains(uid));
}

async fn relationships(ctx: &Context, now: Timestamp) {
    for object in all(&ctx.stores.relationships) {
        let Ok(rel) = &object.0 else { continue };
        let Some(seen) = facts::relationship(rel) else { continue };
        let (namespace, name, _) = &seen.wish.protected_vm;
        let owner = ctx.stores.vms.get(&ObjectRef::new(name).within(namespace)).is_some();
        let released = seen.report.released && seen.report.goal_observed;
        let api: Api<ReplicationRelationship> = Api::namespaced(ctx.client.clone(), &seen.namespace);
        let done = match sweep(seen.wish.goal, released, owner, now) {
            Sweep::Keep => continue,
            Sweep::Stop(goal) => {
                let wish = farshore_core::vm::observed::Wish { goal, ..seen.wish.clone() };
                let spec = facts::relationship_spec(&wish);
                let patch = json!({"metadata": {"resourceVersion": rel.resource_version()},
                    "spec": {"goal": spec.goal, "keepPointsUntil": spec.keep_points_until}});
                write::merge(&api, &rel.name_any(), &patch).await.map(drop)
            }
            Sweep::Remove => {
                let preconditions =
                    Preconditions { uid: rel.uid(), resource_version: rel.resource_version() };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                api.delete(&rel.name_any(), &params).await.map(drop)
            }
        };
        match done {
            Ok(()) => {
                info!(vm.id = %seen.wish.vm_id, host = seen.host, "relationship without ProtectedVM tidied up")
            }
            Err(error) if write::is_stale(&error) => {}
            Err(error) => {
                warn!(vm.id = %seen.wish.vm_id, error = %write::brief(&error), "relationship not tidied up")
            }
        }
    }
}

async fn jobs(ctx: &Context, now: Timestamp) {
    for object in all(&ctx.stores.jobs) {
        let Ok(job) = &object.0 else { continue };
        let finished = job.status.as_ref().and_then(|s| s.finished_at.as_ref());
        if finished.is_none_or(|at| now.duration_since(at.0) < KEEP_JOBS) {
            continue;
        }
        let api: Api<RecoveryJob> = Api::namespaced(ctx.client.clone(), &job.namespace().unwrap_or_default());
        if let Err(error) = api.delete(&job.name_any(), &DeleteParams::default()).await
            && !write::is_missing(&error)
        {
            warn!(job = job.name_any(), error = %write::brief(&error), "old job not removed");
        }
    }
}

/// A host that was deleted loses its rights at once, and its namespace when nothing in it is needed any more.
async fn namespaces(ctx: &Context) -> kube::Result<()> {
    let api: Api<Namespace> = Api::all(ctx.client.clone());
    for namespace in api.list(&ListParams::default().labels(annotation::HOST)).await? {
        let Some(host) = namespace.labels().get(annotation::HOST) else { continue };
        let name = namespace.name_any();
        let leaving = namespace.metadata.deletion_timestamp.is_some();
        if leaving || named(&ctx.stores.hosts, host).is_some() || farshore_core::host::namespace(host) != name
        {
            continue;
        }
        rights::take(ctx, host).await?;
        let needed = ctx.stores.relationships.find(|r| r.namespace().as_deref() == Some(&name)).is_some();
        if !needed {
            api.delete(&name, &DeleteParams::default()).await?;
            info!(host, namespace = name, "namespace of a deleted host removed");
        }
    }
    Ok(())
}
