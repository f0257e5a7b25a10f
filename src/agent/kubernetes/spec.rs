//! A relationship as the engine's values. Parsed once, here.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::Context as _;
use farshore_api as api;
use farshore_api::ReplicationRelationship;
use farshore_core::format::commit::CommitRef;
use farshore_core::ids::{Cycle, CycleId, DiskId, Hash, Stream, Term};
use farshore_core::relationship::{Anchor, Base};
use farshore_core::timing::Timing;

use crate::engine::{Assignment, Goal};

/// What the engine is to do.
pub(super) fn assignment(
    relationship: &ReplicationRelationship,
    timing: &Timing,
) -> anyhow::Result<Assignment> {
    let spec = &relationship.spec;
    let disks: Result<Vec<DiskId>, _> = spec.disks.iter().map(|id| DiskId::from_str(id)).collect();
    let observed = relationship.status.as_ref().and_then(|s| s.observed);
    Ok(Assignment {
        vm: spec.vm_id.parse().context("spec.vmID")?,
        goal: match spec.goal {
            api::Goal::Replicate => Goal::Replicate,
            api::Goal::StopReplicating => {
                Goal::StopReplicating { keep_points_until: spec.keep_points_until.as_ref().map(|t| t.0) }
            }
        },
        term: Term(spec.term),
        stream: Stream(spec.stream),
        disks: disks.context("spec.disks")?,
        interval: timing.policy(spec.schedule.interval_seconds),
        paused: spec.schedule.paused,
        compress: spec.compression == api::Compression::Zstd,
        parallelism: spec.upload_parallelism,
        reserve: spec.reserve_bytes,
        base: spec.base.as_ref().map(base).transpose().context("spec.base")?,
        observed: observed.map(|o| (Term(o.term), Stream(o.stream))),
        generation: relationship.metadata.generation.unwrap_or(0),
    })
}

fn base(base: &api::Base) -> anyhow::Result<Base> {
    let id = CycleId { term: Term(base.term), stream: Stream(base.stream), cycle: Cycle(base.cycle) };
    let hash: Hash = base.commit_hash.parse().context("commitHash")?;
    let commit = CommitRef { id, hash };
    let rct_ids: Result<BTreeMap<DiskId, String>, uuid::Error> =
        base.rct_ids.iter().map(|r| Ok((r.disk.parse()?, r.id.clone()))).collect();
    let copied: Result<BTreeMap<DiskId, u64>, uuid::Error> =
        base.copied_up_to.iter().map(|c| Ok((c.disk.parse()?, c.bytes))).collect();
    let (rct_ids, copied_up_to) = (rct_ids.context("rctIDs")?, copied.context("copiedUpTo")?);
    let anchor = base.reference_point_id.clone().map(|reference_point_id| Anchor {
        commit,
        reference_point_id,
        rct_ids,
        copied_up_to,
    });
    Ok(Base { commit, anchor, owned_points: base.owned_point_ids.clone() })
}
