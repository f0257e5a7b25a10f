//! The double is killed in the middle of its work: what it had answered is there afterwards.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use farshore_azure::{
    BlobErrorKind, BlobService, Condition, Container, Credential, Endpoint, HttpOptions, Include, LeaseId,
    LeaseState, Metadata, PutNew, SharedKey, crc64,
};
use farshore_lab::launch::{Parts, Port};
use tokio::task::JoinSet;

use crate::{
    pages::disk,
    place::{double_program, listening, pairs, random},
};

const PAGES: u64 = 64;
const PAGE: usize = 4096;
const NAME: &str = "double";

fn container(port: u16) -> Container {
    let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{port}/devstoreaccount1")).unwrap();
    let options = HttpOptions { stall_timeout: Duration::from_secs(30), ..Default::default() };
    let credential = Credential::SharedKey(SharedKey::emulator());
    BlobService::new(endpoint, credential, &options).unwrap().container("fs-1")
}

/// Per page: what was last answered, and what may have landed after that without an answer.
#[derive(Default, Clone)]
struct Cell {
    sure: Bytes,
    maybe: Option<Bytes>,
}

#[derive(Default)]
struct Model {
    blocks: BTreeMap<String, Bytes>,
    pages: BTreeMap<u64, Cell>,
}

async fn put_blocks(container: Container, writer: u64, model: Arc<Mutex<Model>>) {
    for n in 0.. {
        let (name, bytes) = (format!("{writer}/{n}"), random(1000 + 7 * n));
        match container.put_new(&name, bytes.clone(), crc64(&bytes)).await {
            Ok(PutNew::Created(_)) => drop(model.lock().unwrap().blocks.insert(name, bytes)),
            Ok(other) => panic!("{name}: {other:?}"),
            Err(error) => return assert!(matches!(error.kind, BlobErrorKind::Network(_)), "{error}"),
        }
    }
}

async fn put_pages(container: Container, writer: u64, lease: LeaseId, model: Arc<Mutex<Model>>) {
    for n in 0_u64.. {
        let page = writer + 4 * (n % (PAGES / 4));
        let bytes = random(PAGE);
        model.lock().unwrap().pages.entry(page).or_default().maybe = Some(bytes.clone());
        let put = container.put_pages("d", page * PAGE as u64, bytes.clone(), Some(&lease), crc64(&bytes));
        match put.await {
            Ok(()) => drop(model.lock().unwrap().pages.insert(page, Cell { sure: bytes, maybe: None })),
            Err(error) => return assert!(matches!(error.kind, BlobErrorKind::Network(_)), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let parts = Parts::new(folder.path().join("log")).unwrap();
    let port = Port::free().unwrap();
    let listen = format!("127.0.0.1:{}", port.number());
    let program = double_program().args(["--listen", &listen, "--folder"]).arg(folder.path().join("data"));
    parts.start(NAME, program).unwrap();
    listening(&parts, NAME, port.number()).await;
    let first = container(port.number());
    first.create(&pairs(&[("site", "hq")])).await.unwrap();
    disk(&first, "d", PAGES * PAGE as u64).await;
    let lease = LeaseId::random();
    first.acquire_lease("d", None, &lease).await.unwrap();
    let model = Arc::new(Mutex::new(Model::default()));
    let mut snapshots: Vec<(String, BTreeMap<u64, Bytes>)> = Vec::new();

    for round in 0..3 {
        let container = container(port.number());
        let mut writers = JoinSet::new();
        for writer in 0..4 {
            writers.spawn(put_blocks(container.clone(), 10 * round + writer, Arc::clone(&model)));
            writers.spawn(put_pages(container.clone(), writer, lease.clone(), Arc::clone(&model)));
        }
        let enough = model.lock().unwrap().blocks.len() + 60;
        tokio::time::timeout(Duration::from_secs(60), async {
            while model.lock().unwrap().blocks.len() < enough {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
        parts.kill(NAME).unwrap();
        while let Some(writer) = writers.join_next().await {
            writer.unwrap();
        }
        parts.start_again(NAME).unwrap();
        listening(&parts, NAME, port.number()).await;
        check(&container, &model, &snapshots).await;

        let meta = pairs(&[("round", &round.to_string())]);
        container.set_blob_metadata("d", &meta, Some(&lease)).await.unwrap();
        let id = container.snapshot("d", Some(&lease), &Metadata::new()).await.unwrap();
        let etag = container.put_if("ledger.json", random(9), &Condition::None).await.unwrap();
        parts.kill(NAME).unwrap();
        parts.start_again(NAME).unwrap();
        listening(&parts, NAME, port.number()).await;
        let state = container.blob_properties("d", None).await.unwrap().unwrap();
        assert_eq!((state.metadata, state.lease), (meta, Some(LeaseState::Leased)));
        assert_eq!(container.head("ledger.json").await.unwrap().unwrap().etag, etag);
        let held =
            model.lock().unwrap().pages.iter().map(|(page, cell)| (*page, cell.sure.clone())).collect();
        snapshots.push((id, held));
    }
    assert_eq!(first.metadata().await.unwrap().unwrap().0, pairs(&[("site", "hq")]));
}

async fn check(container: &Container, model: &Mutex<Model>, snapshots: &[(String, BTreeMap<u64, Bytes>)]) {
    let blocks = model.lock().unwrap().blocks.clone();
    let listed = container.list("", Include::default()).await.unwrap();
    for (name, bytes) in &blocks {
        assert!(listed.iter().any(|b| b.name == *name), "{name} is listed");
        assert!(container.get(name, 1 << 20).await.unwrap().unwrap().bytes == bytes, "{name}");
    }
    let all = container.read_pages("d", None, 0, PAGES * PAGE as u64).await.unwrap().bytes;
    let at = |page: u64| {
        let start = usize::try_from(page).unwrap() * PAGE;
        all.slice(start..start + PAGE)
    };
    let pages = model.lock().unwrap().pages.clone();
    for (page, cell) in pages {
        let got = at(page);
        let sure = if cell.sure.is_empty() { Bytes::from(vec![0; PAGE]) } else { cell.sure.clone() };
        let maybe = cell.maybe.is_some_and(|maybe| maybe == got);
        assert!(got == sure || maybe, "page {page}");
        model.lock().unwrap().pages.insert(page, Cell { sure: got, maybe: None });
    }
    for (id, want) in snapshots {
        let all = container.read_pages("d", Some(id), 0, PAGES * PAGE as u64).await.unwrap().bytes;
        for (page, bytes) in want {
            let start = usize::try_from(*page).unwrap() * PAGE;
            assert!(all.slice(start..start + PAGE) == bytes, "snapshot {id}, page {page}");
        }
    }
}
