//! Children of the bench: what they cost is read while they live, and they never outlive it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::usage::{self, Usage};

/// A running child. Killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    seen: Usage,
}

impl Process {
    /// Starts `command`; what it says goes to `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, seen: Usage::default() })
    }

    /// Starts another process of this very program.
    pub(crate) fn own(name: &str, args: &[&str], log: &Path) -> anyhow::Result<Self> {
        Self::start(name, Command::new(std::env::current_exe()?).args(args), log)
    }

    /// What it cost so far. Once it has ended its memory cannot be read any more; what was seen stays.
    pub(crate) fn usage(&mut self) -> Usage {
        if let Some(now) = usage::of(self.child.id()) {
            self.seen = Usage { cpu: now.cpu, peak: now.peak.max(self.seen.peak) };
        }
        self.seen
    }

    /// An error if it has ended.
    pub(crate) fn must_live(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended: {status}", self.name),
        }
    }

    /// Waits for its end; what it cost is read between its end and its burial.
    pub(crate) async fn end(&mut self) -> anyhow::Result<(ExitStatus, Usage)> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        while waitid(Id::Pid(pid), ended)? == WaitStatus::StillAlive {
            self.usage();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let usage = self.usage();
        Ok((self.child.wait()?, usage))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> anyhow::Result<Usage> {
        let usage = self.usage();
        self.child.kill()?;
        self.child.wait()?;
        Ok(usage)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
