//! ProtectedVM: observe, resolve and plan (in `farshore-core`), execute, write status.

mod execute;
pub mod facts;
pub mod memory;
mod observe;
mod publish;
pub mod show;

use std::sync::Arc;
use std::time::Duration;

use farshore_api::ProtectedVM;
use farshore_core::vm;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use tracing::{Instrument as _, debug, info_span, warn};

use crate::context::Context;
use crate::watch::Guarded;
use crate::write;

/// After changes that a watch tells of: a look that does not depend on that.
const AFTER_CHANGES: Duration = Duration::from_secs(1);

/// Reconciles one ProtectedVM.
pub async fn reconcile(object: Arc<Guarded<ProtectedVM>>, ctx: Arc<Context>) -> Action {
    let vm = match &object.0 {
        Ok(vm) => vm,
        Err(error) => {
            warn!(%error, "a ProtectedVM cannot be read");
            return Action::await_change();
        }
    };
    let span = info_span!("protected_vm", vm = publish::full_name(vm));
    let uid = vm.uid().unwrap_or_default();
    let mut memory = ctx.memories.take(&uid);
    let action = look(vm, &ctx, &mut memory).instrument(span).await;
    ctx.memories.put(&uid, memory);
    action
}

async fn look(vm: &ProtectedVM, ctx: &Context, memory: &mut memory::Memory) -> Action {
    let now = ctx.now();
    let seen = observe::observe(vm, ctx, memory, now).await;
    let plan = vm::plan(&seen.observed, &ctx.timing, now);
    debug!(actions = ?plan.actions.len(), next = %plan.next_check, "planned");
    let outcome = execute::execute(&plan.actions, vm, &seen, ctx, memory, now).await;
    let mut status = plan.status;
    match &outcome.failed {
        Some(fault) => {
            warn!(error.code = %fault.code, error = fault.message, "an action failed");
            status = status.with_failure(fault);
            observe::note(memory, fault, ctx, now);
        }
        None if seen.observed.stored().is_some() => memory.failures = None,
        None => {}
    }
    publish::jobs(&plan.jobs, &seen.observed, &status, ctx, memory, now).await;
    if outcome.released {
        ctx.metrics.forget(&seen.observed.me.namespace, &seen.observed.me.name);
        return Action::await_change();
    }
    let write_at = match publish::status(vm, &seen.observed, status, ctx, memory, now).await {
        Ok(at) => at,
        // Deleted meanwhile.
        Err(error) if write::is_missing(&error) => return Action::await_change(),
        Err(error) => {
            warn!(error = %write::brief(&error), "status not written");
            Some(now.checked_add(AFTER_CHANGES).unwrap_or(now))
        }
    };
    let mut next = plan.next_check.min(write_at.unwrap_or(Timestamp::MAX));
    if let (Some(_), Some(failures)) = (&outcome.failed, &memory.failures) {
        next = failures.next_at;
    } else if outcome.look_again {
        next = now;
    } else if !plan.actions.is_empty() {
        next = next.min(now.checked_add(AFTER_CHANGES).unwrap_or(now));
    }
    // By the clock as it is now: the look itself took time.
    Action::requeue(Duration::try_from(next.duration_since(ctx.now())).unwrap_or_default())
}
