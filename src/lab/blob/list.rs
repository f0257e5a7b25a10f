//! List Blobs.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::{
    body::Failure,
    containers::found,
    refusal::{self, escape},
    reply::{Reply, http_date},
    server::Call,
    store::{Blob, Content, Metadata, Snapshot, State, time_of},
};

/// The service's own limit.
const MOST: usize = 5000;

pub(super) fn blobs(call: &Call) -> Result<Reply, Failure> {
    let container = found(call)?;
    let query = |name| call.target.query(name).unwrap_or_default();
    let (prefix, marker, delimiter) = (query("prefix"), query("marker"), query("delimiter"));
    let most = match query("maxresults") {
        "" => MOST,
        text => match text.parse() {
            Ok(0) | Err(_) => return Err(refusal::invalid_query("maxresults").into()),
            Ok(most) => MOST.min(most),
        },
    };
    let include: Vec<&str> = query("include").split(',').collect();
    let show = Show {
        metadata: include.contains(&"metadata"),
        snapshots: include.contains(&"snapshots"),
        now: call.now,
    };
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ServiceEndpoint=\"/\" ContainerName=\"{}\">\
         <Prefix>{}</Prefix><MaxResults>{most}</MaxResults><Blobs>",
        escape(&container.name),
        escape(prefix)
    );
    let (mut rows, mut next, mut group) = (0, String::new(), None);
    for blob in container.from(marker.max(prefix)) {
        let Some(rest) = blob.name.strip_prefix(prefix) else {
            if blob.name.as_str() > prefix {
                break;
            }
            continue;
        };
        let common = rest.find(delimiter).filter(|_| !delimiter.is_empty());
        let common = common.map(|at| format!("{prefix}{}{delimiter}", rest.get(..at).unwrap_or_default()));
        if common.is_some() && common == group {
            continue;
        }
        if rows >= most {
            next.clone_from(&blob.name);
            break;
        }
        group = common;
        match &group {
            Some(common) => {
                let _ = write!(out, "<BlobPrefix><Name>{}</Name></BlobPrefix>", escape(common));
                rows += 1;
            }
            None => rows += show.rows(&mut out, &blob),
        }
    }
    let _ = write!(out, "</Blobs><NextMarker>{}</NextMarker></EnumerationResults>", escape(&next));
    Ok(Reply::xml(out))
}

struct Show {
    metadata: bool,
    snapshots: bool,
    now: Timestamp,
}

impl Show {
    /// A blob after its snapshots; how many rows that made.
    fn rows(&self, out: &mut String, blob: &Blob) -> usize {
        let Some(state) = blob.state().clone() else { return 0 };
        let snapshots: &[Snapshot] = if self.snapshots { &state.snapshots } else { &[] };
        for snapshot in snapshots {
            let id = format!("<Snapshot>{}</Snapshot>", snapshot.id);
            let row = Row {
                name: &blob.name,
                snapshot: &id,
                etag: snapshot.etag,
                created: state.created,
                content: &snapshot.content,
                len: snapshot.len,
                metadata: &snapshot.metadata,
                lease: String::new(),
            };
            self.row(out, &row);
        }
        let row = Row {
            name: &blob.name,
            snapshot: "",
            etag: state.etag,
            created: state.created,
            content: &state.content,
            len: state.len,
            metadata: &state.metadata,
            lease: self.lease(&state),
        };
        self.row(out, &row);
        snapshots.len() + 1
    }

    fn lease(&self, state: &State) -> String {
        let lease = state.lease.state(self.now);
        let status = if lease.locked() { "locked" } else { "unlocked" };
        format!("<LeaseStatus>{status}</LeaseStatus><LeaseState>{}</LeaseState>", lease.text())
    }

    fn row(&self, out: &mut String, row: &Row<'_>) {
        let kind = match row.content {
            Content::Block { .. } => "BlockBlob",
            Content::Page { .. } => "PageBlob",
        };
        let _ = write!(
            out,
            "<Blob><Name>{}</Name>{}<Properties><Creation-Time>{}</Creation-Time><Last-Modified>{}</Last-Modified>\
             <Etag>0x{:X}</Etag><Content-Length>{}</Content-Length><Content-Type>application/octet-stream</Content-Type>\
             <BlobType>{kind}</BlobType>{}<ServerEncrypted>true</ServerEncrypted></Properties>",
            escape(row.name),
            row.snapshot,
            http_date(time_of(row.created)),
            http_date(time_of(row.etag)),
            row.etag,
            row.len,
            row.lease,
        );
        if self.metadata {
            out.push_str("<Metadata>");
            for (name, value) in row.metadata {
                let _ = write!(out, "<{name}>{}</{name}>", escape(value));
            }
            out.push_str("</Metadata>");
        }
        out.push_str("</Blob>");
    }
}

struct Row<'a> {
    name: &'a str,
    snapshot: &'a str,
    etag: u64,
    created: u64,
    content: &'a Content,
    len: u64,
    metadata: &'a Metadata,
    lease: String,
}
