//! The catalog in the object store: numbered objects `catalog/N`, magic `PALC`, version 1.
//!
//! A connection string may hold a password. It is out of the store once the tenant is deleted and
//! the catalog was changed a few times more, because old numbers do not stay.

#[cfg(test)]
mod tests;

use std::time::SystemTime;

use palimpsest_api::TimelineRef;
use palimpsest_manifest::{EnvelopeError, Sequence, SequenceError, Versioned, open, seal};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ErrorKind, Fault, unix_ms};

use super::catalog::{Catalog, CatalogError, Change};

/// Reads and replaces the catalog.
#[derive(Debug, Clone)]
pub struct CatalogStore {
    sequence: Sequence,
}

/// The catalog could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogStoreError {
    /// The catalog does not allow it.
    #[error(transparent)]
    Refused(#[from] CatalogError),
    /// Reading or replacing the object failed.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// The object is damaged or of another version.
    #[error("catalog number {number} can't be read")]
    Damaged {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: EnvelopeError,
    },
    /// The catalog could not be written down.
    #[error("the catalog can't be encoded")]
    Encode(#[source] serde_json::Error),
    /// It took so long that what the change needs may be gone.
    #[error("it took too long, and nothing was changed; try again")]
    Overdue,
    /// Others changed it each time before we could.
    #[error("other storage-brokers keep changing the catalog; try again")]
    Contended,
}

const MAGIC: [u8; 4] = *b"PALC";
const VERSION: u32 = 1;
/// How often a change is made anew because another broker's came first.
const ATTEMPTS: usize = 16;

impl CatalogStoreError {
    /// What the caller may do and, where that is known, what is so.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Refused(error) => error.fault(),
            _ => self.kind().into(),
        }
    }

    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(error) => error.kind(),
            Self::Sequence(error) => error.kind(),
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Encode(_) => ErrorKind::Internal,
            Self::Contended | Self::Overdue => ErrorKind::NotReady,
        }
    }
}

impl CatalogStore {
    /// The catalog of this store.
    pub fn new(store: ObjectStore) -> Self {
        Self {
            sequence: Sequence::new(store, StorePath::catalog()),
        }
    }

    /// The newest catalog; the empty one, number 0, before the first change.
    ///
    /// # Errors
    /// If it can't be read.
    pub async fn newest(&self) -> Result<Versioned<Catalog>, CatalogStoreError> {
        let Some(Versioned { number, state }) = self.sequence.newest().await? else {
            return Ok(Versioned {
                number: 0,
                state: Catalog::default(),
            });
        };
        let state = open(MAGIC, VERSION, &state)
            .map_err(|source| CatalogStoreError::Damaged { number, source })?;
        Ok(Versioned { number, state })
    }

    /// Changes the newest catalog durably, made anew if another broker's change came first. Gives
    /// the catalog with the change and the timeline that it is about.
    ///
    /// # Errors
    /// If the catalog does not allow it or the store fails.
    pub async fn change(
        &self,
        change: &Change,
    ) -> Result<(Versioned<Catalog>, TimelineRef), CatalogStoreError> {
        for _ in 0..ATTEMPTS {
            let before = self.newest().await?;
            let mut state = before.state.clone();
            let timeline = state.apply(change)?;
            let now = unix_ms(SystemTime::now());
            if change.before_unix_ms().is_some_and(|before| now >= before) {
                return Err(CatalogStoreError::Overdue);
            }
            if state == before.state {
                return Ok((before, timeline));
            }
            state.nonce = rand::random();
            let object = seal(MAGIC, VERSION, &state).map_err(CatalogStoreError::Encode)?;
            match self.sequence.append(before.number, object).await {
                Ok(number) => return Ok((Versioned { number, state }, timeline)),
                // Should it have happened nevertheless, the catalog finds nothing left to change.
                Err(SequenceError::Lost { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogStoreError::Contended)
    }
}
