//! A blob's lease as a value: what each action makes of it, and whom it lets write.
//!
//! ```text
//! available --acquire--> leased --time--> expired --acquire--> leased
//!                        leased --break--> breaking --time--> broken --acquire--> leased
//!                        leased --release--> available
//! ```

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::refusal::{self, Refusal};

/// As kept with the blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lease {
    id: Option<String>,
    /// Seconds; `None` for ever.
    seconds: Option<u32>,
    /// `None` for ever.
    expires: Option<Timestamp>,
    /// Set by a break.
    broken_from: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseState {
    Available,
    Leased,
    Expired,
    Breaking,
    Broken,
}

impl LeaseState {
    pub(super) fn text(self) -> &'static str {
        match self {
            LeaseState::Available => "available",
            LeaseState::Leased => "leased",
            LeaseState::Expired => "expired",
            LeaseState::Breaking => "breaking",
            LeaseState::Broken => "broken",
        }
    }

    /// Whether it keeps others from writing.
    pub(super) fn locked(self) -> bool {
        matches!(self, LeaseState::Leased | LeaseState::Breaking)
    }
}

impl Lease {
    pub(super) fn state(&self, now: Timestamp) -> LeaseState {
        match (&self.id, self.broken_from, self.expires) {
            (None, ..) => LeaseState::Available,
            (Some(_), Some(from), _) if from > now => LeaseState::Breaking,
            (Some(_), Some(_), _) => LeaseState::Broken,
            (Some(_), None, Some(expires)) if expires <= now => LeaseState::Expired,
            (Some(_), None, _) => LeaseState::Leased,
        }
    }

    pub(super) fn is_infinite(&self) -> bool {
        self.seconds.is_none()
    }

    fn is(&self, id: &str) -> bool {
        self.id.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(id))
    }

    /// May a request that names `id` write?
    pub(super) fn admit(&self, id: Option<&str>, now: Timestamp) -> Result<(), Refusal> {
        match (self.state(now), id) {
            (state, None) if state.locked() => Err(refusal::lease_missing()),
            (_, None) => Ok(()),
            (state, Some(id)) if state.locked() => {
                if self.is(id) {
                    Ok(())
                } else {
                    Err(refusal::lease_mismatch())
                }
            }
            (LeaseState::Expired | LeaseState::Broken, Some(id)) if self.is(id) => Err(refusal::lease_lost()),
            (_, Some(_)) => Err(refusal::lease_not_present()),
        }
    }

    /// After a write: a lease that ran out can no longer be renewed.
    pub(super) fn written(&mut self, now: Timestamp) {
        if !self.state(now).locked() {
            *self = Lease::default();
        }
    }

    /// `seconds`: 15 to 60, or -1 for ever.
    pub(super) fn acquire(&mut self, seconds: i64, proposed: &str, now: Timestamp) -> Result<(), Refusal> {
        let seconds = match seconds {
            -1 => None,
            15..=60 => u32::try_from(seconds).ok(),
            _ => return Err(refusal::invalid_header("x-ms-lease-duration")),
        };
        match self.state(now) {
            LeaseState::Leased if !self.is(proposed) => return Err(refusal::lease_held()),
            LeaseState::Breaking if self.is(proposed) => return Err(refusal::lease_breaking()),
            LeaseState::Breaking => return Err(refusal::lease_held()),
            LeaseState::Leased | LeaseState::Available | LeaseState::Expired | LeaseState::Broken => {}
        }
        *self = Lease { id: Some(proposed.to_owned()), seconds, expires: None, broken_from: None };
        self.prolong(now);
        Ok(())
    }

    fn prolong(&mut self, now: Timestamp) {
        self.expires = self.seconds.map(|s| now + SignedDuration::from_secs(s.into()));
    }

    pub(super) fn renew(&mut self, id: &str, now: Timestamp) -> Result<(), Refusal> {
        if !self.is(id) {
            return Err(refusal::lease_other());
        }
        if matches!(self.state(now), LeaseState::Breaking | LeaseState::Broken) {
            return Err(refusal::lease_broken());
        }
        self.prolong(now);
        Ok(())
    }

    pub(super) fn release(&mut self, id: &str) -> Result<(), Refusal> {
        if !self.is(id) {
            return Err(refusal::lease_other());
        }
        *self = Lease::default();
        Ok(())
    }

    pub(super) fn change(&mut self, id: &str, proposed: &str, now: Timestamp) -> Result<(), Refusal> {
        if self.state(now) != LeaseState::Leased || !(self.is(id) || self.is(proposed)) {
            return Err(refusal::lease_other());
        }
        self.id = Some(proposed.to_owned());
        Ok(())
    }

    /// Seconds until it is over.
    pub(super) fn break_after(&mut self, seconds: Option<u32>, now: Timestamp) -> Result<i64, Refusal> {
        let left = |until: Timestamp| (until.as_second() - now.as_second()).max(0);
        let wish = seconds.map(i64::from);
        let after = match self.state(now) {
            LeaseState::Available => return Err(refusal::lease_none()),
            LeaseState::Expired | LeaseState::Broken => 0,
            LeaseState::Leased => match (self.expires, wish) {
                (Some(expires), Some(wish)) => wish.min(left(expires)),
                (Some(expires), None) => left(expires),
                (None, wish) => wish.unwrap_or(0),
            },
            LeaseState::Breaking => {
                let rest = self.broken_from.map_or(0, left);
                wish.map_or(rest, |wish| wish.min(rest))
            }
        };
        self.broken_from = Some(now + SignedDuration::from_secs(after));
        Ok(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn only_the_holder_writes_while_it_lasts_and_afterwards_it_is_told_so() {
        let mut lease = Lease::default();
        lease.acquire(15, "a", at(0)).unwrap();
        assert_eq!(lease.admit(Some("A"), at(14)), Ok(()));
        assert_eq!(lease.admit(None, at(14)), Err(refusal::lease_missing()));
        assert_eq!(lease.admit(Some("b"), at(14)), Err(refusal::lease_mismatch()));
        assert_eq!(lease.acquire(15, "b", at(14)), Err(refusal::lease_held()));
        assert_eq!(lease.admit(None, at(15)), Ok(()));
        assert_eq!(lease.admit(Some("a"), at(15)), Err(refusal::lease_lost()));
        lease.clone().renew("a", at(15)).expect("nobody wrote or took it meanwhile");
        lease.written(at(15));
        assert_eq!(lease.renew("a", at(15)), Err(refusal::lease_other()));
        assert_eq!(lease.admit(Some("a"), at(15)), Err(refusal::lease_not_present()));
    }

    #[test]
    fn the_same_id_takes_it_again_and_a_break_ends_it() {
        let mut lease = Lease::default();
        lease.acquire(-1, "a", at(0)).unwrap();
        lease.acquire(15, "a", at(100)).unwrap();
        assert_eq!(lease.break_after(Some(60), at(105)), Ok(10));
        assert_eq!(lease.state(at(114)), LeaseState::Breaking);
        assert_eq!(lease.acquire(15, "b", at(114)), Err(refusal::lease_held()));
        assert_eq!(lease.renew("a", at(114)), Err(refusal::lease_broken()));
        assert_eq!(lease.state(at(115)), LeaseState::Broken);
        lease.acquire(60, "b", at(115)).unwrap();
        assert_eq!(lease.release("a"), Err(refusal::lease_other()));
        lease.release("b").unwrap();
        assert_eq!(lease.break_after(None, at(116)), Err(refusal::lease_none()));
        assert_eq!(lease.acquire(14, "c", at(116)).unwrap_err().code, "InvalidHeaderValue");
    }
}
