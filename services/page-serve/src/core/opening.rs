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

/// The attempts to open a timeline, one after another.
#[derive(Debug)]
pub(super) struct Attempts {
    begun: u64,
    ended: u64,
    last: Opening,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            begun: 0,
            ended: 0,
            last: Opening::Begun,
        }
    }
}

impl Attempts {
    pub(super) fn begin(&mut self) {
        self.begun += 1;
    }

    pub(super) fn end(&mut self, outcome: Opening) {
        self.ended = self.begun;
        self.last = outcome;
    }

    /// How many have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// How the last one ended.
    pub(super) fn last(&self) -> &Opening {
        &self.last
    }

    /// Whether this is an answer to who asked after so many attempts had begun. That there is no manifest counts only if it was
    /// looked for later: who asks may have heard meanwhile that it is there.
    pub(super) fn is_answer(&self, begun_before: u64) -> bool {
        match self.last {
            Opening::Begun => false,
            Opening::NoManifest => self.ended > begun_before,
            Opening::Failed { .. } | Opening::Done => true,
        }
    }
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
    fn that_there_is_no_manifest_is_said_of_an_attempt_that_began_later() {
        let mut attempts = Attempts::default();
        assert!(!attempts.is_answer(attempts.begun()));
        attempts.begin();
        let asked_meanwhile = attempts.begun();
        assert!(!attempts.is_answer(0));
        attempts.end(Opening::NoManifest);
        assert!(attempts.is_answer(0));
        assert!(!attempts.is_answer(asked_meanwhile));
        attempts.begin();
        assert!(!attempts.is_answer(asked_meanwhile));
        attempts.end(Opening::NoManifest);
        assert!(attempts.is_answer(asked_meanwhile));
        for outcome in [failed(ErrorKind::NotReady), Opening::Done] {
            attempts.begin();
            let asked_meanwhile = attempts.begun();
            attempts.end(outcome);
            assert!(attempts.is_answer(asked_meanwhile));
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
