//! When to try again (R9.2).
//!
//! From the first failure the interval grows 1, 2, 4, 8, 10 minutes, then 30 minutes each. A success
//! resets it. The count and the first failure are persisted, so a restart does not start over.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The ladder, in minutes; beyond it every 30.
pub const LADDER_MINUTES: [u32; 5] = [1, 2, 4, 8, 10];
/// The interval after the ladder, in minutes.
pub const THEN_MINUTES: u32 = 30;

/// Failures in a row of one piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failures {
    /// The first one.
    pub since: Timestamp,
    /// How many so far, at least 1.
    pub attempts: u32,
    /// When to try again.
    pub next_at: Timestamp,
}

/// The interval after failure number `attempts` (from 1), without jitter.
#[must_use]
pub fn interval(attempts: u32, minute: Duration) -> Duration {
    let step = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    minute.saturating_mul(LADDER_MINUTES.get(step).copied().unwrap_or(THEN_MINUTES))
}

/// Notes one more failure at `now`. `jitter` in 0..=1 spreads the next attempt over the last tenth of
/// its interval, so that hosts that failed together do not return together; `at_least` is what the
/// service asked for (Retry-After).
#[must_use]
pub fn after_failure(
    before: Option<&Failures>,
    minute: Duration,
    at_least: Option<Duration>,
    jitter: f64,
    now: Timestamp,
) -> Failures {
    let attempts = before.map_or(1, |f| f.attempts.saturating_add(1));
    let whole = interval(attempts, minute);
    let wait = whole.mul_f64(0.9 + 0.1 * jitter.clamp(0.0, 1.0)).max(at_least.unwrap_or_default());
    Failures {
        since: before.map_or(now, |f| f.since),
        attempts,
        next_at: now.checked_add(wait).unwrap_or(Timestamp::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // R9.2
    #[test]
    fn intervals_grow_1_2_4_8_10_then_30_minutes_from_the_first_failure() {
        let mut now: Timestamp = "2026-01-02T03:00:00Z".parse().unwrap();
        let first = now;
        let mut failures: Option<Failures> = None;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let next = after_failure(failures.as_ref(), Duration::from_secs(60), None, 1.0, now);
            waits.push(next.next_at.duration_since(now).as_secs() / 60);
            now = next.next_at;
            failures = Some(next);
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 30, 30, 30]);
        assert_eq!(failures.map(|f| (f.since, f.attempts)), Some((first, 8)));
    }

    #[test]
    fn jitter_shortens_by_a_tenth_at_most_and_retry_after_is_obeyed() {
        let now: Timestamp = "2026-01-02T03:00:00Z".parse().unwrap();
        let wait = |jitter, at_least| {
            after_failure(None, Duration::from_secs(60), at_least, jitter, now)
                .next_at
                .duration_since(now)
                .as_secs()
        };
        assert_eq!(wait(0.0, None), 54);
        assert_eq!(wait(1.0, None), 60);
        assert_eq!(wait(0.0, Some(Duration::from_secs(600))), 600);
    }
}
