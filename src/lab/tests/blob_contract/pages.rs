//! Page blobs, their snapshots and ranges.

use bytes::Bytes;
use farshore_azure::{
    BlobErrorKind, BlobKind, Container, Create, Include, LeaseState, Metadata, NewPageBlob, PAGE, crc64,
};

use crate::place::{Place, pairs, random};

const MIB: u64 = 1 << 20;

pub(crate) async fn disk(container: &Container, name: &str, len: u64) {
    let new = NewPageBlob { len, metadata: Metadata::new(), if_none_match: true };
    assert_eq!(container.create_page_blob(name, &new).await.unwrap(), Create::Created);
}

pub(crate) async fn write(container: &Container, name: &str, offset: u64, bytes: &Bytes) {
    container.put_pages(name, offset, bytes.clone(), None, crc64(bytes)).await.unwrap();
}

#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
pub(crate) async fn pages_are_written_cleared_and_listed(at: &Place) {
    let container = at.container().await;
    let len = 64 * MIB + PAGE;
    disk(&container, "disk.vhd", len).await;
    let again = NewPageBlob { len: PAGE, metadata: Metadata::new(), if_none_match: true };
    assert_eq!(container.create_page_blob("disk.vhd", &again).await.unwrap(), Create::AlreadyExists);
    assert!(container.page_ranges("disk.vhd", None).await.unwrap().is_empty());

    let (a, b, footer) = (random(4 << 20), random(4096), random(512));
    write(&container, "disk.vhd", 0, &a).await;
    write(&container, "disk.vhd", 4 * MIB, &b).await;
    write(&container, "disk.vhd", 64 * MIB, &footer).await;
    let ranges = container.page_ranges("disk.vhd", None).await.unwrap();
    assert_eq!(ranges, [0..4 * MIB + 4096, 64 * MIB..len]);

    container.clear_pages("disk.vhd", MIB..3 * MIB, None).await.unwrap();
    container.clear_pages("disk.vhd", 64 * MIB..len, None).await.unwrap();
    let ranges = container.page_ranges("disk.vhd", None).await.unwrap();
    assert_eq!(ranges, [0..MIB, 3 * MIB..4 * MIB + 4096]);

    let mut want = vec![0; 8 << 20];
    want[..1 << 20].copy_from_slice(&a[..1 << 20]);
    want[3 << 20..4 << 20].copy_from_slice(&a[3 << 20..]);
    want[4 << 20..][..4096].copy_from_slice(&b);
    let got = container.read_pages("disk.vhd", None, 0, 8 * MIB).await.unwrap();
    assert!(got.bytes == want);
    let got = container.read_pages("disk.vhd", None, 64 * MIB, MIB).await.unwrap();
    assert_eq!(got.bytes, vec![0; 512], "clipped at the end");

    container.clear_pages("disk.vhd", 0..len, None).await.unwrap();
    write(&container, "disk.vhd", PAGE, &footer).await;
    assert_eq!(container.page_ranges("disk.vhd", None).await.unwrap(), [PAGE..2 * PAGE]);
}

pub(crate) async fn a_snapshot_keeps_what_was(at: &Place) {
    let container = at.container().await;
    disk(&container, "disk.vhd", 16 * MIB).await;
    let old = random(2 << 20);
    write(&container, "disk.vhd", 0, &old).await;
    let point = pairs(&[("point", "20261124T041129Z-000001")]);
    let one = container.snapshot("disk.vhd", None, &point).await.unwrap();
    let new = random(1 << 20);
    write(&container, "disk.vhd", 512 * 1024, &new).await;
    container.clear_pages("disk.vhd", 0..4096, None).await.unwrap();
    let two = container.snapshot("disk.vhd", None, &Metadata::new()).await.unwrap();
    write(&container, "disk.vhd", 8 * MIB, &new).await;
    assert_ne!(one, two);

    let read = async |snapshot: Option<&str>| {
        container.read_pages("disk.vhd", snapshot, 0, 2 * MIB).await.unwrap().bytes
    };
    assert!(read(Some(&one)).await == old);
    let mut changed = old.to_vec();
    changed[512 * 1024..][..1 << 20].copy_from_slice(&new);
    changed[..4096].fill(0);
    assert!(read(Some(&two)).await == changed);
    assert!(read(None).await == changed);
    let of = async |snapshot| container.page_ranges("disk.vhd", snapshot).await.unwrap();
    assert_eq!(of(Some(one.as_str())).await, vec![0..2 * MIB; 1]);
    assert_eq!(of(Some(two.as_str())).await, vec![4096..2 * MIB; 1]);
    assert_eq!(of(None).await, [4096..2 * MIB, 8 * MIB..9 * MIB]);

    let all = container.list("disk", Include { metadata: true, snapshots: true }).await.unwrap();
    let ids: Vec<_> = all.iter().map(|b| b.snapshot.clone()).collect();
    assert_eq!(ids, [Some(one.clone()), Some(two.clone()), None]);
    assert_eq!(all[0].metadata, point);
    let properties = container.blob_properties("disk.vhd", Some(&one)).await.unwrap().unwrap();
    assert_eq!((properties.len, properties.metadata), (16 * MIB, point));

    assert!(container.delete_snapshot("disk.vhd", &one).await.unwrap());
    assert!(!container.delete_snapshot("disk.vhd", &one).await.unwrap());
    assert!(read(Some(&two)).await == changed);
    let error = container.read_pages("disk.vhd", Some(&one), 0, PAGE).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::NotFound);
    assert!(container.delete("disk.vhd", None).await.unwrap(), "with its snapshots");
    assert_eq!(container.list("", Include { metadata: false, snapshots: true }).await.unwrap(), []);
}

pub(crate) async fn wrong_page_writes_are_refused(at: &Place) {
    let container = at.container().await;
    disk(&container, "disk.vhd", MIB).await;
    let bytes = random(4096);
    let wrong = container.put_pages("disk.vhd", 0, bytes.clone(), None, crc64(&bytes) ^ 1).await;
    assert_eq!(wrong.unwrap_err().kind, BlobErrorKind::ChecksumMismatch);
    let beyond = container.put_pages("disk.vhd", MIB, bytes.clone(), None, crc64(&bytes)).await;
    let beyond = beyond.unwrap_err();
    assert_eq!((beyond.kind, beyond.status), (BlobErrorKind::Protocol, Some(416)));
    let nowhere = container.put_pages("other.vhd", 0, bytes.clone(), None, crc64(&bytes)).await;
    assert_eq!(nowhere.unwrap_err().kind, BlobErrorKind::NotFound);
    assert!(container.page_ranges("disk.vhd", None).await.unwrap().is_empty());
}

pub(crate) async fn metadata_and_properties_of_a_page_blob(at: &Place) {
    let container = at.container().await;
    let first = pairs(&[("term", "1"), ("stream", "1"), ("cycle", "12")]);
    let new = NewPageBlob { len: 8 << 40, metadata: first.clone(), if_none_match: true };
    container.create_page_blob("disk.vhd", &new).await.unwrap();
    let one = container.blob_properties("disk.vhd", None).await.unwrap().unwrap();
    assert_eq!((one.len, one.kind, one.metadata), (8 << 40, BlobKind::Page, first));
    assert_eq!(one.lease, Some(LeaseState::Available));
    let second = pairs(&[("term", "2")]);
    container.set_blob_metadata("disk.vhd", &second, None).await.unwrap();
    let two = container.blob_properties("disk.vhd", None).await.unwrap().unwrap();
    assert_eq!(two.metadata, second);
    assert_ne!(one.etag, two.etag);
    let bytes = random(512);
    write(&container, "disk.vhd", (8 << 40) - 512, &bytes).await;
    let three = container.blob_properties("disk.vhd", None).await.unwrap().unwrap();
    assert_ne!(two.etag, three.etag, "a page write changes the tag");
    assert_eq!(three.metadata, second);
    let read = container.read_pages("disk.vhd", None, (8 << 40) - 1024, 1024).await.unwrap();
    assert_eq!(read.bytes[512..], bytes);
}
