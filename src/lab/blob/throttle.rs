//! Limits: a link's bandwidth, which makes wait, and a blob's own limits, which refuse.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How far ahead of the pace a link may run.
const LINK_BURST: Duration = Duration::from_millis(20);
/// How much of a blob's limits may be used at once.
const BLOB_BURST: Duration = Duration::from_secs(1);

/// A link of so many bytes a second; 0: as fast as it goes.
#[derive(Debug)]
pub(super) struct Bandwidth {
    rate: AtomicU64,
    /// When all that was sent so far will have passed.
    passed: Mutex<Instant>,
}

impl Bandwidth {
    pub(super) fn new(rate: u64) -> Bandwidth {
        Bandwidth { rate: AtomicU64::new(rate), passed: Mutex::new(Instant::now()) }
    }

    pub(super) fn set(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    pub(super) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` have passed.
    pub(super) async fn pass(&self, bytes: usize) {
        let rate = self.rate();
        if rate == 0 || bytes == 0 {
            return;
        }
        let until = {
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = Instant::now().checked_sub(LINK_BURST).unwrap_or_else(Instant::now);
            *passed = (*passed).max(earliest) + duration(bytes as u64, rate);
            *passed
        };
        tokio::time::sleep_until(until).await;
    }
}

/// What one blob may do in a second, as the service's scale targets have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlobLimit {
    /// Requests a second.
    pub requests: u64,
    /// Bytes of bodies a second.
    pub bytes: u64,
}

impl BlobLimit {
    /// 500 requests and 60 MiB a second.
    pub const AZURE: BlobLimit = BlobLimit { requests: 500, bytes: 60 << 20 };
}

#[derive(Debug, Default)]
pub(super) struct BlobLimits(Mutex<HashMap<String, [Instant; 2]>>);

impl BlobLimits {
    /// False: too much for this blob now; nothing was used up.
    pub(super) fn admit(&self, limit: BlobLimit, blob: &str, bytes: u64, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = all.entry(blob.to_owned()).or_insert([now; 2]);
        let [by_request, by_bytes] = *used;
        let next = [
            by_request.max(now) + duration(1, limit.requests),
            by_bytes.max(now) + duration(bytes, limit.bytes),
        ];
        let admitted = next.iter().all(|at| *at <= now + BLOB_BURST);
        if admitted {
            *used = next;
        }
        admitted
    }
}

fn duration(amount: u64, rate: u64) -> Duration {
    let nanos = u128::from(amount) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_links_pace() {
        let link = Bandwidth::new(1_000_000);
        let began = Instant::now();
        for _ in 0..100 {
            link.pass(100_000).await;
        }
        let took = began.elapsed().as_secs_f64();
        assert!((9.9..10.1).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_blob_is_refused_above_its_requests_or_bytes_and_admitted_a_second_later() {
        let limits = BlobLimits::default();
        let now = Instant::now();
        let small = (0..1000).filter(|_| limits.admit(BlobLimit::AZURE, "small", 512, now)).count();
        let large = (0..1000).filter(|_| limits.admit(BlobLimit::AZURE, "large", 4 << 20, now)).count();
        assert_eq!((small, large), (500, 15));
        assert!(!limits.admit(BlobLimit::AZURE, "large", 4 << 20, now));
        assert!(limits.admit(BlobLimit::AZURE, "large", 4 << 20, now + BLOB_BURST));
    }
}
