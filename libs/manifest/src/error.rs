use palimpsest_store::StoreError;
use palimpsest_types::ErrorKind;

use crate::{
    envelope::EnvelopeError, publisher::Publisher, sequence::SequenceError,
    validate::InvalidManifestError,
};

/// A manifest could not be read or published.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Reading or replacing the object failed.
    #[error(transparent)]
    Sequence(SequenceError),
    /// The object is damaged or of another version.
    #[error("manifest number {number} can't be read")]
    Damaged {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: EnvelopeError,
    },
    /// The object says what can't be.
    #[error("manifest number {number} contradicts itself")]
    Contradiction {
        /// Its number.
        number: u64,
        /// How.
        #[source]
        source: InvalidManifestError,
    },
    /// What should be published can't be.
    #[error("the change would leave a manifest that contradicts itself")]
    Refused(#[source] InvalidManifestError),
    /// A list of layers is damaged or of another version.
    #[error("layer list {list} can't be read")]
    List {
        /// Its path.
        list: String,
        /// What is wrong with it.
        #[source]
        source: EnvelopeError,
    },
    /// A list of layers is not there.
    #[error("layer list {list}, which the newest manifest refers to, does not exist")]
    MissingList {
        /// Its path.
        list: String,
    },
    /// The store failed at a list of layers.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There was one, and there is none any more.
    #[error("the timeline's manifests are gone: it was deleted")]
    Gone,
    /// Another has taken over.
    #[error("the manifest is of {newest} now, and {ours} may not change it any more")]
    Superseded {
        /// Who wanted to publish.
        ours: Publisher,
        /// Who may.
        newest: Publisher,
    },
    /// Others changed it each time before we could.
    #[error("others keep changing the manifest; try again")]
    Contended,
    /// The manifest could not be written down.
    #[error("the manifest can't be encoded")]
    Encode(#[source] serde_json::Error),
}

/// A manifest could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E: std::error::Error + 'static> {
    /// It does not allow the change.
    #[error(transparent)]
    Edit(E),
    /// It could not be read or published.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl From<SequenceError> for ManifestError {
    fn from(error: SequenceError) -> Self {
        match error {
            SequenceError::Emptied { .. } => Self::Gone,
            error => Self::Sequence(error),
        }
    }
}

impl ManifestError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Sequence(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Damaged { .. }
            | Self::Contradiction { .. }
            | Self::List { .. }
            | Self::MissingList { .. } => ErrorKind::Corrupt,
            Self::Superseded { .. } | Self::Gone => ErrorKind::Fenced,
            Self::Contended => ErrorKind::NotReady,
            Self::Refused(_) | Self::Encode(_) => ErrorKind::Internal,
        }
    }
}
