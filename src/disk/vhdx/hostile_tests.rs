//! Broken chains told apart, damaged and hostile files refused without a panic, a hang or a flood of memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::bytes_at::{put_u16_le, put_u32_le, put_u64_le, u64_le};
use crate::io::{FileDisk, MemDisk, RandomAccess};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;
const BAT: usize = 3 << 20;

fn options() -> CreateOptions {
    CreateOptions { block_size: 1 << 20, ..CreateOptions::new(SIZE, Uuid::from_u128(5), Uuid::new_v4) }
}

fn make(path: &Path, options: &CreateOptions) {
    Vhdx::create(&FileDisk::create_new(path).unwrap(), options).unwrap();
}

/// base <- leaf in a folder of their own.
fn chain() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (base, leaf) = (dir.path().join("base.vhdx"), dir.path().join("leaf.avhdx"));
    make(&base, &options());
    create_child(&base, &leaf, Uuid::new_v4).unwrap();
    Chain::open(&leaf, Access::ReadOnly).unwrap();
    (dir, base, leaf)
}

fn refusal(leaf: &Path) -> VhdxError {
    Chain::open(leaf, Access::ReadOnly).unwrap_err()
}

fn linked(parent: &Vhdx, relative_path: &str) -> ParentLink {
    let linkage = parent.data_write_guid();
    ParentLink { linkage, relative_path: Some(relative_path.into()), ..ParentLink::default() }
}

fn open(path: &Path) -> Vhdx {
    Vhdx::open(Arc::new(FileDisk::open_read(path).unwrap()), Access::ReadOnly).unwrap()
}

// R9.1: a broken chain is told apart from damage and from I/O.
#[test]
fn a_parent_that_is_gone_is_a_broken_chain_and_says_where_it_was_looked_for() {
    let (_dir, base, leaf) = chain();
    std::fs::remove_file(&base).unwrap();
    let e = refusal(&leaf);
    assert_eq!(e.class(), Class::BrokenChain);
    assert!(matches!(&e, VhdxError::ParentNotFound { child, tried } if *child == leaf && tried.len() == 2));
    assert!(e.to_string().contains("base.vhdx"), "{e}");
}

#[test]
fn a_chain_that_was_moved_is_found_by_its_relative_path_and_one_left_behind_by_its_absolute_path() {
    let (dir, base, leaf) = chain();
    let moved = dir.path().join("moved");
    std::fs::create_dir(&moved).unwrap();
    // Only the leaf is moved: the relative path leads nowhere, the absolute one still does.
    let away = moved.join("leaf.avhdx");
    std::fs::rename(&leaf, &away).unwrap();
    assert_eq!(Chain::open(&away, Access::ReadOnly).unwrap().paths()[1], base);
    // Both are moved and something else stands at the old place: the relative path comes first.
    std::fs::rename(&base, moved.join("base.vhdx")).unwrap();
    std::fs::write(&base, b"something else").unwrap();
    let found = Chain::open(&away, Access::ReadOnly).unwrap();
    assert_eq!(
        std::fs::canonicalize(&found.paths()[1]).unwrap(),
        moved.canonicalize().unwrap().join("base.vhdx")
    );
}

#[test]
fn a_parent_written_after_the_child_was_made_is_a_broken_chain() {
    let (_dir, base, leaf) = chain();
    let expected = open(&base).data_write_guid();
    Chain::open(&base, Access::ReadWrite(Uuid::new_v4)).unwrap().write_at(&[1; 512], 0).unwrap();
    let e = refusal(&leaf);
    assert_eq!(e.class(), Class::BrokenChain);
    assert!(
        matches!(e, VhdxError::ParentMismatch { expected: id, found, .. } if id == expected && found != expected)
    );
}

#[test]
fn a_parent_of_another_size_or_sector_is_a_broken_chain() {
    let (dir, base, _) = chain();
    let parent = Some(linked(&open(&base), "./base.vhdx"));
    for (name, other) in [
        ("size", CreateOptions { size: 2 * SIZE, parent: parent.clone(), ..options() }),
        ("sector", CreateOptions { logical_sector: 4096, parent, ..options() }),
    ] {
        let path = dir.path().join(name);
        make(&path, &other);
        let e = refusal(&path);
        assert!(
            matches!(e, VhdxError::SizeMismatch { .. }) && e.class() == Class::BrokenChain,
            "{name}: {e}"
        );
    }
}

#[test]
fn a_cycle_and_an_endless_chain_are_broken_chains() {
    fn one() -> Uuid {
        Uuid::from_u128(1)
    }
    let dir = tempfile::tempdir().unwrap();
    let child = |name: &str, parent: String| {
        let link = ParentLink { linkage: one(), relative_path: Some(parent), ..ParentLink::default() };
        let path = dir.path().join(name);
        make(&path, &CreateOptions { parent: Some(link), guids: one, ..options() });
        path
    };
    let a = child("a", ".\\b".into());
    child("b", ".\\a".into());
    let e = refusal(&a);
    assert!(matches!(e, VhdxError::Cycle { .. }) && e.class() == Class::BrokenChain, "{e}");
    for i in 0..101 {
        child(&format!("d{i}"), format!(".\\d{}", i + 1));
    }
    let e = refusal(&dir.path().join("d0"));
    assert!(matches!(e, VhdxError::TooDeep { limit: 100 }) && e.class() == Class::BrokenChain, "{e}");
}

#[test]
fn a_file_that_cannot_be_opened_is_no_broken_chain() {
    let dir = tempfile::tempdir().unwrap();
    let e = refusal(&dir.path().join("nothing"));
    assert!(matches!(e, VhdxError::Open { .. }) && e.class() == Class::Io, "{e}");
    let (_dir, base, leaf) = chain();
    std::fs::write(&base, vec![0; 4 << 20]).unwrap();
    assert_eq!(refusal(&leaf).class(), Class::Corrupt);
}

#[test]
fn a_merge_goes_only_into_the_parent_that_the_child_names() {
    let (dir, base, leaf) = chain();
    assert!(matches!(merge_into_parent(&base, Uuid::new_v4), Err(VhdxError::NoParent { .. })));
    std::fs::remove_file(&base).unwrap();
    make(&base, &options());
    let before = std::fs::read(&base).unwrap();
    assert!(matches!(merge_into_parent(&leaf, Uuid::new_v4), Err(VhdxError::ParentMismatch { .. })));
    assert!(std::fs::read(&base).unwrap() == before);
    drop(dir);
}

/// A small file with data, a child of it with partial blocks and a dirty log: (base, leaf).
fn samples() -> (Vec<u8>, Vec<u8>) {
    let base = Arc::new(MemDisk::default());
    Vhdx::create(&*base, &options()).unwrap();
    let disk = Vhdx::open(base.clone(), Access::ReadWrite(Uuid::new_v4)).unwrap();
    disk.write_at(&vec![7; 2 * MIB as usize], MIB).unwrap();
    let parent = Some(ParentLink { linkage: disk.data_write_guid(), ..ParentLink::default() });
    drop(disk);
    let leaf = Arc::new(MemDisk::default());
    Vhdx::create(&*leaf, &CreateOptions { parent, ..options() }).unwrap();
    let disk = Vhdx::open(leaf.clone(), Access::ReadWrite(Uuid::new_v4)).unwrap();
    disk.write_at(&[8; 4096], MIB).unwrap();
    disk.flush().unwrap();
    let dirty = leaf.to_vec();
    (base.to_vec(), dirty)
}

/// Uses a file in every way; only panics, hangs and floods count.
fn exercise(bytes: Vec<u8>) -> Result<(), VhdxError> {
    let size = |disk: &Vhdx| disk.size().min(64 * MIB);
    let read = |disk: &Vhdx| {
        let mut buf = vec![0; size(disk) as usize];
        disk.read_at(&mut buf, 0)
    };
    let disk = Vhdx::open(Arc::new(MemDisk::new(bytes.clone())), Access::ReadOnly)?;
    let first = read(&disk).and(if disk.size() <= 1 << 40 { disk.allocated().map(|_| ()) } else { Ok(()) });
    let disk = Vhdx::open(Arc::new(MemDisk::new(bytes)), Access::ReadWrite(Uuid::new_v4))?;
    disk.zero(0, size(&disk))?;
    disk.flush()?;
    read(&disk).and(first)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn mutated_structures_never_panic(
        edits in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), any::<u8>()), 1..5), child: bool,
    ) {
        let (base, leaf) = samples();
        let mut bytes = if child { leaf } else { base };
        // Headers and region tables, log, metadata, BAT: their beginnings, where something is.
        for (part, at, with) in edits {
            let (start, len) = [(64 << 10, 200 << 10), (1 << 20, 16384), (2 << 20, 70_000), (BAT, 4096)][part];
            bytes[start + at.index(len)] = with;
        }
        fix_checksums(&mut bytes);
        let _ = exercise(bytes);
    }

    #[test]
    fn wild_fields_never_panic(
        field in prop::sample::select(FIELDS), value in prop_oneof![any::<u64>(), 0u64..70, (0u32..64).prop_map(|s| 1 << s)],
        child: bool,
    ) {
        let (base, leaf) = samples();
        let mut bytes = if child { leaf } else { base };
        match field {
            (at, 2) => put_u16_le(&mut bytes, at, value as u16),
            (at, 4) => put_u32_le(&mut bytes, at, value as u32),
            (at, _) => put_u64_le(&mut bytes, at, value),
        }
        fix_checksums(&mut bytes);
        let _ = exercise(bytes);
    }

    #[test]
    fn cut_files_and_noise_never_panic(cut in 0usize..6 << 20, noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (_, mut bytes) = samples();
        bytes.truncate(cut);
        prop_assert!(exercise(bytes).is_err());
        let mut start = b"vhdxfile".to_vec();
        start.extend(&noise);
        prop_assert!(exercise(start).is_err());
    }
}

/// (offset, width) of what a hostile file would choose. Headers, regions, metadata table and items, BAT, log entry.
const FIELDS: &[(usize, u8)] = &[
    ((64 << 10) + 64, 2),
    ((64 << 10) + 66, 2),
    ((64 << 10) + 68, 4),
    ((64 << 10) + 72, 8),
    ((128 << 10) + 68, 4),
    ((128 << 10) + 72, 8),
    ((192 << 10) + 8, 4),
    ((192 << 10) + 32, 8),
    ((192 << 10) + 40, 4),
    ((192 << 10) + 64, 8),
    ((192 << 10) + 72, 4),
    ((2 << 20) + 10, 2),
    ((2 << 20) + 48, 4),
    ((2 << 20) + 52, 4),
    ((2 << 20) + 80, 4),
    ((2 << 20) + (64 << 10), 4),
    ((2 << 20) + (64 << 10) + 4, 4),
    ((2 << 20) + (64 << 10) + 8, 8),
    ((2 << 20) + (64 << 10) + 32, 4),
    (BAT, 8),
    (BAT + 8, 8),
    (BAT + 16, 8),
    ((1 << 20) + 8, 4),
    ((1 << 20) + 12, 4),
    ((1 << 20) + 24, 4),
    ((1 << 20) + 48, 8),
    ((1 << 20) + 56, 8),
    ((1 << 20) + 72, 8),
    ((1 << 20) + 80, 8),
];

/// Makes the checksums of headers, region tables and the first log entry right again, so that the edits get past them.
fn fix_checksums(bytes: &mut [u8]) {
    let entry = u64_le(bytes, (1 << 20) + 8) as u32;
    let entry = if entry.is_multiple_of(4096) && entry <= 1 << 20 { entry as usize } else { 0 };
    for (at, len) in
        [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10), (1 << 20, entry)]
    {
        if len > 0 {
            put_u32_le(bytes, at + 4, 0);
            let crc = crc32c::crc32c(&bytes[at..at + len]);
            put_u32_le(bytes, at + 4, crc);
        }
    }
}

#[test]
fn unknown_versions_and_requirements_are_refused_by_name() {
    let (bytes, _) = samples();
    let with = |at: usize, v: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + v.len()].copy_from_slice(v);
        fix_checksums(&mut bytes);
        Vhdx::open(Arc::new(MemDisk::new(bytes)), Access::ReadOnly).unwrap_err()
    };
    // Both headers: the newer one counts.
    let mut both = bytes.clone();
    both[(64 << 10) + 66] = 9;
    both[(128 << 10) + 66] = 9;
    fix_checksums(&mut both);
    let e = Vhdx::open(Arc::new(MemDisk::new(both)), Access::ReadOnly).unwrap_err();
    assert!(matches!(e, VhdxError::Version { version: 9, .. }) && e.to_string().contains("version 9"), "{e}");
    let stranger = Uuid::from_u128(0xabcd);
    for at in [(192 << 10) + 16, (2 << 20) + 32] {
        let e = with(at, &stranger.to_bytes_le());
        assert!(matches!(e, VhdxError::UnknownRequired { id, .. } if id == stranger), "{e}");
        assert_eq!(e.class(), Class::Corrupt);
    }
}

#[test]
fn one_damaged_header_or_region_table_is_survived_two_are_not() {
    let (bytes, _) = samples();
    for (first, second) in [(64 << 10, 128 << 10), (192 << 10, 256 << 10)] {
        let mut bad = bytes.clone();
        bad[first + 100] ^= 1;
        assert!(Vhdx::open(Arc::new(MemDisk::new(bad.clone())), Access::ReadOnly).is_ok());
        bad[second + 100] ^= 1;
        assert!(matches!(
            Vhdx::open(Arc::new(MemDisk::new(bad)), Access::ReadOnly),
            Err(VhdxError::Corrupt { .. })
        ));
    }
}

#[test]
fn overlapping_blocks_are_refused_for_writing() {
    let (mut bytes, _) = samples();
    let second = u64_le(&bytes, BAT + 16);
    put_u64_le(&mut bytes, BAT + 8, second);
    let file = Arc::new(MemDisk::new(bytes));
    assert!(Vhdx::open(file.clone(), Access::ReadOnly).is_ok());
    let e = Vhdx::open(file.clone(), Access::ReadWrite(Uuid::new_v4)).unwrap_err();
    assert!(matches!(e, VhdxError::Corrupt { what: "blocks overlap", .. }), "{e}");
    assert!(file.len().is_ok());
}
