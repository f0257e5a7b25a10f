//! Whether a host lives: by when its Lease was seen to change, never by the host's own clock.

use std::time::Duration;

use jiff::Timestamp;

/// What is known of a host's Lease. Kept in memory: a new leader starts without knowledge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The Lease's renewTime as it was last seen.
    value: Option<Timestamp>,
    /// When that value was first seen here.
    seen_at: Timestamp,
    /// It was seen to change, so the host lived at `seen_at`.
    changed: bool,
}

/// What is concluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// It changed a short while ago.
    Fresh,
    /// It has not been watched for long enough to tell.
    Unsure,
    /// It has not changed for too long.
    Lost,
    /// There has never been one.
    Never,
}

impl Heartbeat {
    /// The first look at a host's Lease.
    #[must_use]
    pub const fn first(value: Option<Timestamp>, now: Timestamp) -> Self {
        Self { value, seen_at: now, changed: false }
    }

    /// Another look.
    pub fn look(&mut self, value: Option<Timestamp>, now: Timestamp) {
        if value != self.value {
            *self = Self { value, seen_at: now, changed: true };
        }
    }

    /// When the host was last known to live.
    #[must_use]
    pub fn last_seen(&self) -> Option<Timestamp> {
        self.changed.then_some(self.seen_at)
    }

    /// What it means now, and until when that holds if nothing changes.
    #[must_use]
    pub fn pulse(&self, lost_after: Duration, now: Timestamp) -> (Pulse, Option<Timestamp>) {
        let until = self.seen_at.checked_add(lost_after).unwrap_or(Timestamp::MAX);
        match (self.value, now < until) {
            (Some(_), true) if self.changed => (Pulse::Fresh, Some(until)),
            (Some(_), true) => (Pulse::Unsure, Some(until)),
            (Some(_), false) => (Pulse::Lost, None),
            (None, true) if self.changed => (Pulse::Fresh, Some(until)),
            (None, _) => (Pulse::Never, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_lost_by_our_clock_whatever_its_own_says() {
        let at = |s: i64| Timestamp::from_second(1_800_000_000 + s).unwrap();
        let lost_after = Duration::from_secs(300);
        let far_future = Timestamp::from_second(4_000_000_000).unwrap();
        let mut beat = Heartbeat::first(Some(far_future), at(0));
        assert_eq!(beat.pulse(lost_after, at(10)).0, Pulse::Unsure, "a new leader does not judge at once");
        assert_eq!(beat.pulse(lost_after, at(300)).0, Pulse::Lost);
        beat.look(Some(at(-9999)), at(400));
        assert_eq!(beat.pulse(lost_after, at(401)), (Pulse::Fresh, Some(at(700))));
        beat.look(Some(at(-9999)), at(600));
        assert_eq!(beat.pulse(lost_after, at(700)).0, Pulse::Lost, "the same value again is no beat");
        assert_eq!(beat.last_seen(), Some(at(400)));
        assert_eq!(Heartbeat::first(None, at(0)).pulse(lost_after, at(1)).0, Pulse::Never);
    }
}
