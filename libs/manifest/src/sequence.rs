use bytes::Bytes;
use palimpsest_store::{ObjectStore, StoreError, StorePath};
use palimpsest_types::ErrorKind;

/// Numbered immutable objects below one path; the one with the highest number is the state.
#[derive(Debug, Clone)]
pub struct Sequence {
    store: ObjectStore,
    path: StorePath,
}

/// A state and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// Its number, from 1.
    pub number: u64,
    /// The state.
    pub state: T,
}

/// A state could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum SequenceError {
    /// Someone else replaced the state first: read it again and decide anew.
    #[error("{path} was changed by another writer: number {number} exists")]
    Lost {
        /// The sequence.
        path: String,
        /// The number that exists.
        number: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SequenceError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Lost { .. } => ErrorKind::Conflict,
            Self::Store(error) => error.kind(),
        }
    }
}

impl Sequence {
    /// The sequence below `path`.
    pub fn new(store: ObjectStore, path: StorePath) -> Self {
        Self { store, path }
    }

    /// The newest object, or `None` before the first.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn newest(&self) -> Result<Option<Versioned<Bytes>>, SequenceError> {
        let objects = self.store.list(&self.path).await?;
        let number = objects
            .iter()
            .filter_map(|path| path.file_name()?.parse().ok())
            .max();
        let Some(number) = number else {
            return Ok(None);
        };
        let state = self.store.get(&self.object(number)).await?;
        Ok(Some(Versioned { number, state }))
    }

    /// Replaces the state that has number `after` (0 for none) and returns the new number.
    ///
    /// `state` must differ from any other writer's, by a nonce, because a create that seemed to
    /// fail may have succeeded: then the object is found to hold these very bytes.
    ///
    /// # Errors
    /// [`SequenceError::Lost`] if another writer was first.
    pub async fn append(&self, after: u64, state: Bytes) -> Result<u64, SequenceError> {
        let number = after + 1;
        let object = self.object(number);
        match self.store.create(&object, state.clone()).await {
            Ok(()) => Ok(number),
            Err(StoreError::AlreadyExists { .. }) if self.store.get(&object).await? == state => {
                Ok(number)
            }
            Err(StoreError::AlreadyExists { .. }) => Err(SequenceError::Lost {
                path: self.path.to_string(),
                number,
            }),
            Err(error) => Err(error.into()),
        }
    }

    fn object(&self, number: u64) -> StorePath {
        self.path.child(&format!("{number:020}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_two_changes_to_one_state_one_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(directory.path()).await.unwrap();
        let sequence = Sequence::new(store, StorePath::catalog());
        assert_eq!(sequence.newest().await.unwrap(), None);
        assert_eq!(
            sequence.append(0, Bytes::from_static(b"a")).await.unwrap(),
            1
        );
        assert_eq!(
            sequence.append(1, Bytes::from_static(b"b")).await.unwrap(),
            2
        );
        let lost = sequence.append(1, Bytes::from_static(b"c")).await;
        assert!(matches!(lost, Err(SequenceError::Lost { number: 2, .. })));
        let newest = sequence.newest().await.unwrap().unwrap();
        assert_eq!((newest.number, newest.state), (2, Bytes::from_static(b"b")));
    }

    #[tokio::test]
    async fn a_change_that_was_applied_but_not_acknowledged_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(directory.path()).await.unwrap();
        let sequence = Sequence::new(store, StorePath::catalog());
        for _ in 0..2 {
            assert_eq!(
                sequence
                    .append(0, Bytes::from_static(b"same"))
                    .await
                    .unwrap(),
                1
            );
        }
    }
}
