use palimpsest_api::TimelineRef;
use palimpsest_layer::delta_file::WriteDeltaLayerError;
use palimpsest_manifest::{ClaimError, InvalidManifestError, ManifestError, UpdateError};
use palimpsest_read::{ReadError, StoredError};
use palimpsest_store::StoreError;
use palimpsest_types::{ByteCount, ErrorKind};
use tokio::task::JoinError;

/// A compaction came to nothing. The timeline is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// A layer that is compacted can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The timeline, or what it begins on, can't be read.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// What was read is not what a layer can hold.
    #[error("what was read of the layers can't be written as one")]
    Write(#[from] WriteDeltaLayerError),
    /// A layer can't be put into the object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest can't be read or changed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Another compactor works on the timeline.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The manifest does not take the new layers.
    #[error("the manifest refuses the layers that were made")]
    Refused(#[from] InvalidManifestError),
    /// A file said one thing when it was read first, and another later.
    #[error("a layer that is compacted refers to a record that it did not refer to before")]
    Inconsistent,
    /// A part of what is compacted has more than its index told.
    #[error("a layer would become larger than {most}")]
    TooLarge {
        /// What layers may have.
        most: ByteCount,
    },
    /// Who waits for the thread that does the work panicked.
    #[error("the compaction ended in a panic")]
    Panicked(#[source] JoinError),
    /// There can be no thread for the work.
    #[error(
        "there can be no thread for the compaction; raise the limit of tasks (ulimit -u, TasksMax)"
    )]
    Thread(#[source] std::io::Error),
    /// The thread that did the work panicked.
    #[error("the compaction ended in a panic; its text is in the log before this")]
    ThreadPanicked,
    /// Memory is for one compaction at a time.
    #[error("this compactor works on something else; ask again when it is done")]
    Busy,
    /// It is being deleted, or was.
    #[error("the timeline is deleted while it is compacted")]
    Deleted,
    /// It was never attached or is deleted, or this compactor has just been started.
    #[error(
        "the storage-broker tells of no timeline {0}; it was deleted or never attached, unless this \
         compactor was started a moment ago: then ask again"
    )]
    NotKnown(TimelineRef),
    /// It has no manifest: it was never attached, or its base backup is not complete.
    #[error("there is no timeline {0} in the object store")]
    NoTimeline(TimelineRef),
    /// The work was told to end.
    #[error("the compaction was told to end")]
    Stopped,
}

impl CompactError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(error) => error.kind(),
            Self::Stored(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Manifest(error) => error.kind(),
            Self::Claim(ClaimError::Taken { .. }) => ErrorKind::Conflict,
            Self::Claim(ClaimError::NoMoreEpochs) => ErrorKind::Internal,
            Self::NoTimeline(_) | Self::NotKnown(_) | Self::Deleted => ErrorKind::NotFound,
            Self::Busy => ErrorKind::Conflict,
            Self::Stopped => ErrorKind::NotReady,
            Self::Write(_)
            | Self::Refused(_)
            | Self::Inconsistent
            | Self::TooLarge { .. }
            | Self::Panicked(_)
            | Self::ThreadPanicked => ErrorKind::Internal,
            Self::Thread(_) => ErrorKind::Throttled,
        }
    }

    /// Whether another compactor has the timeline now, or nobody, which is nothing to worry about.
    pub fn is_of_another(&self) -> bool {
        matches!(
            self,
            Self::Claim(ClaimError::Taken { .. })
                | Self::Manifest(ManifestError::Superseded { .. } | ManifestError::Gone)
                | Self::Deleted
                | Self::NotKnown(_)
        )
    }
}

/// What a failure says of what was to be done.
impl CompactError {
    /// Whether what is in the layers is to blame, so that it will be the same the next time.
    pub(super) fn is_of_the_layers(&self) -> bool {
        match self {
            Self::Read(error) => error.kind() == ErrorKind::Corrupt,
            Self::Stored(error) => error.kind() == ErrorKind::Corrupt,
            Self::Write(_)
            | Self::Refused(_)
            | Self::Inconsistent
            | Self::TooLarge { .. }
            | Self::Panicked(_)
            | Self::ThreadPanicked => true,
            Self::Store(_)
            | Self::Manifest(_)
            | Self::Claim(_)
            | Self::Thread(_)
            | Self::Busy
            | Self::Deleted
            | Self::NotKnown(_)
            | Self::NoTimeline(_)
            | Self::Stopped => false,
        }
    }

    /// Whether no manifest can name what should have been published. After other errors one may, by an answer
    /// that was lost.
    pub(super) fn leaves_nothing_published(&self) -> bool {
        matches!(self, Self::Manifest(ManifestError::Gone) | Self::Refused(_))
    }
}

impl From<UpdateError<ClaimError>> for CompactError {
    fn from(error: UpdateError<ClaimError>) -> Self {
        match error {
            UpdateError::Edit(error) => error.into(),
            UpdateError::Manifest(error) => error.into(),
        }
    }
}

impl From<UpdateError<InvalidManifestError>> for CompactError {
    fn from(error: UpdateError<InvalidManifestError>) -> Self {
        match error {
            UpdateError::Edit(error) => error.into(),
            UpdateError::Manifest(error) => error.into(),
        }
    }
}
