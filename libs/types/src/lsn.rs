use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A position in a WAL stream, in bytes since its beginning (`XLogRecPtr` in PostgreSQL).
///
/// A change is addressed by the *end* of its record, as in a page's `pd_lsn`; reading at `L` sees
/// every record that ends at or before `L`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Lsn(u64);

/// The text is not an LSN of the form `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN; write it as PostgreSQL does, for example 0/3A5C1F0")]
pub struct ParseLsnError(String);

impl Lsn {
    /// Position 0: before any WAL. PostgreSQL uses it as "invalid".
    pub const ZERO: Self = Self(0);
    /// The largest position.
    pub const MAX: Self = Self(u64::MAX);

    /// An LSN from its byte position.
    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    /// The byte position.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This position plus `bytes`, or `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Bytes from `earlier` to here, or `None` if `earlier` is later.
    pub fn checked_sub(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Bytes from `earlier` to here; 0 if `earlier` is later.
    pub fn saturating_sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The next multiple of 8, where the next record may begin (`MAXALIGN`).
    pub fn align_up(self) -> Self {
        Self(self.0.saturating_add(7) & !7)
    }

    /// Offset within a unit (page or segment) of `size` bytes; `size` must be a power of two.
    pub fn offset_in(self, size: u64) -> u64 {
        self.0 & (size - 1)
    }

    /// Start of the unit (page or segment) of `size` bytes, a power of two, that holds this LSN.
    pub fn floor_to(self, size: u64) -> Self {
        Self(self.0 & !(size - 1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |part: &str| {
            let hex_only = !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit());
            hex_only
                .then(|| u32::from_str_radix(part, 16).ok())
                .flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some((parse(high)?, parse(low)?)))
            .map(|(high, low)| Self(u64::from(high) << 32 | u64::from(low)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = ParseLsnError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_form_round_trips(position: u64) {
            let lsn = Lsn::new(position);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
        }
    }

    #[test]
    fn rejects_what_postgres_would_reject() {
        for text in ["", "0", "0/", "/0", "0/+1", "g/0", "0/123456789", "0/1/2"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn aligns_to_the_next_record_start() {
        assert_eq!(Lsn::new(9).align_up(), Lsn::new(16));
        assert_eq!(Lsn::new(16).align_up(), Lsn::new(16));
        assert_eq!(Lsn::new(8200).floor_to(8192), Lsn::new(8192));
        assert_eq!(Lsn::new(8200).offset_in(8192), 8);
    }
}
