//! VHDX against a flat vector: random operations, reopening, children, merges; and crashes after every operation.

use std::cell::Cell;
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::crash::{CrashFile, Loss};
use crate::extents::{Extent, Extents};
use crate::io::{MemDisk, RandomAccess};

const MIB: u64 = 1 << 20;
/// Small enough to be quick, not whole blocks: the last block is half a one.
const SIZE: u64 = 8 * MIB + MIB / 2;

thread_local! {
    static NEXT: Cell<u128> = const { Cell::new(1) };
}

/// Ids that count up: a run is the same every time.
fn guids() -> Uuid {
    NEXT.with(|n| Uuid::from_u128(n.replace(n.get() + 1)))
}

fn options() -> CreateOptions {
    CreateOptions { block_size: 1 << 20, ..CreateOptions::new(SIZE, Uuid::from_u128(0xd15c), guids) }
}

fn child_of(parent: &Vhdx) -> CreateOptions {
    let linkage = parent.data_write_guid();
    CreateOptions { parent: Some(ParentLink { linkage, ..ParentLink::default() }), ..options() }
}

fn create(options: &CreateOptions) -> Arc<MemDisk> {
    let file = Arc::new(MemDisk::default());
    Vhdx::create(&*file, options).unwrap();
    file
}

fn content(chain: &Chain) -> Vec<u8> {
    let mut buf = vec![0xee; chain.size() as usize];
    chain.read_at(&mut buf, 0).unwrap();
    buf
}

#[derive(Clone, Debug)]
enum Op {
    Write { offset: u64, len: u64, fill: u8 },
    Zero { offset: u64, len: u64 },
    Flush,
    Reopen,
}

/// Ranges of a few sectors, of about a block, or exactly whole blocks; anywhere on the disk.
fn range() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        (0..SIZE / 512 - 1, 1u64..40).prop_map(|(s, n)| (s * 512, n * 512)),
        (0..SIZE / 512 - 1, 1u64..5000).prop_map(|(s, n)| (s * 512, n * 512)),
        (0..9u64, 1u64..3).prop_map(|(b, n)| (b * MIB, n * MIB)),
    ]
    .prop_map(|(offset, len)| (offset, len.min(SIZE - offset)))
}

fn ops(n: usize) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (range(), 1u8..).prop_map(|((offset, len), fill)| Op::Write { offset, len, fill }),
        3 => range().prop_map(|(offset, len)| Op::Zero { offset, len }),
        2 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 1..n)
}

/// Bytes that differ from sector to sector, so that a mixed-up place shows.
fn pattern(offset: u64, len: u64, fill: u8) -> Vec<u8> {
    (offset..offset + len).map(|at| fill.wrapping_add((at / 512 % 251) as u8) | 1).collect()
}

fn apply(chain: &Chain, model: &mut [u8], op: &Op) {
    match *op {
        Op::Write { offset, len, fill } => {
            let data = pattern(offset, len, fill);
            chain.write_at(&data, offset).unwrap();
            model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
        }
        Op::Zero { offset, len } => {
            chain.zero(offset, len).unwrap();
            model[offset as usize..(offset + len) as usize].fill(0);
        }
        Op::Flush => chain.flush().unwrap(),
        Op::Reopen => {}
    }
}

/// Everything that is not zero in the model must be covered by the map.
fn check_allocated(chain: &Chain, model: &[u8]) {
    let allocated = chain.allocated().unwrap();
    for (i, sector) in model.chunks(512).enumerate() {
        if sector.iter().any(|b| *b != 0) {
            assert!(
                allocated.contains_range(i as u64 * 512, sector.len() as u64),
                "sector {i} is not in the map"
            );
        }
    }
    assert!(allocated.end() <= chain.size());
}

fn open(files: &[Arc<MemDisk>], access: Access) -> Chain {
    let mut access = Some(access);
    let layers =
        files.iter().map(|f| Vhdx::open(f.clone(), access.take().unwrap_or(Access::ReadOnly)).unwrap());
    Chain::of(layers.collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_file_holds_what_was_written(fixed: bool, ops in ops(24)) {
        let files = [create(&CreateOptions { fixed, ..options() })];
        let mut model = vec![0; SIZE as usize];
        let mut disk = open(&files, Access::ReadWrite(guids));
        for op in &ops {
            if matches!(op, Op::Reopen) {
                drop(disk);
                disk = open(&files, Access::ReadWrite(guids));
            }
            apply(&disk, &mut model, op);
        }
        prop_assert!(content(&disk) == model);
        check_allocated(&disk, &model);
        disk.flush().unwrap();
        // A second reader sees what was flushed, although the log is dirty.
        prop_assert!(content(&open(&files, Access::ReadOnly)) == model);
        drop(disk);
        prop_assert!(content(&open(&files, Access::ReadOnly)) == model);
    }

    #[test]
    fn a_chain_holds_what_was_written_to_each_leaf_and_survives_merging(
        base in ops(10), middle in ops(16), leaf in ops(16),
    ) {
        let mut model = vec![0; SIZE as usize];
        let mut files: Vec<Arc<MemDisk>> = Vec::new();
        for (level, ops) in [base, middle, leaf].iter().enumerate() {
            let options = match files.first() {
                None => options(),
                Some(parent) => child_of(&Vhdx::open(parent.clone(), Access::ReadOnly).unwrap()),
            };
            files.insert(0, create(&options));
            let mut disk = open(&files, Access::ReadWrite(guids));
            for op in ops {
                if matches!(op, Op::Reopen) {
                    drop(disk);
                    disk = open(&files, Access::ReadWrite(guids));
                }
                apply(&disk, &mut model, op);
            }
            prop_assert!(content(&disk) == model, "level {}", level);
            check_allocated(&disk, &model);
        }
        // Merge leaf into middle in two steps: the view through the leaf stays the same all the time.
        let leaf = Vhdx::open(files[0].clone(), Access::ReadOnly).unwrap();
        let middle = Vhdx::open(files[1].clone(), Access::Merge(guids)).unwrap();
        let linkage = leaf.parent_locator().unwrap().linkage;
        for half in [Extents::one(0, SIZE / 3), Extents::one(SIZE / 3, SIZE)] {
            merge_ranges(&leaf, &middle, &half).unwrap();
            middle.flush().unwrap();
            prop_assert!(content(&open(&files, Access::ReadOnly)) == model);
        }
        prop_assert_eq!(middle.data_write_guid(), linkage);
        drop(middle);
        prop_assert!(content(&open(&files[1..], Access::ReadOnly)) == model);
    }

    #[test]
    fn unaligned_writes_through_a_chain_keep_their_neighbours(
        writes in prop::collection::vec((0..SIZE - 3000, 1u64..3000, 1u8.., any::<bool>()), 1..12),
    ) {
        let base = create(&options());
        Vhdx::open(base.clone(), Access::ReadWrite(guids)).unwrap().write_at(&vec![7; SIZE as usize], 0).unwrap();
        let leaf = create(&child_of(&Vhdx::open(base.clone(), Access::ReadOnly).unwrap()));
        let disk = open(&[leaf, base], Access::ReadWrite(guids));
        let mut model = vec![7; SIZE as usize];
        for (offset, len, fill, zero) in writes {
            let op = if zero { Op::Zero { offset, len } } else { Op::Write { offset, len, fill } };
            apply(&disk, &mut model, &op);
        }
        prop_assert!(content(&disk) == model);
    }
}

/// The script of the crash tests: first writes, overwrites, trims, blocks given back and used again, between flushes.
fn script() -> Vec<Op> {
    let write = |offset, len, fill| Op::Write { offset, len, fill };
    vec![
        write(0, 4096, 1),
        write(3 * MIB + 512, 2 * MIB, 20),
        Op::Flush,
        write(0, 8192, 40),
        Op::Zero { offset: 4 * MIB, len: MIB },
        write(6 * MIB, 1024, 60),
        Op::Flush,
        write(7 * MIB + 512, 1024, 80),
        write(4 * MIB + 512, 512, 100),
        Op::Zero { offset: 0, len: MIB },
        write(2048, 512, 120),
        Op::Flush,
        write(6 * MIB + 512, 1024, 140),
        Op::Zero { offset: 6 * MIB, len: 512 },
        write(8 * MIB, MIB / 2, 160),
        Op::Flush,
        // For the flush of `close`.
        write(2 * MIB + 512, 512, 180),
        Op::Zero { offset: 4 * MIB, len: MIB },
    ]
}

/// What a sector may hold after a crash: any content since the last flush that returned.
struct Allowed {
    sectors: Vec<Vec<u8>>,
    model: Vec<u8>,
}

impl Allowed {
    fn new(start: Vec<u8>) -> Self {
        Self { sectors: vec![Vec::new(); start.len() / 512], model: start }
    }

    /// Applies what was tried; true content of each sector is told by its first byte (see `pattern`).
    fn tried(&mut self, op: &Op) {
        let (offset, data) = match *op {
            Op::Write { offset, len, fill } => (offset, pattern(offset, len, fill)),
            Op::Zero { offset, len } => (offset, vec![0; len as usize]),
            Op::Flush | Op::Reopen => return,
        };
        for (i, sector) in data.chunks(512).enumerate() {
            let s = offset as usize / 512 + i;
            self.sectors[s].push(self.model[s * 512]);
            self.model[s * 512..s * 512 + 512].copy_from_slice(sector);
        }
    }

    fn flushed(&mut self) {
        self.sectors.iter_mut().for_each(Vec::clear);
    }

    fn check(&self, found: &[u8], what: &str) {
        for (s, sector) in found.chunks(512).enumerate() {
            assert!(sector.iter().all(|b| *b == sector[0]), "{what}: sector {s} is torn");
            let ok = sector[0] == self.model[s * 512] || self.sectors[s].contains(&sector[0]);
            assert!(
                ok,
                "{what}: sector {s} holds {}, not {} {:?}",
                sector[0],
                self.model[s * 512],
                self.sectors[s]
            );
        }
    }
}

/// Runs the script over a file that dies after `cut` operations; checks every way the unflushed writes may fare.
/// Returns false when the script ended before the cut.
fn crash_at(cut: u64, start: &[u8], parent: Option<&Arc<MemDisk>>, first: &[u8]) -> bool {
    let file = Arc::new(CrashFile::new(start.to_vec()));
    let layers = |leaf: Vhdx| {
        let parent = parent.map(|p| Vhdx::open(p.clone(), Access::ReadOnly).unwrap());
        Chain::of(std::iter::once(leaf).chain(parent).collect())
    };
    let disk = layers(Vhdx::open(file.clone(), Access::ReadWrite(guids)).unwrap());
    let mut allowed = Allowed::new(first.to_vec());
    file.cut_after(cut);
    let mut cut_off = false;
    for op in script() {
        allowed.tried(&op);
        let done = match op {
            Op::Write { offset, len, fill } => disk.write_at(&pattern(offset, len, fill), offset),
            Op::Zero { offset, len } => disk.zero(offset, len),
            Op::Flush => disk.flush(),
            Op::Reopen => Ok(()),
        };
        match (done, &op) {
            (Ok(()), Op::Flush) => allowed.flushed(),
            (Ok(()), _) => {}
            (Err(_), _) => {
                cut_off = true;
                break;
            }
        }
    }
    match disk.close() {
        Ok(()) => allowed.flushed(),
        Err(_) => cut_off = true,
    }
    let fates = [Loss::All, Loss::Nothing].into_iter().chain((0..6).map(|i| Loss::Some(cut * 31 + i)));
    for loss in fates {
        let what = format!("cut after {cut}, {loss:?}");
        let left = Arc::new(file.crash_with(loss));
        // Other readers may take a LogGuid without an entry for damage.
        let header = header::Header::read(&*left).unwrap_or_else(|e| panic!("{what}: {e}"));
        let replay = log::read(&*left, &header, left.len().unwrap()).unwrap();
        assert_eq!(
            replay.is_some(),
            !header.log.is_nil(),
            "{what}: a log is named and has an entry, or neither"
        );
        let read_only =
            layers(Vhdx::open(left.clone(), Access::ReadOnly).unwrap_or_else(|e| panic!("{what}: {e}")));
        let seen = content(&read_only);
        allowed.check(&seen, &what);
        // Replayed into the file it says the same, and the file can be written again without harm.
        let again = layers(
            Vhdx::open(left.clone(), Access::ReadWrite(guids)).unwrap_or_else(|e| panic!("{what}: {e}")),
        );
        assert!(content(&again) == seen, "{what}: replay in memory and in the file differ");
        if matches!(loss, Loss::Some(seed) if seed % 3 != 0) {
            continue;
        }
        let mut model = seen;
        for op in script() {
            apply(&again, &mut model, &op);
        }
        assert!(content(&again) == model, "{what}: writing after recovery");
        drop(again);
        let layer = Vhdx::open(left, Access::ReadOnly).unwrap();
        assert!(content(&layers(layer)) == model, "{what}: reopening after recovery");
    }
    cut_off
}

#[test]
fn a_crash_after_any_operation_on_a_dynamic_file_loses_only_what_was_not_flushed() {
    let start = create(&options()).to_vec();
    let zero = vec![0; SIZE as usize];
    let cuts = (0..).take_while(|cut| crash_at(*cut, &start, None, &zero)).count();
    assert!(cuts > 30, "only {cuts} places to cut at");
}

#[test]
fn a_crash_after_any_operation_on_a_child_loses_only_what_was_not_flushed() {
    let base = create(&options());
    let below = pattern(0, SIZE, 200);
    Vhdx::open(base.clone(), Access::ReadWrite(guids)).unwrap().write_at(&below, 0).unwrap();
    let start = create(&child_of(&Vhdx::open(base.clone(), Access::ReadOnly).unwrap())).to_vec();
    let cuts = (0..).take_while(|cut| crash_at(*cut, &start, Some(&base), &below)).count();
    assert!(cuts > 30, "only {cuts} places to cut at");
}

#[test]
fn a_crash_while_recovering_from_a_crash_recovers_the_same() {
    let file = Arc::new(CrashFile::new(create(&options()).to_vec()));
    let disk = Vhdx::open(file.clone(), Access::ReadWrite(guids)).unwrap();
    disk.write_at(&pattern(0, 2 * MIB, 3), MIB).unwrap();
    disk.flush().unwrap();
    disk.write_at(&pattern(0, MIB, 5), 5 * MIB).unwrap();
    disk.flush().unwrap();
    // The pages of the last commit are in the log only.
    let left = file.crash();
    let chain = |file: Arc<dyn RandomAccess>| Chain::of(vec![Vhdx::open(file, Access::ReadOnly).unwrap()]);
    let want = content(&chain(Arc::new(MemDisk::new(left.to_vec()))));
    assert!(want[5 * MIB as usize] != 0);
    let mut recovered = false;
    for cut in 0.. {
        let file = Arc::new(CrashFile::new(left.to_vec()));
        file.cut_after(cut);
        recovered = Vhdx::open(file.clone(), Access::ReadWrite(guids)).is_ok();
        for loss in [Loss::All, Loss::Nothing].into_iter().chain((0..16).map(|i| Loss::Some(cut * 31 + i))) {
            assert!(content(&chain(Arc::new(file.crash_with(loss)))) == want, "cut after {cut}, {loss:?}");
        }
        if recovered {
            assert!(cut >= 4, "pages, flush, header, flush");
            break;
        }
    }
    assert!(recovered);
}

#[test]
fn what_a_leaf_trimmed_is_not_allocated_although_a_parent_has_it() {
    let base = create(&options());
    Vhdx::open(base.clone(), Access::ReadWrite(guids))
        .unwrap()
        .write_at(&vec![7; 4 * MIB as usize], 0)
        .unwrap();
    let leaf = create(&child_of(&Vhdx::open(base.clone(), Access::ReadOnly).unwrap()));
    let disk = open(&[leaf, base], Access::ReadWrite(guids));
    disk.zero(MIB, MIB).unwrap();
    disk.write_at(&[1; 512], 6 * MIB).unwrap();
    let want: Extents =
        [Extent::new(0, MIB), Extent::new(2 * MIB, 2 * MIB), Extent::new(6 * MIB, 512)].into_iter().collect();
    assert_eq!(disk.allocated().unwrap(), want);
    let leaf = &disk.layers()[0];
    assert_eq!(leaf.allocated().unwrap(), Extents::one(6 * MIB, 512));
    assert_eq!(leaf.present().unwrap(), Extents::one(MIB, MIB).union(&Extents::one(6 * MIB, 512)));
}

#[test]
fn space_given_back_is_used_again() {
    let file = create(&options());
    let disk = Vhdx::open(file.clone(), Access::ReadWrite(guids)).unwrap();
    for round in 0..20u64 {
        disk.write_at(&vec![round as u8 + 1; MIB as usize], round % 4 * MIB).unwrap();
        disk.flush().unwrap();
        disk.zero(round % 4 * MIB, MIB).unwrap();
        disk.flush().unwrap();
    }
    // 4 MiB of structures, and the one block in use at a time has at most one successor.
    assert!(file.len().unwrap() <= 6 * MIB, "{}", file.len().unwrap());
    assert_eq!(disk.allocated().unwrap(), Extents::new());
}

#[test]
fn bits_of_an_earlier_life_of_a_block_do_not_come_back() {
    let base = create(&options());
    Vhdx::open(base.clone(), Access::ReadWrite(guids)).unwrap().write_at(&vec![7; SIZE as usize], 0).unwrap();
    let leaf = create(&child_of(&Vhdx::open(base.clone(), Access::ReadOnly).unwrap()));
    open(&[leaf.clone(), base.clone()], Access::ReadWrite(guids)).write_at(&[8; 1024], MIB).unwrap();
    // Another writer gives the block back to the parent and leaves its bits; the BAT is at 3 MiB.
    leaf.write_at(&[0; 8], 3 * MIB + 8).unwrap();
    let disk = open(&[leaf, base], Access::ReadWrite(guids));
    disk.write_at(&[9; 512], MIB + 4096).unwrap();
    let mut want = vec![7; SIZE as usize];
    want[(MIB + 4096) as usize..(MIB + 4608) as usize].fill(9);
    assert!(content(&disk) == want);
}

#[test]
fn many_changes_without_a_flush_are_committed_in_several_entries() {
    // Blocks of one MiB: 2048 blocks have their bits in 2048 / 16 pages, more than one commit takes.
    let size = 2048 * MIB;
    let base = create(&CreateOptions { size, ..options() });
    let parent = Vhdx::open(base.clone(), Access::ReadOnly).unwrap();
    let leaf = create(&CreateOptions { size, ..child_of(&parent) });
    let disk = open(&[leaf.clone(), base.clone()], Access::ReadWrite(guids));
    for i in 0..160u64 {
        disk.write_at(&[i as u8 + 1; 512], i * 16 * MIB % size + i * 512).unwrap();
    }
    disk.close().unwrap();
    let again = open(&[leaf, base], Access::ReadOnly);
    let mut buf = [0; 512];
    for i in 0..160u64 {
        again.read_at(&mut buf, i * 16 * MIB % size + i * 512).unwrap();
        assert_eq!(buf, [i as u8 + 1; 512]);
    }
    let want: Extents = (0..160u64).map(|i| Extent::new(i * 16 * MIB % size + i * 512, 512)).collect();
    assert_eq!(again.allocated().unwrap(), want);
}

#[test]
fn the_ids_change_at_the_first_write_and_not_before() {
    let file = create(&options());
    let before = Vhdx::open(file.clone(), Access::ReadOnly).unwrap().data_write_guid();
    let disk = Vhdx::open(file.clone(), Access::ReadWrite(guids)).unwrap();
    assert_eq!(disk.data_write_guid(), before);
    disk.write_at(&[1; 512], 0).unwrap();
    let after = disk.data_write_guid();
    assert_ne!(after, before);
    disk.write_at(&[1; 512], 0).unwrap();
    assert_eq!(disk.data_write_guid(), after);
    drop(disk);
    let disk = Vhdx::open(file, Access::Merge(guids)).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    assert_eq!(disk.data_write_guid(), after);
}

#[test]
fn a_volume_that_is_full_fails_the_write_and_harms_nothing() {
    struct Full(MemDisk);
    impl RandomAccess for Full {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
            self.0.read_at(buf, off)
        }
        fn write_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
            if off + buf.len() as u64 > 6 * MIB {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                self.0.write_at(buf, off)
            }
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn flush(&self) -> io::Result<()> {
            self.0.flush()
        }
    }
    let file = Arc::new(Full(MemDisk::new(create(&options()).to_vec())));
    let disk = Vhdx::open(file.clone(), Access::ReadWrite(guids)).unwrap();
    disk.write_at(&vec![1; 2 * MIB as usize], 0).unwrap();
    let refused = disk.write_at(&[2; 512], 5 * MIB).unwrap_err();
    assert_eq!(refused.class(), Class::Io);
    assert_eq!(io::Error::from(refused).kind(), io::ErrorKind::StorageFull);
    disk.flush().unwrap();
    drop(disk);
    let again = Vhdx::open(file, Access::ReadOnly).unwrap();
    assert_eq!(again.allocated().unwrap(), Extents::one(0, 2 * MIB));
}

#[test]
fn use_that_cannot_be_is_refused_by_name() {
    let file = create(&options());
    let disk = Vhdx::open(file.clone(), Access::ReadOnly).unwrap();
    assert!(matches!(disk.write_at(&[0; 512], 0), Err(VhdxError::ReadOnly)));
    assert!(matches!(disk.read_at(&mut [0; 2], SIZE - 1), Err(VhdxError::OutOfRange { .. })));
    assert!(matches!(disk.read_at(&mut [0; 2], u64::MAX), Err(VhdxError::OutOfRange { .. })));
    let leaf = create(&child_of(&disk));
    let leaf = Vhdx::open(leaf, Access::ReadWrite(guids)).unwrap();
    assert!(matches!(leaf.write_at(&[0; 100], 0), Err(VhdxError::Unaligned { .. })));
    for e in [VhdxError::ReadOnly, VhdxError::Options("x")] {
        assert_eq!(e.class(), Class::Usage);
    }
}

#[test]
fn large_reads_are_large_reads_of_the_file() {
    struct Counting(MemDisk, std::sync::atomic::AtomicU64);
    impl RandomAccess for Counting {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.0.read_at(buf, off)
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }
    let file = create(&options());
    let data = pattern(0, SIZE, 3);
    Vhdx::open(file.clone(), Access::ReadWrite(guids)).unwrap().write_at(&data, 0).unwrap();
    let counting = Arc::new(Counting(MemDisk::new(file.to_vec()), 0.into()));
    let disk = Vhdx::open(counting.clone(), Access::ReadOnly).unwrap();
    let before = counting.1.load(std::sync::atomic::Ordering::Relaxed);
    let mut buf = vec![0; SIZE as usize];
    disk.read_at(&mut buf, 0).unwrap();
    assert!(buf == data);
    // Nine blocks one after the other in the file.
    assert_eq!(counting.1.load(std::sync::atomic::Ordering::Relaxed) - before, 1);
}

#[test]
fn threads_that_write_trim_read_and_flush_at_once_do_not_mix_up_their_bytes() {
    let base = create(&options());
    Vhdx::open(base.clone(), Access::ReadWrite(guids)).unwrap().write_at(&pattern(0, SIZE, 9), 0).unwrap();
    let leaf = create(&child_of(&Vhdx::open(base.clone(), Access::ReadOnly).unwrap()));
    for files in [vec![leaf, base.clone()], vec![base]] {
        let disk = open(&files, Access::ReadWrite(guids));
        let threads = 4;
        std::thread::scope(|scope| {
            for t in 0..threads {
                let disk = &disk;
                // Each owns every fourth half block, so that blocks and bitmaps are shared and bytes are not.
                scope.spawn(move || {
                    for round in 0..60u64 {
                        for piece in (t..SIZE / (MIB / 2)).step_by(threads as usize) {
                            let (offset, len) = (piece * MIB / 2 + round % 7 * 512, 16384);
                            let data = pattern(offset, len, (round + t) as u8);
                            let want = if (round + piece).is_multiple_of(3) {
                                disk.zero(offset, len).unwrap();
                                vec![0; len as usize]
                            } else {
                                disk.write_at(&data, offset).unwrap();
                                data
                            };
                            let mut got = vec![0; len as usize];
                            disk.read_at(&mut got, offset).unwrap();
                            assert!(got == want, "thread {t}, round {round}, piece {piece}");
                        }
                        if round % 8 == t {
                            disk.flush().unwrap();
                        }
                    }
                });
            }
        });
    }
}
