//! The client that all parts of the agent use; replaced when the certificate is renewed.

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;

/// Hands out the current client. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connection {
    current: watch::Receiver<Client>,
    replace: Arc<watch::Sender<Client>>,
}

impl Connection {
    pub(super) fn new(client: Client) -> Self {
        let (replace, current) = watch::channel(client);
        Self { current, replace: Arc::new(replace) }
    }

    pub(super) fn client(&self) -> Client {
        self.current.borrow().clone()
    }

    pub(super) fn renew(&self, client: Client) {
        self.replace.send_replace(client);
    }

    /// Returns when the client is replaced.
    pub(super) async fn renewed(&mut self) {
        if self.current.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
