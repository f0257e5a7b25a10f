//! A worker: one task for each VM that is its own, started and stopped as assignments come and go.

use std::collections::BTreeMap;
use std::time::Duration;

use farshore_core::fault::{Class, Fault};
use farshore_core::ids::VmId;
use farshore_core::retry::{Failures, LADDER_MINUTES, after_failure};
use farshore_core::timing::Timing;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::context::{Clock, Context, Policy};
use crate::crash::Crash;
use crate::store::Store;
use crate::task::{Next, VmTask};

/// Works on one VM until `ctx.stop`: takes steps, waits in between, climbs the retry ladder (R9.2).
pub async fn replicate_vm(ctx: Context, mut policy: watch::Receiver<Policy>) {
    let (stop, timing) = (ctx.stop.clone(), ctx.timing.clone());
    let mut task = VmTask::new(ctx.clone());
    let mut failures: Option<Failures> = None;
    while !stop.is_cancelled() {
        let current = *policy.borrow_and_update();
        let until = match task.step(&current).await {
            Ok(next) => {
                failures = None;
                match next {
                    Next::Now => continue,
                    Next::At(at) => at,
                }
            }
            Err(fault) => {
                let failed = climb(failures.as_ref(), &fault, &timing, ctx.now());
                let at = failed.next_at;
                tracing::warn!(
                    vm.id = %ctx.vm, error.code = %fault.code, error = fault.message,
                    attempts = failed.attempts, next_at = %at, "a step failed"
                );
                failures = Some(failed);
                at
            }
        };
        let wait = Duration::try_from(until.duration_since(ctx.now())).unwrap_or_default();
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
            changed = policy.changed(), if failures.is_none() => if changed.is_err() {
                // Nobody can change the policy any more: it stays.
                tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(wait) => {} }
            },
        }
    }
    tracing::info!(vm.id = %ctx.vm, "no longer ours");
}

/// What cannot be mended by waiting is looked at again at the ladder's slowest pace: there is no spec of ours
/// whose change could tell us that a person has repaired it.
fn climb(before: Option<&Failures>, fault: &Fault, timing: &Timing, now: Timestamp) -> Failures {
    let at_least = fault.retry_after_seconds.map(Duration::from_secs);
    let failed = after_failure(before, timing.retry_minute, at_least, rand::random(), now);
    match fault.class() {
        Class::Recoverable => failed,
        Class::Unrecoverable | Class::NeedsResync => {
            let top = u32::try_from(LADDER_MINUTES.len()).unwrap_or(u32::MAX);
            let slowest = Failures { attempts: top.max(failed.attempts), ..failed.clone() };
            let paced = after_failure(Some(&slowest), timing.retry_minute, at_least, rand::random(), now);
            Failures { next_at: paced.next_at, ..failed }
        }
    }
}

/// Work that is ours: where a VM's containers are, and its policy.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// Its containers, behind a credential.
    pub store: Store,
    /// Changes whenever the store must be opened anew: endpoint, credential.
    pub store_version: u64,
    /// Its policy.
    pub policy: Policy,
}

/// One process's share of the VMs.
#[derive(Debug)]
pub struct Worker {
    name: String,
    timing: Timing,
    clock: Clock,
    budget: Budget,
    crash: Crash,
    running: BTreeMap<VmId, Running>,
    /// Told to stop, not yet ended.
    ending: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Running {
    version: u64,
    policy: watch::Sender<Policy>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Worker {
    /// A worker without VMs. `name` appears in cursors and must be its own.
    #[must_use]
    pub fn new(name: &str, timing: Timing, clock: Clock, crash: Crash) -> Self {
        Self {
            name: name.to_owned(),
            timing,
            clock,
            budget: Budget::default(),
            crash,
            running: BTreeMap::new(),
            ending: Vec::new(),
        }
    }

    /// The VMs that it works on.
    pub fn vms(&self) -> impl Iterator<Item = VmId> + '_ {
        self.running.keys().copied()
    }

    /// Makes its work exactly `wanted`: starts, stops and re-opens as needed, passes policies on.
    pub fn assign(&mut self, wanted: &BTreeMap<VmId, Assignment>) {
        self.ending.retain(|task| !task.is_finished());
        let gone: Vec<VmId> = self
            .running
            .iter()
            .filter(|(vm, running)| {
                // A task ends by itself only by panicking, which is a bug; it is started again.
                running.task.is_finished()
                    || wanted.get(vm).is_none_or(|a| a.store_version != running.version)
            })
            .map(|(vm, _)| *vm)
            .collect();
        for vm in gone {
            if let Some(running) = self.running.remove(&vm) {
                running.stop.cancel();
                self.ending.push(running.task);
                tracing::debug!(vm.id = %vm, "told to end");
            }
        }
        for (vm, assignment) in wanted {
            match self.running.get(vm) {
                Some(running) => {
                    running.policy.send_if_modified(|policy| {
                        let changed = *policy != assignment.policy;
                        *policy = assignment.policy;
                        changed
                    });
                }
                None => drop(self.running.insert(*vm, self.start(*vm, assignment))),
            }
        }
    }

    fn start(&self, vm: VmId, assignment: &Assignment) -> Running {
        tracing::info!(vm.id = %vm, "ours");
        let mut ctx = Context::new(vm, assignment.store.clone(), self.timing.clone(), &self.name);
        ctx.clock = self.clock.clone();
        ctx.budget = self.budget.clone();
        ctx.crash = self.crash.clone();
        let (policy, receiver) = watch::channel(assignment.policy);
        let stop = ctx.stop.clone();
        let task = tokio::spawn(replicate_vm(ctx, receiver));
        Running { version: assignment.store_version, policy, stop, task }
    }

    /// Stops everything and gives leases back; waits for that until `deadline` has passed.
    pub async fn shut_down(mut self, deadline: Duration) {
        self.assign(&BTreeMap::new());
        let all = futures::future::join_all(self.ending);
        if tokio::time::timeout(deadline, all).await.is_err() {
            tracing::warn!("some work did not end in time; its leases end by themselves");
        }
    }
}

#[cfg(test)]
mod tests {
    use farshore_core::fault::Code;

    use super::*;

    // R9.1, R9.2
    #[test]
    fn passing_faults_climb_the_ladder_and_others_wait_long_from_the_start() {
        let now: Timestamp = "2026-01-02T03:00:00Z".parse().unwrap();
        let wait = |code, before: Option<&Failures>| {
            let failed = climb(before, &Fault::new(code, "x"), &Timing::default(), now);
            (failed.attempts, failed.next_at.duration_since(now).as_secs())
        };
        // The last tenth of an interval is jitter.
        let (attempts, seconds) = wait(Code::NetworkError, None);
        assert!(attempts == 1 && (54..=60).contains(&seconds), "{seconds}");
        let (attempts, seconds) = wait(Code::NotAuthorized, None);
        assert!(attempts == 1 && (1620..=1800).contains(&seconds), "{seconds}");
        let twice = Failures { since: now, attempts: 2, next_at: now };
        let (attempts, seconds) = wait(Code::NetworkError, Some(&twice));
        assert!(attempts == 3 && (216..=240).contains(&seconds), "{seconds}");
    }
}
