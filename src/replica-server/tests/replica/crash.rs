//! Killed at every named point, and delayed at every point while another worker goes on.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use farshore_core::format::cursor::Cursor;
use farshore_replica_server::{Crash, CrashPoint, Next, Policy, VmTask};
use futures::StreamExt as _;

use crate::source::{Lab, Source, every_cycle, policy, settle};

const MIB: u64 = 1 << 20;

/// Two days, so that the clock alone ages points.
const LATER: i64 = 2 * 86_400;

/// What happens to the VM in one life; after each phase the worker works until there is nothing left to do.
const PHASES: usize = 5;

async fn phase(vm: &mut Source, number: usize) {
    match number {
        0 => vm.protect().await,
        1 => {
            for seed in 20..22 {
                vm.scribble(seed);
                vm.delta().await;
            }
        }
        // A full copy in a new stream, from other contents: much of the disks is empty now.
        2 => {
            vm.new_stream(2, true).await;
            vm.fill(0, 0, MIB, 0);
            vm.scribble(30);
            vm.base(Some(500 << 10)).await;
            vm.scribble(31);
            vm.base(None).await;
            vm.delta().await;
        }
        // Old points and cycles go.
        3 => {
            vm.now.fetch_add(LATER, Ordering::SeqCst);
            vm.scribble(40);
            vm.delta().await;
            vm.scribble(41);
            vm.delta().await;
        }
        // Somebody spoils a cycle.
        _ => {
            vm.scribble(50);
            vm.change_list = Some(Box::new(|list| list.segments[0].stored += 1));
            vm.delta().await;
        }
    }
}

/// Storage's own clock says how old points are: they get old when the workers' clock runs ahead. Retention is
/// shorter than that in phase 3 and longer before.
fn settings() -> Policy {
    Policy { retention: Duration::from_secs(86_400), ..every_cycle() }
}

/// Runs a VM's life under a hook that kills the worker; whoever is killed is followed by another.
/// Returns how often it was killed.
async fn live(vm: &mut Source, crash: &Crash) -> u32 {
    let mut kills = 0;
    for number in 0..PHASES {
        phase(vm, number).await;
        loop {
            let (mut task, settings) = (VmTask::new(vm.context("worker-1", crash.clone())), settings());
            let worked = tokio::spawn(async move { settle(&mut task, &settings).await }).await;
            match worked {
                Ok(()) => break,
                Err(killed) => {
                    let killed = killed.into_panic();
                    assert!(
                        killed.is::<CrashPoint>(),
                        "the worker failed: {:?}",
                        killed.downcast_ref::<String>()
                    );
                    kills += 1;
                    vm.break_leases().await;
                }
            }
        }
    }
    kills
}

/// How the life ends, whatever happened in it.
#[derive(Debug, PartialEq)]
struct End {
    points: Vec<u64>,
    verified: u64,
    applied: u64,
    stream: u32,
    refused: String,
    newest: bool,
    cycles_left: Vec<u64>,
}

async fn end(vm: &Source) -> End {
    let cursor = vm.cursor().await;
    let points = vm.prove_points().await;
    let id = |commit: farshore_core::format::commit::CommitRef| commit.id.cycle.0;
    let uploaded = vm.uploaded("").await;
    let mut cycles_left: Vec<u64> = uploaded
        .iter()
        .filter_map(|name| farshore_core::names::parse_cycle(name))
        .map(|c| u64::from(c.stream.0) * 100 + c.cycle.0)
        .collect();
    cycles_left.dedup();
    End {
        points,
        verified: id(cursor.verified.as_ref().unwrap().commit),
        applied: id(cursor.applied.unwrap()),
        stream: cursor.stream.0,
        refused: cursor.refused.clone().unwrap().code,
        newest: cursor.newest_point.is_some(),
        cycles_left,
    }
}

/// A hook that kills at `point` the `nth` time.
pub fn kill_at(point: CrashPoint, nth: u32) -> Crash {
    let left = AtomicU32::new(nth);
    Crash::hook(move |reached| {
        if reached == point && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            resume_unwind(Box::new(reached));
        }
    })
}

// DESIGN 6, 12: crash anywhere, re-apply gives the same bytes and the same points.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_it_ends_in_the_same_bytes_and_points() {
    let lab = Lab::start().await;
    let reached: Arc<Mutex<BTreeMap<&'static str, u32>>> = Arc::default();
    let count = Arc::clone(&reached);
    let mut vm = lab.vm(&[MIB, MIB + 4096]).await;
    let counting = Crash::hook(move |point| *count.lock().unwrap().entry(point.name()).or_default() += 1);
    assert_eq!(live(&mut vm, &counting).await, 0);
    let want = end(&vm).await;
    assert_eq!(want.refused, "CorruptSegment");
    assert_eq!((want.stream, want.applied), (2, 5));
    // By the clock of the end everything is beyond retention: the last good point stays, and what it needs.
    assert_eq!(want.points, [5]);
    assert_eq!(want.cycles_left, [205, 206]);

    let reached = reached.lock().unwrap().clone();
    let lives = CrashPoint::ALL.iter().flat_map(|&point| {
        let hits = reached.get(point.name()).copied().unwrap_or(0);
        assert!(hits > 0, "the life does not reach {point}");
        let mut times = vec![1, hits.div_ceil(2), hits];
        times.dedup();
        times.into_iter().map(move |nth| (point, nth, hits))
    });
    let (lab, want) = (&lab, &want);
    futures::stream::iter(lives)
        .for_each_concurrent(6, async |(point, nth, hits)| {
            let mut vm = lab.vm(&[MIB, MIB + 4096]).await;
            let kills = live(&mut vm, &kill_at(point, nth)).await;
            // How many segments of a spoilt cycle are looked at before the bad one is not always the same.
            assert!(
                kills == 1 || (kills == 0 && nth == hits),
                "killed {kills} times at {point}:{nth} of {hits}"
            );
            assert_eq!(end(&vm).await, *want, "after {point}:{nth}");
        })
        .await;
}

// A worker that dies again and again still gets there.
#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_gets_there() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB, MIB]).await;
    let (seen, left) = (AtomicU32::new(0), AtomicU32::new(40));
    // Each life gets a little further than the one before.
    let crash = Crash::hook(move |reached| {
        let lives = 40 - left.load(Ordering::SeqCst);
        if left.load(Ordering::SeqCst) > 0 && seen.fetch_add(1, Ordering::SeqCst) > lives * 3 {
            seen.store(0, Ordering::SeqCst);
            left.fetch_sub(1, Ordering::SeqCst);
            resume_unwind(Box::new(reached));
        }
    });
    let kills = live(&mut vm, &crash).await;
    assert!(kills > 10, "{kills}");
    assert_eq!(end(&vm).await.points, [5]);
}

/// A worker on a thread, with a runtime and connections of its own, that stands still at a point as a machine
/// that is paused there would, until it is told to go on.
struct Paused {
    at: tokio::sync::mpsc::UnboundedReceiver<()>,
    go_on: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Paused {
    /// Starts it and waits until it stands at `point`, reached the `nth` time.
    async fn start(lab: &Lab, vm: &Source, name: &str, point: CrashPoint, nth: u32) -> Self {
        let (tell, at) = tokio::sync::mpsc::unbounded_channel();
        let (go_on, wait) = mpsc::channel();
        let (wait, left) = (Mutex::new(wait), AtomicU32::new(nth));
        let crash = Crash::hook(move |reached| {
            if reached == point && left.fetch_sub(1, Ordering::SeqCst) == 1 {
                tell.send(()).unwrap();
                wait.lock().unwrap().recv().unwrap();
            }
        });
        let mut ctx = vm.context(name, crash);
        ctx.store = farshore_replica_server::Store::new(&lab.connect(), vm.vm);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(settle_through(&mut VmTask::new(ctx)));
        });
        let mut this = Self { at, go_on, thread };
        this.at.recv().await.expect("it comes to this point");
        this
    }

    async fn finish(self) {
        self.go_on.send(()).unwrap();
        tokio::task::spawn_blocking(move || self.thread.join().unwrap()).await.unwrap();
    }
}

/// A VM with its first point and three more verified cycles, the last of them on a boundary.
async fn with_three_cycles(lab: &Lab) -> Source {
    let mut vm = lab.vm(&[MIB, MIB]).await;
    vm.protect().await;
    settle(&mut vm.task(), &policy()).await;
    for seed in 60..63 {
        vm.scribble(seed);
        vm.delta().await;
    }
    vm
}

// Two workers believe that the VM is theirs; one stands still while the other goes on. No byte of the late one
// lands, and nothing that it writes then is believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_away_at_any_point_changes_nothing_when_it_returns() {
    let lab = Lab::start().await;
    for point in [
        CrashPoint::SegmentVerified,
        CrashPoint::Verified,
        CrashPoint::LeasesTaken,
        CrashPoint::Claimed,
        CrashPoint::PagesWritten,
        CrashPoint::DiskWritten,
        CrashPoint::MetadataSet,
        CrashPoint::Applied,
        CrashPoint::SnapshotTaken,
        CrashPoint::PointWritten,
    ] {
        let mut vm = with_three_cycles(&lab).await;
        let late = Paused::start(&lab, &vm, "worker-late", point, 1).await;
        vm.break_leases().await;
        // The other one goes on, further than the late one wanted to.
        let mut other = VmTask::new(vm.context("worker-other", Crash::never()));
        settle_through(&mut other).await;
        for seed in 70..76 {
            vm.scribble(seed);
            vm.delta().await;
        }
        settle_through(&mut other).await;
        let before = vm.cursor().await;
        let bytes = [vm.replica(0).await, vm.replica(1).await];
        late.finish().await;
        let after = vm.cursor().await;
        assert_eq!((after.verified, after.applied), (before.verified, before.applied), "{point}");
        assert_eq!(after.extra, before.extra, "{point}");
        assert_eq!([vm.replica(0).await, vm.replica(1).await], bytes, "{point}");
        assert_eq!(vm.prove_points().await, [4, 7, 10, 13], "{point}");
    }
}

// A worker that lost its leases after its last write may not say that the cycle is applied: another one is
// writing by then.
#[tokio::test(flavor = "multi_thread")]
async fn only_who_holds_the_claim_says_that_a_cycle_is_applied() {
    let lab = Lab::start().await;
    let vm = with_three_cycles(&lab).await;
    let late = Paused::start(&lab, &vm, "worker-late", CrashPoint::MetadataSet, 2).await;
    vm.break_leases().await;
    let other = Paused::start(&lab, &vm, "worker-other", CrashPoint::Claimed, 1).await;
    let claimed = vm.cursor().await;
    assert_eq!((claimed.worker.as_str(), claimed.applied.unwrap().id.cycle.0), ("worker-other", 4));
    late.finish().await;
    let after = vm.cursor().await;
    assert_eq!((after.applied, &after.extra), (claimed.applied, &claimed.extra));
    other.finish().await;
    assert_eq!(vm.cursor().await.applied, vm.previous);
    assert_eq!(vm.prove_points().await, [4, 7]);
}

// The policy is changed while a merge is half done: the bytes of its later cycles are in the replica already, so
// no set of an earlier one may be made.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_merge_is_ended_whatever_the_policy_says_now() {
    let lab = Lab::start().await;
    let vm = with_three_cycles(&lab).await;
    let mut killed = VmTask::new(vm.context("worker-1", kill_at(CrashPoint::DiskWritten, 1)));
    let killed = tokio::spawn(async move { settle(&mut killed, &policy()).await }).await;
    assert!(killed.unwrap_err().is_panic());
    vm.break_leases().await;
    settle(&mut vm.task(), &every_cycle()).await;
    assert_eq!(vm.cursor().await.applied, vm.previous);
    assert_eq!(vm.prove_points().await, [4, 7]);
}

/// As [`settle`], but another worker may be in the way for a while.
async fn settle_through(task: &mut VmTask) {
    let mut idle = 0;
    for _ in 0..2000 {
        match task.step(&policy()).await.expect("no fault") {
            Next::Now => idle = 0,
            Next::At(_) if idle == 20 => return,
            Next::At(_) => {
                idle += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    panic!("it does not end");
}

// Two workers at once, all the time: the cursor never goes back and no point is mixed.
#[tokio::test(flavor = "multi_thread")]
async fn two_workers_on_one_vm_mix_nothing() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB, MIB]).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut workers = Vec::new();
    for name in ["worker-1", "worker-2"] {
        let (mut task, stop) = (VmTask::new(vm.context(name, Crash::never())), stop.clone());
        workers.push(tokio::spawn(async move {
            while !stop.is_cancelled() {
                if task.step(&policy()).await.expect("no fault") != Next::Now {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
        }));
    }
    let (store, stopped) = (vm.store.clone(), stop.clone());
    let watcher = tokio::spawn(async move {
        let mut seen: Option<Cursor> = None;
        let mut versions = 0;
        while !stopped.is_cancelled() {
            let fetched = store.down.get(farshore_core::names::CURSOR, 1 << 20).await.unwrap();
            let Some(fetched) = fetched else { continue };
            let now: Cursor = farshore_core::format::Record::decode(&fetched.bytes).unwrap();
            if let Some(before) = seen.replace(now.clone()).filter(|before| *before != now) {
                assert!(before.may_become(&now), "{before:?} became {now:?}");
                versions += 1;
            }
        }
        versions
    });
    vm.protect().await;
    for seed in 100..124 {
        vm.scribble(seed);
        vm.delta().await;
    }
    let last = vm.previous;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let listed = vm.store.down.get(farshore_core::names::CURSOR, 1 << 20).await.unwrap();
        if listed.is_some() {
            let cursor = vm.cursor().await;
            if cursor.verified.map(|v| v.commit) == last && cursor.applied == last {
                break;
            }
        }
        assert!(tokio::time::Instant::now() < deadline, "the workers did not get there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    for worker in workers {
        worker.await.unwrap();
    }
    assert!(watcher.await.unwrap() > 5);
    let want: Vec<u64> = (4..=28).step_by(3).collect();
    assert_eq!(vm.prove_points().await, want);
    assert_eq!(
        [vm.replica(0).await, vm.replica(1).await],
        [vm.disks[0].bytes.clone(), vm.disks[1].bytes.clone()]
    );
}
