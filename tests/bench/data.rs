//! `farshore-bench data`: what is run, in which order, and what must come out.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use clap::ValueEnum;
use farshore_azure::sas;
use farshore_core::ids::VmId;
use farshore_core::names;
use farshore_lab::launch::tools::Tools;

use crate::double::{Double, Kind, Scratch, text};
use crate::process::Process;
use crate::relationship::{self, agent_job, replica_job};
use crate::sides::{Moved, TransferJob};
use crate::table::{Outcome, Row, at_least, at_most, median, ratio, shown};
use crate::usage::Usage;
use crate::vm::Vm;
use crate::{azcopy, image};

/// Arguments of `farshore-bench data`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Times that each side is run; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Where disks and blobs go while it runs (about 10 GiB).
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
}

/// The parts of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Initial replication against azcopy.
    Initial,
    /// The same over 100 Mbit/s, a part of the disk.
    Link,
    /// The same with the service's own limits per blob.
    Limits,
    /// Agent and replica server against storage that keeps nothing.
    Ceilings,
    /// What a kill half-way costs.
    Resume,
    /// Memory with a large disk.
    Memory,
}

/// One run of one side. Seconds and bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// From the first write to all being safe in storage, by the double's clock.
    pub(crate) safe: f64,
    /// From the start of the process to the same, or to its end.
    pub(crate) wall: f64,
    /// From the first write to the first recovery point, by the double's clock.
    pub(crate) protected: f64,
    /// Bytes of bodies that the double got.
    pub(crate) wire: f64,
    /// CPU seconds until safe.
    pub(crate) cpu: f64,
    /// Peak resident bytes.
    pub(crate) peak: f64,
    /// CPU seconds of the replica server until protected.
    pub(crate) replica_cpu: f64,
    /// Its peak resident bytes.
    pub(crate) replica_peak: f64,
}

/// Which part of the disk goes over the slow link.
const LINK_BYTES: u64 = 512 << 20;
const LINK_MBIT: u64 = 100;
/// No run takes longer.
const LIMIT: Duration = Duration::from_secs(900);
/// How often the double is asked how far a run is.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const MEMORY_DISK: u64 = 64 << 30;
const MEMORY_AIM: f64 = 256.0 * 1024.0 * 1024.0;

/// How far our runs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// All is safe in storage.
    Safe,
    /// The cycle after is there too: with it there can be a recovery point.
    Point,
    /// A replica server runs, and has made the first recovery point.
    Protected,
}

/// Everything that all parts use.
struct Bench {
    rounds: usize,
    scratch: Scratch,
    disk: image::Disk,
    azcopy: PathBuf,
    out: Outcome,
}

/// Runs the bench and prints its table.
///
/// # Errors
/// If something cannot be set up, or a run fails: a bench of what does not work is none.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let cache = Tools::of_this_machine()?.cache().to_owned();
    std::fs::create_dir_all(&args.folder)?;
    let folder = args.folder.canonicalize()?;
    let mut bench = Bench {
        rounds: args.rounds.max(1),
        disk: image::debian(&cache)?,
        azcopy: azcopy::installed(&cache)?,
        scratch: Scratch::new(&folder, &format!("run-{}", std::process::id()))?,
        out: Outcome::new(args.rounds.max(1)),
    };
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Initial) {
        bench.initial().await.context("initial replication")?;
    }
    if wanted(Part::Link) {
        bench.link().await.context("the slow link")?;
    }
    if wanted(Part::Limits) {
        bench.limits().await.context("limits per blob")?;
    }
    if wanted(Part::Ceilings) {
        bench.agent_ceiling().await.context("the agent's ceiling")?;
        bench.replica_ceiling().await.context("the replica server's ceiling")?;
    }
    if wanted(Part::Resume) {
        bench.resume().await.context("resume")?;
    }
    if wanted(Part::Memory) {
        bench.memory().await.context("memory")?;
    }
    bench.out.finish();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&bench.out)?);
    } else {
        print!("{}", bench.out);
    }
    Ok(())
}

impl Bench {
    async fn initial(&mut self) -> anyhow::Result<()> {
        let vm = Vm::of_image(&self.scratch.path().join("host"), &self.disk.raw).await?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            ours.push(self.ours(&vm, Kind::default(), Until::Protected).await?);
            theirs.push(self.theirs(&self.disk.raw, Kind::default()).await?);
            note("initial", round, &ours, &theirs);
        }
        let (a, b) = (median(&ours), median(&theirs));
        let part = "initial replication";
        let row = |what: &str, ours: f64, theirs: f64, unit| Row::new(part, what, unit, ours, Some(theirs));
        self.out.add(row("safe in storage", a.safe, b.safe, "s").aim(at_most(1.0)));
        self.out.add(row("safe, with the process's start", a.wall, b.wall, "s"));
        self.out.add(row("bytes on the wire", a.wire, b.wire, "B").aim(at_most(0.5)));
        self.out.add(row("CPU (same disk: as per GiB)", a.cpu, b.cpu, "s").aim(at_most(0.5)));
        self.out.add(row("peak memory", a.peak, b.peak, "B"));
        self.out.add(Row::new(part, "protected: first recovery point", "s", a.protected, Some(b.safe)));
        self.out.add(Row::new(part, "replica server's CPU", "s", a.replica_cpu, None));
        let row = Row::new(part, "replica server's peak memory", "B", a.replica_peak, None);
        self.out.add(row.aim(at_most(MEMORY_AIM)));
        Ok(())
    }

    async fn link(&mut self) -> anyhow::Result<()> {
        let part_of_disk = self.scratch.path().join("part.raw");
        copy_start(&self.disk.raw, &part_of_disk, LINK_BYTES)?;
        let vm = Vm::of_image(&self.scratch.path().join("host-link"), &part_of_disk).await?;
        let kind = Kind { mbit: LINK_MBIT, ..Kind::default() };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The link is the clock here: it does not vary.
        for round in 1..=self.rounds.min(2) {
            ours.push(self.ours(&vm, kind, Until::Safe).await?);
            theirs.push(self.theirs(&part_of_disk, kind).await?);
            note("link", round, &ours, &theirs);
        }
        let (a, b) = (median(&ours), median(&theirs));
        let part = "100 Mbit/s, first 512 MiB";
        self.out.add(Row::new(part, "safe in storage", "s", a.safe, Some(b.safe)).aim(at_most(0.5)));
        self.out.add(Row::new(part, "bytes on the wire", "B", a.wire, Some(b.wire)));
        Ok(())
    }

    /// As the service is: one blob takes 60 MiB/s, an account far more. Here azcopy runs with its pacing.
    async fn limits(&mut self) -> anyhow::Result<()> {
        let vm = Vm::of_image(&self.scratch.path().join("host-limits"), &self.disk.raw).await?;
        let kind = Kind { blob_limits: true, ..Kind::default() };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The limits are the clock here, and it takes long.
        ours.push(self.ours(&vm, kind, Until::Protected).await?);
        theirs.push(self.theirs(&self.disk.raw, kind).await?);
        note("limits", 1, &ours, &theirs);
        let (a, b) = (median(&ours), median(&theirs));
        let part = "60 MiB/s and 500 requests/s per blob, as Azure";
        self.out.add(Row::new(part, "safe in storage", "s", a.safe, Some(b.safe)));
        self.out.add(Row::new(part, "CPU", "s", a.cpu, Some(b.cpu)));
        self.out.add(Row::new(part, "protected: first recovery point", "s", a.protected, Some(b.safe)));
        Ok(())
    }

    /// Replicates the VM's disk into a new double: until safe, or until it has a recovery point.
    async fn ours(&self, vm: &Vm, kind: Kind, until: Until) -> anyhow::Result<Sample> {
        let run = Scratch::new(self.scratch.path(), "ours")?;
        let double = Double::start(&run.path().join("blobs"), kind).await?;
        let sample = self.ours_into(&double, run.path(), vm, until).await?;
        double.stop()?;
        settle();
        Ok(sample)
    }

    async fn ours_into(&self, double: &Double, run: &Path, vm: &Vm, until: Until) -> anyhow::Result<Sample> {
        vm.clean().await?;
        relationship::prepare(double, vm.id, vm.disk).await?;
        let mut replica = match until {
            Until::Protected => Some(self.replica_server(double, double, run, vm.id).await?),
            Until::Safe | Until::Point => None,
        };
        let job = agent_job(run, double, &vm.socket, vm.id, vm.disk)?;
        double.reset()?;
        let (begun, clock) = (Instant::now(), SystemTime::now());
        let mut agent = Process::own("the agent", &["agent", text(&job)?], &run.join("agent.log"))?;
        let commit = loop {
            if let Some(commit) = relationship::copied(double, vm.id).await? {
                break commit;
            }
            agent.must_live()?;
            too_long(begun)?;
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let usage = agent.usage();
        let stats = double.stats()?;
        let up = double.service.container(&names::up_container(vm.id));
        let committed =
            double.changed_at(&up, &names::commit(commit)).await?.context("the commit is gone")?;
        let first = stats.first_write_micros.context("nothing was written")?;
        let started = double.micros_at(clock);
        let mut sample = Sample {
            safe: seconds(first, committed),
            wall: seconds(started, committed),
            wire: stats.blob_bytes as f64,
            cpu: usage.cpu.as_secs_f64(),
            peak: usage.peak as f64,
            ..Sample::default()
        };
        if let Some(replica) = &mut replica {
            let (at, usage) = self.protected(double, double, replica, vm.id, begun).await?;
            sample.protected = seconds(first, at);
            (sample.replica_cpu, sample.replica_peak) = (usage.cpu.as_secs_f64(), usage.peak as f64);
        }
        if until == Until::Point {
            while up.head(&names::commit(commit.next())).await?.is_none() {
                agent.must_live()?;
                too_long(begun)?;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        sample.peak = sample.peak.max(agent.kill()?.peak as f64);
        Ok(sample)
    }

    /// Starts the replica server and waits until it has its cursor.
    async fn replica_server(
        &self,
        cycles: &Double,
        replica: &Double,
        run: &Path,
        vm: VmId,
    ) -> anyhow::Result<Process> {
        let job = replica_job(run, cycles, replica, vm)?;
        let mut process =
            Process::own("the replica server", &["replica", text(&job)?], &run.join("replica.log"))?;
        let begun = Instant::now();
        while relationship::cursor(cycles, vm).await?.is_none() {
            process.must_live()?;
            too_long(begun)?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(process)
    }

    /// Waits for the first recovery point: when it was written, by the double that holds it.
    async fn protected(
        &self,
        cycles: &Double,
        replica: &Double,
        process: &mut Process,
        vm: VmId,
        begun: Instant,
    ) -> anyhow::Result<(u64, Usage)> {
        loop {
            let cursor = relationship::cursor(cycles, vm).await?.context("the cursor is gone")?;
            if let Some(refused) = cursor.refused {
                bail!("the replica server refuses: {}: {}", refused.code, refused.message);
            }
            if let Some(point) = cursor.newest_point {
                let usage = process.usage();
                let container = replica.service.container(&names::replica_container(vm));
                let at = replica.changed_at(&container, &names::point_blob(&point.name)).await?;
                return Ok((at.unwrap_or_default(), usage));
            }
            process.must_live()?;
            too_long(begun)?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn theirs(&self, disk: &Path, kind: Kind) -> anyhow::Result<Sample> {
        let run = Scratch::new(self.scratch.path(), "azcopy")?;
        let double = Double::start(&run.path().join("blobs"), kind).await?;
        let sample = azcopy::copy(&self.azcopy, &double, run.path(), disk, kind.blob_limits).await?;
        double.stop()?;
        settle();
        Ok(sample)
    }

    async fn agent_ceiling(&mut self) -> anyhow::Result<()> {
        for (compress, what) in [(true, "agent, zstd"), (false, "agent, not packed")] {
            let mut runs = Vec::new();
            for round in 1..=self.rounds {
                runs.push(self.transfer(compress).await?);
                eprintln!("{what} {round}: {}", shown(runs.last().map_or(0.0, |r| r.0), "MB/s"));
            }
            let of = |pick: fn(&(f64, f64, f64)) -> f64| median_of(runs.iter().map(pick));
            let aim = compress.then(|| at_least(400.0));
            let part = "ceiling against storage that keeps nothing";
            let row = Row::new(part, &format!("{what}: disk data per core"), "MB/s", of(|r| r.0), None);
            self.out.add(row.aim_if(aim));
            self.out.add(Row::new(
                part,
                &format!("{what}: disk data by the clock"),
                "MB/s",
                of(|r| r.1),
                None,
            ));
            self.out.add(Row::new(part, &format!("{what}: bytes sent per byte"), "x", of(|r| r.2), None));
        }
        Ok(())
    }

    /// MB/s of disk data per core and by the clock, and bytes sent per byte.
    async fn transfer(&self, compress: bool) -> anyhow::Result<(f64, f64, f64)> {
        let run = Scratch::new(self.scratch.path(), "transfer")?;
        let folder = run.path().join("blobs");
        let vm = VmId(uuid::Uuid::new_v4());
        let made = Double::start(&folder, Kind::default()).await?;
        made.service.container(&names::up_container(vm)).create(&farshore_azure::Metadata::new()).await?;
        made.stop()?;
        let double = Double::start(&folder, Kind { null: true, ..Kind::default() }).await?;
        let job = TransferJob {
            endpoint: double.endpoint.clone(),
            vhdx: self.disk.vhdx.clone(),
            vm,
            up: relationship::signature(&names::up_container(vm), sas::Permissions::Create)?,
            compress,
            outcome: run.path().join("outcome.json"),
        };
        let path = run.path().join("transfer.json");
        std::fs::write(&path, serde_json::to_vec(&job)?)?;
        let log = run.path().join("transfer.log");
        let (status, usage) = Process::own("the transfer", &["transfer", text(&path)?], &log)?.end().await?;
        if !status.success() {
            bail!("the transfer failed: {}", std::fs::read_to_string(log)?);
        }
        let moved: Moved = serde_json::from_slice(&std::fs::read(&job.outcome)?)?;
        let stats = double.stats()?;
        let span = stats.first_write_micros.zip(stats.last_write_micros).context("nothing was written")?;
        double.stop()?;
        let megabytes = moved.disk_bytes as f64 / 1e6;
        let sent = moved.sent as f64 / moved.disk_bytes as f64;
        Ok((megabytes / usage.cpu.as_secs_f64(), megabytes / seconds(span.0, span.1), sent))
    }

    async fn replica_ceiling(&mut self) -> anyhow::Result<()> {
        let run = Scratch::new(self.scratch.path(), "ceiling")?;
        let vm = Vm::of_image(&run.path().join("host"), &self.disk.raw).await?;
        let cycles = Double::start(&run.path().join("cycles"), Kind::default()).await?;
        self.ours_into(&cycles, run.path(), &vm, Until::Point).await?;
        let mut runs = Vec::new();
        for round in 1..=self.rounds {
            let folder = run.path().join(format!("replica{round}"));
            let made = Double::start(&folder, Kind::default()).await?;
            relationship::prepare(&made, vm.id, vm.disk).await?;
            made.stop()?;
            let replica = Double::start(&folder, Kind { null: true, ..Kind::default() }).await?;
            let down = cycles.service.container(&names::down_container(vm.id));
            down.delete(names::CURSOR, None).await?;
            let begun = Instant::now();
            let mut process = self.replica_server(&cycles, &replica, run.path(), vm.id).await?;
            let (_, usage) = self.protected(&cycles, &replica, &mut process, vm.id, begun).await?;
            process.kill()?;
            let stats = replica.stats()?;
            let span =
                stats.first_write_micros.zip(stats.last_write_micros).context("nothing was written")?;
            replica.stop()?;
            let megabytes = stats.page_bytes as f64 / 1e6;
            runs.push((megabytes / usage.cpu.as_secs_f64(), megabytes / seconds(span.0, span.1)));
            eprintln!("replica server {round}: {}", shown(runs.last().map_or(0.0, |r| r.0), "MB/s"));
        }
        cycles.stop()?;
        let part = "ceiling against storage that keeps nothing";
        let (core, clock) = (median_of(runs.iter().map(|r| r.0)), median_of(runs.iter().map(|r| r.1)));
        self.out.add(Row::new(part, "replica server: pages per core", "MB/s", core, None));
        self.out.add(Row::new(part, "replica server: pages by the clock", "MB/s", clock, None));
        Ok(())
    }

    async fn resume(&mut self) -> anyhow::Result<()> {
        let vm = Vm::of_image(&self.scratch.path().join("host-resume"), &self.disk.raw).await?;
        let (mut whole, mut killed) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            let uninterrupted = self.ours(&vm, Kind::default(), Until::Safe).await?;
            killed.push(self.killed_half_way(&vm, uninterrupted.wire / 2.0).await?);
            whole.push(uninterrupted);
            note("resume", round, &killed, &whole);
        }
        let (a, b) = (median(&killed), median(&whole));
        let part = "killed half-way and resumed, against uninterrupted";
        self.out.add(Row::new(part, "bytes on the wire", "B", a.wire, Some(b.wire)));
        self.out.add(Row::new(part, "CPU of both lives", "s", a.cpu, Some(b.cpu)));
        self.out.add(Row::new(part, "safe in storage", "s", a.safe, Some(b.safe)));
        Ok(())
    }

    async fn killed_half_way(&self, vm: &Vm, half: f64) -> anyhow::Result<Sample> {
        let run = Scratch::new(self.scratch.path(), "killed")?;
        let double = Double::start(&run.path().join("blobs"), Kind::default()).await?;
        vm.clean().await?;
        relationship::prepare(&double, vm.id, vm.disk).await?;
        let job = agent_job(run.path(), &double, &vm.socket, vm.id, vm.disk)?;
        double.reset()?;
        let (begun, log) = (Instant::now(), run.path().join("agent.log"));
        let mut first = Process::own("the agent", &["agent", text(&job)?], &log)?;
        while (double.stats()?.blob_bytes as f64) < half {
            first.must_live()?;
            too_long(begun)?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let before = first.kill()?;
        if relationship::copied(&double, vm.id).await?.is_some() {
            bail!("the agent was done before it was killed");
        }
        let mut second = Process::own("the agent", &["agent", text(&job)?], &log)?;
        let commit = loop {
            if let Some(commit) = relationship::copied(&double, vm.id).await? {
                break commit;
            }
            second.must_live()?;
            too_long(begun)?;
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let after = second.usage();
        let stats = double.stats()?;
        let up = double.service.container(&names::up_container(vm.id));
        let committed =
            double.changed_at(&up, &names::commit(commit)).await?.context("the commit is gone")?;
        second.kill()?;
        double.stop()?;
        settle();
        Ok(Sample {
            safe: seconds(stats.first_write_micros.context("nothing was written")?, committed),
            // Also what was under way when it was killed.
            wire: stats.bytes_in as f64,
            cpu: (before.cpu + after.cpu).as_secs_f64(),
            ..Sample::default()
        })
    }

    /// A disk of 64 GiB with a little data in each of its blocks, so that all of it is read and walked.
    async fn memory(&mut self) -> anyhow::Result<()> {
        const STRIDE: u64 = 32 << 20;
        let run = Scratch::new(self.scratch.path(), "memory")?;
        let vm = Vm::of_size(&run.path().join("host"), MEMORY_DISK).await?;
        for offset in (0..MEMORY_DISK).step_by(usize::try_from(STRIDE)?) {
            vm.write(offset, 64 << 10).await?;
        }
        let double = Double::start(&run.path().join("blobs"), Kind::default()).await?;
        let sample = self.ours_into(&double, run.path(), &vm, Until::Protected).await?;
        let stats = double.stats()?;
        double.stop()?;
        eprintln!("memory: protected after {:.0} s, {} sent", sample.protected, shown(sample.wire, "B"));
        let part = "sparse disk of 64 GiB, data in every block";
        self.out.add(Row::new(part, "agent's peak memory", "B", sample.peak, None).aim(at_most(MEMORY_AIM)));
        let row = Row::new(part, "replica server's peak memory", "B", sample.replica_peak, None);
        self.out.add(row.aim(at_most(MEMORY_AIM)));
        self.out.add(Row::new(part, "bytes sent by the agent", "B", sample.wire, None));
        self.out.add(Row::new(part, "pages written", "B", stats.page_bytes as f64, None));
        self.out.add(Row::new(part, "protected", "s", sample.protected, None));
        Ok(())
    }
}

fn seconds(from_micros: u64, to_micros: u64) -> f64 {
    to_micros.saturating_sub(from_micros) as f64 / 1e6
}

fn too_long(begun: Instant) -> anyhow::Result<()> {
    if begun.elapsed() > LIMIT {
        bail!("no end after {} s; the logs are in the folder", LIMIT.as_secs());
    }
    Ok(())
}

/// What a run left in the page cache is not written during the next one.
fn settle() {
    nix::unistd::sync();
}

fn note(part: &str, round: usize, ours: &[Sample], theirs: &[Sample]) {
    let (Some(a), Some(b)) = (ours.last(), theirs.last()) else { return };
    let r = |pick: fn(&Sample) -> f64| ratio(pick(a), pick(b));
    eprintln!(
        "{part} {round}: safe {:.2} s to {:.2} s (x {:.2}), wire x {:.2}, CPU {:.2} s to {:.2} s (x {:.2})",
        a.safe,
        b.safe,
        r(|s| s.safe),
        r(|s| s.wire),
        a.cpu,
        b.cpu,
        r(|s| s.cpu),
    );
}

fn median_of(values: impl Iterator<Item = f64>) -> f64 {
    crate::table::middle(values.collect())
}

fn copy_start(from: &Path, to: &Path, len: u64) -> anyhow::Result<()> {
    use std::io::Read;
    let mut source = std::fs::File::open(from)?.take(len);
    std::io::copy(&mut source, &mut std::fs::File::create(to)?)?;
    Ok(())
}
