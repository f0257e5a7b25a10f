//! Snapshot sets: recovery points that are ready at once.
//!
//! All disks are snapshotted under their leases, when the cursor says that a cycle is whole in the replica and
//! nobody claims another; then the record is written. A snapshot without a record is no point: it is removed
//! later, by age, so that a worker that is slow but not dead finds its own.

use std::collections::BTreeMap;

use farshore_azure::{BlobErrorKind, Condition, Include};
use farshore_core::format::point::Point;
use farshore_core::format::{Extra, FORMAT_VERSION, Record};
use farshore_core::ids::{Cycle as CycleNo, CycleId, Stream, Term};
use farshore_core::names;
use farshore_core::points::LastSet;
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use crate::apply::metadata;
use crate::chain::Cycle;
use crate::context::Context;
use crate::crash::CrashPoint;
use crate::halt::{Halt, again};
use crate::lease::Leases;

/// A point's record as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetName {
    pub(crate) name: String,
    pub(crate) id: CycleId,
    /// The instant that it stands for, by the host's clock.
    pub(crate) time: Timestamp,
    /// When the record was written, by the clock of storage.
    pub(crate) taken: Timestamp,
}

/// All points that have a snapshot set, oldest cycle first.
pub(crate) async fn list(ctx: &Context) -> Result<Vec<SetName>, Halt> {
    let blobs = again(|| ctx.store.replica.list(names::POINTS, Include::default())).await?;
    let mut sets: Vec<SetName> = blobs
        .into_iter()
        .filter_map(|blob| {
            let name = blob.name.strip_prefix(names::POINTS)?.strip_suffix(".json")?;
            let (time, id) = parse(name)?;
            // Without a time of writing it counts as new: it is kept.
            Some(SetName {
                name: name.to_owned(),
                id,
                time,
                taken: blob.last_modified.unwrap_or(Timestamp::MAX),
            })
        })
        .collect();
    sets.sort_by_key(|set| set.id);
    Ok(sets)
}

pub(crate) fn last(sets: &[SetName]) -> Option<LastSet> {
    sets.last().map(|set| LastSet { id: set.id, time: set.time })
}

/// Reads [`names::point`] backwards.
fn parse(name: &str) -> Option<(Timestamp, CycleId)> {
    let mut parts = name.split('-');
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", parts.next()?).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    let id = CycleId {
        term: Term(parts.next()?.parse().ok()?),
        stream: Stream(parts.next()?.parse().ok()?),
        cycle: CycleNo(parts.next()?.parse().ok()?),
    };
    parts.next().is_none().then_some((time, id))
}

/// The record of a point, if it is there.
pub(crate) async fn read(ctx: &Context, name: &str) -> Result<Option<Point>, Halt> {
    let blob = names::point_blob(name);
    let Some(fetched) = again(|| ctx.store.replica.get(&blob, Point::MAX as u64)).await? else {
        return Ok(None);
    };
    Point::decode(&fetched.bytes).map(Some).map_err(|e| Halt::unknown(format!("{blob}: {e}")))
}

/// True if every snapshot of the point is there.
pub(crate) async fn whole(ctx: &Context, point: &Point) -> Result<bool, Halt> {
    for (disk, snapshot) in &point.snapshots {
        let blob = names::disk_blob(*disk);
        if again(|| ctx.store.replica.blob_properties(&blob, Some(snapshot))).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(!point.snapshots.is_empty())
}

/// Makes the state after `cycle`, which is whole in the replica, a snapshot set.
pub(crate) async fn take(ctx: &Context, leases: &Leases, cycle: &Cycle) -> Result<(), Halt> {
    let metadata = metadata(cycle.id());
    // Not tried again by itself: a snapshot whose answer was lost stays behind until it is old.
    let snapshots: BTreeMap<_, _> = stream::iter(cycle.disks.iter().map(|d| d.disk_id).collect::<Vec<_>>())
        .map(|disk| {
            let metadata = &metadata;
            async move {
                let (blob, lease) = (names::disk_blob(disk), leases.of(disk)?);
                let snapshot = ctx.store.replica.snapshot(&blob, Some(lease), metadata).await?;
                ctx.crash.at(CrashPoint::SnapshotTaken);
                Ok::<_, Halt>((disk, snapshot))
            }
        })
        .buffer_unordered(8)
        .try_collect()
        .await?;
    let id = cycle.id();
    let point = Point {
        format_version: FORMAT_VERSION,
        min_reader: 1,
        name: cycle.point_name(),
        time: cycle.pending.point_time,
        term: id.term,
        stream: id.stream,
        cycle: id.cycle,
        commit_hash: cycle.pending.commit.hash,
        consistency: cycle.consistency,
        snapshots,
        verified: None,
        extra: Extra::new(),
    };
    write(ctx, &point).await?;
    ctx.crash.at(CrashPoint::PointWritten);
    tracing::info!(vm.id = %ctx.vm, point = point.name, disks = point.snapshots.len(), "made a recovery point");
    Ok(())
}

/// Create-only; a record that is there already is taken over if its snapshots are, and replaced if not.
async fn write(ctx: &Context, point: &Point) -> Result<(), Halt> {
    let blob = names::point_blob(&point.name);
    let bytes: bytes::Bytes = point.encode().map_err(|e| Halt::unknown(e.to_string()))?.into();
    let replica = &ctx.store.replica;
    match replica.put_if(&blob, bytes.clone(), &Condition::IfNoneMatchAny).await {
        Ok(_) => return Ok(()),
        Err(e) if e.kind == BlobErrorKind::ConditionNotMet || e.outcome_unknown() => {}
        Err(e) => return Err(e.into()),
    }
    let condition = match again(|| replica.get(&blob, Point::MAX as u64)).await? {
        None => Condition::IfNoneMatchAny,
        Some(fetched) => match Point::decode(&fetched.bytes) {
            Ok(found) if found == *point || whole(ctx, &found).await? => return Ok(()),
            _ => Condition::IfMatch(fetched.etag),
        },
    };
    again(|| replica.put_if(&blob, bytes.clone(), &condition)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_points_name_is_read_back() {
        let id = CycleId { term: Term(1), stream: Stream(2), cycle: CycleNo(3) };
        let time: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(parse(&names::point(time, id)), Some((time, id)));
        for bad in [
            "",
            "20260102T030405Z",
            "20260102T030405Z-1-2-x",
            "20261302T030405Z-1-2-3",
            "20260102T030405Z-1-2-3-4",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
