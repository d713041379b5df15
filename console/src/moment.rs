//! A point in a timeline's history, as a person names it.

use std::{str::FromStr, time::SystemTime};

use jiff::Timestamp;
use palimpsest_types::Lsn;

/// An LSN or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Every record that ends at or before it.
    Lsn(Lsn),
    /// Every record before the first end of a transaction that is later.
    Time(Timestamp),
}

/// The text is neither an LSN nor a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is neither an LSN, as 0/3A5C1F0, nor a time with its zone, as '2026-11-21 14:05:00+00'"
)]
pub struct ParseMomentError {
    text: String,
}

impl FromStr for Moment {
    type Err = ParseMomentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lsn = text.parse().map(Self::Lsn).ok();
        let time = || text.parse().map(Self::Time).ok();
        lsn.or_else(time).ok_or_else(|| ParseMomentError {
            text: text.to_owned(),
        })
    }
}

/// A time as people and programs read it, in UTC, to the second.
pub(crate) fn shown(unix_ms: u64) -> String {
    let millis = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    match Timestamp::from_millisecond(millis) {
        Ok(time) => format!("{time:.0}"),
        Err(_) => "?".to_owned(),
    }
}

/// The same time for the clock of this machine.
pub(crate) fn system_time(time: Timestamp) -> SystemTime {
    time.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_naming_a_moment_are_understood() {
        assert_eq!("0/3A5C1F0".parse(), Ok(Moment::Lsn(Lsn::new(0x3A5_C1F0))));
        let time = Timestamp::from_second(1_795_269_900).unwrap();
        for text in [
            "2026-11-21 14:05:00+00",
            "2026-11-21T14:05:00Z",
            "2026-11-21 15:05:00+01:00",
            "2026-11-21 14:05:00.000000+00",
        ] {
            assert_eq!(text.parse(), Ok(Moment::Time(time)), "{text}");
        }
    }

    #[test]
    fn a_time_without_its_zone_is_none() {
        for text in ["2026-11-21 14:05:00", "yesterday", "3A5C1F0", ""] {
            let error = text.parse::<Moment>().unwrap_err();
            assert!(error.to_string().contains("zone"), "{error}");
        }
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(shown(1_795_269_900_123), "2026-11-21T14:05:00Z");
    }
}
