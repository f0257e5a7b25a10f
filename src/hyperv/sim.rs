//! Client of the lab's simulated host: the same trait, spoken as JSON over a unix socket.
//!
//! One connection per call: a restarted host is simply there again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use farshore_core::ids::{DiskId, VmId};
use farshore_disk::extents::Extents;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::model::{
    Checkpoint, CheckpointId, Consistency, HostInfo, RctId, ReferencePoint, ReferencePointId, VmInfo, Volume,
};
use crate::wire::{self, ChangesPage, Request};
use crate::{HyperVError, Hypervisor, Result};

/// Longest wait for one answer: merges of large checkpoints are the slowest calls.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A simulated host, reached by its socket.
#[derive(Clone, Debug)]
pub struct SimHost {
    socket: PathBuf,
    timeout: Duration,
}

impl SimHost {
    /// The host that listens on `socket`. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: TIMEOUT }
    }

    /// With another limit for one answer.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Posts JSON to `path` on the host's socket and reads the JSON answer. The lab's own commands use it too.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<T> {
        match tokio::time::timeout(self.timeout, self.exchange(path, body)).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(HyperVError::Unreachable { message: format!("no answer within {:?}", self.timeout) })
            }
        }
    }

    async fn exchange<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<T> {
        let unreachable = |message: String| HyperVError::Unreachable { message };
        let protocol = |message: String| HyperVError::Protocol { message };
        let body = serde_json::to_vec(body).map_err(|e| protocol(e.to_string()))?;
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| unreachable(format!("{}: {e}", self.socket.display())))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| unreachable(e.to_string()))?;
        let connection = tokio::spawn(connection);
        let request = http::Request::post(path)
            .header(http::header::HOST, "host")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| protocol(e.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|e| unreachable(e.to_string()))?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(|e| unreachable(e.to_string()))?.to_bytes();
        drop(sender);
        connection.abort();
        if status == http::StatusCode::OK {
            serde_json::from_slice(&bytes).map_err(|e| protocol(e.to_string()))
        } else {
            Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
                protocol(format!("status {status}: {}", String::from_utf8_lossy(&bytes)))
            }))
        }
    }

    async fn call<T: DeserializeOwned>(&self, request: Request) -> Result<T> {
        self.post(wire::PATH, &request).await
    }
}

impl Hypervisor for SimHost {
    async fn host(&self) -> Result<HostInfo> {
        self.call(Request::Host).await
    }

    async fn vms(&self) -> Result<Vec<VmInfo>> {
        self.call(Request::Vms).await
    }

    async fn vm(&self, vm: VmId) -> Result<VmInfo> {
        self.call(Request::Vm { vm }).await
    }

    async fn create_checkpoint(&self, vm: VmId, name: &str, consistency: Consistency) -> Result<Checkpoint> {
        self.call(Request::CreateCheckpoint { vm, name: name.to_owned(), consistency }).await
    }

    async fn checkpoints(&self, vm: VmId) -> Result<Vec<Checkpoint>> {
        self.call(Request::Checkpoints { vm }).await
    }

    async fn checkpoint(&self, vm: VmId, id: &CheckpointId) -> Result<Checkpoint> {
        let all = self.checkpoints(vm).await?;
        all.into_iter()
            .find(|checkpoint| checkpoint.id == *id)
            .ok_or_else(|| HyperVError::CheckpointNotFound { vm, checkpoint: id.clone() })
    }

    async fn delete_checkpoint(&self, vm: VmId, id: &CheckpointId) -> Result<()> {
        self.call(Request::DeleteCheckpoint { vm, checkpoint: id.clone() }).await
    }

    async fn avhdx_bytes(&self, vm: VmId, id: &CheckpointId) -> Result<u64> {
        self.call(Request::AvhdxBytes { vm, checkpoint: id.clone() }).await
    }

    async fn convert_to_reference_point(&self, vm: VmId, id: &CheckpointId) -> Result<ReferencePoint> {
        self.call(Request::ConvertToReferencePoint { vm, checkpoint: id.clone() }).await
    }

    async fn reference_points(&self, vm: VmId) -> Result<Vec<ReferencePoint>> {
        self.call(Request::ReferencePoints { vm }).await
    }

    async fn destroy_reference_point(&self, vm: VmId, id: &ReferencePointId) -> Result<()> {
        self.call(Request::DestroyReferencePoint { vm, reference_point: id.clone() }).await
    }

    async fn query_changes(
        &self,
        vm: VmId,
        disk: DiskId,
        since: &RctId,
        checkpoint: &CheckpointId,
    ) -> Result<Extents> {
        let mut changed = Extents::new();
        let mut offset = 0;
        loop {
            let (since, checkpoint) = (since.clone(), checkpoint.clone());
            let page: ChangesPage =
                self.call(Request::QueryChanges { vm, disk, since, checkpoint, offset }).await?;
            for (start, length) in page.ranges {
                match start.checked_add(length) {
                    Some(end) if end <= page.size => changed.insert(start, length),
                    _ => {
                        let message = format!("changed range {start}+{length} is beyond the disk");
                        return Err(HyperVError::Protocol { message });
                    }
                }
            }
            if page.processed_to >= page.size {
                return Ok(changed);
            }
            if page.processed_to <= offset {
                return Err(HyperVError::Protocol { message: format!("changes stuck at {offset}") });
            }
            offset = page.processed_to;
        }
    }

    async fn volume(&self, path: &str) -> Result<Volume> {
        self.call(Request::Volume { path: path.to_owned() }).await
    }

    async fn start(&self, vm: VmId) -> Result<()> {
        self.call(Request::Start { vm }).await
    }

    async fn stop(&self, vm: VmId) -> Result<()> {
        self.call(Request::Stop { vm }).await
    }

    async fn shutdown(&self, vm: VmId) -> Result<()> {
        self.call(Request::Shutdown { vm }).await
    }
}
