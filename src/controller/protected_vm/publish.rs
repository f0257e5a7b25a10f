//! Writes what was decided to where people look: jobs, status, events. In this order, so that a crash in between
//! repeats and omits nothing.

use farshore_api::{ProtectedVM, RecoveryJob, RecoveryJobStatus};
use farshore_core::vm::jobs::{Job, JobState, Operation};
use farshore_core::vm::observed::Observed;
use farshore_core::vm::status::{Is, Kind, Status, Write, due};
use farshore_core::vm::timeline;
use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;
use tracing::warn;

use super::memory::Memory;
use super::show;
use crate::context::Context;
use crate::metrics::Measured;
use crate::write;

/// Writes the status if it is due. Tells when to come back for what is not due yet.
///
/// # Errors
/// The API refuses or cannot be reached; nothing is remembered then.
pub(super) async fn status(
    vm: &ProtectedVM,
    seen: &Observed,
    next: Status,
    ctx: &Context,
    memory: &mut Memory,
    now: Timestamp,
) -> kube::Result<Option<Timestamp>> {
    measure(seen, &next, ctx);
    let written = &seen.me.written;
    let first = vm.status.is_none() && memory.written.is_none();
    match due(written, &next, memory.written_at, ctx.timing.status_refresh, now) {
        Write::Never if !first => return Ok(None),
        Write::At(at) if !first => return Ok(Some(at)),
        Write::Never | Write::At(_) | Write::Now => {}
    }
    let old = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let api: Api<ProtectedVM> = Api::namespaced(ctx.client.clone(), &seen.me.namespace);
    write::apply_status(&api, &seen.me.name, &show::status(&next, old, now)).await?;
    ctx.metrics.status_written();
    let about = vm.object_ref(&());
    for event in timeline::events(written, &next) {
        ctx.report.publish(&about, event).await;
    }
    memory.written = Some(next);
    memory.written_at = Some(now);
    Ok(None)
}

fn measure(seen: &Observed, status: &Status, ctx: &Context) {
    let measured = Measured {
        rpo_seconds: status.rpo_seconds,
        last_point: status.points.first().map(|p| p.time.as_second()),
        state: status.state.map_or("None", |s| match s {
            farshore_core::format::ledger::LedgerState::Enabling => "Enabling",
            other => farshore_core::vm::transition::place(other).map_or("None", |p| p.as_str()),
        }),
        stalled: status.condition(Kind::Stalled).is_some_and(|c| c.is == Is::True),
    };
    ctx.metrics.vm(&seen.me.namespace, &seen.me.name, measured);
}

/// Name of a job: one of each operation for one life of a ProtectedVM.
pub(super) fn job_name(vm: &str, uid: &str, operation: Operation) -> String {
    let what = match operation {
        Operation::EnableProtection => "enable",
        Operation::FinalizeProtection => "finalize",
        Operation::DisableProtection => "disable",
    };
    let (vm, uid): (String, String) = (vm.chars().take(200).collect(), uid.chars().take(8).collect());
    format!("{}-{what}-{uid}", vm.trim_end_matches(['.', '-']))
}

/// Writes jobs that have changed. A job that was over before it was ever written, and of which nobody heard
/// (it expired), is not made again. Failures are logged: the next look writes what is missing.
pub(super) async fn jobs(
    jobs: &[Job],
    seen: &Observed,
    status: &Status,
    ctx: &Context,
    memory: &mut Memory,
    now: Timestamp,
) {
    let me = &seen.me;
    let moved = me.written.state != status.state;
    for job in jobs {
        let name = job_name(&me.name, &me.uid, job.operation);
        let key = ObjectRef::new(&name).within(&me.namespace);
        let there = ctx.stores.jobs.get(&key).and_then(|j| j.0.as_ref().ok().cloned());
        if there.is_none() && job.state() == JobState::Succeeded && !moved {
            continue;
        }
        let old = there.as_ref().and_then(|j| j.status.as_ref());
        let next = show::job(job, old, now);
        let quiet = old.is_some_and(|old| means_the_same(old, &next));
        let recent = memory.jobs_at.is_some_and(|at| {
            let refresh = jiff::SignedDuration::try_from(ctx.timing.status_refresh).unwrap_or_default();
            now.duration_since(at) < refresh
        });
        if quiet && (recent || old.is_some_and(|old| *old == next)) {
            continue;
        }
        let Err(error) = write_job(&name, job, there.as_ref(), &next, seen, ctx).await else {
            memory.jobs_at = Some(now);
            continue;
        };
        // A namespace that is being removed takes no new job.
        warn!(job = name, error = %write::brief(&error), "job not written");
    }
}

async fn write_job(
    name: &str,
    job: &Job,
    there: Option<&RecoveryJob>,
    status: &RecoveryJobStatus,
    seen: &Observed,
    ctx: &Context,
) -> kube::Result<()> {
    let me = &seen.me;
    let api: Api<RecoveryJob> = Api::namespaced(ctx.client.clone(), &me.namespace);
    if there.is_none() {
        let spec = farshore_api::RecoveryJobSpec {
            protected_vm: me.name.clone(),
            operation: show::operation(job.operation),
            vm_id: job.vm_id.map(|id| id.to_string()),
            epoch: i64::try_from(job.epoch.0).unwrap_or(i64::MAX),
        };
        let object = json!({
            "apiVersion": RecoveryJob::api_version(&()),
            "kind": RecoveryJob::kind(&()),
            "metadata": {"name": name, "namespace": me.namespace},
            "spec": spec,
        });
        let object = serde_json::from_value::<RecoveryJob>(object).map_err(kube::Error::SerdeError)?;
        match api.create(&kube::api::PostParams::default(), &object).await {
            Ok(_) => {}
            // Made a moment ago; the watch has not shown it yet.
            Err(error) if write::exists(&error) => {}
            Err(error) => return Err(error),
        }
    }
    write::apply_status(&api, name, status).await.map(drop)
}

/// Percent and messages may wait; states and errors may not.
fn means_the_same(a: &RecoveryJobStatus, b: &RecoveryJobStatus) -> bool {
    let steps = |s: &RecoveryJobStatus| s.steps.iter().map(|s| (s.name.clone(), s.state)).collect::<Vec<_>>();
    let error = |s: &RecoveryJobStatus| s.error.as_ref().map(|e| e.code.clone());
    a.state == b.state && steps(a) == steps(b) && error(a) == error(b)
}

/// Name of the object, for logs.
pub(super) fn full_name(vm: &ProtectedVM) -> String {
    format!("{}/{}", vm.namespace().unwrap_or_default(), vm.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_jobs_are_names_and_differ_by_life_and_operation() {
        let long = format!("{}.x", "a".repeat(199));
        for (vm, uid) in [("sql01", "12345678-9"), (long.as_str(), "87654321-0")] {
            let name = job_name(vm, uid, Operation::EnableProtection);
            assert!(name.len() <= 253 && !name.contains(".-"), "{name}");
            assert_ne!(name, job_name(vm, uid, Operation::FinalizeProtection));
        }
        assert_ne!(
            job_name("a", "1", Operation::EnableProtection),
            job_name("a", "2", Operation::EnableProtection)
        );
    }
}
