use super::*;
use crate::format::Extra;
use crate::format::cursor::{Refused, Verified};
use crate::ids::{Cycle, Hash};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn id(stream: u32, cycle: u64) -> CycleId {
    CycleId { term: Term(1), stream: Stream(stream), cycle: Cycle(cycle) }
}

fn commit(cycle: u64) -> CommitRef {
    CommitRef { id: id(1, cycle), hash: Hash([u8::try_from(cycle).unwrap(); 32]) }
}

const DISK: DiskId = DiskId(Uuid::from_u128(7));

fn anchor(cycle: u64) -> Anchor {
    Anchor {
        commit: commit(cycle),
        reference_point_id: format!("rp{cycle}"),
        rct_ids: BTreeMap::from([(DISK, format!("rct{cycle}"))]),
        copied_up_to: BTreeMap::new(),
    }
}

fn running(cycle: u64, kind: Kind, stage: Stage) -> Running {
    Running {
        id: id(1, cycle),
        kind,
        stage,
        tick: at(100),
        instant: (stage >= Stage::Frozen).then(|| Instant {
            checkpoint_id: "cp".into(),
            time: at(100),
            consistency: Consistency::Crash,
            disks: vec![FrozenDisk {
                disk_id: DISK,
                path: "a.vhdx".into(),
                virtual_size: 8 << 20,
                rct_id: format!("rct{cycle}"),
                log: None,
            }],
            configuration: Configuration::default(),
        }),
        copied_up_to: BTreeMap::new(),
        reference_point_id: (stage >= Stage::Converted).then(|| format!("rp{cycle}")),
        commit: (stage >= Stage::Committing).then(|| "{}".into()),
    }
}

/// Cycles 1 and 2 committed, 1 verified.
fn journal() -> Journal {
    Journal {
        since: Some(anchor(2)),
        previous: Some(commit(2)),
        verified: Some(anchor(1)),
        unverified: vec![anchor(2)],
        own_points: ["rp1".to_owned(), "rp2".to_owned()].into(),
        ..Journal::begin(VmId(Uuid::from_u128(1)), (Term(1), Stream(1)), None, None, None)
    }
}

#[test]
fn a_goal_is_taken_up_upwards_only_and_a_lost_journal_is_not_papered_over() {
    let at = |t, s| (Term(t), Stream(s));
    for (name, known, goal, observed, want) in [
        ("first", None, at(1, 1), None, TakeUp::Begin),
        ("adopted: first on this host", None, at(3, 2), None, TakeUp::Begin),
        ("known", Some(at(1, 1)), at(1, 1), Some(at(1, 1)), TakeUp::Continue),
        ("new stream", Some(at(1, 1)), at(1, 2), Some(at(1, 1)), TakeUp::Begin),
        ("new term", Some(at(1, 4)), at(2, 1), Some(at(1, 4)), TakeUp::Begin),
        ("lower stream", Some(at(1, 2)), at(1, 1), None, TakeUp::Stale),
        ("lower term", Some(at(2, 1)), at(1, 9), None, TakeUp::Stale),
        ("journal lost", None, at(1, 1), Some(at(1, 1)), TakeUp::JournalLost),
        ("journal lost, stream raised", None, at(1, 2), Some(at(1, 1)), TakeUp::Begin),
    ] {
        assert_eq!(take_up(known, goal, observed), want, "{name}");
    }
}

#[test]
fn a_stream_begins_from_its_base_or_from_nothing() {
    let fresh = Journal::begin(VmId(Uuid::nil()), (Term(1), Stream(1)), None, None, None);
    assert_eq!((fresh.next_cycle(), fresh.copied_up_to(DISK)), ((id(1, 1), Kind::Base), Some(0)));

    let base =
        Base { commit: commit(5), anchor: Some(anchor(5)), owned_points: vec!["rp4".into(), "rp5".into()] };
    let second = Journal::begin(VmId(Uuid::nil()), (Term(1), Stream(2)), Some(&base), None, Some(&journal()));
    assert_eq!((second.next_cycle(), second.copied_up_to(DISK)), ((id(2, 1), Kind::Delta), None));
    assert_eq!(second.previous, Some(commit(5)));
    assert_eq!(second.obsolete_points(), ["rp1", "rp2", "rp4"]);

    let whole = Base { anchor: None, ..base };
    let third = Journal::begin(VmId(Uuid::nil()), (Term(1), Stream(2)), Some(&whole), None, None);
    assert_eq!((third.next_cycle(), third.previous), ((id(2, 1), Kind::Base), Some(commit(5))));
    let chained = Journal::begin(VmId(Uuid::nil()), (Term(1), Stream(2)), None, Some(commit(4)), None);
    assert_eq!((chained.next_cycle().1, chained.previous), (Kind::Base, Some(commit(4))));
}

#[test]
fn a_half_copied_disk_makes_the_next_cycle_base() {
    let mut journal = journal();
    assert_eq!(journal.next_cycle(), (id(1, 3), Kind::Delta));
    journal.since.as_mut().unwrap().copied_up_to.insert(DISK, 4096);
    assert_eq!((journal.next_cycle(), journal.copied_up_to(DISK)), ((id(1, 3), Kind::Base), Some(4096)));
}

#[test]
fn a_commit_moves_the_point_that_changes_are_asked_from() {
    let mut before = journal();
    before.running = Some(running(3, Kind::Delta, Stage::Committing));
    before.fault = Some(Fault::new(Code::NetworkError, "x"));
    let after = before.committed(commit(3), Some(at(400)), at(200));
    assert_eq!(after.since, Some(anchor(3)));
    assert_eq!(after.unverified, [anchor(2), anchor(3)]);
    assert_eq!((after.running.as_ref(), after.next_tick, after.fault.as_ref()), (None, Some(at(400)), None));
    assert_eq!(after.next_cycle().0, id(1, 4));
    assert!(!cycle::may_begin(after.unverified.len()), "two wait to be verified");
}

fn cursor(verified: CommitRef) -> Cursor {
    Cursor {
        format_version: 1,
        min_reader: 1,
        vm_id: VmId(Uuid::from_u128(1)),
        term: Term(1),
        stream: Stream(1),
        verified: Some(Verified {
            commit: verified,
            reference_point_id: "rp".into(),
            rct_ids: BTreeMap::new(),
            copied_up_to: BTreeMap::new(),
            own_point_ids: vec![],
            next_cycle_at: at(0),
        }),
        applied: None,
        newest_point: None,
        refused: None,
        received: None,
        worker: "w".into(),
        written_at: at(0),
        extra: Extra::new(),
    }
}

// FORMATS: taken names.
#[test]
fn the_cursor_tells_our_commit_from_another_writers() {
    let journal = journal();
    let other = |n| CommitRef { hash: Hash([0xee; 32]), ..commit(n) };
    let news = |verified, putting| read_cursor(&journal, &cursor(verified), putting);
    let plain = CursorNews { verified: None, commit_is_ours: None, fault: None };
    assert_eq!(news(commit(1), Some(commit(3))), plain, "not there yet");
    assert_eq!(news(commit(2), None), CursorNews { verified: Some(0), ..plain.clone() });
    assert_eq!(news(commit(3), Some(commit(3))), CursorNews { commit_is_ours: Some(true), ..plain.clone() });
    let stranger = news(other(3), Some(commit(3)));
    assert_eq!(stranger.commit_is_ours, Some(false));
    assert_eq!(stranger.fault.map(|f| f.code), Some(Code::CommitNameTaken));
    assert_eq!(news(other(2), None).fault.map(|f| f.code), Some(Code::CommitNameTaken));
    assert_eq!(news(commit(9), None).fault.map(|f| f.code), Some(Code::CommitNameTaken), "past all we wrote");

    let mut refusing = cursor(commit(1));
    let refused =
        |stream| Refused { id: id(stream, 2), code: "MissingSegment".into(), message: "gone".into() };
    refusing.refused = Some(refused(1));
    assert_eq!(read_cursor(&journal, &refusing, None).fault.map(|f| f.code), Some(Code::MissingSegment));
    refusing.refused = Some(refused(9));
    assert_eq!(read_cursor(&journal, &refusing, None).fault, None, "of another stream");
}

#[test]
fn side_json_stops_what_is_superseded_and_refuses_to_go_back() {
    let mut journal = journal();
    journal.side_seq = 5;
    let side = |seq, side, term, stream| SideRecord {
        format_version: 1,
        min_reader: 1,
        seq,
        side,
        term: Term(term),
        stream: Stream(stream),
        cluster_id: "c".into(),
        written_at: at(0),
        extra: Extra::new(),
    };
    use Side::{Azure, OnPremises};
    assert_eq!(read_side(&journal, &side(5, OnPremises, 1, 1)), SideSays::GoOn);
    assert_eq!(read_side(&journal, &side(6, OnPremises, 1, 2)), SideSays::Superseded);
    for bad in [side(4, OnPremises, 1, 1), side(6, Azure, 2, 1), side(6, OnPremises, 1, 0)] {
        assert!(matches!(read_side(&journal, &bad), SideSays::Refuse(_)), "{bad:?}");
    }
}

// HYPERV 4.4
#[test]
fn the_restart_table() {
    let cp = || ("cp".to_owned(), names::checkpoint(id(1, 3)));
    let of = |n: &u64| if *n == 3 { "cp".to_owned() } else { format!("cp{n}") };
    let points = |ids: &[u64]| ids.iter().map(|n| (format!("rp{n}"), of(n))).collect();
    let lost = |s: &NextStep| matches!(s, NextStep::Lost(f) if f.code == Code::ChangeTrackingLost);
    type Case = (&'static str, Option<Running>, OnHost, NextStep);
    let host = |checkpoint: bool, ids: &[u64], logs_sealed| OnHost {
        checkpoints: if checkpoint { vec![cp()] } else { vec![] },
        reference_points: points(ids),
        logs_sealed,
    };
    use Kind::{Base, Delta};
    let convert = || NextStep::Convert { checkpoint: "cp".into() };
    let note = || NextStep::NotePoint { reference_point: "rp3".into() };
    let r = |kind, stage| Some(running(3, kind, stage));
    let cases: [Case; 15] = [
        ("nothing under way", None, host(false, &[1, 2], false), NextStep::Idle),
        ("intent, checkpoint made", r(Delta, Stage::Intent), host(true, &[1, 2], false), NextStep::Redo),
        (
            "our checkpoint, no sealed log",
            r(Delta, Stage::Frozen),
            host(true, &[1, 2], false),
            NextStep::Redo,
        ),
        ("our checkpoint, all logs sealed", r(Delta, Stage::Frozen), host(true, &[1, 2], true), convert()),
        ("half a slice", r(Base, Stage::Frozen), host(true, &[1, 2], false), NextStep::Read),
        (
            "half a slice, checkpoint gone",
            r(Base, Stage::Frozen),
            host(false, &[1, 2], false),
            NextStep::Redo,
        ),
        ("sealed", r(Delta, Stage::Ready), host(true, &[1, 2], true), convert()),
        ("sealed, log damaged since", r(Delta, Stage::Ready), host(true, &[1, 2], false), NextStep::Redo),
        ("slice copied", r(Base, Stage::Ready), host(true, &[1, 2], false), convert()),
        ("converted, not noted", r(Delta, Stage::Ready), host(false, &[1, 2, 3], true), note()),
        ("neither checkpoint nor point", r(Delta, Stage::Ready), host(false, &[1, 2], true), NextStep::Redo),
        (
            "sealed log, not committed",
            r(Delta, Stage::Converted),
            host(false, &[1, 2, 3], true),
            NextStep::Upload,
        ),
        (
            "log lost before commit",
            r(Delta, Stage::Converted),
            host(false, &[1, 2, 3], false),
            NextStep::Redo,
        ),
        ("slice not committed", r(Base, Stage::Converted), host(false, &[1, 2, 3], false), NextStep::Upload),
        (
            "commit's fate unknown",
            r(Delta, Stage::Committing),
            host(false, &[1, 2, 3], false),
            NextStep::Commit,
        ),
    ];
    for (name, running, found, want) in cases {
        let journal = Journal { running, ..journal() };
        let got = restart(&journal, &found);
        assert_eq!(got.step, want, "{name}");
        let kept = matches!(want, NextStep::Read | NextStep::Convert { .. });
        let leftovers = if found.checkpoints.is_empty() || kept { vec![] } else { vec!["cp".to_owned()] };
        assert_eq!(got.leftovers, leftovers, "{name}");
    }
    for running in [None, r(Delta, Stage::Frozen), r(Base, Stage::Frozen)] {
        let journal = Journal { running, ..journal() };
        assert!(lost(&restart(&journal, &host(true, &[1], false)).step), "the point of cycle 2 is gone");
    }
}

// HYPERV 4.4, last row
#[test]
fn leftovers_with_our_name_are_cleaned_and_foreign_checkpoints_are_not() {
    let found = OnHost {
        checkpoints: vec![
            ("ours".into(), names::checkpoint(id(9, 9))),
            ("theirs".into(), "nightly backup".into()),
        ],
        reference_points: vec![("rp2".into(), String::new())],
        logs_sealed: false,
    };
    let got = restart(&journal(), &found);
    assert_eq!(got, Restart { leftovers: vec!["ours".into()], step: NextStep::Idle });
}

fn vm() -> VmFacts {
    VmFacts {
        configuration_version: "9.0".into(),
        replicated_by_other: false,
        checkpoints_enabled: true,
        disks: vec![DiskFacts {
            id: DISK,
            path: "a.vhdx".into(),
            size: 8 << 20,
            shared: false,
            pass_through: false,
            vhdx: true,
            logical_sector_size: 512,
        }],
        missing: vec![],
    }
}

// R4.1
#[test]
fn each_unmet_prerequisite_is_named_and_all_at_once() {
    assert_eq!(unmet(&vm()), []);
    type Break = fn(&mut VmFacts);
    let cases: [(Code, Break); 11] = [
        (Code::DiskMissing, |v| v.missing.push(DISK)),
        (Code::OldConfigurationVersion, |v| v.configuration_version = "5.0".into()),
        (Code::OldConfigurationVersion, |v| v.configuration_version = "?".into()),
        (Code::AlreadyReplicating, |v| v.replicated_by_other = true),
        (Code::CheckpointsDisabled, |v| v.checkpoints_enabled = false),
        (Code::NoDisks, |v| v.disks.clear()),
        (Code::SharedDisk, |v| v.disks[0].shared = true),
        (Code::PassThroughDisk, |v| v.disks[0].pass_through = true),
        (Code::DuplicateDiskID, |v| v.disks.push(v.disks[0].clone())),
        (Code::DiskTooLarge, |v| v.disks[0].size = 8 << 40),
        (Code::UnsupportedSectorSize, |v| v.disks[0].logical_sector_size = 4096),
    ];
    let mut all = vm();
    for (code, break_it) in cases {
        let mut one = vm();
        break_it(&mut one);
        assert_eq!(unmet(&one).iter().map(|f| f.code).collect::<Vec<_>>(), [code]);
        if code != Code::NoDisks {
            break_it(&mut all);
        }
    }
    assert!(unmet(&all).len() > 4);
}

#[test]
fn a_journal_survives_its_text_form_and_contradictions_are_refused() {
    let mut journal = journal();
    for stage in [Stage::Intent, Stage::Frozen, Stage::Ready, Stage::Converted, Stage::Committing] {
        journal.running = Some(running(3, Kind::Delta, stage));
        assert_eq!(Journal::decode(&journal.encode().unwrap()).unwrap(), journal);
    }
    journal.running.as_mut().unwrap().commit = None;
    assert!(journal.encode().is_err());
    journal.running.as_mut().unwrap().id = id(2, 1);
    assert!(journal.encode().is_err());
}
