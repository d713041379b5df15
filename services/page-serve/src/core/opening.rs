use palimpsest_api::TimelineRef;
use palimpsest_types::ErrorKind;

use super::error::ServeError;

/// How far the opening of a timeline is.
#[derive(Debug)]
pub(super) enum Opening {
    /// The first attempt is under way.
    Begun,
    /// There is no manifest yet.
    NoManifest,
    /// It failed, and is tried again.
    Failed {
        /// Whether waiting helps.
        kind: ErrorKind,
        /// In words.
        why: String,
    },
    /// It can be read.
    Done,
}

impl Opening {
    /// Whether waiting for it makes no sense, any more or for now.
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Begun => false,
            Self::Failed { kind, .. } => *kind != ErrorKind::NotReady,
            Self::NoManifest | Self::Done => true,
        }
    }

    /// What a caller hears meanwhile.
    pub(super) fn error(&self, timeline: TimelineRef) -> ServeError {
        let why = match self {
            Self::Begun | Self::Done => "it is being opened".to_owned(),
            Self::NoManifest => "its base backup is not complete".to_owned(),
            Self::Failed { kind, why } if *kind == ErrorKind::Corrupt => {
                let why = why.clone();
                return ServeError::Damaged { timeline, why };
            }
            Self::Failed { why, .. } => format!("opening it failed and is tried again: {why}"),
        };
        ServeError::NotOpen { timeline, why }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    fn heard(opening: &Opening) -> (ErrorKind, String) {
        let error = opening.error(TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        });
        (error.kind(), error.to_string())
    }

    fn failed(kind: ErrorKind) -> Opening {
        let why = "the store is away".to_owned();
        Opening::Failed { kind, why }
    }

    #[test]
    fn each_stage_has_words_of_its_own_and_waiting_helps() {
        let stages = [
            (Opening::Begun, "being opened"),
            (Opening::NoManifest, "base backup is not complete"),
            (
                failed(ErrorKind::NotReady),
                "tried again: the store is away",
            ),
        ];
        for (opening, words) in stages {
            let (kind, text) = heard(&opening);
            assert_eq!(kind, ErrorKind::NotReady, "{text}");
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn damage_is_called_damage() {
        assert_eq!(heard(&failed(ErrorKind::Corrupt)).0, ErrorKind::Corrupt);
    }

    #[test]
    fn only_what_waiting_may_change_is_waited_for() {
        assert!(!Opening::Begun.is_settled());
        assert!(!failed(ErrorKind::NotReady).is_settled());
        assert!(failed(ErrorKind::Corrupt).is_settled());
        assert!(Opening::NoManifest.is_settled() && Opening::Done.is_settled());
    }
}
