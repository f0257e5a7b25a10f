//! Which commit name to look for next, and when.

use std::time::Duration;

use jiff::Timestamp;

use super::chain::expected;
use crate::format::cursor::Cursor;
use crate::format::ledger::Ledger;
use crate::ids::CycleId;
use crate::timing::Timing;

/// The one GET that may find something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The commit to ask for.
    pub name: CycleId,
    /// Not before this time.
    pub at: Timestamp,
    /// If it is not there yet: this much later again.
    pub again: Duration,
}

/// How often to ask for a commit that is due: a tenth of the interval, within the bounds of [`Timing`].
#[must_use]
pub fn poll_interval(interval: Duration, timing: &Timing) -> Duration {
    (interval / 10).clamp(timing.commit_poll_min, timing.commit_poll_max.max(timing.commit_poll_min))
}

/// Where to look after what `cursor` says. The time comes from the newest verified commit, but a host whose
/// clock is ahead, or lies, is never believed for more than one interval from now: it would only hurt its
/// own VM, yet a wrong clock is common and the loss would be silent.
#[must_use]
pub fn look(cursor: &Cursor, ledger: &Ledger, interval: Duration, timing: &Timing, now: Timestamp) -> Look {
    let name = expected(cursor, ledger);
    let latest = now.checked_add(interval).unwrap_or(Timestamp::MAX);
    let promised = match &cursor.verified {
        Some(verified) if verified.commit.id.next() == name => verified.next_cycle_at,
        _ => now,
    };
    Look { name, at: promised.min(latest), again: poll_interval(interval, timing) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Cycle, Stream, Term};
    use crate::points::chain::tests::{cursor_at, ledger};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const FIVE_MINUTES: Duration = Duration::from_secs(300);

    #[test]
    fn the_commit_after_the_verified_one_is_looked_for_when_it_was_promised() {
        let now = at("2026-01-02T03:05:00Z");
        let cursor = cursor_at(7);
        let look = look(&cursor, &ledger(1, 1), FIVE_MINUTES, &Timing::default(), now);
        assert_eq!(look.name, cursor.verified.as_ref().unwrap().commit.id.next());
        assert_eq!(look.at, cursor.verified.unwrap().next_cycle_at);
        assert_eq!(look.again, Duration::from_secs(30));
    }

    #[test]
    fn a_raised_stream_is_looked_for_at_once_from_its_first_cycle() {
        let now = at("2026-01-02T03:05:00Z");
        let look = look(&cursor_at(7), &ledger(1, 2), FIVE_MINUTES, &Timing::default(), now);
        assert_eq!(look.name, CycleId { term: Term(1), stream: Stream(2), cycle: Cycle(1) });
        assert_eq!(look.at, now);
    }

    #[test]
    fn a_host_with_a_wrong_clock_delays_a_look_by_one_interval_at_most() {
        let now = at("2026-01-02T03:05:00Z");
        let mut cursor = cursor_at(7);
        cursor.verified.as_mut().unwrap().next_cycle_at = at("2036-01-02T03:05:00Z");
        let look = look(&cursor, &ledger(1, 1), FIVE_MINUTES, &Timing::default(), now);
        assert_eq!(look.at, at("2026-01-02T03:10:00Z"));
    }

    #[test]
    fn polling_is_a_tenth_of_the_interval_from_5_to_60_seconds() {
        let poll = |secs| poll_interval(Duration::from_secs(secs), &Timing::default()).as_secs();
        assert_eq!([poll(30), poll(300), poll(3600)], [5, 30, 60]);
    }
}
