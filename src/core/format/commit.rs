//! The commit record of a cycle: written last, create-only, and the only truth about that cycle.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Extra, FORMAT_VERSION, Record};
use crate::ids::{Cycle, CycleId, DiskId, Hash, Stream, Term, VmId};

/// What a cycle carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A part of initial replication. Applied, never a recovery point.
    Base,
    /// What changed since the cycle before.
    Delta,
    /// A delta taken with the guest's applications quiesced.
    Application,
    /// What differed between source and replica.
    Resync,
    /// The last cycle before a planned change of side.
    Final,
    /// A round of failback, written to the download container.
    Failback,
}

impl Kind {
    /// True if the state after this cycle is one that the disks really had at one instant.
    #[must_use]
    pub const fn is_point(self) -> bool {
        match self {
            Self::Base => false,
            Self::Delta | Self::Application | Self::Resync | Self::Final | Self::Failback => true,
        }
    }
}

/// What a point promises about the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// As after a power cut.
    Crash,
    /// Applications were quiesced (VSS, fsfreeze).
    Application,
    /// The guest was shut down.
    Final,
}

/// A commit, named by where it is and what its bytes hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommitRef {
    /// Which cycle.
    #[serde(flatten)]
    pub id: CycleId,
    /// BLAKE3 of the commit record's bytes.
    pub hash: Hash,
}

/// `<term>-<stream>/<cycle>/commit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Commit {
    /// See [`super`].
    pub format_version: u32,
    /// See [`super`].
    pub min_reader: u32,
    /// Whose disks.
    #[serde(rename = "vmID")]
    pub vm_id: VmId,
    /// Term under which it is written.
    pub term: Term,
    /// Stream inside the term.
    pub stream: Stream,
    /// Cycle inside the stream, from 1 without gaps.
    pub cycle: Cycle,
    /// What it carries.
    pub kind: Kind,
    /// What the point promises.
    pub consistency: Consistency,
    /// The instant of the checkpoint, by the host's clock.
    pub point_time: Timestamp,
    /// When the next commit may be looked for.
    pub next_cycle_at: Timestamp,
    /// The commit before: absent only in a VM's very first one.
    pub previous: Option<CommitRef>,
    /// The VM as it was at the checkpoint.
    pub configuration: Configuration,
    /// The reference point made from the checkpoint; later changes are asked for since then.
    #[serde(rename = "referencePointID")]
    pub reference_point_id: String,
    /// Every reference point of ours that exists on the host after this cycle.
    #[serde(rename = "ownPointIDs")]
    pub own_point_ids: Vec<String>,
    /// Every replicated disk, in the order of its slot.
    pub disks: Vec<CommitDisk>,
    /// Disks whose copy starts from nothing with this cycle: whatever their replica held is cleared
    /// before the cycle is applied, since ranges that hold no data are not sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full_copy: Vec<DiskId>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One disk of a commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitDisk {
    /// Which disk.
    #[serde(rename = "diskID")]
    pub disk_id: DiskId,
    /// Bytes, as the guest sees it.
    pub virtual_size: u64,
    /// BLAKE3 of the segment list, which is also in its name.
    pub list: Hash,
    /// The tracking id that stands for this instant of this disk.
    #[serde(rename = "rctID")]
    pub rct_id: String,
    /// While copying: everything below this offset has been sent at least once. Absent when all is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copied_up_to: Option<u64>,
}

/// The VM's hardware, enough to build it again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// Display name at that time.
    pub name: String,
    /// 1 or 2.
    pub generation: u8,
    /// `BIOS` or `UEFI`.
    pub firmware: String,
    /// Virtual processors.
    pub processor_count: u32,
    /// Start-up memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Disk slots, replicated or not.
    pub disks: Vec<DiskSlot>,
    /// Network adapters.
    pub network_adapters: Vec<NetworkAdapter>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where a disk is attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSlot {
    /// Which disk; absent if it has no identity of its own (pass-through).
    #[serde(rename = "diskID", skip_serializing_if = "Option::is_none", default)]
    pub disk_id: Option<DiskId>,
    /// `IDE`, `SCSI`.
    pub controller: String,
    /// Controller number.
    pub controller_number: u32,
    /// Location on the controller.
    pub location: u32,
    /// Path on the host.
    pub path: String,
    /// True if it is replicated.
    pub replicated: bool,
}

/// One network adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAdapter {
    /// Display name.
    pub name: String,
    /// `00155D...`, without separators.
    pub mac: String,
    /// Access VLAN.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vlan: Option<u16>,
    /// Virtual switch or VM network.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<String>,
    /// Addresses that the guest reports.
    pub addresses: Vec<String>,
}

impl Commit {
    /// Which cycle it commits.
    #[must_use]
    pub const fn id(&self) -> CycleId {
        CycleId { term: self.term, stream: self.stream, cycle: self.cycle }
    }

    /// True if every disk has been copied once.
    #[must_use]
    pub fn all_copied(&self) -> bool {
        self.disks.iter().all(|d| d.copied_up_to.is_none())
    }

    /// The versions of a commit written by this build.
    pub const VERSIONS: (u32, u32) = (FORMAT_VERSION, 1);
}

impl Record for Commit {
    const KIND: &'static str = "commit record";
    const MAX: usize = 1 << 20;

    fn check(&self) -> Result<(), &'static str> {
        if self.disks.is_empty() {
            return Err("it has no disks");
        }
        let mut seen = BTreeSet::new();
        for disk in &self.disks {
            if !seen.insert(disk.disk_id) {
                return Err("a disk is listed twice");
            }
            if disk.virtual_size == 0 || disk.virtual_size % 512 != 0 || disk.virtual_size > 64 << 40 {
                return Err("a virtual size is not a multiple of 512 up to 64 TiB");
            }
            if disk.copied_up_to.is_some_and(|at| at >= disk.virtual_size) {
                return Err("copiedUpTo is not below the virtual size");
            }
        }
        if self.kind != Kind::Base && !self.full_copy.is_empty() {
            return Err("only a cycle of kind Base may start a copy from nothing");
        }
        if self.full_copy.iter().any(|disk| !seen.contains(disk)) {
            return Err("fullCopy names a disk that is not listed");
        }
        if self.previous.is_none() && self.full_copy.len() != self.disks.len() {
            return Err("a VM's first commit must copy every disk from nothing");
        }
        if self.kind != Kind::Base && !self.all_copied() {
            return Err("only a cycle of kind Base may leave a disk half copied");
        }
        if self.previous.is_some_and(|previous| previous.id >= self.id()) {
            return Err("it continues a commit that is not older");
        }
        if self.cycle > Cycle::FIRST && self.previous.map(|p| p.id.next()) != Some(self.id()) {
            return Err("inside a stream it must continue the cycle before");
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A valid delta; tests change one thing.
    pub(crate) fn delta(cycle: u64) -> Commit {
        let id = |cycle| CycleId { term: Term(1), stream: Stream(1), cycle: Cycle(cycle) };
        Commit {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            vm_id: VmId("7b0e4c1e-0000-4000-8000-000000000001".parse().unwrap()),
            term: Term(1),
            stream: Stream(1),
            cycle: Cycle(cycle),
            kind: Kind::Delta,
            consistency: Consistency::Crash,
            point_time: "2026-01-02T03:04:05Z".parse().unwrap(),
            next_cycle_at: "2026-01-02T03:09:05Z".parse().unwrap(),
            previous: (cycle > 1)
                .then(|| CommitRef { id: id(cycle - 1), hash: Hash([u8::try_from(cycle).unwrap(); 32]) }),
            configuration: Configuration { generation: 2, ..Configuration::default() },
            reference_point_id: "rp".into(),
            own_point_ids: vec!["rp".into()],
            disks: vec![CommitDisk {
                disk_id: DiskId("7b0e4c1e-0000-4000-8000-00000000000d".parse().unwrap()),
                virtual_size: 8 << 20,
                list: Hash([9; 32]),
                rct_id: "rct".into(),
                copied_up_to: None,
            }],
            full_copy: vec![],
            extra: Extra::new(),
        }
    }

    #[test]
    fn a_commit_is_read_back_whole_with_fields_of_later_versions() {
        let mut commit = delta(3);
        commit.extra.insert("futureField".into(), serde_json::json!({"kept": [1, 2]}));
        let bytes = commit.encode().unwrap();
        assert_eq!(Commit::decode(&bytes).unwrap(), commit);
    }

    #[test]
    fn a_commit_for_a_newer_reader_is_refused_with_the_version() {
        let mut commit = delta(3);
        commit.min_reader = 7;
        let refused = Commit::decode(&serde_json::to_vec(&commit).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("format 7"), "{refused}");
    }

    #[test]
    fn commits_that_contradict_themselves_are_refused() {
        type Break = fn(&mut Commit);
        let cases: [(&str, Break); 10] = [
            ("full copy of a delta", |c| c.full_copy.push(c.disks[0].disk_id)),
            ("full copy of another disk", |c| {
                c.kind = Kind::Base;
                c.full_copy.push(DiskId(uuid::Uuid::nil()));
            }),
            ("the very first copies nothing", |c| {
                (c.kind, c.cycle, c.previous) = (Kind::Base, Cycle(1), None);
            }),
            ("no disks", |c| c.disks.clear()),
            ("a disk twice", |c| c.disks.push(c.disks[0].clone())),
            ("odd size", |c| c.disks[0].virtual_size = 1000),
            ("half copied delta", |c| c.disks[0].copied_up_to = Some(512)),
            ("copied past the end", |c| {
                c.kind = Kind::Base;
                c.disks[0].copied_up_to = Some(8 << 20);
            }),
            ("gap", |c| c.cycle = Cycle(9)),
            ("continues itself", |c| c.previous.as_mut().unwrap().id.cycle = c.cycle),
        ];
        for (name, break_it) in cases {
            let mut commit = delta(3);
            break_it(&mut commit);
            assert!(commit.encode().is_err(), "{name}");
            assert!(Commit::decode(&serde_json::to_vec(&commit).unwrap()).is_err(), "{name}");
        }
    }
}
