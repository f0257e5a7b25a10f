//! What the agent is told when it starts: flags, or the same in a YAML file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use farshore_core::timing::Timing;
use serde::Deserialize;

use crate::crash::CrashAt;

/// Flags of `farshore-agent run`. Each may also stand in the file of `--config`; a flag wins.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    /// A YAML file with the same settings, in camelCase.
    #[arg(long)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// One-time token of the site; needed until the host is enrolled.
    #[arg(long, env = "FARSHORE_ENROLL_TOKEN", hide_env_values = true)]
    pub enroll_token: Option<String>,
    /// URL of the Kubernetes API.
    #[arg(long)]
    pub api_server: Option<String>,
    /// PEM certificates that the Kubernetes API is trusted by.
    #[arg(long)]
    pub ca_file: Option<PathBuf>,
    /// Name of this host, as its HyperVHost is called.
    #[arg(long)]
    pub name: Option<String>,
    /// Folder for the key, the certificate and the journals; for its owner only.
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
    /// Socket of a simulated host of the lab.
    #[arg(long)]
    pub sim_socket: Option<PathBuf>,
    /// JSON file of periods; for labs.
    #[arg(long)]
    pub timing: Option<PathBuf>,
    /// PEM certificates that storage is trusted by, beside the system's; for labs.
    #[arg(long)]
    pub blob_ca_file: Option<PathBuf>,
    /// Die at a named point, `name` or `name:n`; for tests.
    #[arg(long, hide = true)]
    pub crash_at: Option<String>,
}

/// Settings that can be worked with.
#[derive(Clone, Debug)]
pub struct Config {
    /// See [`Options`].
    pub enroll_token: Option<String>,
    /// See [`Options`].
    pub api_server: String,
    /// See [`Options`].
    pub ca_file: PathBuf,
    /// See [`Options`].
    pub name: String,
    /// See [`Options`].
    pub state_dir: PathBuf,
    /// See [`Options`].
    pub sim_socket: PathBuf,
    /// See [`Options`].
    pub timing: Timing,
    /// See [`Options`].
    pub blob_ca_file: Option<PathBuf>,
    /// See [`Options`].
    pub crash_at: Option<CrashAt>,
}

impl Options {
    /// Reads the files that the flags name, and checks that nothing is missing.
    ///
    /// # Errors
    /// Something is missing or cannot be read.
    pub fn resolve(self) -> anyhow::Result<Config> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => Self::default(),
        };
        let timing = match self.timing.or(file.timing) {
            Some(path) => read_timing(&path)?,
            None => Timing::default(),
        };
        timing.check()?;
        let crash_at =
            self.crash_at.or(file.crash_at).map(|at| at.parse().map_err(anyhow::Error::msg)).transpose()?;
        let need = |name: &str| format!("--{name} is needed, as a flag or in the file of --config");
        let api_server = self.api_server.or(file.api_server).with_context(|| need("api-server"))?;
        if !api_server.starts_with("https://") {
            bail!("--api-server must begin with https://");
        }
        Ok(Config {
            enroll_token: self.enroll_token.or(file.enroll_token).filter(|token| !token.is_empty()),
            api_server,
            ca_file: self.ca_file.or(file.ca_file).with_context(|| need("ca-file"))?,
            name: self.name.or(file.name).with_context(|| need("name"))?,
            state_dir: self.state_dir.or(file.state_dir).with_context(|| need("state-dir"))?,
            sim_socket: self.sim_socket.or(file.sim_socket).with_context(|| {
                format!("{}; hosts with real Hyper-V come with a later version", need("sim-socket"))
            })?,
            timing,
            blob_ca_file: self.blob_ca_file.or(file.blob_ca_file),
            crash_at,
        })
    }
}

fn read_file(path: &Path) -> anyhow::Result<Options> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("settings in {}", path.display()))
}

fn read_timing(path: &Path) -> anyhow::Result<Timing> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("periods in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(dir: &Path) -> Options {
        Options {
            api_server: Some("https://k:6443".into()),
            ca_file: Some("ca.pem".into()),
            name: Some("h1".into()),
            state_dir: Some(dir.into()),
            sim_socket: Some("h.sock".into()),
            ..Options::default()
        }
    }

    #[test]
    fn a_file_carries_the_same_settings_and_flags_win() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.yaml");
        std::fs::write(&file, "name: other\nenrollToken: abc.def\ncrashAt: committed:2\n").unwrap();
        let config = Options { config: Some(file.clone()), ..flags(dir.path()) }.resolve().unwrap();
        assert_eq!((config.name.as_str(), config.enroll_token.as_deref()), ("h1", Some("abc.def")));
        assert_eq!(config.crash_at.map(|at| at.nth), Some(2));
        std::fs::write(&file, "nam: typo\n").unwrap();
        assert!(Options { config: Some(file), ..flags(dir.path()) }.resolve().is_err());
    }

    #[test]
    fn what_is_missing_is_named_and_plain_http_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Options { name: None, ..flags(dir.path()) }.resolve().unwrap_err();
        assert!(error.to_string().contains("--name"), "{error}");
        let plain = Options { api_server: Some("http://k".into()), ..flags(dir.path()) };
        assert!(plain.resolve().is_err());
    }
}
