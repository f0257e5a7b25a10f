//! Durations as people write them in manifests: `30s`, `5m`, `1h30m`.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration in whole seconds, written with the units h, m, s in that order. CEL's `duration()` reads the same text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u32);

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form `1h2m3s`.
    #[error("{0:?} is not a duration: write hours, minutes and seconds like 1h30m, 5m or 30s")]
    Form(String),
    /// More seconds than the type holds.
    #[error("{0:?} is longer than 136 years")]
    Overflow(String),
}

impl Duration {
    /// From whole seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(seconds)
    }

    /// From whole minutes; saturates.
    pub const fn from_mins(minutes: u32) -> Self {
        Self(minutes.saturating_mul(60))
    }

    /// From whole hours; saturates.
    pub const fn from_hours(hours: u32) -> Self {
        Self(hours.saturating_mul(3600))
    }

    /// Whole seconds.
    pub const fn as_secs(self) -> u32 {
        self.0
    }

    /// For timers.
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0 as u64)
    }

    /// For arithmetic with timestamps.
    pub const fn to_signed(self) -> jiff::SignedDuration {
        jiff::SignedDuration::from_secs(self.0 as i64)
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || DurationError::Form(text.to_owned());
        let overflow = || DurationError::Overflow(text.to_owned());
        let mut rest = text;
        let mut seconds: u32 = 0;
        for (unit, factor) in [('h', 3600_u32), ('m', 60), ('s', 1)] {
            let Some((digits, after)) = rest.split_once(unit) else { continue };
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(form());
            }
            let n: u32 = digits.parse().map_err(|_| overflow())?;
            seconds = n.checked_mul(factor).and_then(|n| seconds.checked_add(n)).ok_or_else(overflow)?;
            rest = after;
        }
        if rest.is_empty() && !text.is_empty() { Ok(Self(seconds)) } else { Err(form()) }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (h, m, s) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        for (n, unit) in [(h, "h"), (m, "m"), (s, "s")] {
            if n > 0 {
                write!(f, "{n}{unit}")?;
            }
        }
        if self.0 == 0 { f.write_str("0s") } else { Ok(()) }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 2, "maxLength": 16, "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in
            [("30s", 30), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("90s", 90), ("24h", 86_400), ("0s", 0)]
        {
            assert_eq!(text.parse(), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "m", "5 m", "-5m", "5m1h", "1.5h", "5M", "5mm", "1d", "+5m"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
        assert_eq!("2000000h".parse::<Duration>(), Err(DurationError::Overflow("2000000h".into())));
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        for seconds in [0, 1, 59, 60, 61, 3600, 3661, 86_400, u32::MAX] {
            let d = Duration::from_secs(seconds);
            assert_eq!(d.to_string().parse(), Ok(d), "{d}");
        }
        assert_eq!(Duration::from_secs(5400).to_string(), "1h30m");
    }
}
