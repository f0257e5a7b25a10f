//! Builders with valid defaults; each test changes one thing.

mod deleting;
mod protecting;
mod standing;
mod walk;

use jiff::Timestamp;

use super::observed::*;
use super::plan::{Action, Plan, plan};
use super::status::Status;
use super::transition::Place;
use crate::fault::Code;
use crate::format::Extra;
use crate::format::commit::{CommitRef, Consistency};
use crate::format::cursor::{Cursor, NewestPoint, Refused, Verified};
use crate::format::ledger::{Change, DeletionPolicy, Ledger, LedgerState};
use crate::ids::{Cycle, CycleId, DiskId, Epoch, Hash, Stream, Term, VmId};
use crate::intent::Intent;
use crate::names;
use crate::timing::Timing;

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub(super) fn vm() -> VmId {
    "7b0e4c1e-0000-4000-8000-000000000001".parse().unwrap()
}

pub(super) fn disk(n: u8) -> DiskId {
    format!("7b0e4c1e-0000-4000-8000-0000000000d{n}").parse().unwrap()
}

pub(super) fn host(name: &str) -> Host {
    Host {
        name: name.into(),
        namespace: crate::host::namespace(name),
        failover_cluster: None,
        connected: true,
    }
}

pub(super) fn report() -> Report {
    let one = |n: u8| ReportedDisk {
        id: Some(disk(n)),
        path: format!("D:\\vms\\disk{n}.vhdx"),
        virtual_size: 8 << 20,
        shared: false,
        pass_through: false,
    };
    Report {
        host: host("h1"),
        vm_id: vm(),
        vm_name: "sql01".into(),
        disks: vec![one(1), one(2)],
        unmet: vec![],
    }
}

fn intent(epoch: u64, desired: Place) -> Intent {
    let content = match desired {
        Place::Protected => serde_json::json!({}),
        other => serde_json::json!({"desiredState": other.as_str()}),
    };
    Intent { source: "ProtectedVM/shop/sql01".into(), epoch: Epoch(epoch), content }
}

fn account() -> Account {
    Account { name: "acct".into(), endpoint: "https://acct.blob.core.windows.net".into() }
}

/// A ProtectedVM that was just created; everything that it names is there.
pub(super) fn fresh() -> Observed {
    Observed {
        me: Me {
            namespace: "shop".into(),
            name: "sql01".into(),
            uid: "u1".into(),
            generation: 1,
            created_at: at(0),
            deleting_since: None,
            finalizer: true,
            abandon: false,
            confirm_purge: None,
            owner_host: None,
            site: "ams".into(),
            vm_name: Some("sql01".into()),
            vm_id: None,
            policy: "gold".into(),
            vault: "we".into(),
            exclude: vec![],
            desired: Place::Protected,
            intent: intent(1, Place::Protected),
            paused: false,
            deletion_policy: DeletionPolicy::Retain,
            written: Status::default(),
        },
        cluster_id: "c1".into(),
        site: Some(Site { allowed: true, upload_parallelism: 4, reserve_bytes: 1 << 30 }),
        policy: Some(Policy {
            allowed: true,
            interval_seconds: 300,
            spacing_seconds: 900,
            retention_seconds: 86_400,
            compress: true,
        }),
        vault: Some(Vault {
            allowed: true,
            accounts: vec![account()],
            unusable: None,
            ca_bundle: None,
            signer: "key1".into(),
        }),
        reports: vec![report()],
        rivals: vec![],
        relationships: vec![],
        leftovers: vec![],
        storage: Storage::Seen(Box::new(Stored {
            account: account(),
            replica: None,
            ledger: Record::Absent,
            side: Record::Absent,
            cursor: Record::Absent,
            points: vec![],
        })),
        failures: None,
    }
}

pub(super) fn stored(o: &mut Observed) -> &mut Stored {
    match &mut o.storage {
        Storage::Seen(stored) => stored,
        other => panic!("{other:?}"),
    }
}

pub(super) fn ledger(o: &mut Observed) -> &mut Ledger {
    match &mut stored(o).ledger {
        Record::Read(ledger) => ledger,
        other => panic!("{other:?}"),
    }
}

pub(super) fn decide(o: &Observed, now: Timestamp) -> Plan {
    let plan = plan(o, &Timing::default(), now);
    let irreversible: Vec<usize> =
        plan.actions.iter().enumerate().filter(|(_, a)| a.is_irreversible()).map(|(i, _)| i).collect();
    assert!(irreversible.len() <= 1, "{:?}", plan.actions);
    assert!(irreversible.iter().all(|i| i + 1 == plan.actions.len()), "not last: {:?}", plan.actions);
    assert!(plan.next_check > now, "{:?}", plan.next_check);
    plan
}

/// Carries out a plan on the facts as the executor does on the world; true if anything was done.
pub(super) fn carry_out(o: &mut Observed, plan: &Plan, now: Timestamp) -> bool {
    for action in &plan.actions {
        step(o, action, now);
    }
    o.me.written = plan.status.clone();
    !plan.actions.is_empty()
}

fn step(o: &mut Observed, action: &Action, now: Timestamp) {
    let change = || Change { nonce: "n".into(), actor: "test", note: "test", now };
    match action {
        Action::AddFinalizer => o.me.finalizer = true,
        Action::CreateContainer(_, _, owner) => {
            stored(o).replica.get_or_insert_with(|| owner.clone());
        }
        Action::CreateLedger(first) => {
            assert_eq!(stored(o).ledger, Record::Absent);
            let (ledger, _) = first.advance(change(), |_| ());
            stored(o).side = Record::Read(Box::new(ledger.side()));
            stored(o).ledger = Record::Read(Box::new(ledger));
        }
        Action::WriteLedger(edit) => {
            let (next, _) = ledger(o).advance(change(), |l| edit.apply(l));
            stored(o).side = Record::Read(Box::new(next.side()));
            *ledger(o) = next;
        }
        Action::CopySide => {
            let side = ledger(o).side();
            stored(o).side = Record::Read(Box::new(side));
        }
        Action::ApplyRelationship(host, wish) => {
            let old = o.relationships.iter().position(|r| r.host == host.name);
            let mut r = match old {
                Some(i) => o.relationships.remove(i),
                None => Relationship {
                    host: host.name.clone(),
                    namespace: host.namespace.clone(),
                    uid: "r".into(),
                    wish: (**wish).clone(),
                    report: AgentReport::default(),
                    sas: None,
                },
            };
            assert!((wish.term, wish.stream) >= (r.wish.term, r.wish.stream), "the API refuses it");
            assert_eq!(wish.protected_vm, r.wish.protected_vm, "the API refuses it");
            r.wish = (**wish).clone();
            o.relationships.push(r);
        }
        Action::IssueSas(host, _) => {
            let signer = o.vault.as_ref().unwrap().signer.clone();
            let r = o.relationships.iter_mut().find(|r| r.host == host.name).unwrap();
            r.sas = Some(Sas { issued_at: now, signer });
        }
        Action::RevokeSas(host, _) => {
            o.relationships.iter_mut().filter(|r| r.host == host.name).for_each(|r| r.sas = None);
        }
        Action::RemoveRelationship(host, _) => {
            o.relationships.retain(|r| r.host != host.name);
            o.leftovers.retain(|r| r.host != host.name);
        }
        Action::RemoveContainers(_) => {
            let s = stored(o);
            (s.replica, s.ledger, s.side, s.cursor) = (None, Record::Absent, Record::Absent, Record::Absent);
            s.points.clear();
        }
        Action::ReleaseFinalizer => o.me.finalizer = false,
    }
}

/// Reconciles until nothing is left to do; gives the last plan.
pub(super) fn settle(o: &mut Observed, now: Timestamp) -> Plan {
    for _ in 0..20 {
        let plan = decide(o, now);
        if !carry_out(o, &plan, now) || !o.me.finalizer {
            return plan;
        }
    }
    panic!("it never settles: {:?}", decide(o, now).actions)
}

/// The agent has taken up what it was given.
pub(super) fn taken_up(o: &mut Observed) {
    for r in &mut o.relationships {
        r.report.observed = Some((r.wish.term, r.wish.stream));
        r.report.goal_observed = true;
        r.report.state = Some(ReplicationState::WaitingToCompleteInitialReplication);
    }
}

pub(super) fn cycle(stream: u32, cycle: u64) -> CycleId {
    CycleId { term: Term(1), stream: Stream(stream), cycle: Cycle(cycle) }
}

/// The replica server has verified that cycle.
pub(super) fn verified(o: &mut Observed, id: CycleId, now: Timestamp) {
    let commit = CommitRef { id, hash: Hash([7; 32]) };
    let cursor = Cursor {
        format_version: 1,
        min_reader: 1,
        vm_id: vm(),
        term: id.term,
        stream: id.stream,
        verified: Some(Verified {
            commit,
            reference_point_id: format!("rp-{}", id.cycle),
            rct_ids: [(disk(1), "rct1".into()), (disk(2), "rct2".into())].into(),
            copied_up_to: [].into(),
            own_point_ids: vec![format!("rp-{}", id.cycle)],
            next_cycle_at: now,
        }),
        applied: Some(commit),
        newest_point: None,
        refused: None,
        received: None,
        worker: "w".into(),
        written_at: now,
        extra: Extra::new(),
    };
    stored(o).cursor = Record::Read(Box::new(cursor));
}

/// The replica server has made a recovery point of that cycle.
pub(super) fn point(o: &mut Observed, id: CycleId, now: Timestamp) {
    verified(o, id, now);
    let name = names::point(now, id);
    if let Record::Read(cursor) = &mut stored(o).cursor {
        cursor.newest_point = Some(NewestPoint { name: name.clone(), time: now });
    }
    stored(o).points.insert(0, PointSeen { name, time: now, cycle: id, consistency: Consistency::Crash });
}

/// The replica server refused a cycle of the current stream.
pub(super) fn refuse(o: &mut Observed, id: CycleId, code: Code) {
    if let Record::Read(cursor) = &mut stored(o).cursor {
        cursor.refused = Some(Refused { id, code: code.to_string(), message: "hash differs".into() });
    }
}

/// A VM at Protected with its relationship taken up, at second 100.
pub(super) fn protected() -> Observed {
    let mut o = fresh();
    settle(&mut o, at(10));
    taken_up(&mut o);
    point(&mut o, cycle(1, 3), at(90));
    o.relationships[0].report.state = Some(ReplicationState::Replicating);
    settle(&mut o, at(100));
    assert_eq!(ledger(&mut o).state, LedgerState::Protected);
    o
}

pub(super) fn deleting(mut o: Observed, policy: DeletionPolicy) -> Observed {
    o.me.deleting_since = Some(at(200));
    o.me.deletion_policy = policy;
    o
}

/// The same manifest, created again after the object was deleted: another uid, no status.
pub(super) fn created_again(mut o: Observed) -> Observed {
    let f = fresh().me;
    o.me = Me { uid: "u2".into(), created_at: at(1000), ..f };
    o
}

pub(super) fn names_of(actions: &[Action]) -> Vec<String> {
    let name = |a: &Action| {
        let text = format!("{a:?}");
        text.split(['(', ' ']).next().unwrap_or_default().to_owned()
    };
    actions.iter().map(name).collect()
}
