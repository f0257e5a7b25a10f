//! What a process cost: CPU seconds and peak memory, by the operating system's own accounting.

use std::fs;
use std::time::Duration;

/// CPU time and peak resident memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Peak resident set in bytes.
    pub(crate) peak: u64,
}

/// Clock ticks per second of `/proc/<pid>/stat`: 100 on every Linux that Rust runs on (USER_HZ).
const TICKS: u64 = 100;

/// Reads what the process `pid` has cost so far; `None` if it is gone.
#[must_use]
pub(crate) fn of(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
    let cpu = Duration::from_millis((ticks(11)? + ticks(12)?) * 1000 / TICKS);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or_default()
        * 1024;
    Some(Usage { cpu, peak })
}
