//! The proof: what is in storage against what the source held at that instant.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, ensure};
use farshore_azure::{
    BlobErrorKind, BlobService, Container, Credential, Endpoint, HttpOptions, Include, SharedKey,
};
use farshore_core::format::Record as _;
use farshore_core::format::cursor::Cursor;
use farshore_core::format::point::Point;
use farshore_core::ids::{DiskId, Hash, VmId};
use farshore_core::names;

use crate::guest::{BLOCK, Image, highest_number, run};
use crate::host::admin::Instant;
use crate::launch::World;

/// Bytes read from a replica at once.
const CHUNK: u64 = 4 << 20;

/// The containers of a VM, as storage's owner sees them.
#[derive(Clone, Debug)]
pub struct Containers {
    /// Ledger, replica blobs, points.
    pub replica: Container,
    /// Cycles.
    pub up: Container,
    /// side.json, cursor.json.
    pub down: Container,
}

impl Containers {
    /// Those of a VM in a world's blob service.
    ///
    /// # Errors
    /// If the world's endpoint or key cannot be used.
    pub fn of(world: &World, vm: VmId) -> anyhow::Result<Self> {
        let blobs = world.blobs();
        let key = SharedKey::new(blobs.account(), blobs.key()).context("the lab's key is base64")?;
        let endpoint = Endpoint::parse(blobs.endpoint())?;
        let service = BlobService::new(endpoint, Credential::SharedKey(key), &HttpOptions::default())?;
        Ok(Self {
            replica: service.container(&names::replica_container(vm)),
            up: service.container(&names::up_container(vm)),
            down: service.container(&names::down_container(vm)),
        })
    }

    /// How far the replica server is; `None` until it has begun.
    ///
    /// # Errors
    /// If storage does not answer or the cursor cannot be read.
    pub async fn cursor(&self) -> anyhow::Result<Option<Cursor>> {
        match self.down.get(names::CURSOR, Cursor::MAX as u64).await {
            Ok(Some(found)) => Ok(Some(Cursor::decode(&found.bytes)?)),
            Ok(None) => Ok(None),
            Err(error) if error.kind == BlobErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Every recovery point that has a snapshot set, oldest first.
///
/// # Errors
/// If storage does not answer or a record cannot be read.
pub async fn points(replica: &Container) -> anyhow::Result<Vec<Point>> {
    let mut points = Vec::new();
    let listing = match replica.list(names::POINTS, Include::default()).await {
        Err(error) if error.kind == BlobErrorKind::NotFound => return Ok(points),
        other => other?,
    };
    for listed in listing {
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
pub async fn download(
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
pub struct Proven {
    /// The point.
    pub point: Point,
    /// Bytes of all its disks.
    pub bytes: u64,
}

/// Downloads every disk of a point into `folder` (`<diskID>.img`) and compares it with what the source held when
/// the point's checkpoint was made.
///
/// # Errors
/// If anything differs: that is a defect, and the message says where.
pub async fn prove(
    replica: &Container,
    point: &Point,
    instants: &[Instant],
    disks: &[(DiskId, u64)],
    folder: &Path,
) -> anyhow::Result<Proven> {
    let checkpoint = names::checkpoint(point.id());
    // A cycle that was made again has the checkpoint name of its first try: the last one counts.
    let instant = instants
        .iter()
        .rfind(|instant| instant.name == checkpoint)
        .with_context(|| format!("the host has no record of checkpoint {checkpoint}"))?;
    let mut bytes = 0;
    for (disk, size) in disks {
        let snapshot = point.snapshots.get(disk).context("the point has a snapshot of every disk")?;
        let hash = download(replica, *disk, snapshot, *size, &folder.join(format!("{disk}.img"))).await?;
        ensure!(
            instant.digests.get(disk) == Some(&hash),
            "point {} differs from the source: {disk}",
            point.name
        );
        bytes += size;
    }
    Ok(Proven { point: point.clone(), bytes })
}

/// The highest numbers that the two disks of a downloaded point hold.
///
/// # Errors
/// If they are not from one instant: the writer alternates, so the first is equal or one ahead.
pub fn numbers(folder: &Path, disks: [(DiskId, &[u64]); 2]) -> anyhow::Result<(u64, u64)> {
    let mut numbers = [0; 2];
    for ((disk, offsets), number) in disks.into_iter().zip(&mut numbers) {
        let file = std::fs::File::open(folder.join(format!("{disk}.img")))?;
        let mut blocks = Vec::new();
        for offset in offsets {
            let mut block = vec![0; usize::try_from(BLOCK)?];
            file.read_exact_at(&mut block, *offset)?;
            blocks.push(block);
        }
        *number = highest_number(&blocks);
    }
    let [first, second] = numbers;
    ensure!(
        first == second || first == second + 1,
        "two instants are mixed: the disks hold {first} and {second}"
    );
    Ok((first, second))
}

/// Checks the file system of a downloaded system disk and every file in it. Returns how many files were equal.
///
/// # Errors
/// If `e2fsck -fn` finds anything, or a file differs.
pub async fn check_files(image: &Image, replica: &Path, folder: &Path) -> anyhow::Result<usize> {
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
