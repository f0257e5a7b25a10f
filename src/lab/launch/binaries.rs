//! Where our own programs are, built to the state of the sources.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use super::{
    error::{Error, Result},
    parts::Program,
};

/// The packages whose programs the lab runs; each program is named as its package.
pub const PACKAGES: [&str; 4] =
    ["farshore-controller", "farshore-replica-server", "farshore-agent", "farshore-lab"];

/// A folder with our programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// `FARSHORE_BIN_DIR` as it is; else the folder of the running program, after a `cargo build` if
    /// that is a test (cargo builds a test's own package only, and a test of stale programs is none).
    pub fn find() -> Result<Self> {
        if let Some(folder) = std::env::var_os("FARSHORE_BIN_DIR") {
            return Ok(Self { folder: folder.into() });
        }
        let exe = std::env::current_exe().map_err(Error::file("current program"))?;
        let folder = exe.parent().unwrap_or(Path::new("."));
        if !folder.ends_with("deps") {
            return Ok(Self { folder: folder.to_owned() });
        }
        let folder = folder.parent().unwrap_or(folder).to_owned();
        static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
        BUILT
            .get_or_init(|| build(folder.ends_with("release")).map_err(|error| error.to_string()))
            .clone()
            .map_err(Error::Build)?;
        Ok(Self { folder })
    }

    /// One program, without arguments.
    pub fn program(&self, name: &str) -> Program {
        Program::new(self.folder.join(name))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn build(release: bool) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--quiet", "--bins"]);
    command.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    if release {
        command.arg("--release");
    }
    // Cargo told us about the test's package; build scripts that look at it would run again.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    let output = command.output().map_err(|source| Error::Start { program: cargo.into(), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Step {
        step: "cargo build of the lab's programs".to_owned(),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
