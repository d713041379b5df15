use palimpsest_api::TimelineRef;
use palimpsest_read::ReadError;
use palimpsest_types::ErrorKind;

/// A request could not be served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServeError {
    /// Nobody knows this timeline.
    #[error("there is no timeline {0}")]
    UnknownTimeline(TimelineRef),
    /// The timeline exists and can't be read yet.
    #[error("timeline {timeline} can't be read yet: {why}")]
    NotOpen {
        /// Which.
        timeline: TimelineRef,
        /// What is missing.
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
            Self::NotOpen { .. } => ErrorKind::NotReady,
            Self::Read(error) => error.kind(),
        }
    }
}
