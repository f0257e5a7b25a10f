//! Relationships whose ProtectedVM is gone. No finalizer waits for a host, so somebody must tidy up later.

use jiff::{SignedDuration, Timestamp};

use super::observed::Goal;

/// How long the host's reference points stay if the object vanished without being deleted properly.
const KEEP_POINTS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// A host that has not answered for this long after its points were due to go is no longer waited for.
const GIVE_UP: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What is done with a relationship.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Its ProtectedVM is there, or the host is not done yet.
    Keep,
    /// The host is told to stop.
    Stop(Goal),
    /// It has served its purpose.
    Remove,
}

/// Decides about a relationship of whose ProtectedVM only this is known.
#[must_use]
pub fn sweep(goal: Goal, released: bool, owner_exists: bool, now: Timestamp) -> Sweep {
    if owner_exists {
        return Sweep::Keep;
    }
    match goal {
        Goal::Replicate => {
            let until =
                now.checked_add(KEEP_POINTS).ok().and_then(|t| Timestamp::from_second(t.as_second()).ok());
            Sweep::Stop(Goal::StopReplicating { keep_points_until: until })
        }
        Goal::StopReplicating { .. } if released => Sweep::Remove,
        Goal::StopReplicating { keep_points_until: Some(until) } if now.duration_since(until) > GIVE_UP => {
            Sweep::Remove
        }
        Goal::StopReplicating { .. } => Sweep::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relationship_goes_only_without_owner_and_when_the_host_is_done() {
        let now: Timestamp = "2026-01-02T03:00:00Z".parse().unwrap();
        let stop = |until: Option<&str>| Goal::StopReplicating {
            keep_points_until: until.map(|t| t.parse().unwrap()),
        };
        let week = stop(Some("2026-01-09T03:00:00Z"));
        for (name, goal, released, owner, want) in [
            ("in use", Goal::Replicate, false, true, Sweep::Keep),
            ("owner vanished", Goal::Replicate, false, false, Sweep::Stop(week)),
            ("host not done", stop(None), false, false, Sweep::Keep),
            ("host done", stop(None), true, false, Sweep::Remove),
            ("done, and the owner is back", stop(None), true, true, Sweep::Keep),
            ("host silent for long", stop(Some("2025-11-01T00:00:00Z")), false, false, Sweep::Remove),
            ("host silent", stop(Some("2025-12-31T00:00:00Z")), false, false, Sweep::Keep),
        ] {
            assert_eq!(sweep(goal, released, owner, now), want, "{name}");
        }
    }
}
