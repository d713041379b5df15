//! Durations as people write them: `500ms`, `30s`, `5m`. For `#[serde(with = …)]` and clap.

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

/// The text is no duration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{text:?} is not a duration; write for example 500ms, 30s or 5m")]
pub struct ParseDurationError {
    text: String,
    #[source]
    source: humantime::DurationError,
}

/// Reads a duration with its unit.
///
/// # Errors
/// If it is none.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    humantime::parse_duration(text).map_err(|source| ParseDurationError {
        text: text.to_owned(),
        source,
    })
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
}
