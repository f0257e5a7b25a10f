//! A server that does exactly what a test says, down to the bytes of the connection.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// One request as it came.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Request line and headers.
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Seen {
    /// Method and target.
    pub(super) fn line(&self) -> &str {
        self.head.lines().next().unwrap().trim_end_matches(" HTTP/1.1")
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A listener; ends with the value.
pub(super) struct Server {
    pub(super) base: String,
    pub(super) seen: Arc<Mutex<Vec<Seen>>>,
    _task: JoinSet<()>,
}

impl Server {
    /// Each connection goes to `handle`, which notes what it reads.
    pub(super) async fn start<F, R>(handle: F) -> Server
    where
        F: Fn(Connection) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/devstoreaccount1", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut task = JoinSet::new();
        let notes = Arc::clone(&seen);
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(handle(Connection { stream, seen: Arc::clone(&notes) }));
            }
        });
        Server { base, seen, _task: task }
    }

    /// Every request on every connection gets the same answer.
    pub(super) async fn answering(answer: &'static str) -> Server {
        Server::answering_each(move |_, _| answer.to_owned()).await
    }

    /// The answer to the n-th request (from 0).
    pub(super) async fn answering_each(
        answer: impl Fn(usize, &Seen) -> String + Send + Sync + 'static,
    ) -> Server {
        let answer = Arc::new(answer);
        Server::start(move |mut connection| {
            let answer = Arc::clone(&answer);
            async move {
                while let Some((n, seen)) = connection.request().await {
                    connection.send(answer(n, &seen).as_bytes()).await;
                }
            }
        })
        .await
    }

    pub(super) fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

pub(super) struct Connection {
    pub(super) stream: TcpStream,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Connection {
    /// Reads up to the end of the headers; what came beyond is the begin of the body.
    pub(super) async fn head(&mut self) -> Option<(String, Vec<u8>)> {
        let mut got = Vec::new();
        loop {
            if let Some(end) = got.windows(4).position(|w| w == b"\r\n\r\n") {
                let body = got.split_off(end + 4);
                return Some((String::from_utf8(got).unwrap(), body));
            }
            if self.stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Reads a whole request; its number and itself.
    pub(super) async fn request(&mut self) -> Option<(usize, Seen)> {
        let (head, mut body) = self.head().await?;
        let mut seen = Seen { head, body: Vec::new() };
        let len: usize = seen.header("content-length").map_or(0, |t| t.parse().unwrap());
        while body.len() < len {
            if self.stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
                return None;
            }
        }
        seen.body = body;
        let mut all = self.seen.lock().unwrap();
        all.push(seen.clone());
        Some((all.len() - 1, seen))
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }
}

/// An answer without a body.
pub(super) fn answer(status: &str, headers: &[(&str, &str)]) -> String {
    answer_with(status, headers, "")
}

pub(super) fn answer_with(status: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut out = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    format!("{out}\r\n{body}")
}
