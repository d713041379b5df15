//! Whose turn it is to attach a timeline.
//!
//! An attach takes long, and the one who does it may be halted meanwhile, for so long that another
//! is asked to. Then the first must neither complete its own work, whose WAL and files are gone by
//! then, nor undo that of the other. So an attempt *begins*, is *completed* and is *undone* by one
//! numbered object each, and creating a number is what decides: whoever begins takes the number that
//! the one before would have needed to complete.
//!
//! ```text
//! 1 begun by A   2 begun by B   3 completed by B     A can't create 2 any more
//! 1 begun by A   2 completed by A                    B finds it, and publishes the manifest
//! 1 begun by A   2 begun by A    3 undone by A       A gave up; 2 can't be "completed" any more
//! ```
//!
//! Giving up takes a number as well. A create that seemed to fail may have succeeded, or succeed yet,
//! so nobody knows that an attempt was not completed before the number for that is taken.

use std::time::Duration;

use palimpsest_manifest::{
    EnvelopeError, LayerEntry, Sequence, SequenceError, SourceCluster, Versioned, open, seal,
};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ErrorKind, Lsn};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The attempts to attach one timeline.
#[derive(Debug, Clone)]
pub(crate) struct Attempts(Sequence);

/// An attempt of ours.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    number: u64,
    nonce: u128,
    slot: String,
}

/// What has become of an attempt of ours that was to be given up.
#[derive(Debug)]
pub(crate) enum Fate {
    /// It can't be completed any more, and what it has made is ours to remove.
    Abandoned(Abandoned),
    /// It was completed, though we heard of an error: it stays.
    Completed(BaseBackup),
    /// Nothing is left of it.
    Undone,
    /// Another was begun since: what there is now may be the other's.
    Lost,
}

/// An attempt that was given up, but not undone yet.
#[derive(Debug)]
pub(crate) struct Abandoned(Attempt);

/// How far the newest attempt has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Progress {
    /// The slot of this name may exist, and is ours; layers may be stored.
    Begun {
        /// The slot.
        slot: String,
    },
    /// This is what the first manifest says.
    Completed(BaseBackup),
    /// Nothing is left of it.
    Undone,
}

/// A base backup whose layers are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BaseBackup {
    /// Of what.
    pub(crate) source: SourceCluster,
    /// WAL is applied from here on.
    pub(crate) start: Lsn,
    /// From here on it can be read.
    pub(crate) end: Lsn,
    /// All of it.
    pub(crate) layers: Vec<LayerEntry>,
}

/// The state of the attempts can't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The objects.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// One of them is damaged.
    #[error("number {number} of the attempts to attach can't be read")]
    Damaged {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: EnvelopeError,
    },
    /// It can't be written down.
    #[error("the progress of an attach can't be written as JSON")]
    Encode(#[source] serde_json::Error),
}

/// What one object holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    /// Differs from attempt to attempt, so that a create whose answer was lost is recognised.
    nonce: u128,
    progress: Progress,
}

const MAGIC: [u8; 4] = *b"PALA";
const VERSION: u32 = 1;
/// Tries to create one object; a repeat finds out whether a failure was one.
const APPENDS: usize = 3;
const PAUSE: Duration = Duration::from_millis(100);

impl AttemptError {
    /// What the caller may do; a conflict is another attempt's doing.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Sequence(error) => error.kind(),
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Encode(_) => ErrorKind::Internal,
        }
    }

    /// Whether it is another's turn now.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Sequence(SequenceError::Lost { .. }))
    }
}

impl Attempts {
    /// Those of the timeline whose objects are below `path`.
    pub(crate) fn new(store: ObjectStore, path: &StorePath) -> Self {
        Self(Sequence::new(store, path.child("attach")))
    }

    /// The newest state and its number; `None` before the first attempt.
    pub(crate) async fn newest(&self) -> Result<Option<Versioned<Progress>>, AttemptError> {
        let newest = self.read().await?;
        Ok(newest.map(|(number, Object { progress, .. })| Versioned {
            number,
            state: progress,
        }))
    }

    /// Begins one in the place of state number `after`, 0 for none. From now on no earlier attempt
    /// can be completed.
    pub(crate) async fn begin(&self, after: u64, slot: String) -> Result<Attempt, AttemptError> {
        let nonce = rand::random();
        let progress = Progress::Begun { slot: slot.clone() };
        let number = self.append(after, nonce, progress).await?;
        Ok(Attempt {
            number,
            nonce,
            slot,
        })
    }

    /// Whether it is still under way: not completed, and nobody has begun another since.
    pub(crate) async fn is_ours(&self, attempt: &Attempt) -> Result<bool, AttemptError> {
        let newest = self.read().await?;
        Ok(newest.is_some_and(|(_, object)| {
            object.nonce == attempt.nonce && matches!(object.progress, Progress::Begun { .. })
        }))
    }

    /// Completes an attempt: who comes next publishes this.
    pub(crate) async fn complete(
        &self,
        attempt: &Attempt,
        backup: BaseBackup,
    ) -> Result<(), AttemptError> {
        let progress = Progress::Completed(backup);
        let appended = self.append(attempt.number, attempt.nonce, progress).await;
        appended.map(drop)
    }

    /// Gives up an attempt, unless it is too late for that. Can be repeated.
    pub(crate) async fn abandon(&self, attempt: &Attempt) -> Result<Fate, AttemptError> {
        let progress = Progress::Begun {
            slot: attempt.slot.clone(),
        };
        match self.append(attempt.number, attempt.nonce, progress).await {
            Err(error) if !error.is_lost() => Err(error),
            // A repeat finds its own object, whatever came after it; and who has lost may have lost
            // to itself.
            Ok(_) | Err(_) => self.fate(attempt).await,
        }
    }

    /// Says that an attempt has left nothing behind.
    pub(crate) async fn undone(&self, abandoned: &Abandoned) -> Result<(), AttemptError> {
        let Abandoned(attempt) = abandoned;
        let appended = self.append(attempt.number, attempt.nonce, Progress::Undone);
        appended.await.map(drop)
    }

    /// What the newest state says of an attempt.
    async fn fate(&self, attempt: &Attempt) -> Result<Fate, AttemptError> {
        let newest = self.read().await?;
        let Some((number, object)) = newest.filter(|(_, object)| object.nonce == attempt.nonce)
        else {
            return Ok(Fate::Lost);
        };
        Ok(match object.progress {
            Progress::Begun { slot } => Fate::Abandoned(Abandoned(Attempt {
                number,
                slot,
                ..*attempt
            })),
            Progress::Completed(backup) => Fate::Completed(backup),
            Progress::Undone => Fate::Undone,
        })
    }

    async fn read(&self) -> Result<Option<(u64, Object)>, AttemptError> {
        let Some(Versioned { number, state }) = self.0.newest().await? else {
            return Ok(None);
        };
        let object = open(MAGIC, VERSION, &state);
        let object = object.map_err(|source| AttemptError::Damaged { number, source })?;
        Ok(Some((number, object)))
    }

    async fn append(
        &self,
        after: u64,
        nonce: u128,
        progress: Progress,
    ) -> Result<u64, AttemptError> {
        let object = Object { nonce, progress };
        let object = seal(MAGIC, VERSION, &object).map_err(AttemptError::Encode)?;
        let mut tried = 1;
        loop {
            match self.0.append(after, object.clone()).await {
                Err(error) if error.kind() == ErrorKind::NotReady && tried < APPENDS => {
                    tried += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => return Ok(outcome?),
            }
        }
    }
}

impl Attempt {
    /// What the names of its layers have in common, and no other attempt's.
    pub(crate) fn tag(&self) -> u64 {
        // The lower half is as random as the whole.
        self.nonce as u64
    }

    /// Whether a layer of this name is one of its own.
    pub(crate) fn made(&self, name: &str) -> bool {
        name.contains(&format!("-{:016x}-", self.tag()))
    }
}
