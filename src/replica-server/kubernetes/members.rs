//! Who works besides us: every worker renews a Lease, and one that is not renewed for a while has left.
//!
//! A Lease's age is how long ago *we* saw it change: clocks of machines differ. While we cannot renew our own,
//! the API server is away, and nobody is declared gone: everybody keeps the VMs that he has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// The workers as we see them.
#[derive(Debug)]
pub(super) struct Members {
    me: String,
    lost_after: Duration,
    /// By name: the renewal last seen and when we first saw it.
    seen: BTreeMap<String, (String, Instant)>,
    last_renewal: Option<Instant>,
    known: BTreeSet<String>,
}

impl Members {
    pub(super) fn new(me: &str, lost_after: Duration) -> Self {
        let known = BTreeSet::from([me.to_owned()]);
        Self { me: me.to_owned(), lost_after, seen: BTreeMap::new(), last_renewal: None, known }
    }

    /// We renewed our own Lease.
    pub(super) fn renewed(&mut self, now: Instant) {
        // After a time without the API server everybody's renewals look old, only because we saw none: they
        // get their time again.
        if self.away(now) {
            for (_, since) in self.seen.values_mut() {
                *since = now;
            }
        }
        self.last_renewal = Some(now);
    }

    fn away(&self, now: Instant) -> bool {
        self.last_renewal.is_none_or(|at| now.duration_since(at) > self.lost_after / 2)
    }

    /// Takes in all Leases as (name, text of the last renewal).
    pub(super) fn observe(&mut self, leases: impl IntoIterator<Item = (String, String)>, now: Instant) {
        let mut still = BTreeSet::new();
        for (name, renewal) in leases {
            still.insert(name.clone());
            let entry = self.seen.entry(name).or_insert_with(|| (renewal.clone(), now));
            if entry.0 != renewal {
                *entry = (renewal, now);
            }
        }
        if !self.away(now) {
            self.seen.retain(|name, _| still.contains(name));
        }
    }

    /// The members of now, ourselves included.
    pub(super) fn alive(&mut self, now: Instant) -> &BTreeSet<String> {
        if !self.away(now) {
            self.known = self
                .seen
                .iter()
                .filter(|(_, (_, since))| now.duration_since(*since) <= self.lost_after)
                .map(|(name, _)| name.clone())
                .collect();
            self.known.insert(self.me.clone());
        }
        &self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: Duration = Duration::from_secs(20);

    struct Case {
        members: Members,
        start: Instant,
    }

    impl Case {
        fn new() -> Self {
            Self { members: Members::new("a", LOST), start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn see(&mut self, seconds: u64, leases: &[(&str, u64)]) {
            let leases = leases.iter().map(|(name, renewal)| ((*name).to_owned(), renewal.to_string()));
            self.members.observe(leases.collect::<Vec<_>>(), self.at(seconds));
        }

        fn renewed(&mut self, seconds: u64) {
            self.members.renewed(self.at(seconds));
        }

        fn alive(&mut self, seconds: u64) -> Vec<String> {
            let at = self.at(seconds);
            self.members.alive(at).iter().cloned().collect()
        }
    }

    #[test]
    fn a_worker_that_renews_no_more_has_left() {
        let mut case = Case::new();
        for second in (0..60).step_by(5) {
            case.renewed(second);
            case.see(second, &[("a", second), ("b", second.min(10)), ("c", second)]);
        }
        assert_eq!(case.alive(30), ["a", "b", "c"]);
        assert_eq!(case.alive(31), ["a", "c"]);
    }

    #[test]
    fn nobody_is_declared_gone_while_the_api_server_is_away() {
        let mut case = Case::new();
        case.renewed(0);
        case.see(0, &[("a", 0), ("b", 0)]);
        assert_eq!(case.alive(0), ["a", "b"]);
        assert_eq!(case.alive(1000), ["a", "b"], "kept");
        // Back again: b gets its time before it is judged.
        case.renewed(1000);
        case.see(1000, &[("a", 0), ("b", 0)]);
        assert_eq!(case.alive(1001), ["a", "b"]);
        for second in [1005, 1010, 1015, 1020, 1025] {
            case.renewed(second);
        }
        assert_eq!(case.alive(1025), ["a"]);
    }

    #[test]
    fn a_lease_that_was_deleted_ends_a_membership_at_once() {
        let mut case = Case::new();
        case.renewed(0);
        case.see(0, &[("a", 0), ("b", 0)]);
        case.alive(0);
        case.see(1, &[("a", 0)]);
        assert_eq!(case.alive(1), ["a"]);
    }
}
