//! The live picture: what the containers say, drawn for a person.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use farshore_core::units::Bytes;

/// What is known of the VM right now. Read from storage and the resources, never asked for by a write.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scene {
    /// What the ProtectedVM says: state and replication state.
    pub(super) state: String,
    /// What the job in progress does.
    pub(super) step: String,
    /// Bytes of data that initial replication has to copy, and has copied.
    pub(super) initial: Option<(u64, u64)>,
    /// Bytes in the upload container.
    pub(super) uploaded: u64,
    /// Newest verified and applied cycle.
    pub(super) verified: u64,
    /// Newest applied cycle.
    pub(super) applied: u64,
    /// Recovery points with a snapshot set.
    pub(super) points: usize,
    /// Seconds since the newest point's instant.
    pub(super) rpo_seconds: Option<i64>,
    /// The last number that the guest wrote.
    pub(super) number: u64,
}

/// Draws scenes: in place on a terminal, a line per change of meaning elsewhere.
pub(super) struct Picture {
    terminal: bool,
    started: Instant,
    last: Option<(Instant, Scene)>,
    /// Bytes per second, smoothed.
    rate: u64,
    drawn: bool,
}

impl Picture {
    /// An empty picture.
    #[must_use]
    pub(super) fn new() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            started: Instant::now(),
            last: None,
            rate: 0,
            drawn: false,
        }
    }

    /// Shows `scene`.
    pub(super) fn show(&mut self, scene: Scene) {
        let now = Instant::now();
        if let Some((at, before)) = &self.last {
            let millis = u64::try_from(now.duration_since(*at).as_millis()).unwrap_or(u64::MAX).max(1);
            let latest = scene.uploaded.saturating_sub(before.uploaded).saturating_mul(1000) / millis;
            self.rate = (self.rate.saturating_mul(7) + latest.saturating_mul(3)) / 10;
            let told = |s: &Scene| (s.state.clone(), s.step.clone(), s.points);
            if !self.terminal && told(before) == told(&scene) {
                self.last = Some((now, scene));
                return;
            }
        }
        let line = self.line(&scene);
        let mut out = std::io::stdout().lock();
        // A picture that cannot be drawn is no reason to stop what it shows.
        let _ = if self.terminal {
            let up = if self.drawn { "\x1b[1A\r\x1b[2K" } else { "" };
            writeln!(out, "{up}{line}")
        } else {
            writeln!(out, "{line}")
        };
        self.drawn = true;
        self.last = Some((now, scene));
    }

    fn line(&self, scene: &Scene) -> String {
        let seconds = self.started.elapsed().as_secs();
        let bar = scene.initial.map_or_else(String::new, |(total, done)| bar(done, total));
        let rpo = scene.rpo_seconds.map_or_else(|| "no point yet".to_owned(), |s| format!("RPO {s} s"));
        format!(
            "{:>3}:{:02}  {:<12} {bar}  sent {:>9} {:>9}/s  cycle {} verified, {} applied  {} points  {rpo}  guest at write {}{}",
            seconds / 60,
            seconds % 60,
            scene.state,
            Bytes(scene.uploaded).to_string(),
            Bytes(self.rate).to_string(),
            scene.verified,
            scene.applied,
            scene.points,
            scene.number,
            if scene.step.is_empty() { String::new() } else { format!("  [{}]", scene.step) },
        )
    }
}

impl Default for Picture {
    fn default() -> Self {
        Self::new()
    }
}

/// `[######....] 60 %`
fn bar(done: u64, total: u64) -> String {
    const WIDTH: u64 = 20;
    let total = total.max(1);
    let done = done.min(total);
    let filled = usize::try_from(done * WIDTH / total).unwrap_or_default();
    let empty = usize::try_from(WIDTH).unwrap_or_default() - filled;
    format!("[{}{}] {:>3} %", "#".repeat(filled), ".".repeat(empty), done * 100 / total)
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_is_full_at_the_end_and_never_over_it() {
        assert_eq!(bar(0, 0), "[....................]   0 %");
        assert_eq!(bar(5, 10), "[##########..........]  50 %");
        assert_eq!(bar(99, 10), "[####################] 100 %");
    }
}
