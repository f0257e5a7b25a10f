//! Containers and listings.

use bytes::Bytes;
use farshore_azure::{Create, Include};

use crate::place::{Place, pairs, put};

pub(crate) async fn a_container_is_made_once_and_keeps_its_metadata(at: &Place) {
    let container = at.owner().container(&format!("fs-{}", uuid::Uuid::new_v4()));
    assert_eq!(container.metadata().await.unwrap(), None);
    assert!(!container.delete_container().await.unwrap());
    let first = pairs(&[("vmname", "Münster SQL ① 100 %"), ("site", "hq")]);
    assert_eq!(container.create(&first).await.unwrap(), Create::Created);
    assert_eq!(container.create(&pairs(&[("site", "other")])).await.unwrap(), Create::AlreadyExists);
    let (metadata, etag) = container.metadata().await.unwrap().unwrap();
    assert_eq!(metadata, first);
    let second = pairs(&[("site", "hq2")]);
    container.set_metadata(&second).await.unwrap();
    let (metadata, new) = container.metadata().await.unwrap().unwrap();
    assert_eq!(metadata, second);
    assert_ne!(etag, new);
    assert!(container.delete_container().await.unwrap());
    assert_eq!(container.metadata().await.unwrap(), None);
}

pub(crate) async fn listings_are_by_prefix_in_parts_with_metadata(at: &Place) {
    let container = at.container().await;
    let names = ["a/1", "a/2", "a/3 & <x>", "a/4", "b/1", "ledger.json"];
    for name in names {
        put(&container, name, &Bytes::from_static(b"xy")).await;
    }
    container.set_blob_metadata("a/2", &pairs(&[("term", "7")]), None).await.unwrap();
    let all = container.list("", Include::default()).await.unwrap();
    assert_eq!(all.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), names);
    let a = container.list("a/", Include { metadata: true, snapshots: false }).await.unwrap();
    assert_eq!(a.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), &names[..4]);
    assert_eq!(a[1].metadata, pairs(&[("term", "7")]));
    assert!(a.iter().all(|b| b.len == 2 && b.snapshot.is_none() && b.last_modified.is_some()));

    let mut parts = Vec::new();
    let mut marker = None;
    loop {
        let page = container.list_page("a/", Include::default(), marker.as_deref(), Some(3)).await.unwrap();
        assert!(page.blobs.len() <= 3);
        parts.extend(page.blobs.into_iter().map(|b| b.name));
        match page.next {
            Some(next) => marker = Some(next),
            None => break,
        }
    }
    assert_eq!(parts, &names[..4]);
    assert_eq!(container.list("nothing", Include::default()).await.unwrap(), []);
}
