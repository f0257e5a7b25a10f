//! The services under test, one of each per process, and what a test needs of them.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use farshore_azure::{
    BlobService, Container, Create, Credential, Endpoint, Http, HttpOptions, Metadata, PutNew, Sas,
    SharedKey, crc64, sas,
};
use farshore_lab::launch::{self, Parts, Port, Program, Seen, until};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::OnceCell;

const DEADLINE: Duration = Duration::from_secs(120);

/// A service that runs until the process ends.
pub(crate) struct Running {
    _parts: Parts,
    _port: Port,
    endpoint: Endpoint,
    ca: Option<PathBuf>,
}

/// A service as one test sees it.
pub(crate) struct Place {
    running: &'static Running,
    pub(crate) http: Http,
}

fn folder(name: &str) -> PathBuf {
    let folder = farshore_lab::scratch("blob-contract").unwrap().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The program that this package builds.
pub(crate) fn double_program() -> Program {
    Program::new(env!("CARGO_BIN_EXE_farshore-lab")).arg("blob")
}

async fn start(name: &str, program: impl FnOnce(&std::path::Path, u16) -> Program, tls: bool) -> Running {
    let folder = folder(name);
    let parts = Parts::new(folder.join("log")).unwrap();
    let port = Port::free().unwrap();
    let number = port.number();
    parts.start(name, program(&folder, number)).unwrap();
    listening(&parts, name, number).await;
    let scheme = if tls { "https" } else { "http" };
    let endpoint = Endpoint::parse(&format!("{scheme}://127.0.0.1:{number}/devstoreaccount1")).unwrap();
    Running { _parts: parts, _port: port, endpoint, ca: tls.then(|| folder.join("data/ca.pem")) }
}

/// Waits until somebody listens.
pub(crate) async fn listening(parts: &Parts, name: &str, port: u16) {
    let what = format!("port of {name}");
    until(&what, DEADLINE, async || {
        parts.check(name)?;
        Ok(match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
}

impl Place {
    fn of(running: &'static Running) -> Place {
        let options = HttpOptions {
            ca_bundle: running.ca.clone(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            proxy: None,
        };
        Place { running, http: Http::new(&options).unwrap() }
    }

    pub(crate) async fn double() -> Place {
        static RUNNING: OnceCell<Running> = OnceCell::const_new();
        let program = |folder: &std::path::Path, port: u16| {
            let listen = format!("127.0.0.1:{port}");
            double_program().args(["--listen", &listen, "--folder"]).arg(folder.join("data"))
        };
        Place::of(RUNNING.get_or_init(|| start("double", program, false)).await)
    }

    pub(crate) async fn double_over_tls() -> Place {
        static RUNNING: OnceCell<Running> = OnceCell::const_new();
        let program = |folder: &std::path::Path, port: u16| {
            let listen = format!("127.0.0.1:{port}");
            double_program().args(["--tls", "--listen", &listen, "--folder"]).arg(folder.join("data"))
        };
        Place::of(RUNNING.get_or_init(|| start("double-tls", program, true)).await)
    }

    pub(crate) async fn azurite() -> Place {
        static RUNNING: OnceCell<Running> = OnceCell::const_new();
        let program =
            |folder: &std::path::Path, port: u16| launch::azurite(&folder.join("data"), port).unwrap();
        Place::of(RUNNING.get_or_init(|| start("azurite", program, false)).await)
    }

    pub(crate) fn service(&self, credential: Credential) -> BlobService {
        BlobService::with_http(&self.http, self.running.endpoint.clone(), credential)
    }

    /// The account's owner.
    pub(crate) fn owner(&self) -> BlobService {
        self.service(Credential::SharedKey(SharedKey::emulator()))
    }

    /// A container of its own, empty.
    pub(crate) async fn container(&self) -> Container {
        let container = self.owner().container(&format!("fs-{}", uuid::Uuid::new_v4()));
        assert_eq!(container.create(&Metadata::new()).await.unwrap(), Create::Created);
        container
    }

    /// The same container through a SAS.
    pub(crate) fn through(&self, container: &Container, permissions: sas::Permissions) -> Container {
        self.through_sas(container, &grant(permissions))
    }

    pub(crate) fn through_sas(&self, container: &Container, grant: &sas::Grant) -> Container {
        let sas = sas::service_sas(&SharedKey::emulator(), container.name(), *grant);
        self.through_text(container, sas.expose())
    }

    pub(crate) fn through_text(&self, container: &Container, sas: &str) -> Container {
        self.service(Credential::Sas(Sas::new(sas))).container(container.name())
    }
}

/// Valid now.
pub(crate) fn grant(permissions: sas::Permissions) -> sas::Grant {
    let now = Timestamp::now();
    sas::Grant {
        permissions,
        starts: now - SignedDuration::from_mins(5),
        expires: now + SignedDuration::from_hours(1),
    }
}

/// Bytes that no two tests share.
pub(crate) fn random(len: usize) -> Bytes {
    use rand::RngCore as _;
    let mut bytes = vec![0; len];
    rand::rng().fill_bytes(&mut bytes);
    bytes.into()
}

pub(crate) async fn put(container: &Container, name: &str, bytes: &Bytes) {
    let result = container.put_new(name, bytes.clone(), crc64(bytes)).await.unwrap();
    assert!(matches!(result, PutNew::Created(_)), "{result:?}");
}

pub(crate) fn pairs(pairs: &[(&str, &str)]) -> Metadata {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
