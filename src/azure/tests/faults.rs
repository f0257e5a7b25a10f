//! Faults of the link and of the service, and what they are called.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::{
    container, options,
    server::{Connection, Server, answer},
};
use crate::{BlobError, BlobErrorKind, HttpOptions, NetworkFault, crc64};

const PATIENCE: Duration = Duration::from_millis(400);

fn impatient() -> HttpOptions {
    HttpOptions { stall_timeout: PATIENCE, ..options() }
}

async fn put(server: &Server, options: &HttpOptions, len: usize) -> Result<(), BlobError> {
    let bytes = Bytes::from(vec![1; len]);
    let crc = crc64(&bytes);
    container(&server.base, options).put_new("a", bytes, crc).await.map(drop)
}

/// Keeps the connection, does nothing.
async fn hold(connection: Connection) {
    let _connection = connection;
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn an_upload_that_nobody_reads_is_a_stall() {
    let server = Server::start(|mut connection| async move {
        connection.head().await;
        hold(connection).await;
    })
    .await;
    let error = put(&server, &impatient(), 64 << 20).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Network(NetworkFault::Stalled));
    assert!(error.outcome_unknown());
}

// The SDK's own transport fails here: its read timeout runs while it uploads.
#[tokio::test]
async fn a_slow_but_steady_upload_outlives_the_stall_timeout() {
    let server = Server::start(|mut connection| async move {
        let (_, body) = connection.head().await.unwrap();
        let (mut got, len) = (body.len(), 48 << 20);
        let mut buffer = vec![0; 1 << 20];
        while got < len {
            tokio::time::sleep(PATIENCE / 16).await; // the pace of the link
            got += connection.stream.read_exact(&mut buffer[..(len - got).min(1 << 20)]).await.unwrap();
        }
        connection.send(answer("201 Created", &[("etag", "1")]).as_bytes()).await;
        hold(connection).await;
    })
    .await;
    let began = std::time::Instant::now();
    put(&server, &impatient(), 48 << 20).await.unwrap();
    assert!(began.elapsed() > 2 * PATIENCE, "the test must take longer than the timeout");
}

#[tokio::test]
async fn a_server_that_never_answers_is_a_stall() {
    let server = Server::start(|mut connection| async move {
        connection.request().await;
        hold(connection).await;
    })
    .await;
    let error = put(&server, &impatient(), 10).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Network(NetworkFault::Stalled));
}

#[tokio::test]
async fn a_body_that_stops_in_the_middle_is_a_stall_or_a_reset() {
    for (keep, want) in [(true, NetworkFault::Stalled), (false, NetworkFault::Reset)] {
        let server = Server::start(move |mut connection| async move {
            connection.request().await;
            connection.send(b"HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 100\r\n\r\n0123456789").await;
            if keep {
                hold(connection).await;
            }
        })
        .await;
        let error = container(&server.base, &impatient()).get("a", 1000).await.unwrap_err();
        assert_eq!(error.kind, BlobErrorKind::Network(want), "connection kept: {keep}");
    }
}

#[tokio::test]
async fn a_lost_answer_is_reported_and_not_retried() {
    let server = Server::start(|mut connection| async move {
        connection.request().await;
    })
    .await;
    let error = put(&server, &options(), 1000).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Network(NetworkFault::Reset));
    assert!(error.outcome_unknown());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn nobody_listening_is_no_connection_and_nothing_happened() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/devstoreaccount1", listener.local_addr().unwrap());
    drop(listener);
    let error = container(&base, &options()).head("a").await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Network(NetworkFault::Connect));
    assert!(!error.outcome_unknown());
}

// R3.3
#[tokio::test]
async fn a_proxy_that_wants_a_login_is_recognised_for_http_and_https() {
    let proxy =
        Server::answering("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
    let url = proxy.base.replace("/devstoreaccount1", "");
    let options = HttpOptions { proxy: Some(url), ..options() };
    for base in ["http://blobs.invalid/devstoreaccount1", "https://acct.blob.invalid"] {
        let error = container(base, &options).get("a", 10).await.unwrap_err();
        assert_eq!(error.kind, BlobErrorKind::ProxyAuthRequired, "{base}: {error:?}");
    }
    let requests = proxy.requests();
    assert!(requests[1].line().starts_with("CONNECT acct.blob.invalid:443"), "{}", requests[1].line());
    assert_eq!(requests.len(), 2, "not retried");
}

#[tokio::test]
async fn a_refusal_while_uploading_is_read_and_not_mistaken_for_a_lost_connection() {
    let server = Server::start(|mut connection| async move {
        connection.head().await;
        let busy = [("x-ms-error-code", "ServerBusy"), ("retry-after", "3"), ("connection", "close")];
        connection.send(answer("503 Server Busy", &busy).as_bytes()).await;
        // As servers do that close early: what still comes is taken, else the kernel resets.
        let _ = tokio::io::copy(&mut connection.stream, &mut tokio::io::sink()).await;
    })
    .await;
    let error = put(&server, &options(), 32 << 20).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Throttled { retry_after: Some(Duration::from_secs(3)) });
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let target = other.base.clone();
    let server =
        Server::answering_each(move |_, _| answer("307 Temporary Redirect", &[("location", &target)])).await;
    let error = container(&server.base, &options()).get("a", 10).await.unwrap_err();
    assert_eq!((error.kind, error.status), (BlobErrorKind::Protocol, Some(307)));
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn more_bytes_than_allowed_are_refused_whether_announced_or_not() {
    let chunked = "HTTP/1.1 200 OK\r\netag: \"1\"\r\ntransfer-encoding: chunked\r\n\r\n\
        8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n";
    let announced = "HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 16\r\n\r\n0123456701234567";
    for (name, text) in [("chunked", chunked), ("announced", announced)] {
        let server = Server::answering(text).await;
        let container = container(&server.base, &options());
        assert_eq!(container.get("a", 15).await.unwrap_err().kind, BlobErrorKind::TooLarge, "{name}");
        assert_eq!(container.get("a", 16).await.unwrap().unwrap().bytes.len(), 16, "{name}");
    }
}

#[tokio::test]
async fn an_empty_blob_is_read() {
    let server = Server::answering_each(|_, seen| match seen.header("range") {
        Some(_) => answer("416 Range Not Satisfiable", &[("x-ms-error-code", "InvalidRange")]),
        None => answer("200 OK", &[("etag", "\"1\"")]),
    })
    .await;
    let got = container(&server.base, &options()).get("a", 15).await.unwrap().unwrap();
    assert!(got.bytes.is_empty());
}

#[tokio::test]
async fn an_answer_shorter_than_its_range_is_a_lost_connection() {
    let server = Server::answering(
        "HTTP/1.1 206 Partial Content\r\netag: \"1\"\r\ncontent-range: bytes 0-9/10\r\ncontent-length: 4\r\n\r\n0123",
    )
    .await;
    let error = container(&server.base, &options()).get("a", 15).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Network(NetworkFault::Reset));
}
