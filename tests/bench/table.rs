//! Figures, their aims, and how they are shown.

use std::fmt;

use serde::Serialize;

use crate::data::Sample;

/// What a figure should be: of the ratio if there is one, else of our own figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Aim {
    /// No more.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
}

/// No more than this.
pub(crate) fn at_most(limit: f64) -> Aim {
    Aim::AtMost(limit)
}

/// No less than this.
pub(crate) fn at_least(limit: f64) -> Aim {
    Aim::AtLeast(limit)
}

/// One line.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    /// Of which part.
    pub(crate) part: String,
    /// What was measured.
    pub(crate) what: String,
    /// In which unit.
    pub(crate) unit: &'static str,
    /// Ours, the median.
    pub(crate) ours: f64,
    /// What it is held against, the median.
    pub(crate) other: Option<f64>,
    /// Ours by the other.
    pub(crate) ratio: Option<f64>,
    /// What is wanted.
    pub(crate) aim: Option<Aim>,
    /// Is it so?
    pub(crate) met: Option<bool>,
}

impl Row {
    /// A line without an aim.
    pub(crate) fn new(part: &str, what: &str, unit: &'static str, ours: f64, other: Option<f64>) -> Self {
        let ratio = other.map(|other| ratio(ours, other));
        Self { part: part.into(), what: what.into(), unit, ours, other, ratio, aim: None, met: None }
    }

    /// With an aim.
    pub(crate) fn aim(self, aim: Aim) -> Self {
        let judged = self.ratio.unwrap_or(self.ours);
        let met = match aim {
            Aim::AtMost(limit) => judged <= limit,
            Aim::AtLeast(limit) => judged >= limit,
        };
        Self { aim: Some(aim), met: Some(met), ..self }
    }

    /// With an aim, if there is one.
    pub(crate) fn aim_if(self, aim: Option<Aim>) -> Self {
        match aim {
            Some(aim) => self.aim(aim),
            None => self,
        }
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    rounds: usize,
    cores: usize,
    /// Load of the machine before and after: others that ran beside us.
    load: [String; 2],
    rows: Vec<Row>,
}

impl Outcome {
    /// Nothing yet.
    pub(crate) fn new(rounds: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { rounds, cores, load: [load(), String::new()], rows: Vec::new() }
    }

    /// One more line.
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Everything was measured.
    pub(crate) fn finish(&mut self) {
        let [_, after] = &mut self.load;
        *after = load();
    }
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = &self.load;
        writeln!(
            f,
            "medians of {} interleaved rounds, {} cores, load before {before}, after {after}",
            self.rounds, self.cores
        )?;
        let mut part = "";
        for row in &self.rows {
            if row.part != part {
                part = &row.part;
                writeln!(f, "\n{part}")?;
                writeln!(f, "  {:<40} {:>12} {:>12} {:>8}  aim", "", "ours", "other", "ratio")?;
            }
            let other = row.other.map(|other| shown(other, row.unit)).unwrap_or_default();
            let ratio = row.ratio.map(|ratio| format!("x {ratio:.2}")).unwrap_or_default();
            write!(f, "  {:<40} {:>12} {other:>12} {ratio:>8}", row.what, shown(row.ours, row.unit))?;
            if let (Some(aim), Some(met)) = (row.aim, row.met) {
                let unit = if row.ratio.is_some() { "x" } else { row.unit };
                let (sign, limit) = match aim {
                    Aim::AtMost(limit) => ("<=", limit),
                    Aim::AtLeast(limit) => (">=", limit),
                };
                write!(f, "  {sign} {}: {}", shown(limit, unit), if met { "met" } else { "MISSED" })?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A figure with its unit.
pub(crate) fn shown(value: f64, unit: &str) -> String {
    match unit {
        "B" if value >= 1e9 => format!("{:.2} GiB", value / f64::from(1 << 30)),
        "B" => format!("{:.1} MiB", value / f64::from(1 << 20)),
        "x" => format!("x {value:.2}"),
        "MB/s" => format!("{value:.0} MB/s"),
        unit => format!("{value:.2} {unit}"),
    }
}

/// One figure by another.
pub(crate) fn ratio(ours: f64, other: f64) -> f64 {
    if other > 0.0 { ours / other } else { f64::NAN }
}

/// The median; of an even number the mean of the two in the middle.
pub(crate) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    (at(low) + at(high)) / 2.0
}

/// The median of each figure.
pub(crate) fn median(samples: &[Sample]) -> Sample {
    let of = |pick: fn(&Sample) -> f64| middle(samples.iter().map(pick).collect());
    Sample {
        safe: of(|s| s.safe),
        wall: of(|s| s.wall),
        protected: of(|s| s.protected),
        wire: of(|s| s.wire),
        cpu: of(|s| s.cpu),
        peak: of(|s| s.peak),
        replica_cpu: of(|s| s.replica_cpu),
        replica_peak: of(|s| s.replica_peak),
    }
}
