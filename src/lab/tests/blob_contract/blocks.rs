//! Block blobs.

use bytes::Bytes;
use farshore_azure::{BlobErrorKind, BlobKind, Condition, ETag, GetIfChanged, LeaseState, PutNew, crc64};
use futures::future::join_all;

use crate::place::{Place, put, random};

const MAX: u64 = 64 << 20;

pub(crate) async fn what_was_put_is_read_back(at: &Place) {
    let container = at.container().await;
    for (name, len) in
        [("empty", 0), ("000001-000001/0000000001/small", 1000), ("above the SDK's block", (5 << 20) + 3)]
    {
        let bytes = random(len);
        let PutNew::Created(etag) = container.put_new(name, bytes.clone(), crc64(&bytes)).await.unwrap()
        else {
            panic!("{name} is new")
        };
        let got = container.get(name, MAX).await.unwrap().unwrap();
        assert!(got.bytes == bytes, "{name}");
        assert_eq!(got.etag, etag, "{name}");
        let head = container.head(name).await.unwrap().unwrap();
        assert_eq!((head.len, head.etag, head.kind), (len as u64, etag, BlobKind::Block), "{name}");
        assert_eq!(head.lease, Some(LeaseState::Available), "{name}");
        assert_eq!(container.put_new(name, bytes.clone(), crc64(&bytes)).await.unwrap(), PutNew::Taken);
        if len > 0 {
            let part = container.get_range(name, 100, 900).await.unwrap();
            assert_eq!(part.bytes, bytes.slice(100..1000), "{name}");
            let clipped = container.get_range(name, len as u64 - 10, 900).await.unwrap();
            assert_eq!(clipped.bytes, bytes.slice(len - 10..), "{name}");
        }
        assert!(container.delete(name, None).await.unwrap());
        assert!(!container.delete(name, None).await.unwrap());
    }
}

pub(crate) async fn a_wrong_checksum_is_refused_and_leaves_nothing(at: &Place) {
    let container = at.container().await;
    let bytes = random(5 << 20);
    let error = container.put_new("x", bytes.clone(), crc64(&bytes) ^ 1).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::ChecksumMismatch);
    assert_eq!(container.head("x").await.unwrap(), None);
    put(&container, "x", &bytes).await;
}

// FORMATS "Taken names": a commit name is written by one writer only.
pub(crate) async fn of_many_writers_of_one_new_name_one_wins(at: &Place) {
    let container = at.container().await;
    let bytes: Vec<Bytes> = (0..12).map(|_| random(200_000)).collect();
    let puts = bytes.iter().map(|b| container.put_new("commit", b.clone(), crc64(b)));
    let results: Vec<PutNew> = join_all(puts).await.into_iter().map(Result::unwrap).collect();
    let winners: Vec<usize> =
        (0..results.len()).filter(|i| matches!(results[*i], PutNew::Created(_))).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    let got = container.get("commit", MAX).await.unwrap().unwrap();
    assert!(got.bytes == bytes[winners[0]]);
}

// The ledger's and the cursor's rule.
pub(crate) async fn of_many_writers_of_one_version_one_wins(at: &Place) {
    let container = at.container().await;
    let first = container.put_if("l", random(10), &Condition::IfNoneMatchAny).await.unwrap();
    let condition = Condition::IfMatch(first);
    let bytes: Vec<Bytes> = (0..12).map(|_| random(5_000)).collect();
    let puts = bytes.iter().map(|b| container.put_if("l", b.clone(), &condition));
    let results = join_all(puts).await;
    let winners: Vec<usize> = (0..results.len()).filter(|i| results[*i].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    for result in results.into_iter().filter_map(Result::err) {
        assert_eq!(result.kind, BlobErrorKind::ConditionNotMet);
    }
    assert_eq!(container.get("l", MAX).await.unwrap().unwrap().bytes, bytes[winners[0]]);
}

pub(crate) async fn conditions_decide_by_version(at: &Place) {
    let container = at.container().await;
    let name = "ledger.json";
    let never = Condition::IfMatch(ETag::new("\"0x1\""));
    let kind = |result: Result<ETag, farshore_azure::BlobError>| result.unwrap_err().kind;
    assert_eq!(kind(container.put_if(name, random(9), &never).await), BlobErrorKind::ConditionNotMet);
    let first = container.put_if(name, random(9), &Condition::IfNoneMatchAny).await.unwrap();
    let again = container.put_if(name, random(9), &Condition::IfNoneMatchAny).await;
    assert_eq!(kind(again), BlobErrorKind::ConditionNotMet);
    let second = container.put_if(name, random(9), &Condition::IfMatch(first.clone())).await.unwrap();
    assert_ne!(first, second);
    let stale = container.put_if(name, random(9), &Condition::IfMatch(first)).await;
    assert_eq!(kind(stale), BlobErrorKind::ConditionNotMet);
    let third = container.put_if(name, random(9), &Condition::None).await.unwrap();
    assert_eq!(container.head(name).await.unwrap().unwrap().etag, third);
}

pub(crate) async fn an_unchanged_blob_is_not_sent_again(at: &Place) {
    let container = at.container().await;
    let one = container.put_if("cursor.json", random(9), &Condition::None).await.unwrap();
    assert_eq!(container.get_if_changed("cursor.json", &one, 99).await.unwrap(), GetIfChanged::Unchanged);
    let bytes = random(9);
    let two = container.put_if("cursor.json", bytes.clone(), &Condition::IfMatch(one.clone())).await.unwrap();
    match container.get_if_changed("cursor.json", &one, 99).await.unwrap() {
        GetIfChanged::Changed(got) => assert_eq!((got.bytes, got.etag), (bytes, two)),
        other => panic!("{other:?}"),
    }
    container.delete("cursor.json", None).await.unwrap();
    assert_eq!(container.get_if_changed("cursor.json", &one, 99).await.unwrap(), GetIfChanged::Missing);
}

pub(crate) async fn what_is_missing_is_none_and_not_an_error(at: &Place) {
    let container = at.container().await;
    let nowhere = at.owner().container(&format!("fs-{}", uuid::Uuid::new_v4()));
    for place in [&container, &nowhere] {
        assert_eq!(place.get("x", 9).await.unwrap(), None);
        assert_eq!(place.head("x").await.unwrap(), None);
        assert_eq!(place.blob_properties("x", Some("2026-11-24T04:00:00.0000000Z")).await.unwrap(), None);
        assert!(!place.delete("x", None).await.unwrap());
        assert_eq!(place.get_range("x", 0, 9).await.unwrap_err().kind, BlobErrorKind::NotFound);
    }
    let error = nowhere.put_new("x", random(9), 0).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_deref()), (BlobErrorKind::NotFound, Some("ContainerNotFound")));
    let error = nowhere.list("", farshore_azure::Include::default()).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::NotFound);
}

pub(crate) async fn a_read_stops_at_its_limit(at: &Place) {
    let container = at.container().await;
    let bytes = random(3 << 20);
    put(&container, "x", &bytes).await;
    let len = bytes.len() as u64;
    assert_eq!(container.get("x", len - 1).await.unwrap_err().kind, BlobErrorKind::TooLarge);
    assert_eq!(container.get("x", 0).await.unwrap_err().kind, BlobErrorKind::TooLarge);
    assert!(container.get("x", len).await.unwrap().unwrap().bytes == bytes);
    assert!(container.get("x", u64::MAX).await.unwrap().unwrap().bytes == bytes);
}
