//! What is on the wire, where no emulator would notice that it is wrong.

use bytes::Bytes;

use super::{
    container, options,
    server::{Server, answer, answer_with},
};
use crate::{
    BlobErrorKind, BlobService, Condition, Create, Credential, ETag, Endpoint, GetIfChanged, Include,
    LeaseId, Metadata, NewPageBlob, PutNew, SharedKey, TokenCredential, crc64,
};

const CREATED: &str = "HTTP/1.1 201 Created\r\netag: \"0x1\"\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_new_blob_is_one_conditional_put_with_a_checksum_also_above_the_sdks_block_size() {
    let server = Server::answering(CREATED).await;
    let bytes = Bytes::from(vec![7; 5 * 1024 * 1024]);
    let crc = crc64(&bytes);
    let container = container(&server.base, &options());
    let put = container.put_new("000001-000001/0000000001/x", bytes.clone(), crc).await;
    assert_eq!(put.unwrap(), PutNew::Created(ETag::new("\"0x1\"")));
    let [request] = server.requests().try_into().unwrap();
    assert!(
        request.line().starts_with("PUT /devstoreaccount1/fs-1-up/000001-000001/0000000001/x?sv="),
        "{}",
        request.line()
    );
    assert!(!request.line().contains("comp="), "{}", request.line());
    for (name, want) in [
        ("x-ms-blob-type", "BlockBlob"),
        ("if-none-match", "*"),
        // CRC-64/NVME of the bytes, little endian, as another implementation computed it.
        ("x-ms-content-crc64", "omOT8IFDheo="),
        ("content-length", "5242880"),
    ] {
        assert_eq!(request.header(name), Some(want), "{name}");
    }
    assert_eq!(request.header("transfer-encoding"), None);
    assert_eq!(request.body, bytes);
}

#[test]
fn crc64_is_the_nvme_one() {
    // The check value of CRC-64/NVME in the catalogue of parametrised CRCs.
    assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
}

// FORMATS "Taken names"
#[tokio::test]
async fn a_taken_name_is_told_from_a_useless_sas_by_a_probe() {
    struct Case {
        name: &'static str,
        first: (&'static str, &'static str),
        probe: (&'static str, &'static str),
        want: Result<PutNew, BlobErrorKind>,
        requests: usize,
    }
    let mismatch = ("403 Forbidden", "AuthorizationPermissionMismatch");
    let created = ("201 Created", "");
    for case in [
        Case {
            name: "409",
            first: ("409 Conflict", "BlobAlreadyExists"),
            probe: created,
            want: Ok(PutNew::Taken),
            requests: 1,
        },
        Case {
            name: "overwrite refused",
            first: ("403 Forbidden", "UnauthorizedBlobOverwrite"),
            probe: created,
            want: Ok(PutNew::Taken),
            requests: 1,
        },
        Case {
            name: "ambiguous, probe works",
            first: mismatch,
            probe: created,
            want: Ok(PutNew::Taken),
            requests: 2,
        },
        Case {
            name: "ambiguous, probe refused",
            first: mismatch,
            probe: mismatch,
            want: Err(BlobErrorKind::NotAuthorized),
            requests: 2,
        },
        Case {
            name: "bad signature",
            first: ("403 Forbidden", "AuthenticationFailed"),
            probe: created,
            want: Err(BlobErrorKind::NotAuthorized),
            requests: 1,
        },
    ] {
        let server = Server::answering_each(move |n, _| {
            let (status, code) = if n == 0 { case.first } else { case.probe };
            answer(status, &[("x-ms-error-code", code), ("etag", "\"1\"")])
        })
        .await;
        let container = container(&server.base, &options());
        let got = container.put_new_probing("a/b", Bytes::from_static(b"x"), crc64(b"x")).await;
        assert_eq!(got.map_err(|e| e.kind), case.want, "{}", case.name);
        let requests = server.requests();
        assert_eq!(requests.len(), case.requests, "{}", case.name);
        if let Some(probe) = requests.get(1) {
            assert!(probe.line().contains("/fs-1-up/probe/"), "{}", probe.line());
        }
    }
}

#[tokio::test]
async fn conditions_are_sent_and_their_refusals_are_one_kind() {
    for (condition, header, value, status, code) in [
        (
            Condition::IfMatch(ETag::new("\"7\"")),
            "if-match",
            "\"7\"",
            "412 Precondition Failed",
            "ConditionNotMet",
        ),
        (Condition::IfNoneMatchAny, "if-none-match", "*", "409 Conflict", "BlobAlreadyExists"),
    ] {
        let server = Server::answering_each(move |_, _| answer(status, &[("x-ms-error-code", code)])).await;
        let container = container(&server.base, &options());
        let error = container.put_if("ledger.json", Bytes::from_static(b"{}"), &condition).await.unwrap_err();
        assert_eq!(error.kind, BlobErrorKind::ConditionNotMet, "{header}");
        let requests = server.requests();
        assert_eq!(requests.len(), 1, "no retry");
        assert_eq!(requests[0].header(header), Some(value));
    }
}

#[tokio::test]
async fn an_unchanged_blob_is_told_by_304() {
    let server = Server::answering_each(|n, _| match n {
        0 => answer("304 Not Modified", &[]),
        1 => answer_with(
            "206 Partial Content",
            &[("etag", "\"8\""), ("content-range", "bytes 0-1/2"), ("x-ms-meta-term", "3")],
            "{}",
        ),
        _ => answer("404 Not Found", &[("x-ms-error-code", "BlobNotFound")]),
    })
    .await;
    let container = container(&server.base, &options());
    let known = ETag::new("\"7\"");
    assert_eq!(container.get_if_changed("c", &known, 99).await.unwrap(), GetIfChanged::Unchanged);
    let changed = container.get_if_changed("c", &known, 99).await.unwrap();
    let GetIfChanged::Changed(fetched) = changed else { panic!("{changed:?}") };
    assert_eq!((fetched.bytes.as_ref(), fetched.etag.as_str()), (&b"{}"[..], "\"8\""));
    assert_eq!(fetched.metadata, Metadata::from([("term".into(), "3".into())]));
    assert_eq!(container.get_if_changed("c", &known, 99).await.unwrap(), GetIfChanged::Missing);
    assert_eq!(server.requests()[0].header("if-none-match"), Some("\"7\""));
}

// Azurite ignores prevsnapshot, so only this pins the request.
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
#[tokio::test]
async fn a_page_difference_names_both_snapshots() {
    let body = "<?xml version=\"1.0\"?><PageList><PageRange><Start>512</Start><End>1023</End></PageRange>\
        <ClearRange><Start>4096</Start><End>8191</End></ClearRange>\
        <PageRange><Start>0</Start><End>511</End></PageRange><NextMarker/></PageList>";
    let server = Server::answering_each(move |_, _| {
        answer_with("200 OK", &[("content-type", "application/xml")], body)
    })
    .await;
    let container = container(&server.base, &options());
    let (new, old) = ("2026-11-24T05:00:00.0000000Z", "2026-11-24T04:00:00.0000000Z");
    let diff = container.page_ranges_diff("disk-1.vhd", Some(new), old).await.unwrap();
    assert_eq!((diff.written, diff.cleared), (vec![0..1024], vec![4096..8192]));
    let line = server.requests()[0].line().to_owned();
    for part in [
        "/fs-1-up/disk-1.vhd?",
        "comp=pagelist",
        "snapshot=2026-11-24T05%3A00%3A00.0000000Z",
        "prevsnapshot=2026-11-24T04%3A00%3A00.0000000Z",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test]
async fn page_writes_carry_lease_range_and_checksum() {
    let server = Server::answering(CREATED).await;
    let container = container(&server.base, &options());
    let lease = LeaseId::random();
    let bytes = Bytes::from(vec![1; 512]);
    container.put_pages("d.vhd", 1024, bytes.clone(), Some(&lease), crc64(&bytes)).await.unwrap();
    container.clear_pages("d.vhd", 0..512, Some(&lease)).await.unwrap();
    let [put, clear] = server.requests().try_into().unwrap();
    assert!(put.line().contains("comp=page"), "{}", put.line());
    for (request, range, write) in [(&put, "bytes=1024-1535", "update"), (&clear, "bytes=0-511", "clear")] {
        assert_eq!(request.header("range").or(request.header("x-ms-range")), Some(range));
        assert_eq!(request.header("x-ms-page-write"), Some(write));
        assert_eq!(request.header("x-ms-lease-id"), Some(lease.as_str()));
    }
    assert!(put.header("x-ms-content-crc64").is_some());
}

#[tokio::test]
async fn nonsense_ranges_and_sizes_never_leave_the_machine() {
    let server = Server::answering(CREATED).await;
    let container = container(&server.base, &options());
    let page = Bytes::from(vec![0; 512]);
    let big = Bytes::from(vec![0; 4 * 1024 * 1024 + 512]);
    let kinds = [
        container.put_pages("d", 1, page.clone(), None, 0).await.unwrap_err().kind,
        container.put_pages("d", u64::MAX - 511, page.clone(), None, 0).await.unwrap_err().kind,
        container.put_pages("d", 8 << 40, page, None, 0).await.unwrap_err().kind,
        container.clear_pages("d", 512..512, None).await.unwrap_err().kind,
        container.put_pages("d", 0, big, None, 0).await.unwrap_err().kind,
        container
            .create_page_blob(
                "d",
                &NewPageBlob { len: 9 << 40, metadata: Metadata::new(), if_none_match: true },
            )
            .await
            .unwrap_err()
            .kind,
    ];
    use BlobErrorKind::{Protocol, TooLarge};
    assert_eq!(kinds, [Protocol, Protocol, Protocol, Protocol, TooLarge, TooLarge]);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn lists_of_ranges_that_make_no_sense_are_refused() {
    for ranges in [
        "<PageRange><Start>-1</Start><End>511</End></PageRange>",
        "<PageRange><Start>512</Start><End>511</End></PageRange>",
        "<PageRange><Start>512</Start></PageRange>",
        "<PageRange><Start>0</Start><End>18446744073709551615</End></PageRange>",
        "<PageRange>",
    ] {
        let body = format!("<?xml version=\"1.0\"?><PageList>{ranges}</PageList>");
        let server = Server::answering_each(move |_, _| answer_with("200 OK", &[], &body)).await;
        let error = container(&server.base, &options()).page_ranges("d", None).await.unwrap_err();
        assert_eq!(error.kind, BlobErrorKind::Protocol, "{ranges}");
    }
    let server = Server::answering_each(|n, _| {
        let (start, next) = if n == 0 { (0, "512!") } else { (512, "") };
        let range = format!("<PageRange><Start>{start}</Start><End>{}</End></PageRange>", start + 511);
        answer_with("200 OK", &[], &format!("<PageList>{range}<NextMarker>{next}</NextMarker></PageList>"))
    })
    .await;
    let two_parts = container(&server.base, &options()).page_ranges("d", None).await.unwrap();
    assert_eq!(two_parts, vec![0..1024; 1]);
    assert!(server.requests()[1].line().contains("marker=512%21"), "{}", server.requests()[1].line());
    let server = Server::answering_each(|_, _| answer_with("200 OK", &[], "<PageList/>")).await;
    assert_eq!(container(&server.base, &options()).page_ranges("d", None).await.unwrap(), []);
}

#[tokio::test]
async fn a_shared_key_signs_and_a_container_that_exists_is_no_error() {
    let server = Server::answering_each(|_, _| {
        answer("409 Conflict", &[("x-ms-error-code", "ContainerAlreadyExists")])
    })
    .await;
    let endpoint = Endpoint::parse(&server.base).unwrap();
    let service =
        BlobService::new(endpoint, Credential::SharedKey(SharedKey::emulator()), &options()).unwrap();
    let metadata = Metadata::from([("vmid".into(), "42".into())]);
    assert_eq!(service.container("fs-1").create(&metadata).await.unwrap(), Create::AlreadyExists);
    let [request] = server.requests().try_into().unwrap();
    assert!(request.header("authorization").unwrap().starts_with("SharedKey devstoreaccount1:"));
    assert!(request.header("x-ms-date").unwrap().ends_with(" GMT"));
    assert_eq!(request.header("x-ms-meta-vmid"), Some("42"));
}

#[tokio::test]
async fn an_identitys_token_never_travels_over_http() {
    #[derive(Debug)]
    struct Identity;
    type Answer<'t> = std::pin::Pin<
        Box<dyn Future<Output = azure_core::Result<azure_core::credentials::AccessToken>> + Send + 't>,
    >;
    impl TokenCredential for Identity {
        fn get_token<'a, 'b, 'c, 'd, 't>(
            &'a self,
            _: &'b [&'c str],
            _: Option<azure_core::credentials::TokenRequestOptions<'d>>,
        ) -> Answer<'t>
        where
            Self: 't,
            'a: 't,
            'b: 't,
            'c: 't,
            'd: 't,
        {
            Box::pin(async { panic!("no token is asked for") })
        }
    }
    let server = Server::answering(CREATED).await;
    let token = Credential::Token(std::sync::Arc::new(Identity));
    let service = BlobService::new(Endpoint::parse(&server.base).unwrap(), token, &options()).unwrap();
    let error = service.container("fs-1").list("", Include::default()).await.unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::Protocol);
    assert!(error.to_string().contains("https"), "{error}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn the_servers_clock_is_known_after_the_first_answer() {
    let server = Server::answering_each(|_, _| {
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(2);
        let date = later.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        answer("404 Not Found", &[("x-ms-error-code", "BlobNotFound"), ("date", &date)])
    })
    .await;
    let container = container(&server.base, &options());
    assert_eq!(container.service().server_time_offset(), None);
    assert_eq!(container.get("x", 10).await.unwrap(), None);
    let offset = container.service().server_time_offset().unwrap();
    assert!((7198..=7202).contains(&offset.as_secs()), "{offset}");
}

#[tokio::test]
async fn listings_go_on_until_the_last_part_and_keep_snapshots_and_metadata() {
    let server = Server::answering_each(|n, _| {
        let (blob, next) = match n {
            0 => ("<Blob><Name>a</Name><Snapshot>2026-11-24T04:00:00.0000000Z</Snapshot>", "m1"),
            _ => ("<Blob><Name>b/c</Name>", ""),
        };
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"fs\"><Blobs>{blob}\
             <Properties><Last-Modified>Tue, 24 Nov 2026 04:11:29 GMT</Last-Modified><Etag>0x8</Etag>\
             <Content-Length>12</Content-Length><BlobType>BlockBlob</BlobType></Properties>\
             <Metadata><Term>1</Term></Metadata></Blob></Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
        );
        answer_with("200 OK", &[("content-type", "application/xml")], &body)
    })
    .await;
    let container = container(&server.base, &options());
    let all = container.list("p/", Include { metadata: true, snapshots: true }).await.unwrap();
    let names: Vec<_> = all.iter().map(|b| (b.name.as_str(), b.snapshot.is_some(), b.len)).collect();
    assert_eq!(names, [("a", true, 12), ("b/c", false, 12)]);
    assert_eq!(all[0].metadata, Metadata::from([("term".into(), "1".into())]));
    let [first, second] = server.requests().try_into().unwrap();
    assert!(first.line().contains("prefix=p%2F") && first.line().contains("include=metadata%2Csnapshots"));
    assert!(second.line().contains("marker=m1"), "{}", second.line());
}
