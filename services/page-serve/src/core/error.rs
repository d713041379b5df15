use std::{num::NonZeroU32, time::Duration};

use palimpsest_api::TimelineRef;
use palimpsest_read::ReadError;
use palimpsest_types::{ErrorKind, Fault, Reason};

/// A request could not be served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServeError {
    /// Nobody knows this timeline.
    #[error("there is no timeline {0}")]
    UnknownTimeline(TimelineRef),
    /// This page-serve has just started and does not know what timelines there are.
    #[error(
        "timeline {0} is not known here yet: the storage-broker has not said what timelines there are"
    )]
    NotHeard(TimelineRef),
    /// The timeline exists and can't be read yet.
    #[error("timeline {timeline} can't be read yet: {why}")]
    NotOpen {
        /// Which.
        timeline: TimelineRef,
        /// What is missing.
        why: String,
    },
    /// The timeline exists, and what is stored of it is damaged.
    #[error("timeline {timeline} can't be opened: {why}")]
    Damaged {
        /// Which.
        timeline: TimelineRef,
        /// What is wrong.
        why: String,
    },
    /// Other requests take all memory that answers may take.
    #[error("there was no room for the answer within {waited:?}; ask again later")]
    Overloaded {
        /// For how long it was waited for.
        waited: Duration,
    },
    /// Its tenant asks for more pages than it may have.
    #[error(
        "the tenant asks for more than {limit} pages in a second, its pages-per-second, and this would wait longer than {patience:?}; ask more slowly"
    )]
    TooFast {
        /// How many pages.
        limit: NonZeroU32,
        /// How long a request waits at most.
        patience: Duration,
    },
    /// Making the answer took too long: whoever is waited for takes too much time.
    #[error("the answer was not ready within {limit:?}; ask again later")]
    Late {
        /// How long it may take.
        limit: Duration,
    },
    /// No further stream is served.
    #[error("{limit} streams are open already, which is all that are allowed")]
    TooManyStreams {
        /// How many there may be.
        limit: usize,
    },
    /// The read itself failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ServeError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownTimeline(_) => ErrorKind::NotFound,
            Self::NotHeard(_) | Self::NotOpen { .. } => ErrorKind::NotReady,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Overloaded { .. }
            | Self::TooFast { .. }
            | Self::Late { .. }
            | Self::TooManyStreams { .. } => ErrorKind::Throttled,
            Self::Read(error) => error.kind(),
        }
    }

    /// The same and what is so, for programs.
    pub fn fault(&self) -> Fault {
        let reason = match self {
            Self::UnknownTimeline(_) => Reason::UnknownTimeline,
            Self::NotHeard(_) | Self::NotOpen { .. } => Reason::NotOpen,
            Self::Damaged { .. } => Reason::Damaged,
            Self::Overloaded { .. }
            | Self::TooFast { .. }
            | Self::Late { .. }
            | Self::TooManyStreams { .. } => Reason::Overloaded,
            Self::Read(error) => error.reason(),
        };
        Fault::new(self.kind(), reason)
    }
}
