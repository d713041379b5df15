use std::{fmt, str::FromStr};

/// The name of a replication slot: 1 to 63 lower-case letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName(String);

/// The text is not the name of a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a replication slot name; use 1 to 63 lower-case letters, digits and underscores"
)]
pub struct InvalidSlotNameError(String);

/// `NAMEDATALEN - 1`.
const MAX_LENGTH: usize = 63;

impl SlotName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SlotName {
    type Err = InvalidSlotNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        match (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidSlotNameError(
                text.chars().take(2 * MAX_LENGTH).collect(),
            )),
        }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_rules_of_the_server() {
        for name in ["a", "pal_0123", "_", &"x".repeat(63)] {
            assert_eq!(name.parse::<SlotName>().unwrap().as_str(), name);
        }
        for name in ["", "A", "a-b", "a b", "ä", "a\"; DROP", &"x".repeat(64)] {
            assert!(name.parse::<SlotName>().is_err(), "{name}");
        }
    }
}
