//! Random walks: whatever happens in whatever order, the plan stays inside its rules and finds its way back.

use proptest::prelude::*;

use super::*;
use crate::fault::Fault;
use crate::vm::status::Kind;

/// Something that happens in the world, or a crash of the controller between two actions.
#[derive(Clone, Copy, Debug)]
enum Step {
    Reconcile,
    CrashAfter(usize),
    TakeUp,
    Verify,
    Point,
    LoseJournal,
    LoseTracking,
    Refuse,
    StorageAway,
    StorageBack,
    HostAway,
    HostBack,
    Pause,
    RaiseEpoch,
    ForgetStatus,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Reconcile),
        2 => (0_usize..4).prop_map(Step::CrashAfter),
        2 => Just(Step::TakeUp),
        2 => Just(Step::Verify),
        2 => Just(Step::Point),
        1 => Just(Step::LoseJournal),
        1 => Just(Step::LoseTracking),
        1 => Just(Step::Refuse),
        1 => Just(Step::StorageAway),
        2 => Just(Step::StorageBack),
        1 => Just(Step::HostAway),
        2 => Just(Step::HostBack),
        1 => Just(Step::Pause),
        1 => Just(Step::RaiseEpoch),
        1 => Just(Step::ForgetStatus),
    ];
    prop::collection::vec(step, 1..60)
}

struct World {
    o: Observed,
    parked: Option<Storage>,
    second: i64,
    cycles: u64,
    epoch: u64,
}

impl World {
    fn current(&mut self) -> Option<Stream> {
        self.parked.is_none().then(|| stored(&mut self.o).ledger.read().map(|l| l.stream)).flatten()
    }

    fn happen(&mut self, what: Step) {
        self.second += 7;
        let now = at(self.second);
        let stream = self.current();
        match what {
            Step::Reconcile => {
                let plan = decide(&self.o, now);
                carry_out(&mut self.o, &plan, now);
            }
            Step::CrashAfter(n) => {
                let plan = decide(&self.o, now);
                plan.actions.iter().take(n).for_each(|a| step(&mut self.o, a, now));
            }
            Step::TakeUp => taken_up(&mut self.o),
            Step::Verify | Step::Point => {
                let Some(stream) = stream else { return };
                self.cycles += 1;
                let id = cycle(stream.0, self.cycles);
                if matches!(what, Step::Point) {
                    point(&mut self.o, id, now)
                } else {
                    verified(&mut self.o, id, now)
                }
            }
            Step::LoseJournal => self.o.relationships.iter_mut().for_each(|r| r.report.journal_lost = true),
            Step::LoseTracking => self.o.relationships.iter_mut().for_each(|r| {
                let code = Code::ChangeTrackingLost;
                r.report.error = Some(AgentError { code, message: "x".into(), since: now, attempts: 1 });
            }),
            Step::Refuse => {
                if let Some(stream) = stream {
                    refuse(&mut self.o, cycle(stream.0, self.cycles + 1), Code::ForkedChain);
                }
            }
            Step::StorageAway => {
                if self.parked.is_none() {
                    let away = Storage::Failed(Fault::new(Code::NetworkError, "x"));
                    self.parked = Some(std::mem::replace(&mut self.o.storage, away));
                }
            }
            Step::StorageBack => {
                if let Some(storage) = self.parked.take() {
                    self.o.storage = storage;
                }
            }
            Step::HostAway => self.o.reports.clear(),
            Step::HostBack => self.o.reports = vec![report()],
            Step::Pause => self.o.me.paused = !self.o.me.paused,
            Step::RaiseEpoch => {
                self.epoch += 1;
                self.o.me.intent = intent(self.epoch, Place::Protected);
            }
            // Etcd was restored, or somebody cleared the status: nothing may rest on it while all else is there.
            Step::ForgetStatus => self.o.me.written = Status::default(),
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_vm_ends_protected_when_the_world_is_well_again(walk in steps()) {
        let mut w = World { o: fresh(), parked: None, second: 0, cycles: 0, epoch: 1 };
        let mut before: Option<(u64, Stream, LedgerState)> = None;
        for what in walk {
            w.happen(what);
            // The ledger only goes forward, and from Protected never back to Enabling.
            let now = w.parked.is_none().then(|| stored(&mut w.o).ledger.read()
                .map(|l| (l.seq, l.stream, l.state))).flatten();
            if let (Some(b), Some(n)) = (before, now) {
                prop_assert!(n.0 >= b.0 && n.1 >= b.1);
                prop_assert!(b.2 != LedgerState::Protected || n.2 == LedgerState::Protected);
            }
            before = now.or(before);
            let wish = w.o.relationships.iter().map(|r| r.wish.stream).max();
            let ledger = w.current();
            prop_assert!(ledger.is_none() || wish <= ledger, "no host is given what the ledger does not say");
        }
        for what in [Step::StorageBack, Step::HostBack] {
            w.happen(what);
        }
        for r in &mut w.o.relationships {
            r.report = AgentReport::default();
        }
        // Far enough for every ladder.
        w.second += 3600;
        for _ in 0..4 {
            let now = at(w.second);
            settle(&mut w.o, now);
            for r in &mut w.o.relationships {
                r.report = AgentReport::default();
            }
            taken_up(&mut w.o);
            w.happen(Step::Point);
        }
        w.second += 1;
        settle(&mut w.o, at(w.second));
        let status = decide(&w.o, at(w.second)).status;
        prop_assert_eq!(status.state, Some(LedgerState::Protected), "{:?}", status.conditions);
        prop_assert!(status.is(Kind::Ready), "{:?}", status.conditions);
    }
}
