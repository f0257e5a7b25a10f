//! Reads the bytes of a recovery point out of its snapshots: for proofs, and for people who want a file.

use std::ops::Range;

use farshore_azure::{BlobService, Container};
use farshore_core::fault::{Code, Fault};
use farshore_core::format::Record;
use farshore_core::format::point::Point;
use farshore_core::ids::{DiskId, Hash, VmId};
use farshore_core::names;
use farshore_disk::{RandomAccess, vhd};

use crate::halt::{again, fault};

/// Bytes read at a time.
const STEP: u64 = 4 << 20;

/// A recovery point with a snapshot set.
#[derive(Clone, Debug)]
pub struct PointReader {
    replica: Container,
    point: Point,
}

impl PointReader {
    /// Names of the points that have a snapshot set, oldest first.
    ///
    /// # Errors
    /// What storage says.
    pub async fn names(service: &BlobService, vm: VmId) -> Result<Vec<String>, Fault> {
        let replica = service.container(&names::replica_container(vm));
        let blobs = again(|| replica.list(names::POINTS, farshore_azure::Include::default())).await;
        let blobs = blobs.map_err(|e| fault(&e))?;
        let name = |blob: String| Some(blob.strip_prefix(names::POINTS)?.strip_suffix(".json")?.to_owned());
        Ok(blobs.into_iter().filter_map(|blob| name(blob.name)).collect())
    }

    /// Opens a point by its name.
    ///
    /// # Errors
    /// There is no such point, or what storage says.
    pub async fn open(service: &BlobService, vm: VmId, name: &str) -> Result<Self, Fault> {
        let replica = service.container(&names::replica_container(vm));
        let blob = names::point_blob(name);
        let found = again(|| replica.get(&blob, Point::MAX as u64)).await.map_err(|e| fault(&e))?;
        let found = found.ok_or_else(|| unknown(format!("there is no recovery point {name}")))?;
        let point = Point::decode(&found.bytes).map_err(|e| unknown(e.to_string()))?;
        Ok(Self { replica, point })
    }

    /// Opens the newest point.
    ///
    /// # Errors
    /// There is none, or what storage says.
    pub async fn newest(service: &BlobService, vm: VmId) -> Result<Self, Fault> {
        let newest = Self::names(service, vm).await?.pop();
        let newest =
            newest.ok_or_else(|| unknown("there is no recovery point with a snapshot set".into()))?;
        Self::open(service, vm, &newest).await
    }

    /// Its record.
    #[must_use]
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// Its disks.
    pub fn disks(&self) -> impl Iterator<Item = DiskId> + '_ {
        self.point.snapshots.keys().copied()
    }

    fn snapshot(&self, disk: DiskId) -> Result<(String, &str), Fault> {
        let snapshot = self.point.snapshots.get(&disk);
        let snapshot = snapshot.ok_or_else(|| unknown(format!("the point has no disk {disk}")))?;
        Ok((names::disk_blob(disk), snapshot))
    }

    /// Size of a disk in the replica: its virtual size rounded up to whole MiB. The footer stands behind it.
    ///
    /// # Errors
    /// The snapshot is gone or holds no fixed VHD, or what storage says.
    pub async fn size(&self, disk: DiskId) -> Result<u64, Fault> {
        let (blob, snapshot) = self.snapshot(disk)?;
        let found =
            again(|| self.replica.blob_properties(&blob, Some(snapshot))).await.map_err(|e| fault(&e))?;
        let len = found.ok_or_else(|| unknown(format!("snapshot {snapshot} of {blob} is gone")))?.len;
        let size = len.saturating_sub(vhd::FOOTER_SIZE);
        let footer = self.read(disk, size, vhd::FOOTER_SIZE).await?;
        let footer = vhd::parse(&footer).map_err(|e| unknown(format!("{blob}: {e}")))?;
        if footer.size != size {
            return Err(unknown(format!("{blob}: its footer says {} bytes, it has {size}", footer.size)));
        }
        Ok(size)
    }

    /// Some bytes of a disk at the point.
    ///
    /// # Errors
    /// Out of range, the snapshot is gone, or what storage says.
    pub async fn read(&self, disk: DiskId, offset: u64, len: u64) -> Result<bytes::Bytes, Fault> {
        let (blob, snapshot) = self.snapshot(disk)?;
        let read = again(|| self.replica.read_pages(&blob, Some(snapshot), offset, len)).await;
        Ok(read.map_err(|e| fault(&e))?.bytes)
    }

    /// Ranges that hold data, in pieces of at most 4 MiB.
    async fn data(&self, disk: DiskId, len: u64) -> Result<Vec<Range<u64>>, Fault> {
        let (blob, snapshot) = self.snapshot(disk)?;
        let ranges =
            again(|| self.replica.page_ranges(&blob, Some(snapshot))).await.map_err(|e| fault(&e))?;
        Ok(ranges
            .into_iter()
            .map(|r| r.start.min(len)..r.end.min(len))
            .flat_map(|r| {
                let end = r.end;
                (r.start..end)
                    .step_by(usize::try_from(STEP).unwrap_or(usize::MAX))
                    .map(move |at| at..end.min(at.saturating_add(STEP)))
            })
            .collect())
    }

    /// BLAKE3 of the first `len` bytes of a disk, as the guest sees them.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn digest(&self, disk: DiskId, len: u64) -> Result<Hash, Fault> {
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        for range in self.data(disk, len).await? {
            zeros(&mut hasher, range.start.saturating_sub(at));
            hasher.update(&self.read(disk, range.start, range.end - range.start).await?);
            at = range.end;
        }
        zeros(&mut hasher, len.saturating_sub(at));
        Ok(Hash(*hasher.finalize().as_bytes()))
    }

    /// Writes the first `len` bytes of a disk into `file`, leaving holes where nothing is.
    ///
    /// # Errors
    /// As [`Self::read`], or the file cannot be written.
    pub async fn export(&self, disk: DiskId, len: u64, file: &dyn RandomAccess) -> Result<(), Fault> {
        let local = |e: std::io::Error| Fault::new(Code::LocalIo, e.to_string());
        file.set_len(len).map_err(local)?;
        for range in self.data(disk, len).await? {
            let bytes = self.read(disk, range.start, range.end - range.start).await?;
            file.write_at(&bytes, range.start).map_err(local)?;
        }
        file.flush().map_err(local)
    }
}

fn zeros(hasher: &mut blake3::Hasher, mut len: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        hasher.update(ZEROS.get(..usize::try_from(now).unwrap_or(0)).unwrap_or_default());
        len -= now;
    }
}

fn unknown(message: String) -> Fault {
    Fault::new(Code::Unknown, message)
}
