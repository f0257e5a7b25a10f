//! Death at every named point: the next life goes on, and every point is still a state that the disks had.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use farshore_agent::crash::CrashPoint;
use farshore_hyperv::Hypervisor as _;

use crate::child::{self, Life};
use crate::support::{LIMIT, Lab, MIB, Vm, until};

/// How a point is come to.
enum Case {
    /// Enrolment: tested with Kubernetes.
    Enrolment,
    /// In the cycles of a new VM, on each of these passages. The first cycle is Base, the second Delta.
    Cycles(&'static [u32]),
    /// After another death there.
    After(CrashPoint),
    /// While everything is removed.
    Release,
}

/// No `_`: a new point without a case does not compile.
const fn case(point: CrashPoint) -> Case {
    use CrashPoint as P;
    match point {
        P::KeyWritten | P::CertificateRequested | P::KubeconfigWritten => Case::Enrolment,
        P::StreamBegun | P::SliceCopied => Case::Cycles(&[1]),
        P::IntentNoted
        | P::CheckpointCreated
        | P::CheckpointNoted
        | P::ReadyNoted
        | P::CheckpointConverted
        | P::ReferencePointNoted
        | P::CommitNoted
        | P::CommitPut
        | P::Committed
        | P::LogsDeleted => Case::Cycles(&[1, 2, 3]),
        // Two disks: several of each in a cycle.
        P::LogHalfWritten | P::LogSealed | P::LogManifestWritten => Case::Cycles(&[1, 2]),
        P::SegmentUploaded | P::SegmentNoted => Case::Cycles(&[1, 3, 5]),
        P::ListUploaded => Case::Cycles(&[1, 2, 3]),
        P::LogsSealed | P::VerifiedNoted | P::PointDestroyed | P::PointForgotten => Case::Cycles(&[1]),
        P::DroppedCheckpointDeleted => Case::After(P::CheckpointNoted),
        P::TracesRemoved => Case::Release,
    }
}

/// A guest that writes to both disks until it is dropped.
struct Writer(tokio::task::JoinHandle<()>);

impl Writer {
    fn start(vm: &std::sync::Arc<Vm>) -> Self {
        let vm = std::sync::Arc::clone(vm);
        Self(tokio::spawn(async move {
            for n in 0_u64.. {
                vm.write((n % 2) as usize, (n * 5 % 61) * 131_072, 12_288, 1000 + n).await;
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        }))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn dies(vm: &Vm, life: Life) {
    let mut process = child::start(vm, life);
    let end = tokio::time::Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = process.0.try_wait().unwrap() {
            break status;
        }
        assert!(tokio::time::Instant::now() < end, "{life:?} was not come to");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(status.signal(), Some(6), "{life:?} ended otherwise");
}

async fn dies_and_goes_on(lab: &Lab, name: String, deaths: Vec<(CrashPoint, u32)>) {
    let vm = std::sync::Arc::new(lab.vm(&name, &[8 * MIB, 8 * MIB]).await);
    let follower = vm.follower();
    let following = follower.follow(1, 1);
    let writer = Writer::start(&vm);
    for death in deaths {
        dies(&vm, Life { crash_at: Some(death), release: false }).await;
    }
    let (before, cycle) = (follower.points().len(), follower.last().map_or(0, |l| l.id.cycle.0));
    let process = child::start(&vm, Life::default());
    until(&format!("{name} goes on"), || async {
        follower.points().len() >= before + 2 && follower.last().is_some_and(|l| l.id.cycle.0 >= cycle + 3)
    })
    .await;
    drop(process);
    drop(writer);
    drop(following);
    assert!(vm.check_points(&follower).await >= before + 2, "{name}");
    let points = lab.host().reference_points(vm.id()).await.unwrap();
    assert!(points.len() <= 4, "{name}: points are left behind: {points:?}");
    let checkpoints = lab.host().checkpoints(vm.id()).await.unwrap();
    assert!(checkpoints.len() <= 1, "{name}: checkpoints are left behind: {checkpoints:?}");
    lab.admin.stop(&name).await.unwrap();
}

async fn dies_while_removing(lab: &Lab, name: String, point: CrashPoint) {
    let vm = lab.vm(&name, &[8 * MIB]).await;
    let follower = vm.follower();
    let following = follower.follow(1, 1);
    let process = child::start(&vm, Life::default());
    until("some cycles", || async { follower.points().len() >= 2 }).await;
    drop(process);
    drop(following);
    dies(&vm, Life { crash_at: Some((point, 1)), release: true }).await;
    let _process = child::start(&vm, Life { crash_at: None, release: true });
    until("released", || async { vm.journals().load(vm.id()).unwrap().is_none() }).await;
    assert!(lab.host().reference_points(vm.id()).await.unwrap().is_empty());
    assert!(lab.host().checkpoints(vm.id()).await.unwrap().is_empty());
    assert!(vm.log_files().is_empty());
}

// The "killing the agent at any moment ends in the same bytes".
#[tokio::test(flavor = "multi_thread")]
async fn death_at_any_point_loses_nothing_and_invents_nothing() {
    let lab = Lab::start(None).await;
    let mut works: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
    for point in CrashPoint::ALL {
        match case(*point) {
            Case::Enrolment => {}
            Case::Cycles(passages) => {
                for nth in passages {
                    works.push(Box::pin(dies_and_goes_on(
                        &lab,
                        format!("{point}-{nth}"),
                        vec![(*point, *nth)],
                    )));
                }
            }
            Case::After(first) => {
                let deaths = vec![(first, 2), (*point, 1)];
                works.push(Box::pin(dies_and_goes_on(&lab, format!("{point}"), deaths)));
            }
            Case::Release => works.push(Box::pin(dies_while_removing(&lab, format!("{point}"), *point))),
        }
    }
    use futures::StreamExt as _;
    // A few at a time: two cores.
    futures::stream::iter(works).buffer_unordered(4).collect::<Vec<()>>().await;
}
