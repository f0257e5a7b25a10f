//! The verified cycles of a VM that a worker has in mind: those that wait to be applied, and the newest applied.

use std::collections::VecDeque;

use farshore_core::format::commit::{Commit, CommitDisk, CommitRef, Consistency};
use farshore_core::format::cursor::{Cursor, NewestPoint, Verified};
use farshore_core::format::list::SegmentList;
use farshore_core::ids::{CycleId, DiskId, Hash};
use farshore_core::names;
use farshore_core::points::Pending;

use crate::context::Context;
use crate::halt::Halt;

/// What is kept of a commit: enough to apply it and to make a point of it.
#[derive(Clone, Debug)]
pub(crate) struct Cycle {
    pub(crate) pending: Pending,
    pub(crate) consistency: Consistency,
    pub(crate) disks: Vec<CommitDisk>,
    pub(crate) full_copy: Vec<DiskId>,
}

impl Cycle {
    pub(crate) fn new(commit: &Commit, hash: Hash) -> Self {
        let pending = Pending {
            commit: CommitRef { id: commit.id(), hash },
            kind: commit.kind,
            point_time: commit.point_time,
            next_cycle_at: commit.next_cycle_at,
            ranges: 0,
            stored: 0,
        };
        Self {
            pending,
            consistency: commit.consistency,
            disks: commit.disks.clone(),
            full_copy: commit.full_copy.clone(),
        }
    }

    pub(crate) const fn id(&self) -> CycleId {
        self.pending.commit.id
    }

    pub(crate) fn add(&mut self, list: &SegmentList) {
        for segment in &list.segments {
            self.pending.ranges = self.pending.ranges.saturating_add(segment.ranges.len() as u64);
            self.pending.stored = self.pending.stored.saturating_add(segment.stored);
        }
    }

    pub(crate) fn point_name(&self) -> String {
        names::point(self.pending.point_time, self.id())
    }

    pub(crate) fn newest_point(&self) -> NewestPoint {
        NewestPoint { name: self.point_name(), time: self.pending.point_time }
    }
}

/// What the cursor keeps of a verified commit.
pub(crate) fn verified(commit: &Commit, hash: Hash) -> Verified {
    let copied = commit.disks.iter().filter_map(|d| Some((d.disk_id, d.copied_up_to?)));
    Verified {
        commit: CommitRef { id: commit.id(), hash },
        reference_point_id: commit.reference_point_id.clone(),
        rct_ids: commit.disks.iter().map(|d| (d.disk_id, d.rct_id.clone())).collect(),
        copied_up_to: copied.collect(),
        own_point_ids: commit.own_point_ids.clone(),
        next_cycle_at: commit.next_cycle_at,
    }
}

/// From the newest applied cycle to the newest verified one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// Oldest first.
    pub(crate) backlog: VecDeque<Cycle>,
    /// The newest applied cycle, if its commit could be read.
    pub(crate) applied: Option<Cycle>,
    /// What the cursor said when it was read.
    ends: Ends,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ends {
    applied: Option<CommitRef>,
    verified: Option<CommitRef>,
}

impl Ends {
    fn of(cursor: &Cursor) -> Self {
        Self { applied: cursor.applied, verified: cursor.verified.as_ref().map(|v| v.commit) }
    }
}

impl Chain {
    /// Walks back from what the cursor verified to what it applied. Needs nothing but storage.
    pub(crate) async fn load(ctx: &Context, cursor: &Cursor) -> Result<Self, Halt> {
        let mut chain = Self::unknown(cursor);
        let mut at = cursor.verified.as_ref().map(|v| v.commit);
        while let Some(here) = at {
            if Some(here) == cursor.applied {
                // Only whether a set is owed, and the disks' sizes, come from it: nothing to stop for.
                match ctx.store.verified_commit(here).await {
                    Ok(commit) => chain.applied = Some(Cycle::new(&commit, here.hash)),
                    Err(Halt::Refused { message, .. }) => {
                        tracing::warn!(cycle = %here.id, message, "applied commit")
                    }
                    Err(other) => return Err(other),
                }
                break;
            }
            let commit = ctx.store.verified_commit(here).await?;
            let mut cycle = Cycle::new(&commit, here.hash);
            for disk in &commit.disks {
                cycle.add(&ctx.store.list(here.id, disk, &ctx.budget).await?);
            }
            chain.backlog.push_front(cycle);
            at = commit.previous;
        }
        Ok(chain)
    }

    /// Nothing but where it begins and ends, for a backlog that cannot be read any more.
    pub(crate) fn unknown(cursor: &Cursor) -> Self {
        Self { ends: Ends::of(cursor), ..Self::default() }
    }

    /// True if it says what the cursor says. A chain that does not must never be applied: it could put older
    /// bytes over newer ones.
    pub(crate) fn fits(&self, cursor: &Cursor) -> bool {
        self.ends == Ends::of(cursor)
    }

    /// A cycle that the cursor now says is verified.
    pub(crate) fn push(&mut self, cycle: Cycle) {
        self.ends.verified = Some(cycle.pending.commit);
        self.backlog.push_back(cycle);
    }

    /// The cursor now says that `cycle` is applied; everything up to it is done with.
    pub(crate) fn applied(&mut self, cycle: Cycle) {
        let commit = cycle.pending.commit;
        self.backlog.retain(|c| c.id() > commit.id);
        self.ends.applied = Some(commit);
        if self.backlog.is_empty() {
            self.ends.verified = Some(commit);
        }
        self.applied = Some(cycle);
    }

    pub(crate) fn pending(&self) -> Vec<Pending> {
        self.backlog.iter().map(|c| c.pending.clone()).collect()
    }

    pub(crate) fn newest(&self) -> Option<&Cycle> {
        self.backlog.back().or(self.applied.as_ref())
    }

    /// The newest verified cycle that is a recovery point.
    pub(crate) fn newest_point(&self) -> Option<&Cycle> {
        self.backlog.iter().rev().chain(self.applied.as_ref()).find(|c| c.pending.kind.is_point())
    }
}
