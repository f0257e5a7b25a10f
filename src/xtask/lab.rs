//! The lab and the demo: our programs built, the rest set up, then `farshore-lab` does it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    compiled,
    shell::{cargo, program, root, target},
};

/// Programs that a lab consists of.
const PROGRAMS: [&str; 4] =
    ["farshore-lab", "farshore-controller", "farshore-replica-server", "farshore-agent"];

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Start it; write `target/lab/env`.
    Up {
        /// Arguments of `farshore-lab up`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// End it; its data stays.
    Down,
    /// Show its parts.
    Status,
}

/// Runs one of them.
pub(crate) fn run(command: &Command) -> Result<()> {
    let folder = target().join("lab");
    let lab = folder.join("bin/farshore-lab");
    match command {
        Command::Up { args } => {
            build()?;
            let tools = set_up()?;
            install(&folder.join("bin"), &tools)?;
            program(lab).args(["up", "--folder"]).args([&folder]).args(args).run()
        }
        Command::Down if !lab.exists() => {
            println!("lab: down");
            Ok(())
        }
        Command::Down => program(lab).args(["down", "--folder"]).args([folder]).run(),
        Command::Status if !lab.exists() => anyhow::bail!("no lab is up: `cargo xtask lab up` starts one"),
        Command::Status => program(lab).args(["status", "--folder"]).args([folder]).run(),
    }
}

/// Builds our programs and shows them at work.
pub(crate) fn demo(args: &[String]) -> Result<()> {
    build()?;
    set_up()?;
    program(target().join("debug/farshore-lab")).args(["demo"]).args(args).run()
}

/// Builds our programs with the dependencies that are compiled already.
pub(crate) fn build() -> Result<()> {
    compiled::fetch()?;
    cargo(["build", "--workspace", "--bins"]).run()?;
    compiled::keep()
}

/// A program that is not ours, and where it is.
pub(crate) type Tool = (String, PathBuf);

/// Sets up what is not ours; needs a built `farshore-lab`.
pub(crate) fn set_up() -> Result<Vec<Tool>> {
    let lines = program(target().join("debug/farshore-lab")).args(["setup"]).stdout()?;
    Ok(lines
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, path)| (name.to_owned(), path.into()))
        .collect())
}

/// Puts programs and tools where scripts find them. The lab may be running from there: files are replaced, not
/// written into.
fn install(bin: &Path, tools: &[Tool]) -> Result<()> {
    fs::create_dir_all(bin)?;
    let replace = |name: &str, put: &dyn Fn(&Path) -> std::io::Result<()>| -> Result<()> {
        let (new, path) = (bin.join(format!(".{name}")), bin.join(name));
        if new.symlink_metadata().is_ok() {
            fs::remove_file(&new)?;
        }
        put(&new).and_then(|()| fs::rename(&new, &path)).with_context(|| path.display().to_string())
    };
    for name in PROGRAMS {
        let built = target().join("debug").join(name);
        let installed = bin.join(name);
        if installed.exists() && fs::read(&installed)? == fs::read(&built)? {
            continue;
        }
        replace(name, &|new| fs::copy(&built, new).map(drop))?;
    }
    for (name, tool) in tools.iter().filter(|(name, _)| name == "kubectl" || name == "helm") {
        replace(name, &|new| symlink(tool, new))?;
    }
    let shown = bin.strip_prefix(root()).unwrap_or(bin);
    eprintln!("programs are in {}", shown.display());
    Ok(())
}
