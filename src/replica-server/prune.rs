//! Removes what [`farshore_core::points::prune`] lets go: points, their snapshots, cycles nobody needs.
//!
//! Each step is safe alone: a record goes before its snapshots, and snapshots that no record names go when they
//! are old. What a crash leaves is found again, since everything is found by listing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use farshore_azure::{Include, Listed};
use farshore_core::ids::{Cycle as CycleNo, CycleId, Stream, Term};
use farshore_core::names;
use farshore_core::points::{KeptSet, prune};
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use crate::context::Context;
use crate::crash::CrashPoint;
use crate::halt::{Halt, again};
use crate::set::{self, SetName};

/// Deletes on their way at the same time.
const DELETES: usize = 16;
/// Pages of a listing of `-up` that one round looks at, at most: what a hostile host may have put there
/// costs no more than this.
const PAGES: u32 = 20;

/// Removes points beyond retention from storage and from `sets`; says which cycles are no longer needed.
pub(crate) async fn points(
    ctx: &Context,
    sets: &mut Vec<SetName>,
    applied: CycleId,
    retention: Duration,
) -> Result<Option<CycleId>, Halt> {
    let now = ctx.now();
    let cutoff = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
    // Whether a set is whole costs a request for each snapshot: asked only where the answer decides, for the
    // sets beyond retention and then for the oldest ones until one is whole.
    let mut kept = Vec::new();
    let mut ground = false;
    for set in sets.iter() {
        let asked = set.taken <= cutoff || !ground;
        let whole = !asked || {
            let point = set::read(ctx, &set.name).await?;
            match &point {
                Some(point) => set::whole(ctx, point).await?,
                None => false,
            }
        };
        ground |= whole;
        kept.push(KeptSet { id: set.id, taken: set.taken, whole });
    }
    let pruning = prune(&kept, applied, retention, now);
    for id in &pruning.sets {
        for gone in sets.iter().filter(|s| s.id == *id) {
            remove_point(ctx, &gone.name).await?;
        }
        sets.retain(|s| s.id != *id);
    }
    Ok(pruning.cycles_before)
}

async fn remove_point(ctx: &Context, name: &str) -> Result<(), Halt> {
    let point = set::read(ctx, name).await?;
    let blob = names::point_blob(name);
    again(|| ctx.store.replica.delete(&blob, None)).await?;
    ctx.crash.at(CrashPoint::PointRemoved);
    for (disk, snapshot) in point.into_iter().flat_map(|p| p.snapshots) {
        let blob = names::disk_blob(disk);
        again(|| ctx.store.replica.delete_snapshot(&blob, &snapshot)).await?;
        ctx.crash.at(CrashPoint::SnapshotRemoved);
    }
    tracing::info!(vm.id = %ctx.vm, point = name, "removed a recovery point beyond retention");
    Ok(())
}

/// Removes snapshots that no record names, once they are old enough that nobody can still be writing one.
pub(crate) async fn orphans(ctx: &Context, sets: &[SetName]) -> Result<(), Halt> {
    let include = Include { metadata: true, snapshots: true };
    let blobs = again(|| ctx.store.replica.list("disk-", include)).await?;
    let settled = ctx.now().checked_sub(ctx.timing.blob_lease * 10).unwrap_or(Timestamp::MIN);
    let recorded: BTreeMap<CycleId, &SetName> = sets.iter().map(|s| (s.id, s)).collect();
    let mut seen: BTreeMap<(CycleId, &str), Vec<&str>> = BTreeMap::new();
    let mut gone: Vec<(&str, &str)> = Vec::new();
    for blob in &blobs {
        let Some(snapshot) = blob.snapshot.as_deref() else { continue };
        let Some(cycle) = cycle_of(blob) else { continue };
        if snapshot.parse::<Timestamp>().is_ok_and(|taken| taken <= settled) {
            seen.entry((cycle, &blob.name)).or_default().push(snapshot);
        }
    }
    // One snapshot of a disk for a recorded cycle is the record's; of several, the record says which.
    let mut doubtful: BTreeSet<CycleId> = BTreeSet::new();
    for ((cycle, blob), snapshots) in &seen {
        match recorded.get(cycle) {
            None => gone.extend(snapshots.iter().map(|s| (*blob, *s))),
            Some(_) if snapshots.len() > 1 => drop(doubtful.insert(*cycle)),
            Some(_) => {}
        }
    }
    for cycle in doubtful {
        let Some(record) = recorded.get(&cycle) else { continue };
        let Some(point) = set::read(ctx, &record.name).await? else { continue };
        let named: BTreeSet<&str> = point.snapshots.values().map(String::as_str).collect();
        for ((_, blob), snapshots) in seen.iter().filter(|((c, _), _)| *c == cycle) {
            gone.extend(snapshots.iter().filter(|s| !named.contains(*s)).map(|s| (*blob, *s)));
        }
    }
    for (blob, snapshot) in gone {
        again(|| ctx.store.replica.delete_snapshot(blob, snapshot)).await?;
        ctx.crash.at(CrashPoint::SnapshotRemoved);
        tracing::info!(vm.id = %ctx.vm, blob, snapshot, "removed a snapshot that no point names");
    }
    Ok(())
}

fn cycle_of(blob: &Listed) -> Option<CycleId> {
    let field = |name: &str| blob.metadata.get(name);
    Some(CycleId {
        term: Term(field("term")?.parse().ok()?),
        stream: Stream(field("stream")?.parse().ok()?),
        cycle: CycleNo(field("cycle")?.parse().ok()?),
    })
}

/// Removes blobs of cycles before `line`, as much as one round may; true if there may be more.
pub(crate) async fn cycles(ctx: &Context, line: CycleId) -> Result<bool, Halt> {
    let mut marker: Option<String> = None;
    for _ in 0..PAGES {
        let page =
            again(|| ctx.store.up.list_page("", Include::default(), marker.as_deref(), Some(1000))).await?;
        let cycle = |blob: &Listed| names::parse_cycle(&blob.name);
        let old: Vec<String> = page
            .blobs
            .iter()
            .filter(|b| cycle(b).is_some_and(|c| c < line) || b.name.starts_with(names::PROBE))
            .map(|b| b.name.clone())
            .collect();
        let removed = old.len();
        stream::iter(old)
            .map(|name| async move {
                again(|| ctx.store.up.delete(&name, None)).await?;
                ctx.crash.at(CrashPoint::CycleBlobRemoved);
                Ok::<_, Halt>(())
            })
            .buffer_unordered(DELETES)
            .try_collect::<()>()
            .await?;
        if removed > 0 {
            tracing::debug!(vm.id = %ctx.vm, removed, before = %line, "removed blobs of old cycles");
        }
        // Names are listed in the order of cycles: behind a cycle that stays, everything stays.
        let passed = page.blobs.iter().any(|b| cycle(b).is_some_and(|c| c >= line));
        match page.next {
            Some(next) if !passed => marker = Some(next),
            _ => return Ok(false),
        }
    }
    Ok(true)
}
