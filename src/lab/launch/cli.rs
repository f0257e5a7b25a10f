//! The commands of `farshore-lab` that start, stop and drive a background lab.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use super::{
    keeper::{self, Phase, Plan, Request, Status},
    parts::tail,
    tools::Tools,
};

/// A first start builds a control plane; the set-up before it is not counted.
const UP: Duration = Duration::from_secs(300);
const DOWN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);

/// Which lab, and how to speak.
#[derive(Debug, Clone, clap::Args)]
pub struct Where {
    /// The lab's folder.
    #[arg(long, env = "FARSHORE_LAB", default_value = "target/lab", global = true)]
    pub folder: PathBuf,
    /// Answer in JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Commands that start, stop and drive the lab.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Build or fetch all that is not ours (once per machine), and print where it is.
    Setup,
    /// Start the lab in the background; if it is up, say so.
    Up {
        /// What it is made of.
        #[command(flatten)]
        plan: Plan,
        /// Which lab.
        #[command(flatten)]
        lab: Where,
    },
    /// End the lab; its data is kept.
    Down(Where),
    /// Show the lab's parts.
    Status(Where),
    /// Make something go wrong with a part or a link.
    Fault {
        /// What.
        #[command(subcommand)]
        fault: Fault,
        /// Which lab.
        #[command(flatten)]
        lab: Where,
    },
    /// Hold a lab in the foreground (what `up` starts).
    #[command(hide = true)]
    Keep {
        /// What it is made of.
        #[command(flatten)]
        plan: Plan,
        /// Which lab.
        #[command(flatten)]
        lab: Where,
    },
}

/// What can be done to a running lab.
#[derive(Debug, clap::Subcommand)]
pub enum Fault {
    /// SIGKILL to a part.
    Kill {
        /// Its name in `farshore-lab status`.
        part: String,
    },
    /// SIGTERM to a part, and wait for its end.
    Stop {
        /// Its name.
        part: String,
    },
    /// Start a part that ended, with further arguments.
    Start {
        /// Its name.
        part: String,
        /// For example `--crash-at before-commit`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// SIGSTOP to a part.
    Pause {
        /// Its name.
        part: String,
    },
    /// SIGCONT to a part.
    Resume {
        /// Its name.
        part: String,
    },
    /// Cut the link to the blob service.
    CutBlobs,
    /// Mend the link to the blob service.
    MendBlobs,
}

impl From<Fault> for Request {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Kill { part } => Self::Kill { part },
            Fault::Stop { part } => Self::Stop { part },
            Fault::Start { part, args } => Self::Start { part, args },
            Fault::Pause { part } => Self::Pause { part },
            Fault::Resume { part } => Self::Resume { part },
            Fault::CutBlobs => Self::CutBlobs,
            Fault::MendBlobs => Self::MendBlobs,
        }
    }
}

/// Runs one command.
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup => {
            let tools = tokio::task::spawn_blocking(|| Tools::of_this_machine()?.set_up()).await??;
            let lines: String =
                tools.iter().map(|(name, path)| format!("{name} {}\n", path.display())).collect();
            say(&lines)
        }
        Command::Up { plan, lab } => up(&plan, &lab).await,
        Command::Down(lab) => down(&lab).await,
        Command::Status(lab) => show(&keeper::ask(&lab.folder, &Request::Status).await?, &lab),
        Command::Fault { fault, lab } => show(&keeper::ask(&lab.folder, &fault.into()).await?, &lab),
        Command::Keep { plan, lab } => keeper::keep(&lab.folder, &plan).await,
    }
}

async fn up(plan: &Plan, lab: &Where) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(|| Tools::of_this_machine()?.set_up()).await??;
    std::fs::create_dir_all(&lab.folder)?;
    if !keeper::lives(&lab.folder) {
        let log = lab.folder.join("keeper.log");
        let started = Instant::now();
        let mut child = start_keeper(plan, lab, &log)?;
        wait_for_up(lab, || Ok(child.try_wait()?.is_none()), &log).await?;
        eprintln!("lab: up after {:.1} s", started.elapsed().as_secs_f64());
    } else {
        wait_for_up(lab, || Ok(keeper::lives(&lab.folder)), &lab.folder.join("keeper.log")).await?;
    }
    let status = keeper::ask(&lab.folder, &Request::Status).await?;
    show(&status, lab)?;
    if !lab.json {
        say(&format!("\n. {}    # then kubectl, farshore-lab\n", lab.folder.join("env").display()))?;
    }
    Ok(())
}

fn start_keeper(plan: &Plan, lab: &Where, log: &Path) -> anyhow::Result<std::process::Child> {
    let output = OpenOptions::new().create(true).append(true).open(log)?;
    std::process::Command::new(std::env::current_exe()?)
        .arg("keep")
        .args(plan.args())
        .arg("--folder")
        .arg(&lab.folder)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("start of the keeper")
}

async fn wait_for_up(
    lab: &Where,
    alive: impl FnMut() -> anyhow::Result<bool>,
    log: &Path,
) -> anyhow::Result<()> {
    let mut alive = alive;
    let end = Instant::now() + UP;
    let mut said = None;
    loop {
        match keeper::ask(&lab.folder, &Request::Status).await.map(|status| status.phase) {
            Ok(Phase::Up) => return Ok(()),
            Ok(Phase::Starting(what)) => {
                if said.as_ref() != Some(&what) {
                    eprintln!("lab: starting {what}");
                    drop(std::io::stderr().flush());
                    said = Some(what);
                }
            }
            Ok(Phase::Stopping) | Err(_) => {}
        }
        if !alive()? {
            bail!("the lab did not start; the end of {}:\n{}", log.display(), tail(log));
        }
        if Instant::now() > end {
            bail!("the lab is not up after {} s: see {}", UP.as_secs(), log.display());
        }
        sleep(LOOK).await;
    }
}

async fn down(lab: &Where) -> anyhow::Result<()> {
    if keeper::lives(&lab.folder) {
        let end = Instant::now() + DOWN;
        // It may be between taking its lock and listening: then it is asked again.
        let mut asked = keeper::ask(&lab.folder, &Request::Down).await.is_ok();
        while keeper::lives(&lab.folder) {
            if Instant::now() > end {
                bail!("the lab is not down after {} s", DOWN.as_secs());
            }
            sleep(LOOK).await;
            if !asked {
                asked = keeper::ask(&lab.folder, &Request::Down).await.is_ok();
            }
        }
    }
    say(if lab.json { "{\"phase\": \"down\"}\n" } else { "lab: down\n" })
}

fn show(status: &Status, lab: &Where) -> anyhow::Result<()> {
    if lab.json {
        return say(&format!("{}\n", serde_json::to_string_pretty(status)?));
    }
    let phase = match &status.phase {
        Phase::Starting(what) => format!("starting {what}"),
        Phase::Up => "up".to_owned(),
        Phase::Stopping => "stopping".to_owned(),
    };
    let link = if status.blobs_linked { "whole" } else { "cut" };
    let mut text = format!("lab: {phase}, link to the blob service {link}\n");
    for part in &status.parts {
        let state = match (&part.pid, &part.ended) {
            (Some(pid), _) => format!("process {pid}"),
            (None, Some(ended)) => ended.clone(),
            (None, None) => String::new(),
        };
        text.push_str(&format!("  {:24} {:20} {}\n", part.name, state, part.log.display()));
    }
    for note in &status.notes {
        text.push_str(&format!("  {note}\n"));
    }
    say(&text)
}

/// Writes to stdout; a reader who has seen enough (`| head`) is no failure.
fn say(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
