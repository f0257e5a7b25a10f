//! Does this commit continue that cursor, under this ledger?

use crate::fault::Code;
use crate::format::commit::{Commit, CommitRef, Kind};
use crate::format::cursor::Cursor;
use crate::format::ledger::{Ledger, LedgerState};
use crate::format::side::Side;
use crate::ids::{CycleId, Hash};
use crate::units::MIB;

/// Most disks of one VM: four SCSI controllers of 64 and two IDE channels of two.
pub const MAX_DISKS: usize = 260;

/// Largest replica disk: a page blob ends at 8 TiB, and the footer stands after whole MiB.
pub const MAX_REPLICA_DISK: u64 = (8 << 40) - MIB;

/// Why nothing is done now, though nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// The ledger does not let anybody replicate to Azure now.
    NotReplicating,
    /// The cycle is of a term or stream that the ledger does not follow (yet, or any more).
    OtherWriter,
    /// The cursor is of a later term or stream than the ledger: somebody must repair the ledger.
    LedgerBehind,
}

/// What to do with a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It continues the chain: verify what it lists.
    Accept,
    /// Not now.
    Wait(Waiting),
    /// Never: note it in the cursor and stop.
    Refuse(Code, String),
}

/// Whether the ledger lets its own writer replicate now.
///
/// # Errors
/// Why not.
pub fn follows(cursor: &Cursor, ledger: &Ledger) -> Result<(), Waiting> {
    let replicating = match ledger.state {
        LedgerState::Enabling | LedgerState::Protected => ledger.owner == Side::OnPremises,
        LedgerState::FailedOver
        | LedgerState::FailoverCommitted
        | LedgerState::FailbackSynchronized
        | LedgerState::FailedBack
        | LedgerState::FailbackCommitted
        | LedgerState::Released => false,
    };
    if !replicating {
        return Err(Waiting::NotReplicating);
    }
    if (cursor.term, cursor.stream) > (ledger.term, ledger.stream) {
        return Err(Waiting::LedgerBehind);
    }
    Ok(())
}

/// Whether a verified cycle may be put into the replica under this ledger: cycles of the ledger's own term,
/// and those of terms before it up to the cut.
#[must_use]
pub fn may_apply(cycle: CycleId, ledger: &Ledger) -> bool {
    if cycle.term == ledger.term {
        return cycle.stream <= ledger.stream;
    }
    cycle.term < ledger.term && ledger.cut.is_some_and(|cut| cycle <= cut.id)
}

/// The next commit that can count: the one after the verified one, or the first of the ledger's stream.
#[must_use]
pub fn expected(cursor: &Cursor, ledger: &Ledger) -> CycleId {
    match &cursor.verified {
        Some(v) if v.commit.id.is_of(ledger.term, ledger.stream) => v.commit.id.next(),
        _ => CycleId::first(ledger.term, ledger.stream),
    }
}

/// Checks a decoded commit that was found under the name of `name` and whose bytes hash to `hash`.
///
/// The order of the rules is the order of what a person would want to hear: first whose it is, then where it
/// belongs, then what it claims.
#[must_use]
pub fn check(commit: &Commit, name: CycleId, cursor: &Cursor, ledger: &Ledger) -> Verdict {
    if let Err(why) = follows(cursor, ledger) {
        return Verdict::Wait(why);
    }
    if !name.is_of(ledger.term, ledger.stream) || name != expected(cursor, ledger) {
        return Verdict::Wait(Waiting::OtherWriter);
    }
    match accept(commit, name, cursor, ledger) {
        Ok(()) => Verdict::Accept,
        Err((code, message)) => Verdict::Refuse(code, message),
    }
}

fn accept(commit: &Commit, name: CycleId, cursor: &Cursor, ledger: &Ledger) -> Result<(), (Code, String)> {
    let corrupt = |message: String| Err((Code::CorruptCommit, message));
    if commit.vm_id != cursor.vm_id {
        return corrupt(format!("it is for VM {}", commit.vm_id));
    }
    if commit.id() != name {
        return corrupt(format!("it says that it is cycle {}", commit.id()));
    }
    match commit.kind {
        Kind::Base | Kind::Delta | Kind::Application | Kind::Resync | Kind::Final => {}
        Kind::Failback => return corrupt("a cycle of failback does not belong here".into()),
    }
    continues(commit.previous, cursor.verified.as_ref().map(|v| v.commit))?;
    if commit.disks.len() > MAX_DISKS {
        return corrupt(format!("it lists {} disks; a VM has at most {MAX_DISKS}", commit.disks.len()));
    }
    for disk in &commit.disks {
        if disk.virtual_size > MAX_REPLICA_DISK {
            let size = crate::units::Bytes(disk.virtual_size);
            return Err((Code::DiskTooLarge, format!("disk {} is of {size}", disk.disk_id)));
        }
        if !ledger.disks.is_empty() && !ledger.disks.contains(&disk.disk_id) {
            return corrupt(format!("disk {} is not one of the protected disks", disk.disk_id));
        }
        let restarts = commit.full_copy.contains(&disk.disk_id);
        let before = cursor.verified.as_ref().and_then(|v| v.copied_up_to.get(&disk.disk_id)).copied();
        match (before, disk.copied_up_to) {
            _ if restarts => {}
            // Nothing but a Base cycle may complete a half-copied disk: a point would hold an instant of it
            // that never was.
            (Some(at), None) if commit.kind != Kind::Base => {
                return corrupt(format!("disk {} was copied up to {at} only", disk.disk_id));
            }
            (Some(at), Some(now)) if now < at => {
                return corrupt(format!("disk {} was copied up to {at}, now to {now}", disk.disk_id));
            }
            (None, Some(_)) if known(cursor, disk.disk_id) => {
                return corrupt(format!("disk {} was copied whole and now is not", disk.disk_id));
            }
            _ => {}
        }
    }
    Ok(())
}

fn known(cursor: &Cursor, disk: crate::ids::DiskId) -> bool {
    cursor.verified.as_ref().is_some_and(|v| v.rct_ids.contains_key(&disk))
}

fn continues(previous: Option<CommitRef>, verified: Option<CommitRef>) -> Result<(), (Code, String)> {
    let short = |hash: Hash| hash.short();
    let message = match (previous, verified) {
        (p, v) if p == v => return Ok(()),
        (Some(p), Some(v)) if p.id == v.id => {
            format!("it continues {} with hash {}, verified was {}", p.id, short(p.hash), short(v.hash))
        }
        (Some(p), Some(v)) => format!("it continues {}, verified is {}", p.id, v.id),
        (Some(p), None) => format!("it continues {}, and nothing has been verified yet", p.id),
        (None, Some(v)) => format!("it begins anew, and {} has been verified", v.id),
        (None, None) => return Ok(()),
    };
    Err((Code::ForkedChain, message))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::format::Extra;
    use crate::format::commit::tests::delta;
    use crate::format::cursor::Verified;
    use crate::format::ledger::tests::protected;
    use crate::ids::{Cycle, DiskId, Stream, Term, VmId};

    pub(crate) fn ledger(term: u32, stream: u32) -> Ledger {
        Ledger { term: Term(term), stream: Stream(stream), ..protected() }
    }

    /// A cursor of stream 1 of term 1 that verified `cycle` and applied it.
    pub(crate) fn cursor_at(cycle: u64) -> Cursor {
        let commit = CommitRef {
            id: CycleId { term: Term(1), stream: Stream(1), cycle: Cycle(cycle) },
            hash: Hash([9; 32]),
        };
        Cursor {
            format_version: 1,
            min_reader: 1,
            vm_id: VmId("7b0e4c1e-0000-4000-8000-000000000001".parse().unwrap()),
            term: Term(1),
            stream: Stream(1),
            verified: Some(Verified {
                commit,
                reference_point_id: "rp".into(),
                rct_ids: BTreeMap::from([(disk(), "rct".into())]),
                copied_up_to: BTreeMap::new(),
                own_point_ids: vec![],
                next_cycle_at: "2026-01-02T03:09:05Z".parse().unwrap(),
            }),
            applied: Some(commit),
            newest_point: None,
            refused: None,
            received: None,
            worker: "w".into(),
            written_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            extra: Extra::new(),
        }
    }

    fn disk() -> DiskId {
        DiskId("7b0e4c1e-0000-4000-8000-00000000000d".parse().unwrap())
    }

    /// Cycle 8, right after `cursor_at(7)`.
    fn eighth() -> Commit {
        let mut commit = delta(8);
        commit.previous = cursor_at(7).verified.map(|v| v.commit);
        commit
    }

    type Change = fn(&mut Commit, &mut Cursor, &mut Ledger);

    fn verdict(change: Change) -> Verdict {
        let (mut commit, mut cursor, mut ledger) = (eighth(), cursor_at(7), ledger(1, 1));
        let name = commit.id();
        change(&mut commit, &mut cursor, &mut ledger);
        check(&commit, name, &cursor, &ledger)
    }

    #[test]
    fn the_next_cycle_of_the_ledgers_writer_is_accepted() {
        assert_eq!(verdict(|_, _, _| ()), Verdict::Accept);
    }

    #[test]
    fn a_commit_that_does_not_belong_is_refused_with_its_code() {
        let cases: [(&str, Change, Code); 10] = [
            ("another VM's", |c, _, _| c.vm_id = VmId(uuid::Uuid::nil()), Code::CorruptCommit),
            ("another cycle's", |c, _, _| c.cycle = Cycle(9), Code::CorruptCommit),
            ("failback's", |c, _, _| c.kind = Kind::Failback, Code::CorruptCommit),
            ("forked", |c, _, _| c.previous.as_mut().unwrap().hash = Hash([1; 32]), Code::ForkedChain),
            ("begins anew", |c, _, _| c.previous = None, Code::ForkedChain),
            ("too large", |c, _, _| c.disks[0].virtual_size = 8 << 40, Code::DiskTooLarge),
            ("a foreign disk", |_, _, l| l.disks = vec![DiskId(uuid::Uuid::nil())], Code::CorruptCommit),
            (
                "half-copied before",
                |_, c, _| {
                    c.verified.as_mut().unwrap().copied_up_to.insert(disk(), 512);
                },
                Code::CorruptCommit,
            ),
            (
                "copied less than before",
                |c, u, _| {
                    u.verified.as_mut().unwrap().copied_up_to.insert(disk(), 4096);
                    (c.kind, c.disks[0].copied_up_to) = (Kind::Base, Some(512));
                },
                Code::CorruptCommit,
            ),
            (
                "half-copied again",
                |c, _, _| {
                    (c.kind, c.disks[0].copied_up_to) = (Kind::Base, Some(512));
                },
                Code::CorruptCommit,
            ),
        ];
        for (name, change, want) in cases {
            match verdict(change) {
                Verdict::Refuse(code, message) => assert_eq!(code, want, "{name}: {message}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    // FORMATS: only the ledger's own term and stream are handled.
    #[test]
    fn a_ledger_of_another_writer_or_side_waits() {
        let cases: [(&str, Change, Waiting); 5] = [
            ("next term", |_, _, l| l.term = Term(2), Waiting::OtherWriter),
            ("next stream", |_, _, l| l.stream = Stream(2), Waiting::OtherWriter),
            ("an older ledger", |_, c, _| c.term = Term(2), Waiting::LedgerBehind),
            ("runs in Azure", |_, _, l| l.owner = Side::Azure, Waiting::NotReplicating),
            ("released", |_, _, l| l.state = LedgerState::Released, Waiting::NotReplicating),
        ];
        for (name, change, want) in cases {
            assert_eq!(verdict(change), Verdict::Wait(want), "{name}");
        }
    }

    #[test]
    fn a_new_stream_continues_what_was_verified_and_may_copy_again() {
        let (cursor, ledger) = (cursor_at(7), ledger(1, 2));
        let mut commit = eighth();
        (commit.stream, commit.cycle) = (Stream(2), Cycle(1));
        assert_eq!(check(&commit, commit.id(), &cursor, &ledger), Verdict::Accept);

        (commit.kind, commit.disks[0].copied_up_to, commit.full_copy) = (Kind::Base, Some(512), vec![disk()]);
        assert_eq!(check(&commit, commit.id(), &cursor, &ledger), Verdict::Accept);

        commit.previous.as_mut().unwrap().id.cycle = Cycle(6);
        let forked = check(&commit, commit.id(), &cursor, &ledger);
        assert!(matches!(forked, Verdict::Refuse(Code::ForkedChain, _)), "{forked:?}");
    }

    #[test]
    fn cycles_of_the_term_before_are_applied_up_to_the_cut() {
        let id = |t, s, c| CycleId { term: Term(t), stream: Stream(s), cycle: Cycle(c) };
        let mut ledger = ledger(2, 1);
        assert!(!may_apply(id(1, 1, 5), &ledger), "no cut");
        ledger.cut = Some(CommitRef { id: id(1, 1, 5), hash: Hash([0; 32]) });
        assert!(may_apply(id(1, 1, 5), &ledger) && may_apply(id(2, 1, 1), &ledger));
        assert!(!may_apply(id(1, 1, 6), &ledger) && !may_apply(id(2, 2, 1), &ledger));
        assert!(!may_apply(id(3, 1, 1), &ledger));
    }
}
