//! The proof: what is in storage against what the source held at that instant.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, ensure};
use farshore_azure::{Container, Include};
use farshore_core::format::Record as _;
use farshore_core::format::point::Point;
use farshore_core::ids::{DiskId, Hash};
use farshore_core::names;

use super::guest::{BLOCK, Image, highest_number, run};
use crate::host::admin::Instant;

/// Bytes read from a replica at once.
const CHUNK: u64 = 4 << 20;

/// Every recovery point that has a snapshot set, oldest first.
///
/// # Errors
/// If storage does not answer or a record cannot be read.
pub(super) async fn points(replica: &Container) -> anyhow::Result<Vec<Point>> {
    let mut points = Vec::new();
    for listed in replica.list(names::POINTS, Include::default()).await? {
        if let Some(fetched) = replica.get(&listed.name, Point::MAX as u64).await? {
            points.push(Point::decode(&fetched.bytes)?);
        }
    }
    points.sort_by_key(Point::id);
    Ok(points)
}

/// Writes one disk of a recovery point into a sparse raw file of `size` bytes; returns the hash of its contents.
///
/// # Errors
/// If the snapshot cannot be read or the file cannot be written.
pub(super) async fn download(
    replica: &Container,
    disk: DiskId,
    snapshot: &str,
    size: u64,
    to: &Path,
) -> anyhow::Result<Hash> {
    let file = std::fs::File::create(to).with_context(|| to.display().to_string())?;
    file.set_len(size)?;
    let blob = names::disk_blob(disk);
    let ranges = replica.page_ranges(&blob, Some(snapshot)).await?;
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    let zeros = vec![0; usize::try_from(CHUNK)?];
    let skip = |hasher: &mut blake3::Hasher, from: u64, to: u64| {
        let mut left = to.saturating_sub(from);
        while left > 0 {
            let step = left.min(CHUNK);
            hasher.update(zeros.get(..usize::try_from(step).unwrap_or_default()).unwrap_or_default());
            left -= step;
        }
    };
    for range in ranges {
        let mut offset = range.start.min(size);
        let end = range.end.min(size);
        skip(&mut hasher, at, offset);
        while offset < end {
            let len = CHUNK.min(end - offset);
            let got = replica.read_pages(&blob, Some(snapshot), offset, len).await?;
            ensure!(got.bytes.len() as u64 == len, "short read of {blob}");
            hasher.update(&got.bytes);
            file.write_all_at(&got.bytes, offset)?;
            offset += len;
        }
        at = at.max(end);
    }
    skip(&mut hasher, at, size);
    Ok(Hash(*hasher.finalize().as_bytes()))
}

/// A point that was compared with its source.
#[derive(Clone, Debug)]
pub(super) struct Proven {
    /// The point.
    pub(super) point: Point,
    /// Bytes of all its disks.
    pub(super) bytes: u64,
    /// The numbers that its two disks hold.
    pub(super) numbers: (u64, u64),
}

/// Downloads a point into `folder` (`<diskID>.img`) and compares every disk with what the source held when the
/// point's checkpoint was made, then the numbers of the two disks with each other.
///
/// # Errors
/// If anything differs: that is a defect, and the message says where.
pub(super) async fn prove(
    replica: &Container,
    point: &Point,
    instants: &[Instant],
    disks: [(DiskId, u64, &[u64]); 2],
    folder: &Path,
) -> anyhow::Result<Proven> {
    let checkpoint = names::checkpoint(point.id());
    let instant = instants
        .iter()
        .find(|instant| instant.name == checkpoint)
        .with_context(|| format!("the host has no record of checkpoint {checkpoint}"))?;
    let mut numbers = [0; 2];
    let mut bytes = 0;
    for ((disk, size, offsets), number) in disks.into_iter().zip(&mut numbers) {
        let snapshot = point.snapshots.get(&disk).context("the point has a snapshot of every disk")?;
        let path = folder.join(format!("{disk}.img"));
        let hash = download(replica, disk, snapshot, size, &path).await?;
        ensure!(
            instant.digests.get(&disk) == Some(&hash),
            "point {} differs from the source: {disk}",
            point.name
        );
        let file = std::fs::File::open(&path)?;
        let mut blocks = Vec::new();
        for offset in offsets {
            let mut block = vec![0; usize::try_from(BLOCK)?];
            file.read_exact_at(&mut block, *offset)?;
            blocks.push(block);
        }
        *number = highest_number(&blocks);
        bytes += size;
    }
    let [first, second] = numbers;
    ensure!(
        first == second || first == second + 1,
        "point {} mixes two instants: the disks hold {first} and {second}",
        point.name
    );
    Ok(Proven { point: point.clone(), bytes, numbers: (first, second) })
}

/// Checks the file system of a downloaded system disk and every file in it. Returns how many files were equal.
///
/// # Errors
/// If `e2fsck -fn` finds anything, or a file differs.
pub(super) async fn check_files(image: &Image, replica: &Path, folder: &Path) -> anyhow::Result<usize> {
    run("e2fsck", &["-f", "-n", &replica.display().to_string()]).await?;
    let out = folder.join("files");
    std::fs::create_dir_all(&out)?;
    let dump = format!("rdump /srv {}", out.display());
    run("debugfs", &["-R", &dump, &replica.display().to_string()]).await?;
    for (name, hash) in &image.files {
        let bytes =
            std::fs::read(out.join(name)).with_context(|| format!("{name} is missing on the replica"))?;
        ensure!(Hash::of(&bytes) == *hash, "{name} differs on the replica");
    }
    std::fs::remove_dir_all(&out)?;
    Ok(image.files.len())
}
