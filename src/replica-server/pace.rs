//! How fast one page blob is written once storage has refused to go faster.
//!
//! Azure takes 60 MiB and 500 requests a second per page blob and refuses what is above. Nothing is held back
//! before the first refusal: an account may allow more, and an emulator has no limit.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Bytes a second after a refusal: a little below what Azure takes, or every burst would be refused again.
const BYTES_PER_SECOND: u64 = 55 << 20;
/// Requests a second after a refusal.
const REQUESTS_PER_SECOND: u32 = 450;

/// The pace of one blob.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When the next request may be sent; `None` before the first refusal.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// Storage has refused to go faster.
    pub(crate) fn refused(&self, now: Instant) {
        let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        next.get_or_insert(now);
    }

    /// Waits for the turn of a request of `bytes`.
    pub(crate) async fn turn(&self, bytes: u64) {
        if let Some(at) = self.book(bytes, Instant::now()) {
            tokio::time::sleep_until(at).await;
        }
    }

    /// When a request of `bytes` may be sent; its share of the time after that is taken.
    fn book(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = (*next)?.max(now);
        let micros = bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND;
        let share = Duration::from_micros(micros).max(Duration::from_secs(1) / REQUESTS_PER_SECOND);
        *next = Some(at + share);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // R9.2: throttling slows the apply down, it does not end it.
    #[test]
    fn nothing_is_held_back_until_storage_refuses_and_then_it_stays_below_its_limits() {
        let pace = Pace::default();
        let start = Instant::now();
        assert_eq!(pace.book(4 << 20, start), None);
        pace.refused(start);
        let large = (0..30).filter_map(|_| pace.book(4 << 20, start)).last().unwrap();
        assert!(large - start > Duration::from_secs(2), "116 MiB are ahead of it: {:?}", large - start);

        let pace = Pace::default();
        pace.refused(start);
        let small = (0..901).filter_map(|_| pace.book(512, start)).last().unwrap();
        assert!(
            small - start >= Duration::from_millis(1999),
            "900 requests are ahead of it: {:?}",
            small - start
        );
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.book(512, later), Some(later), "time that was not used is not saved up");
    }
}
