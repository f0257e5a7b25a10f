//! The processes of a lab by name: start, kill, stop, pause, start again, read the log.
//!
//! Each is a process group of its own with its output in `<folder>/<name>.log`. All end with us:
//! dropping [`Parts`] kills them, and the kernel does it (`setpriv --pdeathsig`) when we are killed.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::error::{Error, Result};

/// How often a condition is looked at: short against any start-up, cheap on two cores.
const LOOK: Duration = Duration::from_millis(20);
/// The kernel stops a process at once, unless it hangs in a device.
const STANDSTILL: Duration = Duration::from_secs(10);
/// How much of a log an error shows.
const TAIL: u64 = 4096;

/// What to run.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
}

impl Program {
    /// The program at `path`, without arguments.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: Vec::new(), env: Vec::new(), folder: None }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One environment variable on top of ours.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The folder that it runs in.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// `setpriv` becomes the program (same process id), so that a signal goes to the program itself.
    fn command(&self, log: &File) -> std::io::Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.path).args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        command.process_group(0);
        Ok(command)
    }
}

/// How a part is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs under this process id.
    Running(u32),
    /// It ended.
    Ended(ExitStatus),
}

struct Part {
    program: Program,
    child: Child,
    log: PathBuf,
    /// Order of the first start; the end goes backwards.
    nth: usize,
}

impl Part {
    fn state(&mut self) -> State {
        match self.child.try_wait() {
            Ok(Some(status)) => State::Ended(status),
            // A failing wait means that the child is not ours to wait for: it cannot happen to a child we spawned.
            Ok(None) | Err(_) => State::Running(self.child.id()),
        }
    }

    fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        // Only after try_wait said that it runs: until it is reaped its id is not given to another.
        let State::Running(pid) = self.state() else {
            return Err(Error::PartState { part: name.to_owned(), state: "not running" });
        };
        killpg(pid_of(pid), signal).map_err(|source| Error::Signal { part: name.to_owned(), source })
    }
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// The lab's processes by name.
pub struct Parts {
    logs: PathBuf,
    parts: Mutex<BTreeMap<String, Part>>,
}

impl Parts {
    /// No parts yet; their logs will be in `logs`.
    pub fn new(logs: impl Into<PathBuf>) -> Result<Self> {
        let logs = logs.into();
        std::fs::create_dir_all(&logs).map_err(Error::file(&logs))?;
        Ok(Self { logs, parts: Mutex::new(BTreeMap::new()) })
    }

    /// Starts a part; replaces one of the same name that has ended.
    pub fn start(&self, name: &str, program: Program) -> Result<()> {
        let mut parts = self.lock();
        let nth = match parts.get_mut(name) {
            Some(old) => match old.state() {
                State::Running(_) => {
                    return Err(Error::PartState { part: name.to_owned(), state: "running already" });
                }
                State::Ended(_) => old.nth,
            },
            None => parts.len(),
        };
        let log = self.log_path(name);
        let child = spawn(&program, &log)?;
        tracing::debug!(part = name, pid = child.id(), "started");
        parts.insert(name.to_owned(), Part { program, child, log, nth });
        Ok(())
    }

    /// Starts a part that has ended, as it was started last.
    pub fn start_again(&self, name: &str) -> Result<()> {
        let program = self.program(name)?;
        self.start(name, program)
    }

    /// What a part was last started with, to start it again with a change.
    pub fn program(&self, name: &str) -> Result<Program> {
        self.with(name, |part| Ok(part.program.clone()))
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.with(name, |part| {
            part.signal(name, Signal::SIGKILL)?;
            part.child.wait().map_err(Error::file(&part.log))?;
            Ok(())
        })
    }

    /// SIGTERM, and gone when this returns; SIGKILL after `grace`.
    pub async fn stop(&self, name: &str, grace: Duration) -> Result<ExitStatus> {
        self.with(name, |part| part.signal(name, Signal::SIGTERM))?;
        match self.ended(name, grace).await {
            Err(Error::Deadline { .. }) => {
                self.kill(name)?;
                self.ended(name, grace).await
            }
            ended => ended,
        }
    }

    /// SIGSTOP, as if the machine hung; it stands still when this returns.
    pub async fn pause(&self, name: &str) -> Result<()> {
        self.with(name, |part| part.signal(name, Signal::SIGSTOP))?;
        until(&format!("standstill of {name}"), STANDSTILL, async || {
            self.with(name, |part| {
                let State::Running(pid) = part.state() else {
                    return Err(Error::PartState { part: name.to_owned(), state: "not running" });
                };
                let path = format!("/proc/{pid}/status");
                let status = std::fs::read_to_string(&path).map_err(Error::file(path))?;
                let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
                Ok(if state.contains('T') { Seen::Yes(()) } else { Seen::NotYet(state.to_owned()) })
            })
        })
        .await
    }

    /// SIGCONT after [`Parts::pause`].
    pub fn resume(&self, name: &str) -> Result<()> {
        self.with(name, |part| part.signal(name, Signal::SIGCONT))
    }

    /// Waits until a part ends by itself (a crash point, say).
    pub async fn ended(&self, name: &str, deadline: Duration) -> Result<ExitStatus> {
        until(&format!("end of {name}"), deadline, async || {
            self.with(name, |part| {
                Ok(match part.state() {
                    State::Ended(status) => Seen::Yes(status),
                    State::Running(pid) => Seen::NotYet(format!("process {pid} runs")),
                })
            })
        })
        .await
    }

    /// An error that shows the end of the log if a part does not run.
    pub fn check(&self, name: &str) -> Result<()> {
        self.with(name, |part| match part.state() {
            State::Running(_) => Ok(()),
            State::Ended(status) => Err(Error::Ended { part: name.to_owned(), status, log: tail(&part.log) }),
        })
    }

    /// How one part is doing.
    pub fn state(&self, name: &str) -> Result<State> {
        self.with(name, |part| Ok(part.state()))
    }

    /// How every part is doing, in the order of their first start.
    pub fn states(&self) -> Vec<(String, State)> {
        let mut all: Vec<_> =
            self.lock().iter_mut().map(|(name, part)| (part.nth, name.clone(), part.state())).collect();
        all.sort_by_key(|(nth, ..)| *nth);
        all.into_iter().map(|(_, name, state)| (name, state)).collect()
    }

    /// Where a part's output goes (kept over restarts).
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Stops all parts that run, the last started first.
    pub async fn stop_all(&self, grace: Duration) {
        for (name, state) in self.states().into_iter().rev() {
            if let State::Running(_) = state
                && let Err(error) = self.stop(&name, grace).await
            {
                tracing::warn!(part = name, %error, "stop");
            }
        }
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Part) -> Result<T>) -> Result<T> {
        act(self.lock().get_mut(name).ok_or_else(|| Error::NoSuchPart(name.to_owned()))?)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Part>> {
        // Each change is one insert: a panic elsewhere leaves the map whole.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let mut parts: Vec<_> = std::mem::take(&mut *self.lock()).into_iter().collect();
        parts.sort_by_key(|(_, part)| std::cmp::Reverse(part.nth));
        for (name, mut part) in parts {
            if part.signal(&name, Signal::SIGKILL).is_ok() {
                drop(part.child.wait());
            }
        }
    }
}

/// What a look at a condition found.
pub enum Seen<T> {
    /// It holds.
    Yes(T),
    /// Not yet; what was seen instead.
    NotYet(String),
}

/// Looks at a condition until it holds, fails, or `deadline` has passed.
pub async fn until<T, F: Future<Output = Result<Seen<T>>>>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match look().await? {
            Seen::Yes(value) => return Ok(value),
            Seen::NotYet(last) if Instant::now() >= end => {
                let last = if last.is_empty() { last } else { format!(": {last}") };
                return Err(Error::Deadline { what: what.to_owned(), waited: deadline, last });
            }
            Seen::NotYet(_) => sleep(LOOK).await,
        }
    }
}

fn spawn(program: &Program, log: &Path) -> Result<Child> {
    let file = OpenOptions::new().create(true).append(true).open(log).map_err(Error::file(log))?;
    let failed = |source| Error::Start { program: program.path.clone(), source };
    // setpriv reports a missing program only by its exit status.
    std::fs::metadata(&program.path).map_err(failed)?;
    let command = program.command(&file).map_err(failed)?;
    spawn_from_lasting_thread(command).map_err(failed)
}

/// The kernel sends the death signal when the *thread* that forked ends, and threads of tests and of
/// tokio come and go: so one thread, which lasts as long as the process, starts all children.
fn spawn_from_lasting_thread(command: Command) -> std::io::Result<Child> {
    type Job = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                drop(answer.send(command.spawn()));
            }
        });
        sender
    });
    let gone = || std::io::Error::other("the spawning thread is gone");
    let (sender, answer) = mpsc::channel();
    spawner.send((command, sender)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// The end of a log, for an error message.
pub(crate) fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
