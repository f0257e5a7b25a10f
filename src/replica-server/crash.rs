//! Named points at which a worker may be killed, one after every durable step.
//!
//! Tests iterate [`CrashPoint::ALL`]; a new point must be added there, since the `match` in [`CrashPoint::name`]
//! does not compile without it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

macro_rules! points {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Right after what its name says is durable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CrashPoint {
            $($(#[$doc])* $variant,)*
        }

        impl CrashPoint {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As `--crash-at` takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

points! {
    /// `cursor.json` was created.
    CursorCreated = "cursor-created",
    /// The cursor follows a new stream.
    StreamTaken = "stream-taken",
    /// One segment was verified.
    SegmentVerified = "segment-verified",
    /// The cursor says that a cycle is verified.
    Verified = "verified",
    /// The cursor says that a cycle is refused.
    Refused = "refused",
    /// A replica page blob was created, without its footer.
    BlobCreated = "blob-created",
    /// The leases of all disks are taken.
    LeasesTaken = "leases-taken",
    /// The cursor says which cycle is being applied.
    Claimed = "claimed",
    /// A disk's footer was written.
    FooterWritten = "footer-written",
    /// What a disk held was cleared for a full copy.
    DiskCleared = "disk-cleared",
    /// Pages were put or cleared.
    PagesWritten = "pages-written",
    /// One disk's pages are all there.
    DiskWritten = "disk-written",
    /// One disk's metadata names the cycle.
    MetadataSet = "metadata-set",
    /// The cursor says that a cycle is applied.
    Applied = "applied",
    /// One disk's snapshot was taken.
    SnapshotTaken = "snapshot-taken",
    /// The record of the point was written.
    PointWritten = "point-written",
    /// The cursor names the first point.
    NewestPointSet = "newest-point-set",
    /// The record of an old point was removed.
    PointRemoved = "point-removed",
    /// A snapshot was removed.
    SnapshotRemoved = "snapshot-removed",
    /// A blob of an old cycle was removed.
    CycleBlobRemoved = "cycle-blob-removed",
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A crash point that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no crash point {0}; there are: {known}", known = known())]
pub struct UnknownCrashPoint(String);

fn known() -> String {
    CrashPoint::ALL.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for CrashPoint {
    type Err = UnknownCrashPoint;
    fn from_str(s: &str) -> Result<Self, UnknownCrashPoint> {
        Self::ALL.iter().copied().find(|p| p.name() == s).ok_or_else(|| UnknownCrashPoint(s.to_owned()))
    }
}

type Hook = Arc<dyn Fn(CrashPoint) + Send + Sync>;

/// What happens at crash points: nothing, in production.
#[derive(Clone, Default)]
pub struct Crash(Option<Hook>);

impl fmt::Debug for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Crash(armed)" } else { "Crash(never)" })
    }
}

impl Crash {
    /// Never.
    #[must_use]
    pub fn never() -> Self {
        Self(None)
    }

    /// Aborts the process when `point` is reached the `nth` time, from 1.
    #[must_use]
    pub fn abort_at(point: CrashPoint, nth: u32) -> Self {
        let left = AtomicU32::new(nth.max(1));
        Self::hook(move |reached| {
            if reached == point && left.fetch_sub(1, Ordering::SeqCst) == 1 {
                std::process::abort();
            }
        })
    }

    /// Calls `hook` at every point; it may panic.
    #[must_use]
    pub fn hook(hook: impl Fn(CrashPoint) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// From `name` or `name:n`.
    ///
    /// # Errors
    /// There is no such point, or `n` is no number.
    pub fn parse(text: &str) -> Result<Self, UnknownCrashPoint> {
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        let nth = nth.parse().map_err(|_| UnknownCrashPoint(text.to_owned()))?;
        Ok(Self::abort_at(name.parse()?, nth))
    }

    pub(crate) fn at(&self, point: CrashPoint) {
        if let Some(hook) = &self.0 {
            hook(point);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_refused_with_the_list() {
        for &point in CrashPoint::ALL {
            assert_eq!(point.name().parse(), Ok(point));
        }
        assert!(Crash::parse("applied:3").is_ok());
        let unknown = Crash::parse("lunch").unwrap_err().to_string();
        assert!(unknown.contains("applied") && unknown.contains("lunch"), "{unknown}");
        assert!(Crash::parse("applied:x").is_err());
    }
}
