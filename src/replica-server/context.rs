//! What the work on one VM needs from outside.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use farshore_core::ids::VmId;
use farshore_core::points::BacklogLimits;
use farshore_core::timing::Timing;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::crash::Crash;
use crate::store::Store;

/// Tells the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// Somebody else's.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The settings of a policy, scaled by [`Timing::policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Between cycles.
    pub interval: Duration,
    /// Between snapshot sets.
    pub spacing: Duration,
    /// How long points are kept.
    pub retention: Duration,
}

/// Everything that the work on one VM needs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    /// Which.
    pub vm: VmId,
    /// Its containers.
    pub store: Store,
    /// Periods.
    pub timing: Timing,
    /// The time.
    pub clock: Clock,
    /// Our name in the cursor.
    pub worker: String,
    /// Memory, shared by all VMs of the process.
    pub budget: Budget,
    /// What may wait before it is applied without a boundary.
    pub limits: BacklogLimits,
    /// For tests.
    pub crash: Crash,
    /// Ends the work: leases are given back, then it returns.
    pub stop: CancellationToken,
}

impl Context {
    /// With a memory budget of its own, the machine's clock and no crash points.
    #[must_use]
    pub fn new(vm: VmId, store: Store, timing: Timing, worker: &str) -> Self {
        Self {
            vm,
            store,
            timing,
            clock: Clock::system(),
            worker: worker.to_owned(),
            budget: Budget::default(),
            limits: BacklogLimits::default(),
            crash: Crash::never(),
            stop: CancellationToken::new(),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock.0)()
    }
}
