use std::{fmt, num::NonZeroU8, str::FromStr};

use serde::{Deserialize, Serialize};

/// A part of something: from 1% to 100%.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Percent(NonZeroU8);

/// The text is no such part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a part; write for example 25%, from 1% to 100%")]
pub struct ParsePercentError(String);

impl Percent {
    /// All of it.
    pub const WHOLE: Self = Self(NonZeroU8::new(100).expect("100 is not 0"));

    /// So many hundredths, if that is from 1 to 100.
    pub fn new(hundredths: u8) -> Option<Self> {
        let part = NonZeroU8::new(hundredths).map(Self)?;
        (part <= Self::WHOLE).then_some(part)
    }

    /// How many hundredths.
    pub const fn get(self) -> u8 {
        self.0.get()
    }

    /// So much of `whole`.
    pub fn of(self, whole: u64) -> u64 {
        let part = u128::from(whole) * u128::from(self.0.get()) / 100;
        // No more than the whole.
        u64::try_from(part).unwrap_or(whole)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Percent {
    type Err = ParsePercentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let number = trimmed.strip_suffix('%').unwrap_or(trimmed).trim_end();
        let part = number.parse().ok().and_then(Self::new);
        part.ok_or_else(|| ParsePercentError(text.to_owned()))
    }
}

impl From<Percent> for String {
    fn from(part: Percent) -> Self {
        part.to_string()
    }
}

impl TryFrom<String> for Percent {
    type Error = ParsePercentError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_from_one_to_a_hundred_and_never_more_than_the_whole() {
        assert_eq!("25%".parse::<Percent>().unwrap().of(1000), 250);
        assert_eq!(" 7 % ".parse::<Percent>().unwrap().to_string(), "7%");
        assert_eq!(Percent::WHOLE.of(u64::MAX), u64::MAX);
        for text in ["0%", "101%", "-1%", "256", "", "%", "5%%", "half"] {
            let error = text.parse::<Percent>().unwrap_err();
            assert!(error.to_string().contains("for example 25%"), "{error}");
        }
    }
}
