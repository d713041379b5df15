use palimpsest_api::TimelineRef;
use palimpsest_read::ReadError;
use palimpsest_types::ErrorKind;

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
            Self::Read(error) => error.kind(),
        }
    }
}
