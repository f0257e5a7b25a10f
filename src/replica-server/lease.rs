//! The leases of all disks of a VM: every write to a replica blob carries the id of that blob's lease.
//!
//! The ids are new each time, so that a worker that lost its leases and does not know it yet is refused by
//! storage itself. Renewal only keeps others from waiting for nothing; safety does not rest on any clock.

use std::collections::BTreeMap;
use std::time::Duration;

use farshore_azure::{BlobErrorKind, Container, LeaseId};
use farshore_core::ids::DiskId;
use farshore_core::names;
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::halt::{Halt, again};

/// Azure's own limits.
const SHORTEST: Duration = Duration::from_secs(15);
const LONGEST: Duration = Duration::from_secs(60);

/// Leases on the blobs of some disks, renewed until dropped.
#[derive(Debug)]
pub(crate) struct Leases {
    container: Container,
    held: BTreeMap<DiskId, LeaseId>,
    lost: CancellationToken,
    renewal: JoinHandle<()>,
}

impl Leases {
    /// Takes all or none, in the order of the disks' ids so that two workers never hold each other up.
    pub(crate) async fn take(ctx: &Context, disks: impl IntoIterator<Item = DiskId>) -> Result<Self, Halt> {
        let duration = ctx.timing.blob_lease.clamp(SHORTEST, LONGEST);
        let container = ctx.store.replica.clone();
        let mut held = BTreeMap::new();
        let from = Instant::now();
        let sorted: std::collections::BTreeSet<DiskId> = disks.into_iter().collect();
        for disk in sorted {
            let (id, blob) = (LeaseId::random(), names::disk_blob(disk));
            if let Err(error) = again(|| container.acquire_lease(&blob, Some(duration), &id)).await {
                give_back(&container, &held).await;
                return Err(error.into());
            }
            held.insert(disk, id);
        }
        let lost = CancellationToken::new();
        let renewal =
            Renewal { container: container.clone(), held: held.clone(), duration, lost: lost.clone() };
        let renewal = tokio::spawn(renewal.run(from));
        Ok(Self { container, held, lost, renewal })
    }

    /// The lease of one disk; a disk without one may not be written to.
    pub(crate) fn of(&self, disk: DiskId) -> Result<&LeaseId, Halt> {
        self.held.get(&disk).ok_or_else(|| Halt::unknown(format!("no lease was taken for disk {disk}")))
    }

    /// Returns when a lease was lost.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Gives them back, so that nobody has to wait for their end.
    pub(crate) async fn release(self) {
        self.renewal.abort();
        give_back(&self.container, &self.held).await;
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

async fn give_back(container: &Container, held: &BTreeMap<DiskId, LeaseId>) {
    join_all(held.iter().map(|(disk, id)| async move {
        let blob = names::disk_blob(*disk);
        if let Err(error) = container.release_lease(&blob, id).await {
            tracing::debug!(disk.id = %disk, %error, "a lease was not given back and ends by itself");
        }
    }))
    .await;
}

struct Renewal {
    container: Container,
    held: BTreeMap<DiskId, LeaseId>,
    duration: Duration,
    lost: CancellationToken,
}

impl Renewal {
    async fn run(self, from: Instant) {
        let period = self.duration / 4;
        let mut good_until = from + self.duration;
        loop {
            tokio::time::sleep(period).await;
            let from = Instant::now();
            let answers = join_all(self.held.iter().map(|(disk, id)| async {
                let blob = names::disk_blob(*disk);
                tokio::time::timeout(period, self.container.renew_lease(&blob, id)).await
            }))
            .await;
            let gone = |e: &BlobErrorKind| {
                matches!(e, BlobErrorKind::LeaseLost | BlobErrorKind::LeaseHeld | BlobErrorKind::NotFound)
            };
            if answers.iter().any(|a| matches!(a, Ok(Err(e)) if gone(&e.kind))) {
                break;
            }
            if answers.iter().all(|a| matches!(a, Ok(Ok(())))) {
                good_until = from + self.duration;
            }
            if Instant::now() + period >= good_until {
                break;
            }
        }
        tracing::warn!("a lease on a replica disk is lost");
        self.lost.cancel();
    }
}
