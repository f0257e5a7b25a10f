//! The blob double as a process of its own: the referee.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use farshore_azure::{
    BlobService, Condition, Container, Credential, Endpoint, HttpOptions, Metadata, SharedKey, crc64,
};
use farshore_lab::blob::Stats;

use crate::process::Process;

/// A running double.
pub(crate) struct Double {
    /// Base URL with the account.
    pub(crate) endpoint: String,
    /// As its owner.
    pub(crate) service: BlobService,
    process: Process,
    address: String,
    /// Microseconds between 1970 and the zero of its statistics.
    epoch: u64,
}

/// What it is to be like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kind {
    /// Keeps nothing that is written.
    pub(crate) null: bool,
    /// Megabits a second, each way; 0: as fast as it goes.
    pub(crate) mbit: u64,
    /// Refuses above 60 MiB and 500 requests a second per blob, as Azure does.
    pub(crate) blob_limits: bool,
}

impl Double {
    /// Starts one on `folder`, which may hold what another one kept.
    pub(crate) async fn start(folder: &Path, kind: Kind) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let port_file = folder.join("port");
        if port_file.exists() {
            std::fs::remove_file(&port_file)?;
        }
        let (folder_arg, port_arg) = (text(folder)?, text(&port_file)?);
        let mbit = kind.mbit.to_string();
        let mut args =
            vec!["blob", "--folder", folder_arg, "--port-file", port_arg, "--bandwidth-mbit", &mbit];
        if kind.null {
            args.push("--null");
        }
        if kind.blob_limits {
            args.push("--blob-limits");
        }
        let mut process = Process::own("the blob double", &args, &folder.join("log"))?;
        let begun = Instant::now();
        let port = loop {
            match std::fs::read_to_string(&port_file) {
                Ok(port) => break port,
                Err(_) => process.must_live()?,
            }
            if begun.elapsed() > Duration::from_secs(20) {
                bail!("the blob double did not start; see {}", folder.join("log").display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let address = format!("127.0.0.1:{port}");
        let endpoint = format!("http://{address}/devstoreaccount1");
        let owner = Credential::SharedKey(SharedKey::emulator());
        let service = BlobService::new(Endpoint::parse(&endpoint)?, owner, &HttpOptions::default())?;
        let mut double = Self { endpoint, service, process, address, epoch: 0 };
        if !kind.null {
            double.epoch = double.calibrate().await?;
        }
        Ok(double)
    }

    /// Its tags tell the time since 1970, its statistics the time since its start: one write tells both.
    async fn calibrate(&self) -> anyhow::Result<u64> {
        let container = self.service.container("clock");
        container.create(&Metadata::new()).await?;
        container.put_if("clock", bytes::Bytes::from_static(b"tick"), &Condition::None).await?;
        let by_tag = self.time_of(&container, "clock").await?.context("the clock blob is gone")?;
        let by_stats = self.stats()?.last_write_micros.context("a write that was not counted")?;
        Ok(by_tag.saturating_sub(by_stats))
    }

    /// When a blob was last changed, in microseconds since 1970 by the double's clock.
    async fn time_of(&self, container: &Container, blob: &str) -> anyhow::Result<Option<u64>> {
        let Some(found) = container.head(blob).await? else { return Ok(None) };
        let tag = found.etag.as_str().trim_matches('"').trim_start_matches("0x");
        Ok(Some(u64::from_str_radix(tag, 16)? / 10))
    }

    /// When a blob was last changed, in microseconds on the scale of [`Double::stats`].
    pub(crate) async fn changed_at(&self, container: &Container, blob: &str) -> anyhow::Result<Option<u64>> {
        Ok(self.time_of(container, blob).await?.map(|at| at.saturating_sub(self.epoch)))
    }

    /// A time of the machine's clock on the same scale: both run on one machine.
    pub(crate) fn micros_at(&self, time: SystemTime) -> u64 {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_sub(self.epoch)
    }

    /// What it saw since the last reset.
    pub(crate) fn stats(&self) -> anyhow::Result<Stats> {
        Ok(serde_json::from_str(&self.admin("GET", "stats")?)?)
    }

    /// Starts counting anew.
    pub(crate) fn reset(&self) -> anyhow::Result<()> {
        self.admin("POST", "stats/reset").map(drop)
    }

    /// Ends it; its folder stays.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.process.kill().map(drop)
    }

    fn admin(&self, method: &str, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        let host = &self.address;
        write!(
            stream,
            "{method} /_admin/{path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer of the double")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("the double answers {head}");
        }
        Ok(body.to_owned())
    }
}

/// Puts a small blob as the owner.
pub(crate) async fn put(container: &Container, name: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
    let crc = crc64(&bytes);
    container.put_new(name, bytes.into(), crc).await?;
    Ok(())
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A folder below `parent`, removed with everything in it when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it, empty.
    pub(crate) fn new(parent: &Path, name: &str) -> anyhow::Result<Self> {
        let path = parent.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
