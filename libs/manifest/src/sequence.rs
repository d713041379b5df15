//! Numbered immutable objects, of which the newest is the state.
//!
//! # Why a successful create is not yet a success
//!
//! Old objects are deleted: they cost money and may hold secrets. So a number can be free again, and
//! put-if-absent alone no longer decides. Take a writer that has read number 5, is suspended for a
//! minute, and wakes up when the newest is 40 and 6 is long deleted. It creates 6, the store agrees,
//! and a superseded writer believes that it has published. That is the *zombie*.
//!
//! Every object therefore carries a *floor*: nobody has deleted, nor may delete, a number from the
//! floor on while that object is the newest. Floors only rise. After its create a writer reads the
//! newest object: is that floor at or below the writer's number, then the number had never been
//! deleted, its create was the first, and all newer objects come after it. Is it above, the number
//! may be one that was deleted and has now risen again, and the writer has lost.

mod header;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use bytes::Bytes;
use palimpsest_store::{ObjectStore, StoreError, StorePath};
use palimpsest_types::ErrorKind;

pub use header::HeaderError;

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
    ///
    /// Rarely this is said of a change that did happen: if its answer came so late that it is no
    /// longer kept. So decide anew whether the change is still needed.
    #[error("{path} was changed by another writer: number {number} is taken")]
    Lost {
        /// The sequence.
        path: String,
        /// The number that we wanted.
        number: u64,
    },
    /// The object is damaged or of another version.
    #[error("number {number} of {path} can't be read")]
    Damaged {
        /// The sequence.
        path: String,
        /// The object's number.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// It changes faster than it can be read, or objects were removed by hand.
    #[error(
        "no consistent listing of {path}: it changes too fast, or some of its newest objects were removed by hand; try again"
    )]
    Unsettled {
        /// The sequence.
        path: String,
    },
    /// All objects went while one was appended. What was appended would be all there is, so it is
    /// removed again.
    #[error("all objects of {path} before number {number} are gone: they were deleted")]
    Emptied {
        /// The sequence.
        path: String,
        /// The number that was to be appended.
        number: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a sequence has.
enum Contents {
    /// Nothing, or nothing but an object that can't be the first: the rest was deleted.
    Gone {
        left: Option<u64>,
    },
    Newest(Newest),
}

/// The newest object and what was there beside it.
struct Newest {
    number: u64,
    floor: u64,
    state: Bytes,
    numbers: BTreeSet<u64>,
}

/// What a listing says.
#[derive(Debug, PartialEq, Eq)]
enum Survey {
    Empty,
    /// One object is there, and no first one was before it.
    Alone(u64),
    /// Objects vanished while it was made; it may lack the newest.
    Torn,
    Newest(u64),
}

/// Numbers that are kept. Room for a reader that lists, and reads the newest a little later.
const KEPT: u64 = 8;
/// Numbers in a row that a listing must have to be believed: the newest and its predecessors.
const IN_A_ROW: u64 = KEPT / 2;
/// Deletions in one append. Each append makes one object superfluous, so this catches up, too.
const SWEPT_AT_ONCE: usize = 16;
/// Listings until the newest object is found.
const READ_ATTEMPTS: usize = 8;

impl SequenceError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Lost { .. } => ErrorKind::Conflict,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Unsettled { .. } => ErrorKind::NotReady,
            Self::Emptied { .. } => ErrorKind::Fenced,
            Self::Store(error) => error.kind(),
        }
    }
}

impl Sequence {
    /// The sequence below `path`.
    pub fn new(store: ObjectStore, path: StorePath) -> Self {
        Self { store, path }
    }

    /// The newest state, or `None` before the first.
    ///
    /// # Errors
    /// If the store fails or the object is damaged.
    pub async fn newest(&self) -> Result<Option<Versioned<Bytes>>, SequenceError> {
        match self.read_newest().await? {
            Contents::Newest(Newest { number, state, .. }) => Ok(Some(Versioned { number, state })),
            Contents::Gone { left: None } => Ok(None),
            Contents::Gone { left: Some(_) } => Err(self.unsettled()),
        }
    }

    /// Replaces the state that has number `after` (0 for none) and returns the new number. Deletes
    /// some objects that are no longer kept.
    ///
    /// `state` must differ from any other writer's, by a nonce, because a create that seemed to
    /// fail may have succeeded: then the object is found to hold these very bytes. So to call this
    /// again with the same arguments is harmless, and the way to resolve an error of the store.
    ///
    /// # Errors
    /// [`SequenceError::Lost`] if another writer was first, [`SequenceError::Emptied`] if there is
    /// nothing any more to append to. After any other error it is open whether the state was replaced.
    pub async fn append(&self, after: u64, state: Bytes) -> Result<u64, SequenceError> {
        let number = after.saturating_add(1);
        // The floor follows from the number, so that a repeat makes the same bytes.
        let object = header::join(floor(number), &state);
        if !self.put(number, object).await? {
            return Err(self.lost(number));
        }
        let newest = match self.read_newest().await? {
            Contents::Newest(newest) => newest,
            Contents::Gone { left } if left.is_none_or(|left| left == number) => {
                self.store.delete(&self.object(number)).await?;
                return Err(self.emptied(number));
            }
            Contents::Gone { .. } => return Err(self.unsettled()),
        };
        let counts = newest.number == number || newest.floor <= number;
        // A zombie is below the floor and goes with the rest.
        self.sweep(&newest).await;
        if counts {
            Ok(number)
        } else {
            Err(self.lost(number))
        }
    }

    /// Creates an object; whether it holds our bytes now.
    async fn put(&self, number: u64, object: Bytes) -> Result<bool, SequenceError> {
        let path = self.object(number);
        match self.store.create(&path, object.clone()).await {
            Ok(()) => Ok(true),
            Err(StoreError::AlreadyExists { .. }) => match self.store.get(&path).await {
                Ok(found) => Ok(found == object),
                // Deleted meanwhile: whosever it was, the state has moved on a long way.
                Err(StoreError::NotFound { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    async fn read_newest(&self) -> Result<Contents, SequenceError> {
        let (mut empty, mut alone) = (false, 0);
        for _ in 0..READ_ATTEMPTS {
            let numbers = self.numbers().await?;
            let number = match survey(&numbers) {
                Survey::Newest(number) => number,
                // Much depends on it being empty, so one listing is not believed.
                Survey::Empty if empty => return Ok(Contents::Gone { left: None }),
                Survey::Empty => {
                    empty = true;
                    continue;
                }
                // Nor is any but the last possible one here, as a torn listing looks like this, too.
                Survey::Alone(number) => {
                    alone += 1;
                    if alone == READ_ATTEMPTS {
                        let left = Some(number);
                        return Ok(Contents::Gone { left });
                    }
                    continue;
                }
                Survey::Torn => continue,
            };
            let object = match self.store.get(&self.object(number)).await {
                Ok(object) => object,
                // Others replaced it many times since the listing.
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let (floor, state) =
                header::split(&object).map_err(|source| SequenceError::Damaged {
                    path: self.path.to_string(),
                    number,
                    source,
                })?;
            return Ok(Contents::Newest(Newest {
                number,
                floor,
                state,
                numbers,
            }));
        }
        Err(self.unsettled())
    }

    async fn numbers(&self) -> Result<BTreeSet<u64>, SequenceError> {
        let objects = self.store.list(&self.path).await?;
        Ok(objects.iter().filter_map(number_of).collect())
    }

    /// Deletes what is below the floor, lowest first. What fails is tried again by the next append.
    async fn sweep(&self, newest: &Newest) {
        let superfluous = newest.numbers.range(..newest.floor);
        for number in superfluous.copied().take(SWEPT_AT_ONCE) {
            let path = self.object(number);
            if let Err(error) = self.store.delete(&path).await {
                tracing::debug!(%path, error = &error as &dyn std::error::Error, "an old state is not deleted yet");
                return;
            }
        }
    }

    fn object(&self, number: u64) -> StorePath {
        self.path.child(&format!("{number:020}"))
    }

    fn lost(&self, number: u64) -> SequenceError {
        SequenceError::Lost {
            path: self.path.to_string(),
            number,
        }
    }

    fn emptied(&self, number: u64) -> SequenceError {
        SequenceError::Emptied {
            path: self.path.to_string(),
            number,
        }
    }

    fn unsettled(&self) -> SequenceError {
        SequenceError::Unsettled {
            path: self.path.to_string(),
        }
    }
}

/// The floor that the object with this number carries: the lowest number that is kept beside it.
pub(crate) fn floor(number: u64) -> u64 {
    number.saturating_sub(KEPT - 1).max(1)
}

/// The state that an object of a sequence holds.
pub(crate) fn state_of(object: &Bytes) -> Result<Bytes, HeaderError> {
    header::split(object).map(|(_, state)| state)
}

/// The newest number of a listing, if the listing can be believed.
///
/// A local directory is listed name by name. While that takes place others may append and sweep, so
/// that of all the names only a zombie's is left. But nobody deletes the newest numbers, so a
/// listing that has the newest has those right before it, while a zombie stands alone.
fn survey(numbers: &BTreeSet<u64>) -> Survey {
    let Some(newest) = numbers.last().copied() else {
        return Survey::Empty;
    };
    let from = newest.saturating_sub(IN_A_ROW - 1).max(1);
    if numbers.range(from..).count() as u64 == newest - from + 1 {
        Survey::Newest(newest)
    } else if numbers.len() == 1 {
        Survey::Alone(newest)
    } else {
        Survey::Torn
    }
}

/// The number that an object is named after; other names are not ours.
fn number_of(path: &StorePath) -> Option<u64> {
    let name = path.file_name()?;
    let ours = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    let number = ours.then(|| name.parse::<u64>().ok()).flatten()?;
    (1..u64::MAX).contains(&number).then_some(number)
}
