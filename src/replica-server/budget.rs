//! Memory of the whole process, bounded whatever the number and size of disks.
//!
//! | what | at most | held while |
//! |---|---|---|
//! | segments as stored | 48 MiB (a single one of up to 64 MiB alone) | it is fetched, checked and decoded |
//! | decoders | 4, each with one Put of up to 4 MiB in the making | a segment is decoded |
//! | Puts | 32 MiB, 48 requests | they are on their way |
//! | range plans | 600,000 ranges, about 40 MiB | a disk is written |
//! | lists being read | 1, up to 16 MiB of JSON and as much parsed | it is read and parsed |
//! | small segments between verifying and applying | 16 MiB | until they are applied |
//!
//! Nobody waits for more of a kind that he holds, and the kinds are taken in the order plans, segments,
//! decoders, Puts; so nobody waits for himself.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const SEGMENTS_KIB: u32 = 48 << 10;
const PUTS_KIB: u32 = 32 << 10;
const PUTS: u32 = 48;
const PLAN_RANGES: u32 = 600_000;
const CACHED: usize = 16 << 20;

/// What one process may hold. Cheap to clone; share one.
#[derive(Clone, Debug)]
pub struct Budget {
    segments: Arc<Semaphore>,
    decoders: Arc<Semaphore>,
    puts: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    plans: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    cache: Arc<Mutex<Cache>>,
}

impl Default for Budget {
    fn default() -> Self {
        let of = |permits: u32| Arc::new(Semaphore::new(usize::try_from(permits).unwrap_or(1)));
        Self {
            segments: of(SEGMENTS_KIB),
            decoders: of(4),
            puts: of(PUTS_KIB),
            requests: of(PUTS),
            plans: of(PLAN_RANGES),
            lists: of(1),
            cache: Arc::default(),
        }
    }
}

/// Returned when dropped.
pub(crate) type Permit = Option<OwnedSemaphorePermit>;

async fn take(from: &Arc<Semaphore>, permits: u32) -> Permit {
    // The semaphores are never closed; a permit that could not be had is no permit.
    Arc::clone(from).acquire_many_owned(permits).await.ok()
}

fn kib(bytes: u64, max: u32) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(max).clamp(1, max)
}

impl Budget {
    pub(crate) async fn segment(&self, stored: u64) -> Permit {
        take(&self.segments, kib(stored, SEGMENTS_KIB)).await
    }

    pub(crate) async fn decoder(&self) -> Permit {
        take(&self.decoders, 1).await
    }

    pub(crate) async fn put(&self, bytes: u64) -> Permit {
        take(&self.puts, kib(bytes, PUTS_KIB)).await
    }

    pub(crate) async fn request(&self) -> Permit {
        take(&self.requests, 1).await
    }

    pub(crate) async fn plan(&self, ranges: u64) -> Permit {
        take(&self.plans, u32::try_from(ranges).unwrap_or(PLAN_RANGES).clamp(1, PLAN_RANGES)).await
    }

    pub(crate) async fn list(&self) -> Permit {
        take(&self.lists, 1).await
    }

    /// Keeps a verified segment until it is applied or pushed out by newer ones.
    pub(crate) fn keep(&self, key: String, bytes: Bytes) {
        self.cache().insert(key, bytes);
    }

    /// A segment that was kept; it is not kept any longer.
    pub(crate) fn kept(&self, key: &str) -> Option<Bytes> {
        self.cache().remove(key)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Cache {
    bytes: HashMap<String, Bytes>,
    order: VecDeque<String>,
    total: usize,
}

impl Cache {
    fn insert(&mut self, key: String, bytes: Bytes) {
        if bytes.len() > CACHED || self.bytes.contains_key(&key) {
            return;
        }
        self.total += bytes.len();
        self.order.push_back(key.clone());
        self.bytes.insert(key, bytes);
        while self.total > CACHED
            && let Some(oldest) = self.order.pop_front()
        {
            self.forget(&oldest);
        }
        // Keys of segments that were taken out meanwhile.
        if self.order.len() > 2 * self.bytes.len() + 64 {
            let bytes = &self.bytes;
            self.order.retain(|key| bytes.contains_key(key));
        }
    }

    fn remove(&mut self, key: &str) -> Option<Bytes> {
        self.forget(key)
    }

    fn forget(&mut self, key: &str) -> Option<Bytes> {
        let bytes = self.bytes.remove(key)?;
        self.total = self.total.saturating_sub(bytes.len());
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_stays_within_its_bound_and_gives_each_segment_once() {
        let mut cache = Cache::default();
        for i in 0..100 {
            cache.insert(format!("{i}"), Bytes::from(vec![0; 1 << 20]));
            assert!(cache.total <= CACHED);
        }
        assert!(cache.remove("0").is_none(), "pushed out");
        assert!(cache.remove("99").is_some());
        assert!(cache.remove("99").is_none());
        for i in 0..10_000 {
            cache.insert(format!("s{i}"), Bytes::from_static(b"x"));
            cache.remove(&format!("s{i}"));
        }
        assert!(cache.order.len() < 200, "{}", cache.order.len());
    }
}
