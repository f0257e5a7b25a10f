//! What only the double does: true differences, faults on demand, limits, the null mode; and the
//! guard that says when Azurite learns about differences.

use std::time::{Duration, Instant};

use bytes::Bytes;
use farshore_azure::{
    BlobErrorKind, BlobService, Condition, Container, Credential, Endpoint, HttpOptions, Metadata,
    NetworkFault, PageDiff, PutNew, SharedKey, crc64,
    sas::{self, Permissions},
};
use farshore_lab::blob::{Action, Args, BlobLimit, Double, Fault, Match, Settings, Taken};

use crate::{
    pages::{disk, write},
    place::{Place, grant, put, random},
};

const MIB: u64 = 1 << 20;

/// A double of its own and a container in it.
struct Own {
    double: Double,
    service: BlobService,
    container: Container,
    _folder: tempfile::TempDir,
}

async fn own(change: impl FnOnce(&mut Args)) -> Own {
    own_with(Duration::from_millis(500), change).await
}

async fn own_with(stall_timeout: Duration, change: impl FnOnce(&mut Args)) -> Own {
    let folder = tempfile::tempdir().unwrap();
    let mut args = Args::in_folder(folder.path());
    change(&mut args);
    let double = Double::start(args).await.unwrap();
    let options = HttpOptions { stall_timeout, ..Default::default() };
    let endpoint = Endpoint::parse(double.endpoint()).unwrap();
    let credential = Credential::SharedKey(SharedKey::emulator());
    let service = BlobService::new(endpoint, credential, &options).unwrap();
    let container = service.container("fs-1-up");
    container.create(&Metadata::new()).await.unwrap();
    Own { double, service, container, _folder: folder }
}

fn on(operation: &str, action: Action) -> Fault {
    let matches = Match { operation: Some(operation.to_owned()), ..Match::default() };
    Fault { matches, skip: 0, count: Some(1), action }
}

/// The same story on both: written, snapshot, one part written, one cleared, snapshot, more.
async fn story(container: &Container) -> (String, String, PageDiff) {
    disk(container, "d", 16 * MIB).await;
    write(container, "d", 0, &random(4 << 20)).await;
    let one = container.snapshot("d", None, &Metadata::new()).await.unwrap();
    write(container, "d", MIB, &random(512)).await;
    container.clear_pages("d", 2 * MIB..3 * MIB, None).await.unwrap();
    let two = container.snapshot("d", None, &Metadata::new()).await.unwrap();
    write(container, "d", 8 * MIB, &random(4096)).await;
    let diff = container.page_ranges_diff("d", Some(&two), &one).await.unwrap();
    (one, two, diff)
}

#[tokio::test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]
async fn the_double_answers_true_differences() {
    for at in [Place::double().await, Place::double_over_tls().await] {
        let container = at.container().await;
        let (one, two, diff) = story(&container).await;
        let want = PageDiff { written: vec![MIB..MIB + 512], cleared: vec![2 * MIB..3 * MIB] };
        assert_eq!(diff, want);
        let rest = container.page_ranges_diff("d", None, &two).await.unwrap();
        assert_eq!(rest, PageDiff { written: vec![8 * MIB..8 * MIB + 4096], cleared: vec![] });
        let wrong_way = container.page_ranges_diff("d", Some(&one), &two).await.unwrap_err();
        assert_eq!(wrong_way.code.as_deref(), Some("PreviousSnapshotCannotBeNewer"));
        let unknown =
            container.page_ranges_diff("d", None, "2020-01-01T00:00:00.0000000Z").await.unwrap_err();
        assert_eq!(unknown.code.as_deref(), Some("PreviousSnapshotNotFound"));
        container.delete_snapshot("d", &two).await.unwrap();
        let both = container.page_ranges_diff("d", None, &one).await.unwrap();
        assert_eq!(both.written, [MIB..MIB + 512, 8 * MIB..8 * MIB + 4096]);
    }
}

// When this fails, Azurite has learnt it: run the test above on it too, and drop the exclusions.
#[tokio::test]
async fn azurite_still_answers_differences_with_all_ranges() {
    let at = Place::azurite().await;
    let container = at.container().await;
    let (_, two, diff) = story(&container).await;
    let all = container.page_ranges("d", Some(&two)).await.unwrap();
    assert_eq!(diff, PageDiff { written: all, cleared: vec![] });
    let never = container.page_ranges_diff("d", None, "2020-01-01T00:00:00.0000000Z").await.unwrap();
    assert!(!never.written.is_empty(), "even since a snapshot that never was");
}

#[tokio::test]
async fn a_lost_answer_leaves_the_blob_and_a_lost_request_does_not() {
    for (action, landed) in
        [(Action::DropAfter, true), (Action::DropBefore, false), (Action::CutUpload(9), false)]
    {
        let own = own(|_| {}).await;
        own.double.fault(on("PutBlob", action.clone()));
        let bytes = random(1 << 20);
        let error = own.container.put_new("a", bytes.clone(), crc64(&bytes)).await.unwrap_err();
        assert_eq!(error.kind, BlobErrorKind::Network(NetworkFault::Reset), "{action:?}");
        assert!(error.outcome_unknown());
        assert_eq!(own.container.head("a").await.unwrap().is_some(), landed, "{action:?}");
        let again = own.container.put_new("a", bytes.clone(), crc64(&bytes)).await.unwrap();
        assert_eq!(again == PutNew::Taken, landed, "{action:?}: {again:?}");
        assert_eq!(own.container.get("a", 2 << 20).await.unwrap().unwrap().bytes, bytes);
        assert_eq!(own.double.stats().requests["PutBlob"], 2, "the client does not retry");
    }
}

#[tokio::test]
async fn lost_answers_of_page_writes_and_ledgers_can_be_settled() {
    let own = own(|_| {}).await;
    disk(&own.container, "d", MIB).await;
    let bytes = random(4096);
    own.double.fault(on("PutPage", Action::DropAfter));
    let lost = own.container.put_pages("d", 0, bytes.clone(), None, crc64(&bytes)).await;
    assert!(lost.unwrap_err().outcome_unknown());
    assert_eq!(own.container.read_pages("d", None, 0, 4096).await.unwrap().bytes, bytes);

    let first = own.container.put_if("ledger.json", random(9), &Condition::None).await.unwrap();
    let (ours, condition) = (random(9), Condition::IfMatch(first));
    own.double.fault(on("PutBlob", Action::DropAfter));
    let lost = own.container.put_if("ledger.json", ours.clone(), &condition).await;
    assert!(lost.unwrap_err().outcome_unknown());
    let again = own.container.put_if("ledger.json", ours.clone(), &condition).await;
    assert_eq!(again.unwrap_err().kind, BlobErrorKind::ConditionNotMet, "by our own write");
    assert_eq!(own.container.get("ledger.json", 99).await.unwrap().unwrap().bytes, ours);
}

#[tokio::test]
async fn refusals_on_demand_arrive_as_their_kinds() {
    let own = own(|_| {}).await;
    let busy = Action::Status { status: 503, code: "ServerBusy".into(), retry_after: Some(7) };
    own.double.fault(Fault {
        matches: Match { method: Some("PUT".into()), prefix: Some("/fs-1-up/p/".into()), ..Match::default() },
        skip: 1,
        count: Some(2),
        action: busy,
    });
    let bytes = random(5 << 20);
    let mut kinds = Vec::new();
    for n in 0..4 {
        let result = own.container.put_new(&format!("p/{n}"), bytes.clone(), crc64(&bytes)).await;
        kinds.push(result.err().map(|e| e.kind));
    }
    let wait = || Some(BlobErrorKind::Throttled { retry_after: Some(Duration::from_secs(7)) });
    assert_eq!(kinds, [None, wait(), wait(), None]);
    assert_eq!(own.double.faults()[0].hits, 2);
    own.double.fault(on(
        "GetBlob",
        Action::Status { status: 500, code: "InternalError".into(), retry_after: None },
    ));
    assert_eq!(own.container.get("p/0", 9 << 20).await.unwrap_err().kind, BlobErrorKind::Server);
}

#[tokio::test]
async fn broken_downloads_are_never_taken_for_whole_ones() {
    let own = own(|_| {}).await;
    let bytes = random(3 << 20);
    put(&own.container, "a", &bytes).await;
    let get = || own.container.get("a", 4 << 20);
    for (action, want) in [
        (Action::CutDownload(1 << 20), NetworkFault::Reset),
        (Action::Truncate(1 << 20), NetworkFault::Reset),
        (Action::StallDownload(1 << 20), NetworkFault::Stalled),
        (Action::StallAnswer, NetworkFault::Stalled),
    ] {
        own.double.fault(on("GetBlob", action.clone()));
        assert_eq!(get().await.unwrap_err().kind, BlobErrorKind::Network(want), "{action:?}");
    }
    own.double.fault(on("GetBlob", Action::Corrupt(2_000_000)));
    let got = get().await.unwrap().unwrap().bytes;
    let differ: Vec<usize> = (0..bytes.len()).filter(|i| got[*i] != bytes[*i]).collect();
    assert_eq!(differ, [2_000_000], "that is for the caller's hashes");
    assert!(get().await.unwrap().unwrap().bytes == bytes);
}

// Writers and deleters of one name at once: whatever is there in the end is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_comes_and_goes_never_holds_half_a_blob() {
    let own = own_with(Duration::from_secs(30), |_| {}).await;
    let bytes = random(100_000);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6 {
        let (container, bytes) = (own.container.clone(), bytes.clone());
        tasks.spawn(async move {
            for _ in 0..60 {
                if task % 2 == 0 {
                    container.put_if("x", bytes.clone(), &Condition::None).await.unwrap();
                } else {
                    container.delete("x", None).await.unwrap();
                }
                if let Some(got) = container.get("x", 1 << 20).await.unwrap() {
                    assert!(got.bytes == bytes);
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

#[tokio::test]
async fn stalled_uploads_end() {
    let own = own(|_| {}).await;
    let bytes = random(32 << 20);
    own.double.fault(on("PutBlob", Action::StallUpload));
    let error = own.container.put_new("a", bytes.clone(), crc64(&bytes)).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Network(NetworkFault::Stalled));
    assert_eq!(own.container.head("a").await.unwrap(), None);
}

#[tokio::test]
async fn all_answers_for_a_taken_name_mean_taken() {
    for taken in [Taken::Overwrite, Taken::Conflict, Taken::Mismatch] {
        let own = own(|args| args.taken = taken).await;
        put(&own.container, "commit", &Bytes::from_static(b"first")).await;
        let sas = sas::service_sas(&SharedKey::emulator(), "fs-1-up", grant(Permissions::Create));
        let http = farshore_azure::Http::new(&HttpOptions::default()).unwrap();
        let agent = BlobService::with_http(&http, own.service.endpoint().clone(), Credential::Sas(sas));
        let agent = agent.container("fs-1-up");
        let (bytes, crc) = (Bytes::from_static(b"other"), crc64(b"other"));
        let plain = agent.put_new("commit", bytes.clone(), crc).await.unwrap();
        let want = if taken == Taken::Mismatch { PutNew::AmbiguousTaken } else { PutNew::Taken };
        assert_eq!(plain, want, "{taken:?}");
        assert_eq!(agent.put_new_probing("commit", bytes, crc).await.unwrap(), PutNew::Taken, "{taken:?}");
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_seen_and_makes_a_sas_expire() {
    let own = own(|_| {}).await;
    own.double.set(Settings { clock_skew_seconds: 2 * 3600, ..own.double.settings() });
    let sas = sas::service_sas(&SharedKey::emulator(), "fs-1-up", grant(Permissions::Read));
    let http = farshore_azure::Http::new(&HttpOptions::default()).unwrap();
    let agent = BlobService::with_http(&http, own.service.endpoint().clone(), Credential::Sas(sas));
    let error = agent.container("fs-1-up").get("a", 9).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::CredentialExpired);
    let offset = agent.server_time_offset().unwrap().as_secs();
    assert!((7190..7210).contains(&offset), "{offset}");
    let error = own.container.get("a", 9).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::CredentialExpired, "also for a key: the clocks differ");
}

#[tokio::test]
async fn a_slow_link_takes_its_time_in_both_directions() {
    // What the kernel takes counts as moved, so the wait for the answer is long.
    let own = own_with(Duration::from_secs(30), |args| args.bandwidth_mbit = 80).await;
    let bytes = random(5 << 20);
    let began = Instant::now();
    put(&own.container, "a", &bytes).await;
    let up = began.elapsed();
    let began = Instant::now();
    assert!(own.container.get("a", 9 << 20).await.unwrap().unwrap().bytes == bytes);
    let down = began.elapsed();
    // 5 MiB at 10 MB/s are 0.52 s; what the sockets buffer on the way down is not waited for.
    for (name, took) in [("up", up), ("down", down)] {
        assert!((0.45..5.0).contains(&took.as_secs_f64()), "{name}: {took:?}");
    }
}

#[tokio::test]
async fn a_blobs_own_limits_refuse_the_rest() {
    let own = own(|_| {}).await;
    own.double
        .set(Settings { per_blob: Some(BlobLimit { requests: 5, bytes: 1 << 30 }), ..own.double.settings() });
    disk(&own.container, "d", MIB).await;
    let bytes = random(512);
    let mut refused = 0;
    for _ in 0..20 {
        match own.container.put_pages("d", 0, bytes.clone(), None, crc64(&bytes)).await {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind, BlobErrorKind::Throttled { retry_after: None });
                refused += 1;
            }
        }
    }
    assert!(refused >= 10, "{refused}");
}

#[tokio::test]
async fn the_null_mode_counts_and_keeps_nothing() {
    let own = own(|args| args.null = true).await;
    disk(&own.container, "d", 64 * MIB).await;
    let bytes = random(4 << 20);
    for n in 0..4 {
        write(&own.container, "d", n * 4 * MIB, &bytes).await;
        own.container.put_new(&format!("s{n}"), bytes.clone(), crc64(&bytes)).await.unwrap();
    }
    let stats = own.double.stats();
    assert_eq!((stats.page_writes, stats.page_bytes), (4, 16 * MIB));
    assert_eq!((stats.blob_writes, stats.blob_bytes), (4, 16 * MIB));
    assert_eq!(stats.bytes_in, 32 * MIB);
    assert!(stats.first_write_micros < stats.last_write_micros);
    assert!(own.container.page_ranges("d", None).await.unwrap().is_empty());
    assert_eq!(own.container.head("s0").await.unwrap(), None);
    let wrong = own.container.put_pages("d", 0, bytes.clone(), None, 1).await.unwrap_err();
    assert_eq!(wrong.kind, BlobErrorKind::ChecksumMismatch, "checked all the same");
}

#[tokio::test]
async fn pages_beyond_the_services_sizes_are_refused() {
    let own = own(|args| args.no_auth = true).await;
    disk(&own.container, "d", 64 * MIB).await;
    let host = own.double.address();
    let url = |query: &str| format!("http://{host}/devstoreaccount1/fs-1-up/d{query}");
    let len = (4 << 20) + 512;
    let range = format!("bytes=0-{}", len - 1);
    let headers = [("x-ms-page-write", "update"), ("x-ms-range", range.as_str())];
    let (status, _) = raw("PUT", &url("?comp=page"), &headers, vec![0; len]).await;
    assert_eq!(status, 413);
    let headers = [("x-ms-blob-type", "PageBlob"), ("x-ms-blob-content-length", "9895604649984")];
    let (status, body) = raw("PUT", &url("9"), &headers, vec![]).await;
    assert_eq!(status, 400, "9 TiB: {body}");
    let bytes = random(4096);
    let beyond = own.container.put_pages("d", 64 * MIB - 512, bytes.clone(), None, crc64(&bytes)).await;
    assert_eq!(beyond.unwrap_err().status, Some(416));
    let headers = [("x-ms-page-write", "update"), ("x-ms-range", "bytes=0-100")];
    let (status, body) = raw("PUT", &url("?comp=page"), &headers, vec![0; 101]).await;
    assert!(status == 416 && body.contains("<Code>InvalidPageRange</Code>"), "{status} {body}");
}

#[tokio::test]
async fn blobs_and_snapshots_are_copied() {
    let own = own(|args| args.no_auth = true).await;
    disk(&own.container, "d", 64 * MIB).await;
    let bytes = random(6 << 20);
    write(&own.container, "d", 0, &bytes.slice(..4 << 20)).await;
    let snapshot = own.container.snapshot("d", None, &Metadata::new()).await.unwrap();
    own.container.clear_pages("d", 0..MIB, None).await.unwrap();
    put(&own.container, "b", &bytes).await;
    let base = format!("http://{}/devstoreaccount1/fs-1-up", own.double.address());
    for (from, to) in [(format!("{base}/d?snapshot={snapshot}"), "stage.vhd"), (format!("{base}/b"), "b2")] {
        let headers = [("x-ms-copy-source", from.as_str())];
        assert_eq!(raw("PUT", &format!("{base}/{to}"), &headers, vec![]).await.0, 202, "{to}");
    }
    let copied = own.container.read_pages("stage.vhd", None, 0, 4 * MIB).await.unwrap().bytes;
    assert!(copied == bytes.slice(..4 << 20), "as it was at the snapshot");
    let ranges = own.container.page_ranges("stage.vhd", None).await.unwrap();
    assert_eq!(ranges, vec![0..4 * MIB; 1]);
    assert!(own.container.get("b2", 9 << 20).await.unwrap().unwrap().bytes == bytes);
}

#[tokio::test]
async fn the_admin_paths_do_what_the_functions_do() {
    let own = own(|_| {}).await;
    let admin = |path: &str| format!("http://{}/_admin/{path}", own.double.address());
    let fault = br#"{"match": {"suffix": "/commit"}, "action": {"status": {"status": 500}}}"#;
    assert_eq!(raw("POST", &admin("faults"), &[], fault.to_vec()).await.0, 200);
    let error = own.container.put_new("1/commit", random(9), 0).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Server);
    let (_, faults) = raw("GET", &admin("faults"), &[], vec![]).await;
    assert!(faults.contains("\"hits\":1"), "{faults}");
    assert_eq!(raw("DELETE", &admin("faults"), &[], vec![]).await.0, 200);
    assert!(own.double.faults().is_empty());
    let typo = br#"{"macth": {}, "action": "dropAfter"}"#;
    assert_eq!(raw("POST", &admin("faults"), &[], typo.to_vec()).await.0, 400);
    let (_, stats) = raw("GET", &admin("stats"), &[], vec![]).await;
    assert!(stats.contains("\"PutBlob\":1"), "{stats}");
    raw("POST", &admin("stats/reset"), &[], vec![]).await;
    assert_eq!(own.double.stats().total(), 0);
    raw("PUT", &admin("settings"), &[], br#"{"latencyMs": 7}"#.to_vec()).await;
    assert_eq!(own.double.settings().latency_ms, 7);
}

/// A request past the client, for what the client does not do.
async fn raw(method: &str, url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = client.request(request.body(body.into()).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}
