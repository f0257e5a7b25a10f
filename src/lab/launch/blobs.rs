//! The blob service of a world, behind a link that can be cut.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::{
    azurite::azurite,
    binaries::Binaries,
    error::{Error, Result},
    link::Link,
    parts::{Parts, Program, Seen, until},
    port::Port,
    world::blocking,
};

/// Name of the blob service's part.
pub const BLOBS: &str = "blobs";

const READY: Duration = Duration::from_secs(60);
/// The account and key that emulators of Azure storage share by convention; they protect nothing.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Which blob service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum BlobsKind {
    /// Azurite: not ours, so the judge of wire format and authorization.
    Azurite,
    /// Our double: files, faults on demand.
    Double,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Ports {
    service: Option<u16>,
    link: Option<u16>,
}

/// A blob service that runs as part [`BLOBS`].
pub struct Blobs {
    kind: BlobsKind,
    folder: PathBuf,
    endpoint: String,
    link: Link,
    parts: Arc<Parts>,
    /// Held while the service may be down for a moment.
    service: Port,
}

impl Blobs {
    /// Starts one with its data in `folder`, at the address of the last time if that is free.
    pub(super) async fn start(
        kind: BlobsKind,
        folder: &Path,
        parts: Arc<Parts>,
        binaries: &Binaries,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let path = folder.join("ports.json");
        let last: Ports = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let service = Port::prefer(last.service)?;
        let link = Link::to(service.number(), last.link).await?;
        let ports = Ports { service: Some(service.number()), link: Some(link.port()) };
        let text = serde_json::to_string(&ports).map_err(Error::json("ports.json"))?;
        std::fs::write(&path, text).map_err(Error::file(path))?;

        let program = program(kind, folder, service.number(), binaries).await?;
        parts.start(BLOBS, program)?;
        let endpoint = format!("http://127.0.0.1:{}/{ACCOUNT}", link.port());
        let blobs = Self { kind, folder: folder.to_owned(), endpoint, link, parts, service };
        blobs.ready().await?;
        Ok(blobs)
    }

    /// Which it is.
    pub fn kind(&self) -> BlobsKind {
        self.kind
    }

    /// Base URL with the account, through the link.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The account.
    pub fn account(&self) -> &'static str {
        ACCOUNT
    }

    /// Its key, as base64 text.
    pub fn key(&self) -> &'static str {
        KEY
    }

    /// The cable between everybody and the service.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Where its data is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the service again after it was stopped (Azurite loses what it had not written when killed), and
    /// waits until it answers.
    pub async fn start_again(&self) -> Result<()> {
        self.parts.start_again(BLOBS)?;
        self.ready().await
    }

    async fn ready(&self) -> Result<()> {
        until("answer of the blob service", READY, async || {
            self.parts.check(BLOBS)?;
            Ok(match TcpStream::connect((Ipv4Addr::LOCALHOST, self.service.number())).await {
                Ok(_) => Seen::Yes(()),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        })
        .await
    }
}

async fn program(kind: BlobsKind, folder: &Path, port: u16, binaries: &Binaries) -> Result<Program> {
    let data = folder.join("data");
    std::fs::create_dir_all(&data).map_err(Error::file(&data))?;
    match kind {
        BlobsKind::Azurite => blocking(move || azurite(&data, port)).await,
        BlobsKind::Double => {
            let listen = format!("127.0.0.1:{port}");
            Ok(binaries.program("farshore-lab").args(["blob", "--listen", &listen]).arg("--folder").arg(data))
        }
    }
}
