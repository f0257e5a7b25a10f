//! Identities and counters. A VM is its GUID, never its display name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! guid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(s).map(Self)
            }
        }
    };
}

guid! {
    /// A virtual machine: `Msvm_ComputerSystem.Name`. Prints lower case, hyphenated.
    VmId
}
guid! {
    /// A virtual disk: the VHDX's VirtualDiskId. Survives checkpoints, moves and renames.
    DiskId
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            /// The first value in use; nothing is ever numbered zero.
            pub const FIRST: Self = Self(1);

            /// The next value. Saturates: the range cannot be used up in the life of a VM.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// Counts changes of side.
    Term(u32)
}
counter! {
    /// Counts changes of writer on one side, inside a term.
    Stream(u32)
}
counter! {
    /// Counts transfers inside a stream.
    Cycle(u64)
}
counter! {
    /// Counts people's intents for a VM.
    Epoch(u64)
}

/// One cycle of one VM. Ordered as commits are: by term, then stream, then cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CycleId {
    /// Term under which the cycle was written.
    pub term: Term,
    /// Stream inside the term.
    pub stream: Stream,
    /// Cycle inside the stream.
    pub cycle: Cycle,
}

impl CycleId {
    /// The first cycle of a stream.
    #[must_use]
    pub const fn first(term: Term, stream: Stream) -> Self {
        Self { term, stream, cycle: Cycle::FIRST }
    }

    /// The cycle after this one in the same stream.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { cycle: self.cycle.next(), ..self }
    }

    /// True if `self` belongs to the given writer.
    #[must_use]
    pub fn is_of(self, term: Term, stream: Stream) -> bool {
        self.term == term && self.stream == stream
    }
}

impl fmt::Display for CycleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}-{:06}/{:010}", self.term.0, self.stream.0, self.cycle.0)
    }
}

/// A BLAKE3 hash, 64 lower-case hex digits in every durable format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first 32 hex digits (128 bits), as segment names carry it.
    #[must_use]
    pub fn short(&self) -> String {
        let mut hex = self.to_string();
        hex.truncate(32);
        hex
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A string that is not 64 lower-case hex digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a BLAKE3 hash: want 64 lower-case hex digits")]
pub struct BadHash;

impl FromStr for Hash {
    type Err = BadHash;
    fn from_str(s: &str) -> Result<Self, BadHash> {
        blake3::Hash::from_hex(s).map(|h| Self(*h.as_bytes())).map_err(|_| BadHash)
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_order_by_term_then_stream_then_cycle() {
        let at = |t, s, c| CycleId { term: Term(t), stream: Stream(s), cycle: Cycle(c) };
        assert!(at(1, 2, 1) > at(1, 1, 99));
        assert!(at(2, 1, 1) > at(1, 9, 9));
        assert_eq!(at(1, 2, 3).to_string(), "000001-000002/0000000003");
    }

    #[test]
    fn a_hash_survives_its_text_form_and_refuses_another_length() {
        let hash = Hash::of(b"farshore");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!("abc".parse::<Hash>(), Err(BadHash));
    }
}
