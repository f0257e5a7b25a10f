//! Input that cannot be used: refused with its code, nothing already there lost, and a way out.

use bytes::Bytes;
use farshore_azure::{Condition, crc64};
use farshore_core::format::commit::{Commit, Kind};
use farshore_core::format::ledger::LedgerState;
use farshore_core::format::list::SegmentList;
use farshore_core::format::side::Side;
use farshore_core::ids::{Cycle, Hash, Term};
use farshore_core::names;

use crate::source::{Lab, Source, every_cycle, policy, settle};

const MIB: u64 = 1 << 20;

/// How a cycle is spoilt, after it was uploaded.
type After = fn(&mut Source) -> Spoil;

enum Spoil {
    /// A blob below the cycle whose name has this in it gets other bytes; `None`: it goes.
    Blob(&'static str, Option<fn(Vec<u8>) -> Vec<u8>>),
    /// It was spoilt before.
    Done,
}

fn commit(vm: &mut Source, change: fn(&mut Commit)) -> Spoil {
    vm.change_commit = Some(Box::new(change));
    Spoil::Done
}

fn list(vm: &mut Source, change: fn(&mut SegmentList)) -> Spoil {
    vm.change_list = Some(Box::new(change));
    Spoil::Done
}

async fn spoil(vm: &Source, part: &str, how: Option<fn(Vec<u8>) -> Vec<u8>>) {
    let prefix = names::cycle_prefix(vm.previous.unwrap().id);
    let name = vm.uploaded(&prefix).await.into_iter().find(|n| n.contains(part)).unwrap();
    match how {
        None => assert!(vm.store.up.delete(&name, None).await.unwrap()),
        Some(how) => {
            let bytes = vm.store.up.get(&name, 64 << 20).await.unwrap().unwrap().bytes;
            let bytes: Bytes = how(bytes.to_vec()).into();
            vm.store.up.put_if(&name, bytes, &Condition::None).await.unwrap();
        }
    }
}

const CASES: &[(&str, &str, After)] = &[
    ("a flipped bit in a segment", "CorruptSegment", |_| {
        Spoil::Blob(
            "-000000-",
            Some(|mut b| {
                b[200] ^= 4;
                b
            }),
        )
    }),
    ("a segment cut short", "CorruptSegment", |_| {
        Spoil::Blob("-000000-", Some(|b| b[..b.len() - 1].to_vec()))
    }),
    ("a longer segment", "CorruptSegment", |_| Spoil::Blob("-000000-", Some(|b| [b, vec![0]].concat()))),
    ("a segment gone", "MissingSegment", |_| Spoil::Blob("-000000-", None)),
    ("a list gone", "MissingSegment", |_| Spoil::Blob(".list-", None)),
    ("another list", "CorruptCommit", |_| Spoil::Blob(".list-", Some(|b| [b, b" ".to_vec()].concat()))),
    ("a list over its limit", "CorruptCommit", |_| {
        Spoil::Blob(".list-", Some(|_| vec![b' '; (16 << 20) + 1]))
    }),
    ("a commit over its limit", "CorruptCommit", |_| {
        Spoil::Blob("commit", Some(|_| vec![b' '; (1 << 20) + 1]))
    }),
    ("no JSON", "CorruptCommit", |_| Spoil::Blob("commit", Some(|_| b"hello".to_vec()))),
    ("a newer commit", "UnreadableFormat", |vm| commit(vm, |c| c.min_reader = 9)),
    ("a newer list", "UnreadableFormat", |vm| list(vm, |l| l.min_reader = 9)),
    ("another VM's", "CorruptCommit", |vm| commit(vm, |c| c.vm_id.0 = uuid::Uuid::nil())),
    ("another cycle under this name", "CorruptCommit", |vm| {
        commit(vm, |c| {
            c.cycle = Cycle(6);
            c.previous.as_mut().unwrap().id.cycle = Cycle(5);
        })
    }),
    ("a fork", "ForkedChain", |vm| commit(vm, |c| c.previous.as_mut().unwrap().hash = Hash([1; 32]))),
    ("a disk that grew", "CorruptCommit", |vm| commit(vm, |c| c.disks[0].virtual_size += MIB)),
    ("a disk beyond page blobs", "DiskTooLarge", |vm| commit(vm, |c| c.disks[0].virtual_size = 9 << 40)),
    ("a foreign disk", "CorruptCommit", |vm| commit(vm, |c| c.disks[0].disk_id.0 = uuid::Uuid::nil())),
    ("a range beyond the disk", "CorruptCommit", |vm| {
        list(vm, |l| l.segments[0].ranges.last_mut().unwrap().1 = 64 * MIB)
    }),
    ("a range that the segment lacks", "CorruptSegment", |vm| {
        list(vm, |l| {
            let last = l.segments[0].ranges.last_mut().unwrap();
            last.1 -= 512;
            if last.1 == 0 {
                l.segments[0].ranges.pop();
            }
        })
    }),
    ("a list of another disk", "CorruptCommit", |vm| list(vm, |l| l.disk_id.0 = uuid::Uuid::nil())),
    ("a segment over its limit", "CorruptCommit", |vm| list(vm, |l| l.segments[0].stored = 65 << 20)),
    ("failback's", "CorruptCommit", |vm| commit(vm, |c| c.kind = Kind::Failback)),
];

// DESIGN 6: a gap, fork or wrong hash stops the apply; it is never papered over.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_its_code_and_nothing_is_lost() {
    let lab = Lab::start().await;
    for (name, code, how) in CASES {
        let mut vm = lab.vm(&[MIB, MIB]).await;
        let mut task = vm.task();
        vm.protect().await;
        settle(&mut task, &every_cycle()).await;
        let good = vm.cursor().await;
        vm.scribble(77);
        let after = how(&mut vm);
        vm.delta().await;
        if let Spoil::Blob(part, how) = after {
            spoil(&vm, part, how).await;
        }
        // What comes after a bad cycle is not looked at.
        vm.scribble(78);
        vm.delta().await;
        settle(&mut task, &every_cycle()).await;
        settle(&mut task, &every_cycle()).await;
        let cursor = vm.cursor().await;
        let refused = cursor.refused.clone().unwrap_or_else(|| panic!("{name}: not refused"));
        assert_eq!(
            (refused.code.as_str(), refused.id.cycle),
            (*code, Cycle(5)),
            "{name}: {}",
            refused.message
        );
        assert_eq!((cursor.verified, cursor.applied), (good.verified, good.applied), "{name}");
        assert_eq!(vm.prove_points().await, [4], "{name}");
        // Another worker comes to the same.
        settle(&mut vm.task(), &every_cycle()).await;
        assert_eq!(vm.cursor().await.refused, Some(refused), "{name}");

        // The way out: a new stream that goes on from what was verified.
        vm.new_stream(2, false).await;
        vm.delta().await;
        settle(&mut task, &every_cycle()).await;
        let cursor = vm.cursor().await;
        assert_eq!(cursor.refused, None, "{name}");
        assert_eq!(cursor.applied, vm.previous, "{name}");
        assert_eq!(vm.prove_points().await, [4, 1], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_never_jumped() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB]).await;
    let mut task = vm.task();
    vm.protect().await;
    vm.delta().await;
    spoil(&vm, "commit", None).await;
    vm.delta().await;
    settle(&mut task, &every_cycle()).await;
    let cursor = vm.cursor().await;
    assert_eq!((cursor.verified.unwrap().commit.id.cycle, cursor.refused), (Cycle(4), None));
}

// FORMATS: only the ledger's term and stream are handled.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_another_writer_or_side_stops_everything() {
    let lab = Lab::start().await;
    for case in ["term", "stream", "azure", "released", "gone"] {
        let mut vm = lab.vm(&[MIB]).await;
        let mut task = vm.task();
        vm.protect().await;
        settle(&mut task, &policy()).await;
        let good = vm.cursor().await;
        match case {
            "term" => vm.write_ledger(2, 1, |_| ()).await,
            "stream" => vm.write_ledger(1, 2, |_| ()).await,
            "azure" => vm.write_ledger(1, 1, |l| l.owner = Side::Azure).await,
            "released" => vm.write_ledger(1, 1, |l| l.state = LedgerState::Released).await,
            _ => assert!(vm.store.replica.delete(names::LEDGER, None).await.unwrap()),
        }
        vm.scribble(5);
        vm.delta().await;
        settle(&mut task, &every_cycle()).await;
        let cursor = vm.cursor().await;
        assert_eq!((cursor.verified, cursor.applied), (good.verified, good.applied), "{case}");
        assert_eq!(vm.prove_points().await, [4], "{case}");
        // The stream that the ledger raised is taken up in the cursor, which bars the one before.
        if case == "stream" {
            assert_eq!(cursor.stream.0, 2);
        }
        if case == "term" {
            assert_eq!(cursor.term, Term(2));
        }
    }
}

// A verified segment is lost before it was applied: nothing of the backlog can be used, and only a full copy of
// every disk is accepted after it. The points before stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_verified_cycle_that_storage_lost_is_mended_by_a_full_copy_only() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB, MIB]).await;
    let mut task = vm.task();
    vm.protect().await;
    settle(&mut task, &policy()).await;
    vm.scribble(5);
    vm.delta().await;
    settle(&mut task, &policy()).await;
    let lost = vm.previous.unwrap();
    assert_eq!(vm.cursor().await.verified.unwrap().commit, lost, "verified, and waiting for the boundary");
    spoil(&vm, "-000000-", None).await;
    // A worker without the segments in memory.
    let mut task = vm.task();
    for seed in 6..9 {
        vm.scribble(seed);
        vm.delta().await;
    }
    settle(&mut task, &policy()).await;
    settle(&mut task, &policy()).await;
    let cursor = vm.cursor().await;
    let refused = cursor.refused.unwrap();
    assert_eq!((refused.id, refused.code.as_str()), (lost.id, "MissingSegment"));
    assert_eq!(cursor.applied.unwrap().id.cycle, Cycle(4));

    // A stream that goes on from there does not help.
    vm.new_stream(2, false).await;
    vm.delta().await;
    settle(&mut task, &policy()).await;
    let cursor = vm.cursor().await;
    assert_eq!(cursor.applied.unwrap().id.cycle, Cycle(4));
    let refused = cursor.refused.unwrap();
    assert_eq!((Some(refused.id), refused.code.as_str()), (vm.previous.map(|p| p.id), "MissingSegment"));

    vm.new_stream(3, true).await;
    vm.base(None).await;
    vm.scribble(9);
    vm.delta().await;
    settle(&mut task, &policy()).await;
    let cursor = vm.cursor().await;
    assert_eq!((cursor.refused, cursor.applied), (None, vm.previous));
    assert_eq!(vm.prove_points().await, [4, 2]);
}

// A Base cycle is verified while it is applied. One that turns out to be bad leaves bytes behind; where the next
// stream finds nothing to send any more, they must go.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_refused_base_cycle_left_behind_is_cleared() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[4 * MIB]).await;
    let mut task = vm.task();
    vm.fill(0, 0, 4 * MIB, 5);
    vm.base(Some(MIB / 2)).await;
    settle(&mut task, &policy()).await;
    vm.base(Some(3 * MIB + MIB / 2)).await;
    // The last of its 24 segments is bad: most of those before are in the replica by then.
    let prefix = names::cycle_prefix(vm.previous.unwrap().id);
    let last = vm
        .uploaded(&prefix)
        .await
        .into_iter()
        .rfind(|n| !n.contains("list") && !n.ends_with("commit"))
        .unwrap();
    vm.store.up.put_if(&last, Bytes::from_static(b"junk"), &Condition::None).await.unwrap();
    settle(&mut task, &policy()).await;
    let cursor = vm.cursor().await;
    assert_eq!(cursor.refused.unwrap().code, "CorruptSegment");
    let dirty = vm.replica(0).await;
    assert!(dirty[(MIB / 2) as usize..].contains(&5), "it left something");
    assert_eq!(vm.prove_points().await, [0; 0]);

    // The guest trims that part meanwhile.
    vm.new_stream(2, false).await;
    vm.disks[0].bytes[(MIB / 2) as usize..].fill(0);
    vm.fill(0, 4096, 512, 8);
    vm.base(None).await;
    vm.delta().await;
    settle(&mut task, &policy()).await;
    assert_eq!(vm.cursor().await.applied, vm.previous);
    assert_eq!(vm.prove_points().await, [2]);
}

// The replica holds half of a Base cycle that was refused: nothing in it is a state that the disk ever had.
#[tokio::test(flavor = "multi_thread")]
async fn no_set_is_made_of_a_replica_that_a_refused_cycle_spoilt() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[2 * MIB]).await;
    let mut task = vm.task();
    vm.protect().await;
    settle(&mut task, &policy()).await;
    vm.scribble(5);
    vm.delta().await;
    settle(&mut task, &policy()).await;
    task.flush(&policy()).await.unwrap();
    assert_eq!(vm.cursor().await.applied.unwrap().id.cycle, Cycle(5), "applied, and no set yet");
    vm.fill(0, 0, 2 * MIB, 6);
    vm.base(None).await;
    let prefix = names::cycle_prefix(vm.previous.unwrap().id);
    let last =
        vm.uploaded(&prefix).await.into_iter().rfind(|n| !n.contains("list") && !n.ends_with("commit"));
    vm.store.up.put_if(&last.unwrap(), Bytes::from_static(b"junk"), &Condition::None).await.unwrap();
    settle(&mut task, &policy()).await;
    assert_eq!(vm.cursor().await.refused.unwrap().id.cycle, Cycle(6));
    assert_ne!(vm.replica(0).await, vm.held.values().rev().nth(1).unwrap()[0], "it is spoilt");
    settle(&mut vm.task(), &every_cycle()).await;
    assert_eq!(vm.prove_points().await, [4]);
}

// A disk that grew, or shrank, on the host is copied anew into the same replica; the points before keep its
// former size.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_copy_takes_the_size_that_the_disk_has_now() {
    let lab = Lab::start().await;
    for size in [3 * MIB, MIB, MIB / 2] {
        let mut vm = lab.vm(&[2 * MIB, MIB]).await;
        let mut task = vm.task();
        vm.protect().await;
        settle(&mut task, &every_cycle()).await;
        vm.new_stream(2, true).await;
        vm.disks[0].bytes.resize(size as usize, 7);
        vm.scribble(5);
        vm.base(None).await;
        vm.delta().await;
        settle(&mut task, &every_cycle()).await;
        assert_eq!(vm.cursor().await.applied, vm.previous);
        assert_eq!(vm.prove_points().await, [4, 2]);
    }
}

// Commits of the stream before that arrive late are never applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_of_the_stream_before_changes_nothing() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB]).await;
    let mut task = vm.task();
    vm.protect().await;
    settle(&mut task, &every_cycle()).await;
    let before = vm.previous;
    vm.new_stream(2, false).await;
    let stream_2 = vm.next;
    // The old agent does not know yet.
    vm.next = before.unwrap().id.next();
    vm.scribble(5);
    vm.delta().await;
    settle(&mut task, &every_cycle()).await;
    assert_eq!(vm.cursor().await.verified.map(|v| v.commit), before);
    // The new one goes on from the base.
    (vm.next, vm.previous) = (stream_2, before);
    vm.disks[0].bytes = vm.held[&before.unwrap().id][0].clone();
    vm.scribble(6);
    vm.delta().await;
    settle(&mut task, &every_cycle()).await;
    assert_eq!(vm.cursor().await.applied, vm.previous);
    assert_eq!(vm.prove_points().await, [4, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_blob_under_the_commits_name_is_refused_whoever_put_it() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB]).await;
    let mut task = vm.task();
    vm.protect().await;
    let foreign = Bytes::from_static(b"{}");
    vm.store.up.put_new(&names::commit(vm.next), foreign.clone(), crc64(&foreign)).await.unwrap();
    settle(&mut task, &every_cycle()).await;
    assert_eq!(vm.cursor().await.refused.unwrap().code, "CorruptCommit");
}
