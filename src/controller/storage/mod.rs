//! A VM's containers as the controller sees them: read with ETags, so that a VM at rest costs three requests
//! that transfer nothing.

pub mod fault;
pub mod ledger;

use std::collections::BTreeMap;
use std::sync::Arc;

use farshore_azure::{BlobError, BlobService, ETag, GetIfChanged, Include, Metadata};
use farshore_core::fault::Fault;
use farshore_core::format::cursor::Cursor;
use farshore_core::format::ledger::Ledger;
use farshore_core::format::point::Point;
use farshore_core::format::side::SideRecord;
use farshore_core::format::{FormatError, Record as _};
use farshore_core::ids::VmId;
use farshore_core::names;
use farshore_core::vm::observed::{Account, Owner, PointSeen, Record, Storage, Stored};
use farshore_core::vm::status::POINTS_CAP;

/// A record as it was last read, with the ETag to ask again or to write over it.
#[derive(Clone, Debug)]
struct Kept<T> {
    etag: ETag,
    record: Record<T>,
}

/// What is known of one VM's containers since the last look. Dropped whenever it might be wrong.
#[derive(Clone, Debug, Default)]
pub struct Known {
    account: Option<Account>,
    owner: Option<Owner>,
    ledger: Option<Kept<Ledger>>,
    side: Option<Kept<SideRecord>>,
    cursor: Option<Kept<Cursor>>,
    /// Every recovery point that was listed, by name; and for which newest point the list was made.
    points: BTreeMap<String, PointSeen>,
    listed_for: Option<String>,
}

impl Known {
    /// ETag of the ledger that was observed.
    pub fn ledger_etag(&self) -> Option<ETag> {
        self.ledger.as_ref().map(|k| k.etag.clone())
    }

    /// The ledger that was observed.
    pub fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref().and_then(|k| k.record.read())
    }
}

/// Looks at the VM's containers in the first of `accounts` that has them; in the first of all if none has.
pub async fn observe(
    accounts: &[(Account, BlobService)],
    vm: VmId,
    list_points_after: std::time::Duration,
    known: &mut Known,
) -> Storage {
    match look(accounts, vm, list_points_after, known).await {
        Ok(Some(stored)) => Storage::Seen(Box::new(stored)),
        Ok(None) => Storage::NotLookedAt,
        Err(error) => Storage::Failed(fault::of_blob(&error)),
    }
}

async fn look(
    accounts: &[(Account, BlobService)],
    vm: VmId,
    list_points_after: std::time::Duration,
    known: &mut Known,
) -> Result<Option<Stored>, BlobError> {
    let Some((first, _)) = accounts.first() else { return Ok(None) };
    let mut found = None;
    for (account, service) in accounts {
        if known.account.as_ref().is_some_and(|a| a != account) {
            continue;
        }
        // The owner cannot change while the ledger is there: containers are not renamed.
        if known.owner.is_none() || known.ledger.is_none() {
            let metadata = service.container(&names::replica_container(vm)).metadata().await?;
            known.owner = metadata.map(|(metadata, _)| owner_of(&metadata));
        }
        if known.owner.is_some() {
            known.account = Some(account.clone());
            found = Some((account, service));
            break;
        }
    }
    let Some((account, service)) = found else {
        *known = Known::default();
        return Ok(Some(Stored {
            account: first.clone(),
            replica: None,
            ledger: Record::Absent,
            side: Record::Absent,
            cursor: Record::Absent,
            points: vec![],
        }));
    };
    let replica = service.container(&names::replica_container(vm));
    let down = service.container(&names::down_container(vm));
    let ledger = read(&replica, names::LEDGER, &mut known.ledger).await?;
    if matches!(ledger, Record::Absent) {
        // The container may be gone with it.
        known.owner = replica.metadata().await?.map(|(metadata, _)| owner_of(&metadata));
        if known.owner.is_none() {
            *known = Known::default();
        }
    }
    let side = read(&down, names::SIDE, &mut known.side).await?;
    let cursor = read(&down, names::CURSOR, &mut known.cursor).await?;
    list_points(&replica, &ledger, &cursor, list_points_after, known).await?;
    let mut points: Vec<PointSeen> = known.points.values().cloned().collect();
    points.reverse();
    points.truncate(POINTS_CAP);
    Ok(Some(Stored { account: account.clone(), replica: known.owner.clone(), ledger, side, cursor, points }))
}

/// Reads a record, or nothing if it has not changed since.
async fn read<T: farshore_core::format::Record + Clone>(
    container: &farshore_azure::Container,
    name: &str,
    kept: &mut Option<Kept<T>>,
) -> Result<Record<T>, BlobError> {
    let max = u64::try_from(T::MAX).unwrap_or(u64::MAX);
    let fetched = match kept.as_ref() {
        Some(k) => match container.get_if_changed(name, &k.etag, max).await {
            Ok(GetIfChanged::Unchanged) => return Ok(k.record.clone()),
            Ok(GetIfChanged::Changed(fetched)) => Ok(Some(fetched)),
            Ok(GetIfChanged::Missing) => Ok(None),
            Err(error) => Err(error),
        },
        None => container.get(name, max).await,
    };
    let fetched = match fetched {
        Ok(fetched) => fetched,
        Err(error) if error.kind == farshore_azure::BlobErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let Some(fetched) = fetched else {
        *kept = None;
        return Ok(Record::Absent);
    };
    let record = decode(&fetched.bytes);
    *kept = Some(Kept { etag: fetched.etag, record: record.clone() });
    Ok(record)
}

fn decode<T: farshore_core::format::Record>(bytes: &[u8]) -> Record<T> {
    match T::decode(bytes) {
        Ok(record) => Record::Read(Box::new(record)),
        Err(error @ FormatError::TooNew { .. }) => Record::Unreadable(error.to_string()),
        Err(error) => Record::Unreadable(error.to_string()),
    }
}

/// Lists recovery points when a new one is likely: the first of a stream, or when the spacing of snapshot sets has
/// passed since the newest that is known. Names sort by time.
async fn list_points(
    replica: &farshore_azure::Container,
    ledger: &Record<Ledger>,
    cursor: &Record<Cursor>,
    spacing: std::time::Duration,
    known: &mut Known,
) -> Result<(), BlobError> {
    let (Some(ledger), Some(newest)) = (ledger.read(), cursor.read().and_then(|c| c.newest_point.as_ref()))
    else {
        return Ok(());
    };
    if known.listed_for.as_deref() == Some(newest.name.as_str()) {
        return Ok(());
    }
    let last = known.points.values().next_back();
    let fresh = last.is_some_and(|p| {
        let passed = newest.time.duration_since(p.time);
        p.cycle.is_of(ledger.term, ledger.stream)
            && passed < jiff::SignedDuration::try_from(spacing).unwrap_or_default()
    });
    if fresh {
        return Ok(());
    }
    let listed = replica.list(names::POINTS, Include::default()).await?;
    let names: Vec<String> = listed
        .iter()
        .filter_map(|b| b.name.strip_prefix(names::POINTS)?.strip_suffix(".json").map(str::to_owned))
        .collect();
    known.points.retain(|name, _| names.contains(name));
    for name in names.iter().rev().take(POINTS_CAP) {
        if known.points.contains_key(name) {
            continue;
        }
        let max = u64::try_from(Point::MAX).unwrap_or(u64::MAX);
        let Some(fetched) = replica.get(&names::point_blob(name), max).await? else { continue };
        // A damaged record is no point; the replica server makes the next one.
        if let Ok(point) = Point::decode(&fetched.bytes) {
            let seen = PointSeen {
                name: point.name.clone(),
                time: point.time,
                cycle: point.id(),
                consistency: point.consistency,
            };
            known.points.insert(name.clone(), seen);
        }
    }
    known.listed_for = Some(newest.name.clone());
    Ok(())
}

/// Keys of a container's metadata. The service gives them back in lower case, so they are written so.
const KEYS: [&str; 6] = ["namespace", "name", "site", "vmname", "vmid", "clusterid"];

/// The metadata of a VM's containers. Values are ASCII, so a VM's name is percent-encoded.
pub fn metadata_of(owner: &Owner) -> Metadata {
    let Owner { namespace, name, site, vm_name, vm_id, cluster_id } = owner;
    let values = [namespace, name, site, vm_name, vm_id, cluster_id];
    KEYS.iter().zip(values).map(|(key, value)| ((*key).to_owned(), escape(value))).collect()
}

/// For whom a container was made, as its metadata says; empty where it does not say.
pub fn owner_of(metadata: &Metadata) -> Owner {
    let get = |wanted: &str| {
        let found = metadata.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| unescape(value)).unwrap_or_default()
    };
    let [namespace, name, site, vm_name, vm_id, cluster_id] = KEYS.map(get);
    Owner { namespace, name, site, vm_name, vm_id, cluster_id }
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f..=0xff => out.push_str(&format!("%{byte:02X}")),
            // Leading and trailing blanks of a header's value are lost.
            b' ' => out.push_str("%20"),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

fn unescape(value: &str) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = (byte == b'%').then(|| after.get(..2)).flatten();
        let decoded = hex.and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        out.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A fault that is shared by all VMs of a vault.
pub fn failed(fault: &Arc<Fault>) -> Storage {
    Storage::Failed((**fault).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_says_for_whom_also_with_names_that_are_not_ascii() {
        let owner = Owner {
            namespace: "shop".into(),
            name: "sql01".into(),
            site: "ams".into(),
            vm_name: " Büro 100% %41 ".into(),
            vm_id: "id".into(),
            cluster_id: "c1".into(),
        };
        let metadata = metadata_of(&owner);
        assert!(metadata.values().all(|v| v.is_ascii() && v.trim() == v));
        assert_eq!(owner_of(&metadata), owner);
        let shouted: Metadata = metadata.into_iter().map(|(k, v)| (k.to_uppercase(), v)).collect();
        assert_eq!(owner_of(&shouted), owner);
        assert_eq!(owner_of(&Metadata::new()), Owner::default());
    }
}
