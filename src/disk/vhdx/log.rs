//! The log that makes changes of BAT and sector bitmaps atomic: writing entries, and replaying what a crash left.
//!
//! Our own writing is simple: every commit is one entry that stands for itself (its tail is its own offset), put
//! alternately into the two halves of the log. A commit first flushes the file, so the pages of the entry before are
//! in place; the entry that it overwrites is the one before that and is needed by nobody. So the log is never without
//! a whole entry while the header names it, which other readers may take for damage.
//! Reading takes what any writer leaves: sequences of entries around the ring.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::VhdxError;
use super::format::PAGE;
use super::header::Header;
use crate::bytes_at::{guid_at, index, put, put_guid, put_u32_le, put_u64_le, u32_le, u64_le};
use crate::io::RandomAccess;

/// A log longer than this is not read: Hyper-V and qemu make logs of 1 MiB, and searching costs its square.
const MAX_LOG: u64 = 32 << 20;
const SECTOR: usize = 4096;
const HEADER: usize = 64;
const DESCRIPTOR: usize = 32;

pub(super) type Page = [u8; 4096];

/// Sectors that the header and `n` descriptors take.
fn descriptor_sectors(n: usize) -> usize {
    (HEADER + n * DESCRIPTOR).div_ceil(SECTOR)
}

/// Pages that one commit may hold: header, descriptors and data fit half of the log.
pub(super) fn capacity(log_len: u32) -> usize {
    let half = index(u64::from(log_len)) / SECTOR / 2;
    let mut n = half;
    while n > 0 && descriptor_sectors(n) + n > half {
        n -= 1;
    }
    n
}

/// One entry, little-endian:
///
/// | off | size | field |
/// |---|---|---|
/// | 0 | 4 | `loge` |
/// | 4 | 4 | CRC-32C of the whole entry, itself as zero |
/// | 8 | 4 | EntryLength, multiple of 4096 |
/// | 12 | 4 | Tail: offset in the log of the oldest entry needed |
/// | 16 | 8 | SequenceNumber |
/// | 24 | 4 | DescriptorCount |
/// | 32 | 16 | LogGuid |
/// | 48 | 8 | FlushedFileOffset: the file is at least this long |
/// | 56 | 8 | LastFileOffset: make it at least this long |
///
/// Descriptors of 32 bytes follow: data {`desc`, trailing 4 bytes, leading 8 bytes, file offset, sequence} or zero
/// {`zero`, 0, length, file offset, sequence}. From the next 4 KiB on, one data sector per data descriptor: {`data`,
/// upper half of the sequence, bytes 8..4092 of the page, lower half}.
pub(super) fn encode_entry(
    log: Uuid,
    sequence: u64,
    at: u32,
    file_len: u64,
    pages: &BTreeMap<u64, Page>,
) -> Vec<u8> {
    let head = descriptor_sectors(pages.len()) * SECTOR;
    let mut b = vec![0; head + pages.len() * SECTOR];
    let len = u32::try_from(b.len()).unwrap_or(u32::MAX);
    put(&mut b, 0, b"loge");
    put_u32_le(&mut b, 8, len);
    put_u32_le(&mut b, 12, at);
    put_u64_le(&mut b, 16, sequence);
    put_u32_le(&mut b, 24, u32::try_from(pages.len()).unwrap_or(u32::MAX));
    put_guid(&mut b, 32, log);
    put_u64_le(&mut b, 48, file_len);
    put_u64_le(&mut b, 56, file_len);
    let [low @ .., h0, h1, h2, h3] = sequence.to_le_bytes();
    for (i, (offset, page)) in pages.iter().enumerate() {
        let (desc, data) = (HEADER + i * DESCRIPTOR, head + i * SECTOR);
        put(&mut b, desc, b"desc");
        put(&mut b, desc + 4, &page[4092..]);
        put(&mut b, desc + 8, &page[..8]);
        put_u64_le(&mut b, desc + 16, *offset);
        put_u64_le(&mut b, desc + 24, sequence);
        put(&mut b, data, b"data");
        put(&mut b, data + 4, &[h0, h1, h2, h3]);
        put(&mut b, data + 8, &page[8..4092]);
        put(&mut b, data + 4092, &low);
    }
    let crc = crc32c::crc32c(&b);
    put_u32_le(&mut b, 4, crc);
    b
}

/// What a dirty log asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replay {
    pub(super) pages: BTreeMap<u64, Page>,
    /// The file must at least be this long afterwards.
    pub(super) len: u64,
}

struct Found {
    len: usize,
    tail: usize,
    sequence: u64,
    flushed: u64,
    last: u64,
    pages: Vec<(u64, Page)>,
    zeros: Vec<(u64, u64)>,
}

/// Reads the log that `header` points at. `None`: clean, or no complete entry. The latter is also clean: pages are
/// put in their places only after their entry is durable.
pub(super) fn read(
    file: &dyn RandomAccess,
    header: &Header,
    file_len: u64,
) -> Result<Option<Replay>, VhdxError> {
    let (offset, len) = (header.log_offset, u64::from(header.log_len));
    if header.log.is_nil() || len == 0 {
        return Ok(None);
    }
    if len > MAX_LOG {
        return Err(VhdxError::corrupt("dirty log longer than 32 MiB", offset));
    }
    let mut ring = vec![0; index(len)];
    file.read_at(&mut ring, offset).map_err(|e| VhdxError::short(e, "log", offset))?;
    let found: BTreeMap<usize, Found> =
        (0..ring.len()).step_by(SECTOR).filter_map(|at| Some((at, parse(&ring, at, header.log)?))).collect();
    let newest = found
        .iter()
        .filter_map(|(head, entry)| sequence(&found, *head, entry, ring.len()))
        .max_by_key(|seq| seq.last().map(|e| e.sequence));
    let Some(sequence) = newest else { return Ok(None) };
    let mut replay = Replay { pages: BTreeMap::new(), len: file_len };
    let Some(head) = sequence.last() else { return Ok(None) };
    if file_len < head.flushed {
        return Err(VhdxError::corrupt("file is shorter than its log says", file_len));
    }
    let mut zeroed = 0u64;
    for entry in sequence {
        for (at, len) in &entry.zeros {
            // Bounds the memory: descriptors could name any length.
            zeroed = zeroed.saturating_add(*len);
            if zeroed > MAX_LOG {
                return Err(VhdxError::corrupt("log zeroes more than 32 MiB", *at));
            }
            replay.pages.extend((0..len / PAGE).map(|i| (at + i * PAGE, [0; 4096])));
        }
        replay.pages.extend(entry.pages.iter().copied());
        replay.len = replay.len.max(entry.last);
    }
    let end = replay.pages.keys().next_back().map_or(0, |at| at + PAGE);
    if end > replay.len || replay.len > file_len.saturating_add(1 << 40) {
        return Err(VhdxError::corrupt("log changes bytes beyond the end of the file", end));
    }
    Ok(Some(replay))
}

/// The entries from the tail to `head`, when they are all there and consecutive.
fn sequence<'a>(
    found: &'a BTreeMap<usize, Found>,
    head: usize,
    entry: &'a Found,
    ring: usize,
) -> Option<Vec<&'a Found>> {
    let mut list: Vec<&Found> = Vec::new();
    let mut at = entry.tail;
    loop {
        let next = found.get(&at)?;
        if list.last().is_some_and(|last| last.sequence + 1 != next.sequence) || list.len() > found.len() {
            return None;
        }
        list.push(next);
        if at == head {
            return Some(list);
        }
        at = (at + next.len) % ring;
    }
}

/// The entry that starts at `at`, if a whole and valid one does.
fn parse(ring: &[u8], at: usize, log: Uuid) -> Option<Found> {
    let first = ring.get(at..at + SECTOR)?;
    let (len, tail) = (index(u32_le(first, 8).into()), index(u32_le(first, 12).into()));
    let whole = |n: usize| n.is_multiple_of(SECTOR) && n <= ring.len();
    if !first.starts_with(b"loge") || guid_at(first, 32) != log || !whole(len) || len == 0 || !whole(tail) {
        return None;
    }
    let (count, sequence) = (index(u32_le(first, 24).into()), u64_le(first, 16));
    // Each descriptor takes 32 bytes of the entry, so the count is bounded by its length.
    if count > len / DESCRIPTOR || sequence == 0 {
        return None;
    }
    // Unwrap the ring.
    let (before, from) = ring.split_at(at);
    let mut b = from.get(..len.min(from.len()))?.to_vec();
    b.extend(before.get(..len - b.len())?);
    let crc = u32_le(&b, 4);
    put_u32_le(&mut b, 4, 0);
    if crc32c::crc32c(&b) != crc {
        return None;
    }
    let mut data = b.get(descriptor_sectors(count) * SECTOR..)?.chunks_exact(SECTOR);
    let (mut pages, mut zeros) = (Vec::new(), Vec::new());
    for desc in b.get(HEADER..)?.chunks_exact(DESCRIPTOR).take(count) {
        let target = u64_le(desc, 16);
        if u64_le(desc, 24) != sequence || !target.is_multiple_of(PAGE) || target > i64::MAX as u64 {
            return None;
        }
        if desc.starts_with(b"zero") {
            zeros.push((
                target,
                Some(u64_le(desc, 8)).filter(|n| n.is_multiple_of(PAGE) && *n <= i64::MAX as u64)?,
            ));
        } else if desc.starts_with(b"desc") {
            let sector = data.next()?;
            let halves = u64::from(u32_le(sector, 4)) << 32 | u64::from(u32_le(sector, 4092));
            if !sector.starts_with(b"data") || halves != sequence {
                return None;
            }
            let mut page = [0; 4096];
            put(&mut page, 0, desc.get(8..16)?);
            put(&mut page, 8, sector.get(8..4092)?);
            put(&mut page, 4092, desc.get(4..8)?);
            pages.push((target, page));
        } else {
            return None;
        }
    }
    Some(Found { len, tail, sequence, flushed: u64_le(first, 48), last: u64_le(first, 56), pages, zeros })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemDisk;

    const LOG: Uuid = Uuid::from_u128(5);

    fn header() -> Header {
        let nil = Uuid::nil();
        Header {
            slot: 0,
            sequence: 1,
            file_write: nil,
            data_write: nil,
            log: LOG,
            log_len: 1 << 20,
            log_offset: 1 << 20,
        }
    }

    fn page(fill: u8) -> Page {
        let mut page = [fill; 4096];
        page[0] = 1;
        page[4095] = 2;
        page
    }

    fn entry(sequence: u64, at: u32, tail: u32, target: u64, fill: u8) -> (usize, Vec<u8>) {
        let pages = BTreeMap::from([(target, page(fill))]);
        let mut b = encode_entry(LOG, sequence, tail, 4 << 20, &pages);
        assert_eq!(b.len(), 8192);
        put_u32_le(&mut b, 4, 0);
        let crc = crc32c::crc32c(&b);
        put_u32_le(&mut b, 4, crc);
        (at as usize, b)
    }

    fn file(entries: &[(usize, Vec<u8>)]) -> MemDisk {
        let mut bytes = vec![0; 4 << 20];
        for (at, b) in entries {
            for (i, x) in b.iter().enumerate() {
                bytes[(1 << 20) + (at + i) % (1 << 20)] = *x;
            }
        }
        MemDisk::new(bytes)
    }

    #[test]
    fn half_a_log_of_one_mebibyte_takes_126_pages() {
        assert_eq!(capacity(1 << 20), 126);
    }

    #[test]
    fn a_sequence_around_the_ring_is_replayed_in_order() {
        let end = (1 << 20) - 4096;
        // The first entry wraps around the end of the ring; the second overwrites its page; 1 is stale.
        let f = file(&[
            entry(7, end, end, 3 << 20, 3),
            entry(8, 4096, end, 3 << 20, 4),
            entry(1, 65536, 65536, 2 << 20, 9),
        ]);
        let got = read(&f, &header(), 4 << 20).unwrap().unwrap();
        assert_eq!(got, Replay { pages: BTreeMap::from([(3 << 20, page(4))]), len: 4 << 20 });
    }

    #[test]
    fn a_sequence_whose_tail_is_gone_does_not_count() {
        let f = file(&[entry(9, 8192, 0, 3 << 20, 9), entry(5, 65536, 65536, 2 << 20, 5)]);
        let got = read(&f, &header(), 4 << 20).unwrap().unwrap();
        assert_eq!(got.pages, BTreeMap::from([(2 << 20, page(5))]));
    }

    #[test]
    fn a_torn_or_foreign_entry_is_no_entry() {
        let good = entry(9, 0, 0, 3 << 20, 9);
        for at in [0, 5, 9, 40, 70, 4096, 5000, 8191] {
            let mut bad = good.clone();
            bad.1[at] ^= 1;
            assert_eq!(read(&file(&[bad]), &header(), 4 << 20).unwrap(), None, "flip at {at}");
        }
        let foreign = Header { log: Uuid::from_u128(6), ..header() };
        assert_eq!(read(&file(&[good]), &foreign, 4 << 20).unwrap(), None);
    }

    #[test]
    fn a_file_shorter_than_flushed_is_corrupt() {
        let f = file(&[entry(9, 0, 0, 3 << 20, 9)]);
        f.set_len(3 << 20).unwrap();
        assert!(matches!(read(&f, &header(), 3 << 20), Err(VhdxError::Corrupt { .. })));
    }
}
