//! What agents may do: SAS and their limits (DESIGN 9).

use bytes::Bytes;
use farshore_azure::{
    BlobError, BlobErrorKind, Condition, Container, Create, Include, LeaseId, Metadata, NewPageBlob, PutNew,
    SharedKey, crc64,
    sas::{self, Permissions},
};
use jiff::{SignedDuration, Timestamp};

use crate::place::{Place, grant, put, random};

/// Every operation that a stranger might try, as far as it was refused.
async fn refused(container: &Container, existing: &str) -> Vec<(&'static str, BlobErrorKind)> {
    let kind = |error: Option<BlobError>| error.map(|e| e.kind);
    let some = || Bytes::from_static(b"x");
    let page = NewPageBlob { len: 512, metadata: Metadata::new(), if_none_match: true };
    let page_over = match container.create_page_blob(existing, &page).await {
        Ok(Create::AlreadyExists) => Some(BlobErrorKind::AlreadyExists),
        other => kind(other.err()),
    };
    let tries = [
        ("get", kind(container.get(existing, 99).await.err())),
        ("head", kind(container.head(existing).await.err())),
        ("list", kind(container.list("", Include::default()).await.err())),
        ("overwrite", kind(container.put_if(existing, some(), &Condition::None).await.err())),
        ("delete", kind(container.delete(existing, None).await.err())),
        ("set metadata", kind(container.set_blob_metadata(existing, &Metadata::new(), None).await.err())),
        ("lease", kind(container.acquire_lease(existing, None, &LeaseId::random()).await.err())),
        ("create page blob over it", page_over),
        ("put pages", kind(container.put_pages("disk", 0, random(512), None, 0).await.err())),
        ("clear pages", kind(container.clear_pages("disk", 0..512, None).await.err())),
        ("page ranges", kind(container.page_ranges("disk", None).await.err())),
        ("delete container", kind(container.delete_container().await.err())),
        ("set container metadata", kind(container.set_metadata(&Metadata::new()).await.err())),
    ];
    let refused = tries.into_iter().filter_map(|(name, error)| Some((name, error?)));
    refused.collect()
}

async fn prepared(at: &Place) -> Container {
    let container = at.container().await;
    put(&container, "commit", &Bytes::from_static(b"first")).await;
    let page = NewPageBlob { len: 512, metadata: Metadata::new(), if_none_match: true };
    container.create_page_blob("disk", &page).await.unwrap();
    container
}

pub(crate) async fn a_create_only_sas_creates_and_does_nothing_else(at: &Place) {
    let owner = prepared(at).await;
    let agent = at.through(&owner, Permissions::Create);
    let bytes = random(5 << 20);
    put(&agent, "000001-000001/0000000001/segment", &bytes).await;
    assert!(owner.get("000001-000001/0000000001/segment", 9 << 20).await.unwrap().unwrap().bytes == bytes);

    // Taken: told apart from a useless SAS by a probe.
    let other = Bytes::from_static(b"second");
    let taken = agent.put_new_probing("commit", other.clone(), crc64(&other)).await.unwrap();
    assert_eq!(taken, PutNew::Taken);
    assert_eq!(owner.get("commit", 99).await.unwrap().unwrap().bytes, "first");

    let all = refused(&agent, "commit").await;
    assert_eq!(all.len(), 13, "all but creating is refused: {all:?}");
    for (name, kind) in all {
        let overwrite = kind == BlobErrorKind::AlreadyExists && name.contains("over");
        assert!(kind == BlobErrorKind::NotAuthorized || overwrite, "{name}: {kind:?}");
    }
    assert_eq!(owner.get("commit", 99).await.unwrap().unwrap().bytes, "first");

    // Nothing in another container.
    let elsewhere = at.container().await;
    let sas = sas::service_sas(&SharedKey::emulator(), owner.name(), grant(Permissions::Create));
    let lost = at.through_text(&elsewhere, sas.expose());
    let error = lost.put_new_probing("x", other.clone(), crc64(&other)).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::NotAuthorized);
}

pub(crate) async fn a_read_sas_reads_and_does_nothing_else(at: &Place) {
    let owner = prepared(at).await;
    let agent = at.through(&owner, Permissions::Read);
    assert_eq!(agent.get("commit", 99).await.unwrap().unwrap().bytes, "first");
    assert_eq!(agent.get("absent", 99).await.unwrap(), None);
    assert!(agent.page_ranges("disk", None).await.unwrap().is_empty());
    let all = refused(&agent, "commit").await;
    assert_eq!(all.len(), 10, "{all:?}");
    assert!(all.iter().all(|(_, kind)| *kind == BlobErrorKind::NotAuthorized), "{all:?}");
    // To `put_new` that looks as if the name were taken; the probe shows that it is not.
    let bytes = random(10);
    let error = agent.put_new_probing("new", bytes.clone(), crc64(&bytes)).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::NotAuthorized);
    assert_eq!(owner.head("new").await.unwrap(), None);
}

pub(crate) async fn a_sas_outside_its_time_is_expired_and_a_forged_one_is_not_authorised(at: &Place) {
    let owner = prepared(at).await;
    let (now, hour) = (Timestamp::now(), SignedDuration::from_hours(1));
    for (name, starts, expires) in
        [("over", now - hour, now - SignedDuration::from_secs(5)), ("not yet", now + hour, now + hour + hour)]
    {
        let grant = sas::Grant { permissions: Permissions::All, starts, expires };
        let agent = at.through_sas(&owner, &grant);
        assert_eq!(
            agent.get("commit", 99).await.unwrap_err().kind,
            BlobErrorKind::CredentialExpired,
            "{name}"
        );
        let bytes = random(10);
        let put = agent.put_new_probing("x", bytes.clone(), crc64(&bytes)).await;
        assert_eq!(put.unwrap_err().kind, BlobErrorKind::CredentialExpired, "{name}");
        assert_eq!(agent.head("commit").await.unwrap_err().kind, BlobErrorKind::CredentialExpired, "{name}");
    }
    let sas = sas::service_sas(&SharedKey::emulator(), owner.name(), grant(Permissions::Read));
    let widened = sas.expose().replace("&sp=r&", "&sp=rw&");
    let forged = at.through_text(&owner, &widened);
    assert_eq!(forged.get("commit", 99).await.unwrap_err().kind, BlobErrorKind::NotAuthorized);
    let nobody = at
        .service(farshore_azure::Credential::SharedKey(SharedKey::new("devstoreaccount1", "AAAA").unwrap()));
    let error = nobody.container(owner.name()).get("commit", 99).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::NotAuthorized);
}

pub(crate) async fn the_servers_clock_is_near_ours(at: &Place) {
    let container = at.container().await;
    let got = container.put_if("x", random(1), &Condition::None).await;
    got.unwrap();
    let offset = container.service().server_time_offset().unwrap();
    assert!(offset.as_millis().abs() < 3_000, "{offset}");
    let date = container.get("x", 9).await.unwrap().unwrap().date.unwrap();
    assert!((date.as_second() - Timestamp::now().as_second()).abs() <= 3, "{date}");
}
