//! Durations as people write them: `500ms`, `30s`, `5m`. For `#[serde(with = …)]` and clap.

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

/// The text is no duration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{text:?} is not a duration; write for example 500ms, 30s or 5m")]
pub struct ParseDurationError {
    text: String,
    #[source]
    source: Option<humantime::DurationError>,
}

/// Longer text, or a longer number in it, is none: sums of such numbers are no durations, and not all of them are refused
/// by who reads them.
const LONGEST: usize = 64;
const MOST_DIGITS: usize = 9;

/// Reads a duration with its unit.
///
/// # Errors
/// If it is none.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let refused = |source| ParseDurationError {
        text: text.chars().take(LONGEST).collect(),
        source,
    };
    let numbers = text.split(|sign: char| !sign.is_ascii_digit());
    let longest = numbers.map(str::len).max().unwrap_or_default();
    if text.len() > LONGEST || longest > MOST_DIGITS {
        return Err(refused(None));
    }
    humantime::parse_duration(text).map_err(|source| refused(Some(source)))
}

/// Writes a duration with its unit.
///
/// # Errors
/// What the serializer says.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Reads a duration with its unit.
///
/// # Errors
/// If it is none.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(D::Error::custom)
}

/// The same of one that nobody may have set. For `#[serde(with = …)]`, beside `skip_serializing_if`.
pub mod option {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    /// Writes a duration with its unit.
    ///
    /// # Errors
    /// What the serializer says.
    pub fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a duration with its unit.
    ///
    /// # Errors
    /// If it is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_unit_is_refused_with_an_example() {
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        let error = parse("5").unwrap_err();
        assert!(error.to_string().contains("for example 500ms"), "{error}");
    }

    #[test]
    fn no_number_is_so_long_that_sums_go_wrong() {
        assert_eq!(parse("999999999ns").unwrap().as_nanos(), 999_999_999);
        let many = "999999999y ".repeat(9);
        for text in [
            "18446744073709551615s 1000ms",
            "584542046090y 1000ms",
            many.as_str(),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().len() < 200, "{error}");
        }
        assert!(parse("999999999y 999999999y 999999999y 999999999y").is_ok());
    }
}
