//! Where a VM may be asked to go from where it is (DESIGN 4). The table and nothing else.
//!
//! ```text
//! Protected --> FailedOver --> FailoverCommitted --> FailbackSynchronized --> FailedBack --> FailbackCommitted
//!     ^------------ cancel         ^---- cancel ----------'   undo ---'         |  |               |
//!     '----------------------------------------------------------------------------'---------------'
//! ```

use crate::format::ledger::LedgerState;

/// A resting place: a value of `desiredState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Runs on-premises, replicates to Azure.
    Protected,
    /// Runs in Azure, not committed.
    FailedOver,
    /// Runs in Azure, which is production.
    FailoverCommitted,
    /// Runs in Azure, the on-premises copy is kept in step.
    FailbackSynchronized,
    /// Runs on-premises, the Azure VM is held.
    FailedBack,
    /// Runs on-premises, the Azure VM is removed.
    FailbackCommitted,
}

impl Place {
    /// All of them, in the order of a full circle.
    pub const ALL: [Self; 6] = [
        Self::Protected,
        Self::FailedOver,
        Self::FailoverCommitted,
        Self::FailbackSynchronized,
        Self::FailedBack,
        Self::FailbackCommitted,
    ];

    /// As the API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protected => "Protected",
            Self::FailedOver => "FailedOver",
            Self::FailoverCommitted => "FailoverCommitted",
            Self::FailbackSynchronized => "FailbackSynchronized",
            Self::FailedBack => "FailedBack",
            Self::FailbackCommitted => "FailbackCommitted",
        }
    }
}

/// One way between two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// From here.
    pub from: Place,
    /// To there.
    pub to: Place,
    /// It takes back a move, and so discards what the losing side wrote.
    pub back: bool,
    /// This version can go it.
    pub available: bool,
}

const fn forward(from: Place, to: Place) -> Edge {
    Edge { from, to, back: false, available: false }
}

const fn back(from: Place, to: Place) -> Edge {
    Edge { from, to, back: true, available: false }
}

/// Every edge. A pair that is not here is refused.
pub const EDGES: [Edge; 12] = [
    forward(Place::Protected, Place::FailedOver),
    forward(Place::Protected, Place::FailoverCommitted),
    forward(Place::FailedOver, Place::FailoverCommitted),
    forward(Place::FailoverCommitted, Place::FailbackSynchronized),
    forward(Place::FailoverCommitted, Place::FailedBack),
    forward(Place::FailbackSynchronized, Place::FailedBack),
    forward(Place::FailedBack, Place::FailbackCommitted),
    forward(Place::FailedBack, Place::Protected),
    forward(Place::FailbackCommitted, Place::Protected),
    back(Place::FailedOver, Place::Protected),
    back(Place::FailbackSynchronized, Place::FailoverCommitted),
    back(Place::FailedBack, Place::FailoverCommitted),
];

/// What is answered to a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is there, or on the way there already.
    Stay,
    /// This edge may be gone.
    Go(Edge),
    /// The edge exists, but not in this version.
    NotImplementedYet,
    /// There is no such edge.
    NotAllowed {
        /// What to do instead, if one thing is likely meant.
        instead: Option<&'static str>,
    },
    /// Without a ledger a VM enters with Protected only.
    ProtectFirst,
}

/// The place that a ledger's state is, or is on the way to; absent when protection has ended.
#[must_use]
pub const fn place(state: LedgerState) -> Option<Place> {
    match state {
        LedgerState::Enabling | LedgerState::Protected => Some(Place::Protected),
        LedgerState::FailedOver => Some(Place::FailedOver),
        LedgerState::FailoverCommitted => Some(Place::FailoverCommitted),
        LedgerState::FailbackSynchronized => Some(Place::FailbackSynchronized),
        LedgerState::FailedBack => Some(Place::FailedBack),
        LedgerState::FailbackCommitted => Some(Place::FailbackCommitted),
        LedgerState::Released => None,
    }
}

/// May a VM whose ledger says `from` go to `to`? Without a ledger, or after its release, it may only enter.
#[must_use]
pub fn ask(from: Option<LedgerState>, to: Place) -> Answer {
    let Some(here) = from.and_then(place) else {
        return if to == Place::Protected { Answer::Stay } else { Answer::ProtectFirst };
    };
    if here == to {
        return Answer::Stay;
    }
    match EDGES.into_iter().find(|e| e.from == here && e.to == to) {
        Some(edge) if edge.available => Answer::Go(edge),
        Some(_) => Answer::NotImplementedYet,
        None if here == Place::FailoverCommitted => {
            Answer::NotAllowed { instead: Some("set FailedBack first and check the VM") }
        }
        None => Answer::NotAllowed { instead: None },
    }
}

/// Where `desiredState` may be changed to from here, in this version.
#[must_use]
pub fn allowed(from: LedgerState) -> Vec<Place> {
    let Some(here) = place(from) else { return vec![] };
    EDGES.into_iter().filter(|e| e.from == here && e.available).map(|e| e.to).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    // R10, R11, DESIGN 4
    #[test]
    fn a_pair_that_is_not_in_the_table_is_refused() {
        let states = [
            (LedgerState::Protected, Place::Protected),
            (LedgerState::FailedOver, Place::FailedOver),
            (LedgerState::FailoverCommitted, Place::FailoverCommitted),
            (LedgerState::FailbackSynchronized, Place::FailbackSynchronized),
            (LedgerState::FailedBack, Place::FailedBack),
            (LedgerState::FailbackCommitted, Place::FailbackCommitted),
        ];
        let mut listed = 0;
        for (state, here) in states {
            for to in Place::ALL {
                let answer = ask(Some(state), to);
                let known = EDGES.iter().any(|e| e.from == here && e.to == to);
                match answer {
                    Answer::Stay => assert_eq!(here, to),
                    Answer::Go(_) | Answer::NotImplementedYet => {
                        listed += 1;
                        assert!(known, "{here:?} -> {to:?}");
                    }
                    Answer::NotAllowed { .. } => assert!(!known && here != to, "{here:?} -> {to:?}"),
                    Answer::ProtectFirst => panic!("{here:?} has a ledger"),
                }
            }
        }
        assert_eq!(listed, EDGES.len());
    }

    #[test]
    fn every_place_can_be_reached_and_left() {
        let mut reached = BTreeSet::from([Place::Protected]);
        for _ in Place::ALL {
            reached
                .extend(EDGES.iter().filter(|e| reached.contains(&e.from)).map(|e| e.to).collect::<Vec<_>>());
        }
        assert_eq!(reached.len(), Place::ALL.len());
        assert!(Place::ALL.iter().all(|p| EDGES.iter().any(|e| e.from == *p)));
    }

    // DESIGN 4: no way from Azure's side to a running source but through FailedBack or a cancel.
    #[test]
    fn a_committed_failover_comes_home_only_by_failback() {
        for to in [Place::Protected, Place::FailbackCommitted] {
            let Answer::NotAllowed { instead } = ask(Some(LedgerState::FailoverCommitted), to) else {
                panic!("{to:?}");
            };
            assert_eq!(instead, Some("set FailedBack first and check the VM"));
        }
    }

    #[test]
    fn without_a_ledger_a_vm_enters_with_protected_only() {
        for from in [None, Some(LedgerState::Released)] {
            assert_eq!(ask(from, Place::Protected), Answer::Stay);
            for to in Place::ALL.into_iter().filter(|p| *p != Place::Protected) {
                assert_eq!(ask(from, to), Answer::ProtectFirst);
            }
        }
        assert_eq!(ask(Some(LedgerState::Enabling), Place::FailedOver), Answer::NotImplementedYet);
    }
}
