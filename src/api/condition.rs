//! Conditions: names, and pure functions that keep transition times.

use jiff::Timestamp;

use crate::{Condition, Time};

/// Summary for kstatus: as wished.
pub const READY: &str = "Ready";
/// Work is under way.
pub const RECONCILING: &str = "Reconciling";
/// A person must act.
pub const STALLED: &str = "Stalled";
/// A recovery point within policy exists for the active side.
pub const PROTECTED: &str = "Protected";
/// A failover could start now.
pub const FAILOVER_READY: &str = "FailoverReady";
/// The newest recovery point is within the policy's interval.
pub const RECOVERY_POINTS_CURRENT: &str = "RecoveryPointsCurrent";
/// The ledger can be read and written.
pub const LEDGER_REACHABLE: &str = "LedgerReachable";
/// Of a host: its heartbeat is fresh.
pub const CONNECTED: &str = "Connected";
/// Of a vault: its endpoints answer.
pub const REACHABLE: &str = "Reachable";
/// Of a vault: its credentials suffice.
pub const AUTHORIZED: &str = "Authorized";
/// Of a job: it ended well.
pub const SUCCEEDED: &str = "Succeeded";

/// Longest message that is kept; the schema allows no more.
pub const MAX_MESSAGE: usize = 4096;

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Not known.
    Unknown,
}

impl Status {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// A condition as it is decided, before times are filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Its type, one of the constants of this module.
    pub type_: &'static str,
    /// Its status.
    pub status: Status,
    /// Why, from [`crate::reason`].
    pub reason: &'static str,
    /// Why and what to do, for a person.
    pub message: String,
}

impl Draft {
    /// A condition that is so, is not so, or is unknown.
    pub fn new(
        type_: &'static str,
        status: impl Into<Status>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { type_, status: status.into(), reason, message: message.into() }
    }
}

/// The condition of that type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Is the condition of that type True?
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == Status::True.as_str())
}

/// Sets one condition. The transition time is kept while the status stays the same. True if anything but a
/// time or a generation changed.
pub fn set(conditions: &mut Vec<Condition>, draft: Draft, generation: Option<i64>, now: Timestamp) -> bool {
    let Draft { type_, status, reason, message } = draft;
    let message = bounded(message);
    let Some(old) = conditions.iter_mut().find(|c| c.type_ == type_) else {
        conditions.push(Condition {
            type_: type_.to_owned(),
            status: status.as_str().to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: whole_seconds(now),
        });
        return true;
    };
    let changed = old.status != status.as_str() || old.reason != reason || old.message != message;
    if old.status != status.as_str() {
        old.last_transition_time = whole_seconds(now);
        old.status = status.as_str().to_owned();
    }
    old.reason = reason.to_owned();
    old.message = message;
    old.observed_generation = generation;
    changed
}

/// The whole list of conditions that one writer owns: what `drafts` say, with the transition times of `old`
/// where the status stays the same. Conditions of `old` that no draft names are dropped. Sorted by type.
pub fn merge(
    old: &[Condition],
    drafts: Vec<Draft>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut merged: Vec<Condition> =
        drafts.iter().filter_map(|draft| find(old, draft.type_)).cloned().collect();
    for draft in drafts {
        set(&mut merged, draft, generation, now);
    }
    merged.sort_by(|a, b| a.type_.cmp(&b.type_));
    merged
}

/// Is a write needed? Times alone are no reason for one; order is none either.
pub fn same(a: &[Condition], b: &[Condition]) -> bool {
    a.len() == b.len()
        && a.iter().all(|x| {
            find(b, &x.type_).is_some_and(|y| {
                (&x.status, &x.reason, &x.message, x.observed_generation)
                    == (&y.status, &y.reason, &y.message, y.observed_generation)
            })
        })
}

/// The API keeps whole seconds; a finer time would never equal what is read back.
fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn bounded(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = message.floor_char_boundary(MAX_MESSAGE - '…'.len_utf8());
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(status: bool, message: &str) -> Draft {
        Draft::new(READY, status, "Because", message)
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut list = Vec::new();
        assert!(set(&mut list, ready(false, "a"), Some(1), at(10)));
        assert!(set(&mut list, ready(false, "b"), Some(2), at(20)));
        assert_eq!((list[0].last_transition_time.0, list[0].observed_generation), (at(10), Some(2)));
        assert!(set(&mut list, ready(true, "b"), Some(2), at(30)));
        assert_eq!(list[0].last_transition_time.0, at(30));
        assert!(!set(&mut list, ready(true, "b"), Some(2), at(40)));
        assert_eq!((list.len(), list[0].last_transition_time.0), (1, at(30)));
    }

    #[test]
    fn merge_keeps_times_drops_what_is_gone_and_sorts() {
        let old = merge(
            &[],
            vec![ready(true, ""), Draft::new(STALLED, true, "X", ""), Draft::new(CONNECTED, true, "X", "")],
            Some(1),
            at(5),
        );
        let new = merge(
            &old,
            vec![ready(true, ""), Draft::new(CONNECTED, Status::Unknown, "X", "")],
            Some(2),
            at(9),
        );
        let seen: Vec<_> =
            new.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.last_transition_time.0)).collect();
        assert_eq!(seen, [(CONNECTED, "Unknown", at(9)), (READY, "True", at(5))]);
    }

    #[test]
    fn a_difference_of_times_or_order_needs_no_write() {
        let drafts = || vec![ready(true, "m"), Draft::new(STALLED, false, "X", "")];
        let a = merge(&[], drafts(), Some(1), at(1));
        let mut b = merge(&[], drafts(), Some(1), at(2));
        b.reverse();
        assert!(same(&a, &b));
        assert!(!same(&a, &merge(&a, drafts(), Some(2), at(1))));
        assert!(!same(&a, &a[..1]));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let mut list = Vec::new();
        set(&mut list, ready(true, &"ä".repeat(3000)), None, at(0));
        assert!(list[0].message.len() <= MAX_MESSAGE && list[0].message.ends_with("ä…"));
    }
}
