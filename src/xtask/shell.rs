//! Commands, said aloud before they run.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

const OF_OUR_PACKAGE: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];

/// The checkout.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// What is kept per machine, outside any clone; the same folder as `farshore_lab::launch::tools`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("FARSHORE_CACHE") {
        return Ok(cache.into());
    }
    let home = std::env::var_os("HOME").context("neither FARSHORE_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/farshore"))
}

/// A command in the checkout.
pub(crate) struct Shell(Command);

/// The cargo that runs us.
pub(crate) fn cargo<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Shell {
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(args)
}

/// A program, in the checkout.
pub(crate) fn program(path: impl Into<OsString>) -> Shell {
    let mut command = Command::new(path.into());
    command.current_dir(root());
    // `cargo run` told us about our own package; ring's build script, for one, runs again when that changes.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| OF_OUR_PACKAGE.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    Shell(command)
}

impl Shell {
    /// More arguments.
    pub(crate) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.0.args(args.into_iter().map(Into::into));
        self
    }

    /// One environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.0.env(name, value.into());
        self
    }

    /// Runs it with our input and output.
    pub(crate) fn run(mut self) -> Result<()> {
        let line = self.line();
        eprintln!("$ {line}");
        let status = self.0.status().with_context(|| format!("start of {line}"))?;
        if !status.success() {
            bail!("{line}: {status}");
        }
        Ok(())
    }

    /// Runs it silently and returns what it wrote to stdout; its stderr is ours.
    pub(crate) fn stdout(mut self) -> Result<String> {
        let line = self.line();
        self.0.stderr(std::process::Stdio::inherit());
        let output = self.0.output().with_context(|| format!("start of {line}"))?;
        if !output.status.success() {
            bail!("{line}: {}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
        }
        String::from_utf8(output.stdout).with_context(|| line)
    }

    fn line(&self) -> String {
        let program = Path::new(self.0.get_program());
        let name =
            program.strip_prefix(root()).ok().or(program.file_name().map(Path::new)).unwrap_or(program);
        let mut line = name.display().to_string();
        for arg in self.0.get_args() {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }
}
