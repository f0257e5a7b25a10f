//! Durable names: containers, blobs, host files. Final from the first release on.
//!
//! Zero-padded decimals: term, stream and index 6 digits, cycle 10, so that listings sort as cycles do.

use jiff::Timestamp;

use crate::ids::{Cycle, CycleId, DiskId, Hash, Stream, Term, VmId};

/// The ledger, in [`replica_container`].
pub const LEDGER: &str = "ledger.json";
/// Which side may run the VM, in [`down_container`].
pub const SIDE: &str = "side.json";
/// How far the replica server is, in [`down_container`].
pub const CURSOR: &str = "cursor.json";
/// Prefix of recovery point records, in [`replica_container`].
pub const POINTS: &str = "points/";
/// Prefix under which an upload SAS may be tried out, in [`up_container`].
pub const PROBE: &str = "probe/";

/// Ledger, replica page blobs and points: controller and replica server only.
#[must_use]
pub fn replica_container(vm: VmId) -> String {
    format!("fs-{vm}")
}

/// Cycles: the host may create.
#[must_use]
pub fn up_container(vm: VmId) -> String {
    format!("fs-{vm}-up")
}

/// side.json, cursor.json, hashes, failback cycles: the host may read.
#[must_use]
pub fn down_container(vm: VmId) -> String {
    format!("fs-{vm}-down")
}

/// The replica page blob of a disk.
#[must_use]
pub fn disk_blob(disk: DiskId) -> String {
    format!("disk-{disk}.vhd")
}

/// Prefix of everything that one writer uploads: `<term>-<stream>/`.
#[must_use]
pub fn stream_prefix(term: Term, stream: Stream) -> String {
    format!("{:06}-{:06}/", term.0, stream.0)
}

/// Prefix of one cycle: `<term>-<stream>/<cycle>/`.
#[must_use]
pub fn cycle_prefix(cycle: CycleId) -> String {
    format!("{cycle}/")
}

/// The commit record of a cycle.
#[must_use]
pub fn commit(cycle: CycleId) -> String {
    format!("{cycle}/commit")
}

/// The segment list of one disk in a cycle, named by its own hash.
#[must_use]
pub fn list(cycle: CycleId, disk: DiskId, hash: &Hash) -> String {
    format!("{cycle}/{disk}.list-{hash}")
}

/// One segment: `<diskID>-<index>-<blake3: 32 hex>` under the cycle's prefix.
#[must_use]
pub fn segment(cycle: CycleId, disk: DiskId, index: u32, hash: &Hash) -> String {
    format!("{cycle}/{disk}-{index:06}-{}", hash.short())
}

/// A recovery point's name: `<yyyymmddThhmmssZ>-<term>-<stream>-<cycle>`.
#[must_use]
pub fn point(time: Timestamp, cycle: CycleId) -> String {
    format!(
        "{}-{:06}-{:06}-{:010}",
        time.strftime("%Y%m%dT%H%M%SZ"),
        cycle.term.0,
        cycle.stream.0,
        cycle.cycle.0
    )
}

/// The record of a recovery point.
#[must_use]
pub fn point_blob(name: &str) -> String {
    format!("{POINTS}{name}.json")
}

/// Reads the cycle out of a blob name in an upload container; `None` if it is not one of ours.
#[must_use]
pub fn parse_cycle(blob: &str) -> Option<CycleId> {
    let mut parts = blob.split('/');
    let (writer, cycle) = (parts.next()?, parts.next()?);
    let (term, stream) = writer.split_once('-')?;
    let fixed = |s: &str, n: usize| -> Option<u64> {
        (s.len() == n && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok()).flatten()
    };
    Some(CycleId {
        term: Term(u32::try_from(fixed(term, 6)?).ok()?),
        stream: Stream(u32::try_from(fixed(stream, 6)?).ok()?),
        cycle: Cycle(fixed(cycle, 10)?),
    })
}

/// The log of one disk for one cycle, beside the disk (R5.3, R7.2).
#[must_use]
pub fn log_file(disk: DiskId, cycle: CycleId) -> String {
    format!("{disk}_{:06}-{:06}-{:010}.hrl", cycle.term.0, cycle.stream.0, cycle.cycle.0)
}

/// Prefix of every checkpoint that the agent makes.
pub const CHECKPOINT_PREFIX: &str = "farshore ";

/// The name of the recovery checkpoint of a cycle, by which it is recognised after a crash.
#[must_use]
pub fn checkpoint(cycle: CycleId) -> String {
    format!("{CHECKPOINT_PREFIX}{cycle}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(t: u32, s: u32, c: u64) -> CycleId {
        CycleId { term: Term(t), stream: Stream(s), cycle: Cycle(c) }
    }

    #[test]
    fn names_are_the_durable_ones() {
        let disk: DiskId = "6f9619ff-8b86-d011-b42d-00c04fc964ff".parse().unwrap();
        let hash = Hash([0xab; 32]);
        let cycle = at(1, 2, 3);
        assert_eq!(commit(cycle), "000001-000002/0000000003/commit");
        assert_eq!(
            segment(cycle, disk, 7, &hash),
            format!("000001-000002/0000000003/{disk}-000007-{}", "ab".repeat(16))
        );
        assert_eq!(list(cycle, disk, &hash), format!("000001-000002/0000000003/{disk}.list-{hash}"));
        let time: Timestamp = "2026-01-02T03:04:05.9Z".parse().unwrap();
        assert_eq!(point(time, cycle), "20260102T030405Z-000001-000002-0000000003");
    }

    #[test]
    fn a_cycle_is_read_back_from_any_of_its_blobs() {
        assert_eq!(parse_cycle(&commit(at(1, 2, 3))), Some(at(1, 2, 3)));
        for foreign in ["probe/x", "1-2/3/commit", "000001-000002", "", "000001-00000x/0000000003/commit"] {
            assert_eq!(parse_cycle(foreign), None, "{foreign}");
        }
    }
}
