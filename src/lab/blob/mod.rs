//! The blob double: a stand-in for Azure's blob service, for faults and benches.
//!
//! It speaks the part of the REST interface that Farshore uses, keeps blobs in files, answers true
//! page-range differences, checks signatures and checksums, and does wrong things when told to
//! (`/_admin/faults`). What it has answered survives its being killed. Azurite stays the judge of
//! the wire format: the contract suite runs on both.

mod admin;
mod auth;
mod blobs;
mod body;
mod containers;
mod faults;
mod lease;
mod list;
mod pagemap;
mod pages;
mod pages_ops;
mod refusal;
mod reply;
mod request;
mod server;
mod stats;
mod store;
mod throttle;
mod tls;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};

pub use faults::{Action, Armed, Fault, Match};
pub use server::{Settings, Taken};
pub use stats::Stats;
pub use throttle::BlobLimit;
pub use tls::Files as TlsFiles;

/// The key that storage emulators share by convention; it protects nothing.
const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Arguments of `farshore-lab blob`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where blobs are kept.
    #[arg(long, alias = "dir")]
    pub folder: PathBuf,
    /// Address; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// The port is written here once it listens.
    #[arg(long)]
    pub port_file: Option<PathBuf>,
    /// Name of the storage account.
    #[arg(long, default_value = "devstoreaccount1")]
    pub account: String,
    /// Its key, base64.
    #[arg(long, default_value = EMULATOR_KEY, hide_default_value = true)]
    pub key: String,
    /// Everybody may do everything.
    #[arg(long)]
    pub no_auth: bool,
    /// https with an authority of its own: `ca.pem` in the folder.
    #[arg(long)]
    pub tls: bool,
    /// Further names in its own certificate.
    #[arg(long)]
    pub tls_name: Vec<String>,
    /// https with this certificate (PEM).
    #[arg(long, requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Read and check bodies of Put Blob and Put Page, answer, keep nothing of them.
    #[arg(long)]
    pub null: bool,
    /// Megabits a second, each way; 0: no limit.
    #[arg(long, default_value_t = 0)]
    pub bandwidth_mbit: u64,
    /// Milliseconds before each request is looked at.
    #[arg(long, default_value_t = 0)]
    pub latency_ms: u64,
    /// Refuse above 60 MiB and 500 requests a second per blob, as Azure does.
    #[arg(long)]
    pub blob_limits: bool,
    /// Seconds by which its clock is fast.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub clock_skew_seconds: i64,
    /// What a create-only SAS gets for a name that is taken.
    #[arg(long, value_enum, default_value_t = Taken::Overwrite)]
    pub taken: Taken,
}

impl Args {
    /// On loopback, a free port, everything else as by default.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Args {
        Args {
            folder: folder.to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            port_file: None,
            account: "devstoreaccount1".to_owned(),
            key: EMULATOR_KEY.to_owned(),
            no_auth: false,
            tls: false,
            tls_name: Vec::new(),
            tls_cert: None,
            tls_key: None,
            null: false,
            bandwidth_mbit: 0,
            latency_ms: 0,
            blob_limits: false,
            clock_skew_seconds: 0,
            taken: Taken::Overwrite,
        }
    }
}

/// Runs it until SIGTERM or ^C.
///
/// # Errors
/// It cannot listen, or its folder cannot be used.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let port_file = args.port_file.clone();
    let double = Double::start(args).await?;
    if let Some(path) = port_file {
        let new = path.with_extension("new");
        std::fs::write(&new, double.address().port().to_string())?;
        std::fs::rename(new, path)?;
    }
    tracing::info!(endpoint = double.endpoint(), "listening");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

/// A running double; ends with the value.
pub struct Double {
    address: SocketAddr,
    endpoint: String,
    shared: Arc<server::Shared>,
    _connections: JoinSet<Infallible>,
}

impl Double {
    /// Starts one in this process.
    ///
    /// # Errors
    /// It cannot listen, or its folder cannot be used.
    pub async fn start(args: Args) -> anyhow::Result<Double> {
        std::fs::create_dir_all(&args.folder)?;
        let key = BASE64_STANDARD.decode(&args.key).context("the key is not base64")?;
        let files = match (args.tls_cert, args.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            _ if args.tls => {
                let mut names = vec!["127.0.0.1".to_owned(), "::1".to_owned(), "localhost".to_owned()];
                names.push(format!("{}.blob.localhost", args.account));
                names.extend(args.tls_name);
                Some(tls::own(&args.folder, &names)?)
            }
            _ => None,
        };
        let acceptor = files.as_ref().map(tls::acceptor).transpose()?;
        let shared = Arc::new(server::Shared {
            account: auth::Account { name: args.account.clone(), key, check: !args.no_auth },
            store: store::Store::open(&args.folder).context("the blobs in its folder cannot be read")?,
            null: args.null,
            faults: faults::Faults::default(),
            counters: stats::Counters::new(),
            inbound: throttle::Bandwidth::new(0),
            outbound: throttle::Bandwidth::new(0),
            blob_limits: throttle::BlobLimits::default(),
            settings: Mutex::default(),
            requests: AtomicU64::new(0),
        });
        shared.set(Settings {
            latency_ms: args.latency_ms,
            bandwidth_mbit: args.bandwidth_mbit,
            clock_skew_seconds: args.clock_skew_seconds,
            per_blob: args.blob_limits.then_some(BlobLimit::AZURE),
            taken: args.taken,
        });
        let listener = TcpListener::bind(args.listen).await.with_context(|| args.listen.to_string())?;
        let address = listener.local_addr()?;
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{address}/{}", args.account);
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, acceptor, Arc::clone(&shared)));
        Ok(Double { address, endpoint, shared, _connections: connections })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Base URL with the account.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What it saw.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    /// Arms a fault.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// All faults and how often they hit.
    #[must_use]
    pub fn faults(&self) -> Vec<Armed> {
        self.shared.faults.all()
    }

    /// What it does now.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.shared.settings()
    }

    /// Changes what it does.
    pub fn set(&self, settings: Settings) {
        self.shared.set(settings);
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    shared: Arc<server::Shared>,
) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of file descriptors or the like: the next one may be luckier.
                let Ok((stream, _)) = accepted else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (tls, shared) = (tls.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    match tls {
                        None => connection(stream, shared).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, shared).await;
                            }
                        }
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send, shared: Arc<server::Shared>) {
    let service = service_fn(move |request| server::serve(Arc::clone(&shared), request));
    // A connection's end is the client's business, or a fault's.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(1 << 20)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
