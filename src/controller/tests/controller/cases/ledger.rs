//! The ledger's compare-and-swap and the look at a VM's containers, against the blob double with faults on demand.

use std::time::Duration;

use farshore_azure::{BlobService, Credential, Endpoint, HttpOptions, SharedKey};
use farshore_controller::storage::ledger::{self, LedgerError, Writer};
use farshore_controller::storage::{Known, metadata_of, observe};
use farshore_core::fault::Code;
use farshore_core::format::ledger::{
    DeletionPolicy, HISTORY_CAP, HistoryEntry, Ledger, LedgerState, PolicySettings,
};
use farshore_core::format::side::{Side, SideRecord};
use farshore_core::format::{Extra, Record as _};
use farshore_core::ids::{Epoch, Stream, Term, VmId};
use farshore_core::names;
use farshore_core::vm::ledger_edit::{LedgerEdit, NewStream};
use farshore_core::vm::observed::{Account, Owner, Record, Storage};
use farshore_lab::blob::{Action, Args, Double, Fault, Match};
use jiff::Timestamp;
use uuid::Uuid;

struct Lab {
    double: Double,
    service: BlobService,
    vm: VmId,
    _folder: tempfile::TempDir,
}

fn writer() -> Writer<'static> {
    Writer { actor: "test", now: Timestamp::now() }
}

fn first(vm: VmId) -> Ledger {
    let at = Timestamp::now();
    Ledger {
        format_version: 1,
        min_reader: 1,
        seq: 0,
        nonce: String::new(),
        vm_id: vm,
        state: LedgerState::Enabling,
        epoch: Epoch(1),
        intents: [].into(),
        term: Term(1),
        stream: Stream(1),
        attempt: 0,
        cut: None,
        owner: Side::OnPremises,
        claim: "host/h1".into(),
        cluster_id: "c1".into(),
        configuration: None,
        policy: PolicySettings {
            name: "gold".into(),
            replication_interval_seconds: 300,
            recovery_point_spacing_seconds: 900,
            recovery_point_retention_seconds: 86_400,
        },
        deletion_policy: DeletionPolicy::Retain,
        disks: vec![],
        storage_account: "acct".into(),
        last_contact: None,
        last_move_at: None,
        handled_tokens: [].into(),
        actor: String::new(),
        created_at: at,
        written_at: at,
        history: vec![],
        extra: Extra::new(),
    }
}

impl Lab {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let double = Double::start(Args::in_folder(folder.path())).await.unwrap();
        let endpoint = Endpoint::parse(double.endpoint()).unwrap();
        let options = HttpOptions { stall_timeout: Duration::from_millis(500), ..HttpOptions::default() };
        let service =
            BlobService::new(endpoint, Credential::SharedKey(SharedKey::emulator()), &options).unwrap();
        let mut lab = Self { double, service, vm: VmId(Uuid::nil()), _folder: folder };
        lab.new_vm().await;
        lab
    }

    /// Containers of a VM that has no ledger yet.
    async fn new_vm(&mut self) {
        self.vm = VmId(Uuid::new_v4());
        let owner = Owner { namespace: "shop".into(), name: "sql01".into(), ..Owner::default() };
        for name in [names::replica_container(self.vm), names::down_container(self.vm)] {
            self.service.container(&name).create(&metadata_of(&owner)).await.unwrap();
        }
    }

    fn arm(&self, name: &str, operation: &str, action: Action) {
        let matches =
            Match { operation: Some(operation.into()), suffix: Some(name.into()), ..Match::default() };
        self.double.fault(Fault { matches, skip: 0, count: Some(1), action });
    }

    async fn there(&self) -> Ledger {
        let container = self.service.container(&names::replica_container(self.vm));
        Ledger::decode(&container.get(names::LEDGER, 1 << 22).await.unwrap().unwrap().bytes).unwrap()
    }

    async fn look(&self, known: &mut Known) -> Storage {
        let account = Account { name: "acct".into(), endpoint: self.double.endpoint().to_owned() };
        observe(&[(account, self.service.clone())], self.vm, Duration::ZERO, known).await
    }
}

fn raise() -> LedgerEdit {
    let mut edit = LedgerEdit { stream: Some(NewStream::Continue), ..LedgerEdit::default() };
    edit.note("new stream");
    edit
}

// DESIGN 5: after a lost answer it is re-read; own nonce = done.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_told_from_a_lost_write_by_the_nonce() {
    let mut lab = Lab::start().await;
    for action in [Action::DropAfter, Action::StallAnswer] {
        lab.new_vm().await;
        lab.arm(names::LEDGER, "PutBlob", action.clone());
        let created = ledger::create(&lab.service, &first(lab.vm), writer()).await.unwrap();
        assert_eq!(lab.there().await, created, "{action:?}");
        let mut known = Known::default();
        lab.look(&mut known).await;
        let etag = known.ledger_etag().unwrap();
        lab.arm(names::LEDGER, "PutBlob", action.clone());
        let next = ledger::write(&lab.service, &created, &etag, &raise(), writer()).await.unwrap();
        assert_eq!((lab.there().await, next.seq, next.stream), (next.clone(), 2, Stream(2)), "{action:?}");
    }
    // Nothing landed: that is an error, and nothing is pretended.
    lab.new_vm().await;
    lab.arm(names::LEDGER, "PutBlob", Action::DropBefore);
    let lost = ledger::create(&lab.service, &first(lab.vm), writer()).await.unwrap_err();
    assert!(matches!(lost, LedgerError::Blob(_)), "{lost:?}");
    ledger::create(&lab.service, &first(lab.vm), writer()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_one_is_overtaken_and_nothing_is_lost() {
    let lab = Lab::start().await;
    let created = ledger::create(&lab.service, &first(lab.vm), writer()).await.unwrap();
    let again = ledger::create(&lab.service, &first(lab.vm), writer()).await.unwrap_err();
    assert!(matches!(again, LedgerError::Overtaken(_)), "{again:?}");
    let mut known = Known::default();
    lab.look(&mut known).await;
    let etag = known.ledger_etag().unwrap();
    let edit = raise();
    let write = || ledger::write(&lab.service, &created, &etag, &edit, writer());
    let (a, b) = tokio::join!(write(), write());
    let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
    assert!(matches!(lost.unwrap_err(), LedgerError::Overtaken(_)));
    assert_eq!(lab.there().await, won.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_no_longer_fits_is_kept_beside_the_ledger() {
    let lab = Lab::start().await;
    let mut current = ledger::create(&lab.service, &first(lab.vm), writer()).await.unwrap();
    let container = lab.service.container(&names::replica_container(lab.vm));
    for _ in 0..HISTORY_CAP + 1 {
        let mut known = Known::default();
        lab.look(&mut known).await;
        let etag = known.ledger_etag().unwrap();
        current = ledger::write(&lab.service, &current, &etag, &raise(), writer()).await.unwrap();
    }
    assert_eq!((current.history.len(), current.history[0].seq), (HISTORY_CAP, 3));
    for seq in [1_u64, 2] {
        let kept = container.get(&format!("ledger-history/{seq}.json"), 1 << 16).await.unwrap().unwrap();
        let entry: HistoryEntry = serde_json::from_slice(&kept.bytes).unwrap();
        assert_eq!(entry.seq, seq);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn side_is_written_over_a_lower_seq_only() {
    let lab = Lab::start().await;
    let created = ledger::create(&lab.service, &first(lab.vm), writer()).await.unwrap();
    let newer = created.advance(
        farshore_core::format::ledger::Change {
            nonce: "n".into(),
            actor: "t",
            note: "x",
            now: Timestamp::now(),
        },
        |l| l.stream = Stream(2),
    );
    ledger::copy_side(&lab.service, &newer.0).await.unwrap();
    ledger::copy_side(&lab.service, &created).await.unwrap();
    let down = lab.service.container(&names::down_container(lab.vm));
    let side = SideRecord::decode(&down.get(names::SIDE, 1 << 16).await.unwrap().unwrap().bytes).unwrap();
    assert_eq!((side.seq, side.stream), (2, Stream(2)), "a delayed copy takes nothing back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_tells_apart_what_is_not_there_what_is_damaged_and_what_does_not_answer() {
    let lab = Lab::start().await;
    let mut known = Known::default();
    let Storage::Seen(seen) = lab.look(&mut known).await else { panic!("it answers") };
    assert_eq!((&seen.ledger, seen.replica.map(|o| o.name)), (&Record::Absent, Some("sql01".into())));
    ledger::create(&lab.service, &first(lab.vm), writer()).await.unwrap();
    for _ in 0..3 {
        let Storage::Seen(seen) = lab.look(&mut known).await else { panic!("it answers") };
        assert!(seen.ledger.read().is_some());
    }
    lab.arm(
        names::LEDGER,
        "GetBlob",
        Action::Status { status: 503, code: "ServerBusy".into(), retry_after: Some(7) },
    );
    let Storage::Failed(fault) = lab.look(&mut known).await else { panic!("it refuses") };
    assert_eq!((fault.code, fault.retry_after_seconds), (Code::Throttled, Some(7)));
    lab.arm(
        names::LEDGER,
        "GetBlob",
        Action::Status { status: 403, code: "AuthorizationFailure".into(), retry_after: None },
    );
    let Storage::Failed(fault) = lab.look(&mut known).await else { panic!("it refuses") };
    assert_eq!(fault.code, Code::NotAuthorized);
    let replica = lab.service.container(&names::replica_container(lab.vm));
    replica.put_if(names::LEDGER, "{}".into(), &farshore_azure::Condition::None).await.unwrap();
    let Storage::Seen(seen) = lab.look(&mut known).await else { panic!("it answers") };
    assert!(matches!(seen.ledger, Record::Unreadable(_)), "{:?}", seen.ledger);
    replica.delete_container().await.unwrap();
    let Storage::Seen(seen) = lab.look(&mut known).await else { panic!("it answers") };
    assert_eq!((seen.ledger, seen.replica), (Record::Absent, None));
}
