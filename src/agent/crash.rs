//! Named places at which a test may end the process, each just before or after something durable.
//!
//! A test iterates [`CrashPoint::ALL`]; a point that it has no case for does not compile.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)+) => {
        /// A place where the agent can be made to die.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CrashPoint {
            $($(#[$doc])* $name,)+
        }

        impl CrashPoint {
            /// Every point, in the order in which a VM's life passes them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

points! {
    /// The host's key is written, nothing was asked for yet.
    KeyWritten = "key-written";
    /// The certificate request is made, the certificate is not there yet.
    CertificateRequested = "certificate-requested";
    /// The kubeconfig with the certificate is written.
    KubeconfigWritten = "kubeconfig-written";
    /// A stream's journal is begun, nothing is done in it.
    StreamBegun = "stream-begun";
    /// A cycle has its number, no checkpoint yet.
    IntentNoted = "intent-noted";
    /// The checkpoint exists, the journal does not know.
    CheckpointCreated = "checkpoint-created";
    /// The checkpoint is noted, nothing is read.
    CheckpointNoted = "checkpoint-noted";
    /// A log holds data and is not sealed.
    LogHalfWritten = "log-half-written";
    /// A log is sealed, its manifest is not written.
    LogSealed = "log-sealed";
    /// One log has its manifest, others may not exist.
    LogManifestWritten = "log-manifest-written";
    /// All logs of a cycle are sealed, the journal does not know.
    LogsSealed = "logs-sealed";
    /// A segment is in storage, the journal does not know.
    SegmentUploaded = "segment-uploaded";
    /// A segment is noted.
    SegmentNoted = "segment-noted";
    /// A slice is copied, the journal does not know.
    SliceCopied = "slice-copied";
    /// The journal knows that all is read.
    ReadyNoted = "ready-noted";
    /// The checkpoint is a reference point, the journal does not know.
    CheckpointConverted = "checkpoint-converted";
    /// The reference point is noted.
    ReferencePointNoted = "reference-point-noted";
    /// One disk's list is in storage.
    ListUploaded = "list-uploaded";
    /// The commit's bytes are fixed, nothing is put.
    CommitNoted = "commit-noted";
    /// The commit is in storage, the journal does not know.
    CommitPut = "commit-put";
    /// The cycle is noted as committed, its logs are still there.
    Committed = "committed";
    /// The logs of the committed cycle are deleted.
    LogsDeleted = "logs-deleted";
    /// The journal knows that a cycle is verified, older points are still there.
    VerifiedNoted = "verified-noted";
    /// An obsolete point is destroyed, the journal does not know.
    PointDestroyed = "point-destroyed";
    /// The journal has forgotten it.
    PointForgotten = "point-forgotten";
    /// A dropped cycle's checkpoint is deleted, the journal still has the cycle.
    DroppedCheckpointDeleted = "dropped-checkpoint-deleted";
    /// Everything of ours is gone from the host, the journal is still there.
    TracesRemoved = "traces-removed";
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where to die: `name` or `name:n` for the n-th time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashAt {
    /// The place.
    pub point: CrashPoint,
    /// Which passage, from 1.
    pub nth: u32,
}

impl FromStr for CrashAt {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        let known = CrashPoint::ALL.iter().find(|p| p.name() == name);
        let point = *known.ok_or_else(|| {
            let names: Vec<_> = CrashPoint::ALL.iter().map(|p| p.name()).collect();
            format!("unknown crash point {name}; known: {}", names.join(", "))
        })?;
        let nth = nth.parse().ok().filter(|n| *n > 0);
        Ok(Self { point, nth: nth.ok_or_else(|| format!("{text}: the count must be a number from 1"))? })
    }
}

/// Ends the process at the chosen place; does nothing if none was chosen.
#[derive(Clone, Debug, Default)]
pub struct Crash(Option<Arc<(CrashAt, AtomicU32)>>);

impl Crash {
    /// Dies at `at`.
    #[must_use]
    pub fn at(at: Option<CrashAt>) -> Self {
        Self(at.map(|at| Arc::new((at, AtomicU32::new(0)))))
    }

    /// The program has come to `point`.
    pub fn pass(&self, point: CrashPoint) {
        let Some((at, passed)) = self.0.as_deref() else { return };
        if at.point == point && passed.fetch_add(1, Ordering::SeqCst) + 1 == at.nth {
            tracing::warn!(%point, at.nth, "ending here, as asked");
            // No destructor, no flush: what a power cut of the process would leave.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_is_read_back_from_its_name_and_others_are_refused() {
        let names: BTreeSet<_> = CrashPoint::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), CrashPoint::ALL.len());
        for point in CrashPoint::ALL {
            assert_eq!(point.name().parse(), Ok(CrashAt { point: *point, nth: 1 }));
            assert_eq!(format!("{point}:3").parse(), Ok(CrashAt { point: *point, nth: 3 }));
        }
        assert!("nowhere".parse::<CrashAt>().is_err());
        assert!("committed:0".parse::<CrashAt>().is_err());
    }
}
