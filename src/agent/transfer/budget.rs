//! What all VMs of the process share: memory for segments under way, and cores for encoding them.

use std::sync::Arc;

use farshore_core::units::MIB;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory for segments under way, of all VMs together: with buffers and everything else the process stays
/// below 256 MiB.
pub(super) const MEMORY: u64 = 96 * MIB;

/// Memory and cores. Cheap to clone; all clones share.
#[derive(Clone, Debug)]
pub struct Budget {
    memory: Arc<Semaphore>,
    cores: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { memory: Arc::new(Semaphore::new(mib(MEMORY))), cores: Arc::new(Semaphore::new(cores)) }
    }
}

fn mib(bytes: u64) -> usize {
    usize::try_from(bytes.min(MEMORY).div_ceil(MIB)).unwrap_or(1)
}

impl Budget {
    /// Waits for memory for one segment. `None` never happens: nobody closes the budget.
    pub(super) async fn memory(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(mib(bytes)).unwrap_or(1);
        Arc::clone(&self.memory).acquire_many_owned(permits).await.ok()
    }

    /// Waits for a core.
    pub(super) async fn core(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.cores).acquire_owned().await.ok()
    }
}
