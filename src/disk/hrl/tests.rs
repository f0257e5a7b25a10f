//! Round trips, crashes while sealing, damage, and hostile bytes.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::crash::{CrashFile, Loss};
use crate::digest;
use crate::io::{MemDisk, RandomAccess};

const SIZE: u64 = 64 << 20;

fn options() -> HeaderOptions {
    HeaderOptions {
        unique_id: Uuid::from_u128(1),
        previous_unique_id: Uuid::from_u128(2),
        data_write_guid: Uuid::from_u128(3),
        size: SIZE,
        time: "2026-11-24T04:00:00Z".parse().unwrap(),
    }
}

fn later() -> Timestamp {
    "2026-11-24T04:05:00Z".parse().unwrap()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn write(changes: &[(u64, Vec<u8>)]) -> (Arc<MemDisk>, Sealed) {
    let file = Arc::new(MemDisk::default());
    let mut log = LogWriter::create(Box::new(file.clone()), &options()).unwrap();
    for (offset, data) in changes {
        log.append(*offset, data).unwrap();
    }
    let sealed = log.seal(later()).unwrap();
    (file, sealed)
}

type Changes = Vec<(u64, Vec<u8>)>;

/// Everything a log says, or the first error.
fn read(file: impl RandomAccess + 'static) -> Result<(LogReader, Changes), HrlError> {
    let log = LogReader::open(Box::new(file))?;
    let mut changes = Vec::new();
    for entry in log.entries() {
        let mut data = vec![0; entry.len as usize];
        log.read(&entry, &mut data)?;
        changes.push((entry.offset, data));
    }
    Ok((log, changes))
}

fn changes() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    prop::collection::vec((1u64..40, 1usize..6, any::<u64>()), 0..300).prop_map(|list| {
        let mut at = 0;
        let place = |(gap, sectors, seed): (u64, usize, u64)| {
            let change = (at + gap * 512, bytes(seed, sectors * 512));
            at = change.0 + change.1.len() as u64;
            change
        };
        list.into_iter().map(place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_log_gives_back_what_was_appended(changes in changes()) {
        let (file, sealed) = write(&changes);
        let data: u64 = changes.iter().map(|(_, d)| d.len() as u64).sum();
        prop_assert_eq!((sealed.entries, sealed.data_bytes), (changes.len() as u64, data));
        prop_assert_eq!(sealed.length, file.len().unwrap());
        prop_assert_eq!(sealed.length, file_size(data, sealed.entries));
        prop_assert_eq!(sealed.block_crcs.len(), changes.len().div_ceil(127).max(1));
        let (log, found) = read(file).unwrap();
        prop_assert!(!log.header_checksum_mismatch());
        prop_assert_eq!(log.header(), &options());
        prop_assert!(found == changes);
    }

    #[test]
    fn mutated_or_random_bytes_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..9000),
    ) {
        let (file, _) = write(&[(0, bytes(1, 512)), (4096, bytes(2, 700))]);
        let good = file.to_vec();
        let mut bad = good.clone();
        for (at, with) in edits {
            let at = at.index(bad.len());
            bad[at] = with;
        }
        let _ = read(MemDisk::new(bad));
        prop_assert!(read(MemDisk::new(good[..cut.index(good.len())].to_vec())).is_err());
        let mut start = good[..4096].to_vec();
        start.extend(&noise);
        let end = start.len() as u64;
        put_u64_le(&mut start, 44, end);
        let _ = read(MemDisk::new(start));
        prop_assert!(read(MemDisk::new(noise)).is_err());
    }
}

#[test]
fn every_bit_flip_is_found_or_warned_about() {
    let (file, _) = write(&[(0, bytes(1, 512)), (4096, bytes(2, 512))]);
    let good = file.to_vec();
    assert_eq!(good.len(), 4096 + 1024 + 4096);
    for at in 0..good.len() {
        // Unused entries of a block carry nothing.
        if at >= 4096 + 1024 + 32 + 64 {
            break;
        }
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            if let Ok((log, _)) = read(MemDisk::new(bad)) {
                assert!(log.header_checksum_mismatch(), "bit {bit} of byte {at}");
            }
        }
    }
}

#[test]
fn the_manifest_finds_what_byte_sums_cannot() {
    let (file, sealed) = write(&[(0, bytes(1, 512)), (4096, bytes(2, 512))]);
    let manifest = SideManifest {
        format_version: SideManifest::VERSION,
        vm_id: Uuid::from_u128(7),
        disk_id: Uuid::from_u128(8),
        term: 1,
        stream: 1,
        cycle: 12,
        previous_cycle: Some(11),
        unique_id: options().unique_id,
        previous_unique_id: options().previous_unique_id,
        length: sealed.length,
        blake3: digest::whole(&*file).unwrap().to_string(),
        block_crcs: sealed.block_crcs.clone(),
        base_rct_id: Some("rct:1".into()),
        target_rct_id: Some("rct:2".into()),
        reference_point_id: None,
        consistency: Consistency::Crash,
        point_time: later(),
        virtual_size: SIZE,
    };
    manifest.check(&*file).unwrap();
    let json = serde_json::to_string(&manifest).unwrap();
    assert!(json.contains(r#""vmID":"00000000-0000-0000-0000-000000000007""#), "{json}");
    assert_eq!(serde_json::from_str::<SideManifest>(&json).unwrap(), manifest);
    let blocks = &file.to_vec()[4096..];
    assert_eq!(sealed.block_crcs, [crc32c::crc32c(blocks)]);

    // Two bytes of data changed places: every byte sum stays.
    let mut swapped = file.to_vec();
    let other = (4097..4608).find(|i| swapped[*i] != swapped[4096]).unwrap();
    swapped.swap(4096, other);
    assert!(read(MemDisk::new(swapped.clone())).is_ok());
    assert!(matches!(manifest.check(&MemDisk::new(swapped)), Err(HrlError::Manifest { what: "blake3" })));
}

// R5.3, R7.2
#[test]
fn a_crash_at_any_operation_leaves_an_unsealed_log_or_a_whole_one() {
    let changes: Vec<_> = (0..130).map(|i| (i * 8192, bytes(i, 600))).collect();
    let (mut cut, mut whole, mut unsealed) = (0, 0, 0);
    loop {
        let file = Arc::new(CrashFile::new(Vec::new()));
        file.cut_after(cut);
        let run = || {
            let mut log = LogWriter::create(Box::new(file.clone()), &options())?;
            changes.iter().try_for_each(|(offset, data)| log.append(*offset, data))?;
            log.seal(later())
        };
        let done = run().is_ok();
        for loss in [Loss::All, Loss::Nothing].into_iter().chain((0..4).map(|i| Loss::Some(cut * 7 + i))) {
            match read(file.crash_with(loss)) {
                Ok((_, found)) => {
                    assert!(found == changes, "cut after {cut}, {loss:?}");
                    whole += 1;
                }
                Err(HrlError::Unsealed) => {
                    assert!(!done, "a log that was sealed is lost: cut after {cut}, {loss:?}");
                    unsealed += 1;
                }
                Err(e) => panic!("cut after {cut}, {loss:?}: {e}"),
            }
        }
        if done {
            break;
        }
        cut += 1;
    }
    assert!(cut > 130 && unsealed > 130 && whole > 6, "{cut} {unsealed} {whole}");
}

#[test]
fn long_data_becomes_several_entries() {
    let data = bytes(9, (5 << 20) + 512);
    let (file, _) = write(&[(1 << 20, data.clone())]);
    let (log, found) = read(file).unwrap();
    let m = 1 << 20;
    let shape: Vec<(u64, u32)> = log.entries().map(|e| (e.offset, e.len)).collect();
    assert_eq!(shape, [(m, MAX_ENTRY), (3 * m, MAX_ENTRY), (5 * m, (1 << 20) + 512)]);
    assert!(found.into_iter().flat_map(|(_, part)| part).eq(data));
}

#[test]
fn ranges_out_of_order_or_outside_the_disk_are_refused() {
    let mut log = LogWriter::create(Box::new(MemDisk::default()), &options()).unwrap();
    log.append(4096, &[1; 4096]).unwrap();
    for (offset, len) in [(4096, 512), (8191, 1), (SIZE - 1, 2), (u64::MAX, 2)] {
        assert!(matches!(log.append(offset, &vec![0; len]), Err(HrlError::Order { .. })), "{offset}");
    }
    log.append(8192, &[1; 512]).unwrap();
}

#[test]
fn other_versions_are_refused_by_name() {
    let (file, _) = write(&[]);
    let mut v1 = file.to_vec();
    put_u32_le(&mut v1, 8, 0x0001_0000);
    let refused = read(MemDisk::new(v1)).err().unwrap();
    assert_eq!(refused.to_string(), "log format version 0x00010000 is not supported");
}

/// As [MS-HRL] shows it of Hyper-V: an empty first block, entries without data checksum, another creator.
#[test]
fn a_log_in_the_shape_of_hyper_v_is_read() {
    let (file, _) = write(&[(0, bytes(1, 512)), (4096, bytes(2, 512))]);
    let ours = file.to_vec();
    let mut theirs = ours[..4096].to_vec();
    let mut empty = vec![0; 4096];
    let sum = checksum(&empty[..32], 12);
    put_u32_le(&mut empty, 12, sum);
    theirs.extend(&empty);
    theirs.extend(&ours[4096..]);
    let block = 4096 + 4096 + 1024;
    put_u64_le(&mut theirs, block, 1024 + 4096);
    put_u32_le(&mut theirs, block + 12, 0);
    let sum = checksum(&theirs[block..block + 32], 12);
    put_u32_le(&mut theirs, block + 12, sum);
    for e in [block + 32, block + 64] {
        put_u32_le(&mut theirs, e + 21, 0);
        let sum = checksum(&theirs[e..e + 32], 8);
        put_u32_le(&mut theirs, e + 8, sum);
    }
    let end = theirs.len() as u64;
    put_u64_le(&mut theirs, 44, end);
    put(&mut theirs, 16, b"ct  ");
    let (log, found) = read(MemDisk::new(theirs)).unwrap();
    assert!(log.header_checksum_mismatch(), "the header was changed without its checksum");
    assert!(log.entries().all(|e| e.data_checksum == 0));
    assert!(found == [(0, bytes(1, 512)), (4096, bytes(2, 512))]);
}
