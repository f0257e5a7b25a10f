//! Resilient change tracking of one disk: which blocks were written between two instants.
//!
//! Instants are points with an id; each point holds the blocks written from it to the next one, the last
//! point those written since. Changes between two points are the union of what lies between.
//!
//! Two files beside the disk, as Hyper-V has them:
//! ```text
//! <disk>.rct   points and their bitmaps. Replaced atomically whenever the points change. While the disk is open
//!              the last bitmap in it is stale; a clean close writes it and sets `clean`.
//! <disk>.mrt   modified regions: one byte per MiB, set before the first write into it after the last point.
//! ```
//! After an unclean stop (a killed process) the last bitmap is taken from the regions: coarser, never less.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use farshore_hyperv::RctId;
use farshore_hyperv::win32::VHD_INVALID_CHANGE_TRACKING_ID;
use serde::{Deserialize, Serialize};

use super::bitmap::Bitmap;
use super::record::replace;

/// Bytes that one byte of the region table stands for.
const REGION: u64 = 1 << 20;
const MAGIC: &[u8; 8] = b"fsrct001";

/// The tracker of one disk.
pub(super) struct Tracker {
    rct: PathBuf,
    size: u64,
    regions: File,
    /// What the region table on disk says.
    dirty: Vec<bool>,
    points: Vec<Point>,
    lost: Vec<Lost>,
}

struct Point {
    id: RctId,
    /// Written from here to the next point.
    changed: Bitmap,
}

/// Ids that cannot be answered any more, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Lost {
    id: RctId,
    code: u32,
}

#[derive(Serialize, Deserialize)]
struct Head {
    clean: bool,
    ids: Vec<RctId>,
    lost: Vec<Lost>,
}

impl Tracker {
    /// Opens, or begins, the tracking of a disk whose files are `<stem>.rct` and `<stem>.mrt`.
    pub(super) fn open(stem: &Path, size: u64) -> io::Result<Self> {
        let rct = stem.with_extension("rct");
        let regions = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(stem.with_extension("mrt"))?;
        let count = usize::try_from(size.div_ceil(REGION)).map_err(io::Error::other)?;
        let mut table = vec![0; count];
        let have = usize::try_from(regions.metadata()?.len()).unwrap_or(count).min(count);
        regions.read_exact_at(table.get_mut(..have).unwrap_or_default(), 0)?;
        regions.set_len(count as u64)?;
        let (head, bitmaps) = match std::fs::read(&rct) {
            Ok(bytes) => decode(&bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                (Head { clean: true, ids: Vec::new(), lost: Vec::new() }, Vec::new())
            }
            Err(e) => return Err(e),
        };
        let points = head.ids.into_iter().zip(bitmaps).map(|(id, changed)| Point { id, changed }).collect();
        let dirty: Vec<bool> = table.iter().map(|b| *b != 0).collect();
        let mut tracker = Self { rct, size, regions, dirty, points, lost: head.lost };
        if !head.clean {
            tracker.recover();
        }
        // From here on a kill must not find the flag.
        tracker.save(false)?;
        Ok(tracker)
    }

    /// After an unclean stop: every region written since the last point counts as changed.
    fn recover(&mut self) {
        let size = self.size;
        let Some(last) = self.points.last_mut() else { return };
        for (index, _) in self.dirty.iter().enumerate().filter(|(_, dirty)| **dirty) {
            let offset = index as u64 * REGION;
            last.changed.set(offset, REGION.min(size - offset));
        }
    }

    /// Closes cleanly: the last bitmap is kept exactly.
    pub(super) fn close(&self) -> io::Result<()> {
        self.save(true)
    }

    /// Marks a range. Must return before the range is written.
    pub(super) fn mark(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if self.points.is_empty() || len == 0 {
            return Ok(());
        }
        self.mark_regions(offset, len)?;
        if let Some(last) = self.points.last_mut() {
            last.changed.set(offset, len);
        }
        Ok(())
    }

    fn mark_regions(&mut self, offset: u64, len: u64) -> io::Result<()> {
        for region in offset / REGION..=offset.saturating_add(len - 1) / REGION {
            if let Some(dirty) = usize::try_from(region).ok().and_then(|r| self.dirty.get_mut(r))
                && !*dirty
            {
                self.regions.write_all_at(&[1], region)?;
                *dirty = true;
            }
        }
        Ok(())
    }

    /// Adds a point: this instant. The caller holds all writes of the machine.
    pub(super) fn add(&mut self, id: RctId) -> io::Result<()> {
        self.points.push(Point { id, changed: Bitmap::default() });
        if let Err(error) = self.save(false) {
            // Nothing was written meanwhile: the new point is empty and can simply go.
            self.points.pop();
            return Err(error);
        }
        // The interval before is safe in the file; a kill before this reset only makes the new one coarser.
        self.dirty.fill(false);
        self.regions.set_len(0)?;
        self.regions.set_len(self.dirty.len() as u64)
    }

    /// Removes a point; what it held is added to the one before.
    pub(super) fn remove(&mut self, id: &RctId) -> io::Result<()> {
        self.lost.retain(|lost| lost.id != *id);
        let Some(at) = self.points.iter().position(|point| point.id == *id) else { return Ok(()) };
        let before = at.checked_sub(1);
        if let Some(before) = before
            && at + 1 == self.points.len()
        {
            // The interval before becomes the open one: its regions must be marked again first.
            let again: Vec<_> =
                self.points.get(before).into_iter().flat_map(|p| p.changed.ranges_from(0)).collect();
            for (offset, len) in again {
                self.mark_regions(offset, len)?;
            }
        }
        let gone = self.points.remove(at);
        if let Some(before) = before.and_then(|b| self.points.get_mut(b)) {
            before.changed.merge(&gone.changed);
        }
        self.save(false)
    }

    /// Removes every point that nobody holds: what a kill in the middle of a checkpoint left.
    pub(super) fn retain(&mut self, held: impl Fn(&RctId) -> bool) -> io::Result<()> {
        let orphans: Vec<_> = self.points.iter().map(|p| p.id.clone()).filter(|id| !held(id)).collect();
        orphans.iter().try_for_each(|id| self.remove(id))
    }

    /// Loses all points: asking from them fails with `code`.
    pub(super) fn lose(&mut self, code: u32) -> io::Result<()> {
        self.lost.extend(self.points.drain(..).map(|point| Lost { id: point.id, code }));
        self.save(false)
    }

    /// Blocks written from `since` to `until`; the Win32 code if that is not known.
    pub(super) fn changes(&self, since: &RctId, until: &RctId) -> Result<Bitmap, u32> {
        let (from, to) = (self.position(since)?, self.position(until)?);
        let between = self.points.get(from..to).ok_or(VHD_INVALID_CHANGE_TRACKING_ID)?;
        let mut all = Bitmap::default();
        between.iter().for_each(|point| all.merge(&point.changed));
        Ok(all)
    }

    fn position(&self, id: &RctId) -> Result<usize, u32> {
        self.points.iter().position(|point| point.id == *id).ok_or_else(|| {
            self.lost
                .iter()
                .find(|lost| lost.id == *id)
                .map_or(VHD_INVALID_CHANGE_TRACKING_ID, |lost| lost.code)
        })
    }

    /// File: magic, `u32` length of the JSON head, head, bitmaps in order, CRC-32C of all before.
    fn save(&self, clean: bool) -> io::Result<()> {
        let ids = self.points.iter().map(|p| p.id.clone()).collect();
        let head = serde_json::to_vec(&Head { clean, ids, lost: self.lost.clone() })?;
        let mut out = MAGIC.to_vec();
        out.extend(u32::try_from(head.len()).map_err(io::Error::other)?.to_le_bytes());
        out.extend(head);
        self.points.iter().for_each(|p| p.changed.encode(&mut out));
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        replace(&self.rct, |file| file.write_all(&out))
    }
}

fn decode(bytes: &[u8]) -> io::Result<(Head, Vec<Bitmap>)> {
    let bad =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("change tracking file: {what}"));
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| bad("too short"))?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(bad("wrong checksum"));
    }
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| bad("wrong magic"))?;
    let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(|| bad("too short"))?;
    let (head, mut rest) =
        rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(|| bad("too short"))?;
    let head: Head = serde_json::from_slice(head)?;
    let bitmaps = head.ids.iter().map(|_| Bitmap::decode(&mut rest)).collect::<io::Result<_>>()?;
    Ok((head, bitmaps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_disk::{Extent, Extents};
    use farshore_hyperv::win32::CTLOG_VHD_CHANGED_OFFLINE;

    const SIZE: u64 = 10 * REGION + 4096;

    fn changes(tracker: &Tracker, since: &str, until: &str) -> Extents {
        let map = tracker.changes(&since.into(), &until.into()).unwrap();
        map.ranges_from(0).map(|(offset, len)| Extent::new(offset, len)).collect()
    }

    fn tracker() -> (tempfile::TempDir, PathBuf, Tracker) {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("d");
        let tracker = Tracker::open(&stem, SIZE).unwrap();
        (dir, stem, tracker)
    }

    #[test]
    fn changes_between_points_are_the_union_of_the_intervals_also_after_one_is_removed() {
        let (_dir, _, mut t) = tracker();
        t.mark(0, 4096).unwrap();
        t.add("a".into()).unwrap();
        t.mark(8192, 1).unwrap();
        t.add("b".into()).unwrap();
        t.mark(5 * REGION, 4096).unwrap();
        t.add("c".into()).unwrap();
        t.mark(0, 1).unwrap();
        let both: Extents = [Extent::new(8192, 4096), Extent::new(5 * REGION, 4096)].into_iter().collect();
        assert_eq!(changes(&t, "a", "b"), Extents::one(8192, 4096));
        assert_eq!(changes(&t, "a", "c"), both);
        assert_eq!(changes(&t, "c", "c"), Extents::new());
        t.remove(&"b".into()).unwrap();
        assert_eq!(changes(&t, "a", "c"), both);
        assert_eq!(t.changes(&"b".into(), &"c".into()), Err(VHD_INVALID_CHANGE_TRACKING_ID));
        assert_eq!(t.changes(&"c".into(), &"a".into()), Err(VHD_INVALID_CHANGE_TRACKING_ID));
    }

    #[test]
    fn a_clean_close_keeps_exact_blocks_and_a_kill_keeps_whole_regions() {
        let (_dir, stem, mut t) = tracker();
        t.add("a".into()).unwrap();
        t.mark(3 * REGION + 8192, 4096).unwrap();
        t.close().unwrap();
        let mut t = Tracker::open(&stem, SIZE).unwrap();
        t.add("b".into()).unwrap();
        assert_eq!(changes(&t, "a", "b"), Extents::one(3 * REGION + 8192, 4096));
        t.mark(10 * REGION + 1, 1).unwrap();
        drop(t);
        let mut t = Tracker::open(&stem, SIZE).unwrap();
        t.add("c".into()).unwrap();
        assert_eq!(
            changes(&t, "b", "c"),
            Extents::one(10 * REGION, 4096),
            "the last region ends with the disk"
        );
        assert_eq!(changes(&t, "a", "b"), Extents::one(3 * REGION + 8192, 4096));
    }

    #[test]
    fn regions_of_an_interval_that_becomes_the_open_one_again_survive_a_kill() {
        let (_dir, stem, mut t) = tracker();
        t.add("a".into()).unwrap();
        t.mark(2 * REGION, 1).unwrap();
        t.add("b".into()).unwrap();
        t.mark(4 * REGION, 1).unwrap();
        t.retain(|id| id.0 == "a").unwrap();
        drop(t);
        let mut t = Tracker::open(&stem, SIZE).unwrap();
        t.add("c".into()).unwrap();
        let want = [Extent::new(2 * REGION, REGION), Extent::new(4 * REGION, REGION)].into_iter().collect();
        assert_eq!(changes(&t, "a", "c"), want);
    }

    #[test]
    fn lost_points_answer_with_the_code_they_were_lost_with_also_after_reopening() {
        let (_dir, stem, mut t) = tracker();
        t.add("a".into()).unwrap();
        t.lose(CTLOG_VHD_CHANGED_OFFLINE).unwrap();
        t.close().unwrap();
        let mut t = Tracker::open(&stem, SIZE).unwrap();
        t.add("b".into()).unwrap();
        assert_eq!(t.changes(&"a".into(), &"b".into()), Err(CTLOG_VHD_CHANGED_OFFLINE));
        t.remove(&"a".into()).unwrap();
        assert_eq!(t.changes(&"a".into(), &"b".into()), Err(VHD_INVALID_CHANGE_TRACKING_ID));
    }
}
