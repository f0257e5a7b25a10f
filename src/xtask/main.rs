//! `cargo xtask`: everything that a person or CI does with this repository, by one name on every machine.

mod chart;
mod ci;
mod compiled;
#[cfg(feature = "generate")]
mod generate;
mod lab;
mod shell;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use shell::cargo;

/// What a person or CI does with this repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch a VM become protected in the lab, and see it proven.
    Demo {
        /// Arguments of `farshore-lab demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run every test, after setting up what they need.
    Test {
        /// Arguments of `cargo test`, in place of `--workspace`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Start, end or look at the lab in the background.
    Lab {
        /// What to do.
        #[command(subcommand)]
        command: lab::Command,
    },
    /// What CI runs: lints, generated files, tidy, and then the tests.
    Ci {
        /// Leave the tests out.
        #[arg(long)]
        fast: bool,
    },
    /// Write `crds/` and the chart's copies from the resource types.
    Crds(Check),
    /// Write `docs/reference/` from the resource types and the catalogue of errors.
    Docs(Check),
    /// Lint the chart and render it in its main forms.
    Chart(Check),
    /// Check what rustfmt and clippy cannot.
    Tidy,
    /// Run a benchmark.
    Bench {
        /// Which, and its arguments: `data`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<String>,
    },
}

#[derive(Clone, Copy, clap::Args)]
struct Check {
    /// Change nothing; fail if something would change.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { args } => lab::demo(&args),
        Command::Test { args } => ci::test(&args),
        Command::Lab { command } => lab::run(&command),
        Command::Ci { fast } => ci::run(fast),
        Command::Crds(Check { check }) => generated("crds", check),
        Command::Docs(Check { check }) => generated("docs", check),
        Command::Chart(_) => chart::check(),
        Command::Tidy => tidy::run(),
        Command::Bench { args } => {
            compiled::fetch()?;
            cargo(["run", "--release", "--package", "farshore-bench", "--"]).args(args).run()
        }
    }
}

/// The generators need our types: they are in this program built again with the feature `generate`.
fn generated(what: &str, check: bool) -> Result<()> {
    #[cfg(feature = "generate")]
    return generate::run(what, check);
    #[cfg(not(feature = "generate"))]
    {
        compiled::fetch()?;
        let again = cargo(["run", "--quiet", "--package", "xtask", "--features", "generate", "--", what]);
        if check { again.args(["--check"]) } else { again }.run()
    }
}
