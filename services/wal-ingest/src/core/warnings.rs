//! What a person should hear of a timeline that goes on nevertheless.

use std::collections::BTreeMap;

/// What a warning is about. A newer one takes the place of the older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// Settings of the source.
    Settings,
    /// The slot is not what it should be.
    Slot,
    /// Nobody can look after the slot.
    Keeper,
    /// The WAL on our own disk.
    LocalWal,
    /// The object store.
    Store,
}

/// The newest warnings of each topic.
#[derive(Debug, Default)]
pub(super) struct Warnings(BTreeMap<Topic, Vec<String>>);

impl Warnings {
    /// Says this about a topic from now on; whether that is news.
    pub(super) fn set(&mut self, topic: Topic, texts: Vec<String>) -> bool {
        let before = match texts.is_empty() {
            true => self.0.remove(&topic),
            false => self.0.insert(topic, texts.clone()),
        };
        before.unwrap_or_default() != texts
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<String> {
        self.0.values().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_stays_until_its_topic_is_well_again() {
        let mut warnings = Warnings::default();
        let texts = |texts: &[&str]| {
            texts
                .iter()
                .map(|&text| text.to_owned())
                .collect::<Vec<_>>()
        };
        assert!(warnings.set(Topic::Store, texts(&["away"])));
        assert!(warnings.set(Topic::Settings, texts(&["one", "two"])));
        assert!(!warnings.set(Topic::Store, texts(&["away"])));
        assert_eq!(warnings.all(), ["one", "two", "away"]);
        assert!(warnings.set(Topic::Settings, Vec::new()));
        assert!(!warnings.set(Topic::Settings, Vec::new()));
        assert_eq!(warnings.all(), ["away"]);
    }
}
