//! `farshore-lab demo`: a VM becomes protected while something else writes to it, and the result proves itself.
//!
//! Everything in it is what a user has: manifests applied by kubectl, the chart installed by helm, our programs
//! with exactly the chart's rights, a guest whose file system and writers are not ours. At the end every recovery
//! point is compared with what the source held at that instant.

mod picture;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use farshore_azure::{BlobErrorKind, Container, Include};
use farshore_core::ids::DiskId;
use farshore_core::units::{Bytes, MIB};
use jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::picture::{Picture, Scene};
use crate::guest::{self, BLOCK, Image, Writer};
use crate::host::admin::{NewDisk, NewVm};
use crate::host::client::Admin;
use crate::launch::{Settings, World};
use crate::proof::{self, Containers};

/// Arguments of `farshore-lab demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where the demo's world lives; emptied first.
    #[arg(long, default_value = "target/demo")]
    folder: PathBuf,
    /// The manifests that it applies.
    #[arg(long, default_value = "examples/quickstart")]
    manifests: PathBuf,
    /// Size of the system disk in MiB.
    #[arg(long, default_value_t = 1024)]
    disk_mib: u64,
    /// Recovery points to wait for while the guest writes.
    #[arg(long, default_value_t = 3)]
    points: usize,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 420)]
    limit_seconds: u64,
}

/// The hosts of the demo; the machine runs on the first.
const HOSTS: [&str; 2] = ["hv01", "hv02"];
const SITE: &str = "amsterdam";
const VM: &str = "sql01";
const NAMESPACE: &str = "shop";
/// How often the guest writes a number to both disks: often enough that every cycle catches it in between.
const WRITE_EVERY: Duration = Duration::from_millis(15);
/// Capacity of each host's volume in bytes, whatever this machine has free.
const VOLUME: &str = "21474836480";
/// How often the picture is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// Where the numbers go on the data disk.
const DATA_OFFSETS: std::ops::Range<u64> = 0..64;

/// Runs the demo.
///
/// # Errors
/// If any part of it does not do what it promises; the message says which, the logs are in the folder.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    if args.folder.exists() {
        std::fs::remove_dir_all(&args.folder)?;
    }
    std::fs::create_dir_all(&args.folder)?;
    let folder = args.folder.canonicalize()?;

    say("Starting a Kubernetes control plane and a blob service, installing the chart with helm");
    let world = World::start(Settings::new(folder.join("world"))).await?;
    let outcome = play(&args, &folder, &world, started).await;
    if outcome.is_err() {
        eprintln!("the logs of every part are in {}", folder.join("world/log").display());
    }
    world.stop().await;
    outcome
}

async fn play(args: &Args, folder: &Path, world: &World, started: Instant) -> anyhow::Result<()> {
    world.start_controller(&[])?;
    world.start_replica_server("worker-1", &[])?;
    world.start_replica_server("worker-2", &[])?;

    say("Making a virtual machine with a real ext4 system disk and a data disk, and starting it");
    for host in HOSTS {
        world.start_host(host, &["--record", "--volume-bytes", VOLUME]).await?;
    }
    let image = guest::make_image(folder, args.disk_mib * MIB, 400).await?;
    let admin = Admin::new(world.host_socket(HOSTS[0]));
    let vm = make_vm(&admin, &image).await?;

    let data_offsets: Vec<u64> = DATA_OFFSETS.map(|i| i * BLOCK).collect();
    let writer = Writer::new(&vm.nbd, [image.live_blocks.clone(), data_offsets.clone()], folder)?;
    let guest = Guest::start(writer);

    say("Applying the manifests with kubectl; enrolling two hosts and accepting them");
    let manifests = manifests(&args.manifests, folder, world)?;
    world.kubectl(&["apply", "-f", &manifests.display().to_string()]).await?;
    for host in HOSTS {
        world.enroll(host, SITE).await?;
    }

    let containers = Containers::of(world, vm.info.id)?;
    let disks = disk_ids(&vm.info)?;

    println!();
    let proven =
        watch_and_prove(args, folder, world, &containers, &guest, &admin, &image, disks, &data_offsets)
            .await?;
    report(world, &containers, &proven, started).await
}

/// Watches until there are points enough, stops the guest, waits for a point after its last write, proves all.
#[expect(clippy::too_many_arguments, reason = "the stage and everybody on it")]
async fn watch_and_prove(
    args: &Args,
    folder: &Path,
    world: &World,
    containers: &Containers,
    guest: &Guest,
    admin: &Admin,
    image: &Image,
    disks: [(DiskId, u64); 2],
    data_offsets: &[u64],
) -> anyhow::Result<Outcome> {
    let limit = Instant::now() + Duration::from_secs(args.limit_seconds);
    let mut picture = Picture::new();
    let mut uploads = Uploads::default();
    let mut tick = tokio::time::interval(DRAW_EVERY);
    let mut protected_after = None;
    let mut stopped: Option<Timestamp> = None;
    let began = Instant::now();
    let points = loop {
        tick.tick().await;
        ensure!(
            Instant::now() < limit,
            "not done after {} s: {:?}",
            args.limit_seconds,
            containers.cursor().await?
        );
        let scene = scene(world, containers, guest, &mut uploads).await?;
        if scene.state == "Protected" && protected_after.is_none() {
            protected_after = Some(began.elapsed());
        }
        picture.show(scene);
        let points = proof::points(&containers.replica).await?;
        match (protected_after, stopped) {
            (Some(_), None) if points.len() >= args.points => {
                guest.stop().await?;
                stopped = Some(Timestamp::now());
            }
            (Some(_), Some(at)) if points.last().is_some_and(|p| p.time > at) => break points,
            _ => {}
        }
    };
    println!();
    say("Comparing every recovery point with what the source held at that instant");
    let instants = admin.instants(VM).await?;
    let [(system, _), (data, _)] = disks;
    let numbered = [(system, image.live_blocks.as_slice()), (data, data_offsets)];
    let mut proven = Vec::new();
    for point in &points {
        match proof::prove(&containers.replica, point, &instants, &disks, folder).await {
            Ok(one) => proven.push((one, proof::numbers(folder, numbered)?)),
            // Retention may prune a point while we look: it is gone from the list then.
            Err(error) if proof::points(&containers.replica).await?.iter().any(|p| p.name == point.name) => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
    let (last, held) = proven.last().context("there is a point to prove")?;
    let number = guest.number();
    ensure!(
        *held == (number, number),
        "point {} holds {held:?}, the guest wrote {number} last",
        last.point.name
    );
    let files = proof::check_files(image, &folder.join(format!("{system}.img")), folder).await?;
    Ok(Outcome {
        proven,
        files,
        sent: uploads.total(),
        number,
        protected_after: protected_after.context("the VM became protected")?,
    })
}

/// What the demo has shown.
struct Outcome {
    proven: Vec<(proof::Proven, (u64, u64))>,
    files: usize,
    sent: u64,
    number: u64,
    protected_after: Duration,
}

async fn report(
    world: &World,
    containers: &Containers,
    outcome: &Outcome,
    started: Instant,
) -> anyhow::Result<()> {
    let sent = outcome.sent;
    let cursor = containers.cursor().await?.context("there is a cursor")?;
    let jobs = list(world, "RecoveryJob").await?;
    let steps: usize =
        jobs.iter().filter_map(|j| j.data.pointer("/status/steps")?.as_array().map(Vec::len)).sum();
    let bytes: u64 = outcome.proven.iter().map(|(p, _)| p.bytes).sum();
    let numbers: Vec<String> = outcome.proven.iter().map(|(_, n)| format!("{}/{}", n.0, n.1)).collect();
    println!();
    println!("What this showed");
    println!(
        " 1. Two hosts enrolled with one-time tokens and their own keys, and worked only after being accepted."
    );
    println!(
        " 2. One manifest made a VM with two disks protected, {:.1} s after it was seen.",
        outcome.protected_after.as_secs_f64()
    );
    println!(" 3. {} jobs with {steps} steps told what happened (kubectl get rjob -A).", jobs.len());
    println!(" 4. Meanwhile qemu-io wrote {} numbered blocks to each disk over NBD.", outcome.number);
    println!(
        " 5. {} cycles were committed and applied; {} left the host in all.",
        cursor.applied.map_or(0, |a| a.id.cycle.0),
        Bytes(sent)
    );
    println!(
        " 6. {} recovery points, {} in all, are byte for byte what the source held at those instants.",
        outcome.proven.len(),
        Bytes(bytes)
    );
    println!(" 7. Both disks are from one instant in each of them: numbers {}.", numbers.join(" "));
    println!(" 8. The last point holds the guest's last write.");
    println!(" 9. e2fsck -fn finds the replica's file system clean, and {} files are equal.", outcome.files);
    println!("10. All of it took {} s, set-up included.", started.elapsed().as_secs());
    Ok(())
}

/// Copies the manifests for this world: its blob service listens on another port than the emulator's own.
fn manifests(from: &Path, folder: &Path, world: &World) -> anyhow::Result<PathBuf> {
    const EMULATOR: &str = "http://127.0.0.1:10000/devstoreaccount1";
    let to = folder.join("manifests");
    std::fs::create_dir_all(&to)?;
    let entries =
        std::fs::read_dir(from).with_context(|| format!("{}: run it in the checkout", from.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|e| e == "yaml")) else {
            continue;
        };
        let text = std::fs::read_to_string(&path)?.replace(EMULATOR, world.blobs().endpoint());
        std::fs::write(to.join(name), text)?;
    }
    Ok(to)
}

async fn make_vm(admin: &Admin, image: &Image) -> anyhow::Result<crate::host::admin::AdminVm> {
    let mut vm = NewVm::with_disks(VM, &[0, 512 * MIB]);
    if let Some(system) = vm.disks.first_mut() {
        *system = NewDisk { image: Some(image.path.clone()), ..NewDisk::default() };
    }
    admin.create(vm).await?;
    admin.start(VM).await?;
    admin.find(VM).await?.context("the machine was just made")
}

fn disk_ids(vm: &farshore_hyperv::VmInfo) -> anyhow::Result<[(DiskId, u64); 2]> {
    match vm.disks.as_slice() {
        [system, data] => Ok([(system.disk_id, system.size), (data.disk_id, data.size)]),
        other => bail!("the machine has {} disks", other.len()),
    }
}

/// The guest's writer, running by itself.
struct Guest {
    number: watch::Receiver<u64>,
    stop: CancellationToken,
    done: watch::Receiver<Option<Result<(), String>>>,
}

impl Guest {
    fn start(mut writer: Writer) -> Self {
        let (numbers, number) = watch::channel(0);
        let (finished, done) = watch::channel(None);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(WRITE_EVERY);
            let outcome = loop {
                tokio::select! {
                    () = stopped.cancelled() => break Ok(()),
                    _ = tick.tick() => {}
                }
                if let Err(error) = writer.step().await {
                    break Err(format!("{error:#}"));
                }
                // Every 200 numbers a burst of 8 MiB, elsewhere on the data disk.
                let turn = writer.number() / 200;
                if writer.number().is_multiple_of(200) {
                    let value = u8::try_from(turn % 250 + 1).unwrap_or(1);
                    let offset = (16 + turn % 40 * 8) * MIB;
                    if let Err(error) = writer.burst(offset, 8 * MIB, value).await {
                        break Err(format!("{error:#}"));
                    }
                }
                numbers.send_replace(writer.number());
            };
            numbers.send_replace(writer.number());
            finished.send_replace(Some(outcome));
        });
        Self { number, stop, done }
    }

    fn number(&self) -> u64 {
        *self.number.borrow()
    }

    /// Ends the writer after the write that is under way.
    async fn stop(&self) -> anyhow::Result<()> {
        self.stop.cancel();
        let mut done = self.done.clone();
        let outcome = done.wait_for(Option::is_some).await?.clone();
        outcome.unwrap_or(Ok(())).map_err(|error| anyhow::anyhow!("the guest's writer failed: {error}"))
    }
}

/// Everything ever seen in the upload container: cycles that no point needs any more are removed from it.
#[derive(Default)]
struct Uploads {
    seen: BTreeMap<String, u64>,
}

impl Uploads {
    async fn look(&mut self, up: &Container) -> anyhow::Result<()> {
        match up.list("", Include::default()).await {
            Ok(blobs) => self.seen.extend(blobs.into_iter().map(|blob| (blob.name, blob.len))),
            Err(error) if error.kind == BlobErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn total(&self) -> u64 {
        self.seen.values().sum()
    }
}

async fn scene(
    world: &World,
    containers: &Containers,
    guest: &Guest,
    uploads: &mut Uploads,
) -> anyhow::Result<Scene> {
    let pvm = list(world, "ProtectedVM")
        .await?
        .into_iter()
        .find(|p| p.metadata.namespace.as_deref() == Some(NAMESPACE));
    let pvm = pvm.context("the ProtectedVM exists")?;
    let text = |path: &str| pvm.data.pointer(path).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let number = |path: &str| pvm.data.pointer(path).and_then(serde_json::Value::as_u64);
    let jobs = list(world, "RecoveryJob").await?;
    let step = jobs
        .iter()
        .find(|job| job.data.pointer("/status/state").is_some_and(|s| s == "InProgress"))
        .and_then(|job| job.data.pointer("/status/currentStep")?.as_str().map(str::to_owned));
    uploads.look(&containers.up).await?;
    let cursor = containers.cursor().await?;
    let cycle = |id: Option<farshore_core::ids::CycleId>| id.map_or(0, |id| id.cycle.0);
    let newest = cursor.as_ref().and_then(|c| c.newest_point.as_ref());
    Ok(Scene {
        state: text("/status/state"),
        step: step.unwrap_or_default(),
        initial: number("/status/initialReplication/bytesTotal")
            .zip(number("/status/initialReplication/bytesCopied")),
        uploaded: uploads.total(),
        verified: cycle(cursor.as_ref().and_then(|c| Some(c.verified.as_ref()?.commit.id))),
        applied: cycle(cursor.as_ref().and_then(|c| Some(c.applied?.id))),
        points: proof::points(&containers.replica).await?.len(),
        rpo_seconds: newest.map(|point| Timestamp::now().duration_since(point.time).as_secs()),
        number: guest.number(),
    })
}

async fn list(world: &World, kind: &str) -> anyhow::Result<Vec<DynamicObject>> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("farshore.dev", "v1alpha1", kind));
    let api: Api<DynamicObject> = Api::all_with(world.client(), &resource);
    Ok(api.list(&kube::api::ListParams::default()).await?.items)
}

fn say(what: &str) {
    println!("-- {what}");
}
