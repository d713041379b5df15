use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A number of bytes. Written by people as `64 KiB`, `256MiB` or `10 GiB` (powers of 1024).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ByteCount(u64);

/// The text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size; write for example 64KiB, 256MiB or 10GiB")]
pub struct ParseByteCountError(String);

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl ByteCount {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// A size of `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// A size of `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// A size of `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes as an in-memory length; saturates where `usize` is narrower.
    pub fn as_len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteCount {
    /// One decimal above 1 KiB: `8.0 KiB`, `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = UNITS
            .iter()
            .find(|(_, shift)| self.0 >> shift > 0)
            .copied()
            .unwrap_or(("B", 0));
        if shift == 0 {
            return write!(f, "{} B", self.0);
        }
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

impl fmt::Debug for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ByteCount {
    type Err = ParseByteCountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseByteCountError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let unit = unit.trim();
        let shift = match unit {
            "" => 0,
            _ => {
                UNITS
                    .iter()
                    .find(|(name, _)| *name == unit)
                    .ok_or_else(error)?
                    .1
            }
        };
        let bytes = u128::from(number) << shift;
        u64::try_from(bytes).map(Self).map_err(|_| error())
    }
}

impl From<ByteCount> for String {
    /// Exact: the largest unit that divides the size, so that settings survive being printed.
    fn from(size: ByteCount) -> Self {
        let fits = |shift: &u32| size.0 >> shift << shift == size.0 && size.0 >> shift > 0;
        let (unit, shift) = UNITS
            .iter()
            .find(|(_, shift)| fits(shift))
            .copied()
            .unwrap_or(("B", 0));
        format!("{}{unit}", size.0 >> shift)
    }
}

impl TryFrom<String> for ByteCount {
    type Error = ParseByteCountError;

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
        fn the_settings_form_is_exact(bytes: u64) {
            let size = ByteCount::new(bytes);
            prop_assert_eq!(String::from(size).parse::<ByteCount>().unwrap(), size);
        }
    }

    #[test]
    fn reads_what_people_write_and_says_what_it_cannot() {
        assert_eq!("256MiB".parse(), Ok(ByteCount::mib(256)));
        assert_eq!(" 10 GiB ".parse(), Ok(ByteCount::gib(10)));
        assert_eq!("512".parse(), Ok(ByteCount::new(512)));
        assert!("10 GB".parse::<ByteCount>().is_err());
        assert!("99999999 TiB".parse::<ByteCount>().is_err());
        assert_eq!(ByteCount::new(1536).to_string(), "1.5 KiB");
    }
}
