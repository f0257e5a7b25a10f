//! Leases: one writer per replica disk.

use std::time::Duration;

use farshore_azure::{BlobErrorKind, LeaseId, LeaseState, Metadata, crc64};
use farshore_lab::launch::{Seen, until};

use crate::{
    pages::disk,
    place::{Place, pairs, random},
};

const SHORTEST: Duration = Duration::from_secs(15);

pub(crate) async fn only_the_holder_of_a_lease_writes(at: &Place) {
    let container = at.container().await;
    disk(&container, "d", 1 << 20).await;
    let (ours, theirs) = (LeaseId::random(), LeaseId::random());
    container.acquire_lease("d", Some(Duration::from_secs(60)), &ours).await.unwrap();
    container
        .acquire_lease("d", Some(Duration::from_secs(60)), &ours)
        .await
        .expect("again, after a lost answer");
    let held = container.acquire_lease("d", None, &theirs).await.unwrap_err();
    assert_eq!(held.kind, BlobErrorKind::LeaseHeld);
    let properties = container.blob_properties("d", None).await.unwrap().unwrap();
    assert_eq!(properties.lease, Some(LeaseState::Leased));

    let bytes = random(512);
    let put = async |lease: Option<&LeaseId>| {
        container.put_pages("d", 0, bytes.clone(), lease, crc64(&bytes)).await.map_err(|e| e.kind)
    };
    assert_eq!(put(Some(&ours)).await, Ok(()));
    assert_eq!(put(None).await, Err(BlobErrorKind::LeaseHeld));
    assert_eq!(put(Some(&theirs)).await, Err(BlobErrorKind::LeaseLost));
    let metadata = pairs(&[("cycle", "1")]);
    container.set_blob_metadata("d", &metadata, Some(&ours)).await.unwrap();
    container.clear_pages("d", 0..512, Some(&ours)).await.unwrap();
    container.snapshot("d", Some(&ours), &Metadata::new()).await.unwrap();
    for (name, result) in [
        ("metadata", container.set_blob_metadata("d", &metadata, Some(&theirs)).await),
        ("clear", container.clear_pages("d", 0..512, Some(&theirs)).await),
        ("snapshot", container.snapshot("d", Some(&theirs), &Metadata::new()).await.map(drop)),
        ("renew", container.renew_lease("d", &theirs).await),
        ("release", container.release_lease("d", &theirs).await),
        ("delete", container.delete("d", Some(&theirs)).await.map(drop)),
    ] {
        assert_eq!(result.unwrap_err().kind, BlobErrorKind::LeaseLost, "{name}");
    }
    assert_eq!(container.delete("d", None).await.unwrap_err().kind, BlobErrorKind::LeaseHeld);
    container.renew_lease("d", &ours).await.unwrap();
    container.release_lease("d", &ours).await.unwrap();
    assert_eq!(put(Some(&ours)).await, Err(BlobErrorKind::LeaseLost), "it was given back");
    assert_eq!(put(None).await, Ok(()));
    container.acquire_lease("d", None, &theirs).await.unwrap();
    assert!(container.delete("d", Some(&theirs)).await.unwrap());
}

// The only way to see it is to wait: the shortest lease of the service is 15 s.
pub(crate) async fn a_lease_that_ran_out_goes_to_the_next_and_the_old_holder_hears_of_it(at: &Place) {
    let container = at.container().await;
    disk(&container, "d", 1 << 20).await;
    let (old, new) = (LeaseId::random(), LeaseId::random());
    let began = std::time::Instant::now();
    container.acquire_lease("d", Some(SHORTEST), &old).await.unwrap();
    until("lease after the old one", 2 * SHORTEST, async || {
        Ok(match container.acquire_lease("d", Some(SHORTEST), &new).await {
            Ok(()) => Seen::Yes(()),
            Err(error) => {
                assert_eq!(error.kind, BlobErrorKind::LeaseHeld);
                Seen::NotYet(error.to_string())
            }
        })
    })
    .await
    .unwrap();
    assert!(began.elapsed() >= SHORTEST - Duration::from_secs(1), "{:?}", began.elapsed());
    let bytes = random(512);
    let put = container.put_pages("d", 0, bytes.clone(), Some(&old), crc64(&bytes)).await;
    assert_eq!(put.unwrap_err().kind, BlobErrorKind::LeaseLost);
    assert_eq!(container.renew_lease("d", &old).await.unwrap_err().kind, BlobErrorKind::LeaseLost);
    container.put_pages("d", 0, bytes.clone(), Some(&new), crc64(&bytes)).await.unwrap();
}

pub(crate) async fn a_lease_can_be_broken(at: &Place) {
    let container = at.container().await;
    disk(&container, "d", 1 << 20).await;
    let (old, new) = (LeaseId::random(), LeaseId::random());
    container.acquire_lease("d", None, &old).await.unwrap();
    let left = container.break_lease("d", Some(Duration::ZERO)).await.unwrap();
    assert_eq!(left, Duration::ZERO);
    let properties = container.blob_properties("d", None).await.unwrap().unwrap();
    assert_eq!(properties.lease, Some(LeaseState::Broken));
    assert_eq!(container.renew_lease("d", &old).await.unwrap_err().kind, BlobErrorKind::LeaseLost);
    container.acquire_lease("d", Some(Duration::from_secs(60)), &new).await.unwrap();
    let left = container.break_lease("d", Some(Duration::from_secs(30))).await.unwrap();
    assert!(left > Duration::from_secs(25) && left <= Duration::from_secs(30), "{left:?}");
    let bytes = random(512);
    container.put_pages("d", 0, bytes.clone(), Some(&new), crc64(&bytes)).await.expect("until then it holds");
    let error = container.acquire_lease("d", None, &old).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::LeaseHeld);
}
