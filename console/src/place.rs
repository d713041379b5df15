//! The data directory of a `pal up`: who runs there, and where its storage-broker is.
//!
//! A lock on `pal.lock`, which the system drops when its holder dies, says that somebody runs
//! there. `pal.json` says who and where; without the lock it is left over and means nothing, and
//! the next one who takes the lock removes it before anything else.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use palimpsest_store::StoreLocation;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// A directory in which this process, and no other, runs the services.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    /// Held as long as this value lives.
    _lock: File,
}

/// What `pal.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Announcement {
    /// The process that runs the services.
    pub pid: u32,
    /// Its storage-broker, as `host:port`.
    pub broker: String,
    /// Where the object store is.
    pub store: StoreLocation,
}

/// The directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Somebody else is there.
    #[error("Palimpsest runs in {} already; `pal down` stops it", dir.display())]
    Taken {
        /// The directory.
        dir: PathBuf,
    },
    /// The system refuses.
    #[error("can't use {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `pal.json` is something else.
    #[error("{} is not what `pal up` writes; remove it", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

const LOCK: &str = "pal.lock";
const ANNOUNCEMENT: &str = "pal.json";
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Who only looks holds the lock for an instant; whoever holds it for longer runs there.
const LOOK_LIMIT: Duration = Duration::from_millis(200);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

impl Place {
    /// As [`Place::claim`], but does not mistake a command that looks who is there for somebody who
    /// runs there.
    ///
    /// # Errors
    /// If somebody runs there, or it can't be written.
    pub async fn claim_patiently(dir: &Path) -> Result<Self, PlaceError> {
        let deadline = Instant::now() + LOOK_LIMIT;
        loop {
            match Self::claim(dir) {
                Err(PlaceError::Taken { .. }) if Instant::now() < deadline => {
                    sleep(LOOK_INTERVAL).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Makes the directory if it is missing, and takes it. What a killed process announced there
    /// goes away.
    ///
    /// # Errors
    /// If somebody runs there or looks who does, or it can't be written.
    pub fn claim(dir: &Path) -> Result<Self, PlaceError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let dir = dir.canonicalize().map_err(at(dir))?;
        let path = dir.join(LOCK);
        let lock = open_lock(&path).map_err(at(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PlaceError::Taken { dir }),
            Err(TryLockError::Error(source)) => return Err(at(&path)(source)),
        }
        // From here on the lock is held, so what is announced is believed. No fsync: if the
        // machine dies the lock is gone, too, and the next owner comes along here again.
        remove_announcement(&dir)?;
        Ok(Self { dir, _lock: lock })
    }

    /// The directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tells other processes where the broker is.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn announce(&self, announcement: &Announcement) -> Result<(), PlaceError> {
        let path = self.dir.join(ANNOUNCEMENT);
        let malformed = |source| PlaceError::Malformed {
            path: path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(announcement).map_err(malformed)?;
        // Nobody may read half of it.
        let unfinished = self.dir.join(format!("{ANNOUNCEMENT}.new"));
        fs::write(&unfinished, text).map_err(at(&unfinished))?;
        fs::rename(&unfinished, &path).map_err(at(&path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Left over, it would do no harm.
        let _ = remove_announcement(&self.dir);
    }
}

/// Who runs in `dir` now, if anybody does.
///
/// # Errors
/// If the files there can't be read.
pub fn look(dir: &Path) -> Result<Option<Announcement>, PlaceError> {
    if !is_taken(dir)? {
        return Ok(None);
    }
    let path = dir.join(ANNOUNCEMENT);
    let text = match fs::read(&path) {
        Ok(text) => text,
        // Taken and not announced yet: about to start.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(at(&path)(source)),
    };
    let announcement = serde_json::from_slice(&text);
    announcement
        .map(Some)
        .map_err(|source| PlaceError::Malformed { path, source })
}

/// Waits until nobody runs in `dir`; false if somebody still does after `limit`.
///
/// # Errors
/// If the files there can't be read.
pub async fn wait_until_free(dir: &Path, limit: Duration) -> Result<bool, PlaceError> {
    let free = async {
        while is_taken(dir)? {
            sleep(POLL_INTERVAL).await;
        }
        Ok(true)
    };
    tokio::time::timeout(limit, free).await.unwrap_or(Ok(false))
}

/// Whether somebody runs in `dir`, announced or not.
///
/// # Errors
/// If the lock can't be looked at.
pub fn is_taken(dir: &Path) -> Result<bool, PlaceError> {
    let path = dir.join(LOCK);
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(at(&path)(source)),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(at(&path)(source)),
    }
}

fn remove_announcement(dir: &Path) -> Result<(), PlaceError> {
    let path = dir.join(ANNOUNCEMENT);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
        _ => Ok(()),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

fn at(path: &Path) -> impl Fn(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |source| PlaceError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement() -> Announcement {
        Announcement {
            pid: 7,
            broker: "127.0.0.1:7700".into(),
            store: Path::new("/data/store").into(),
        }
    }

    #[test]
    fn a_place_has_one_owner_and_tells_where_the_broker_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path()).unwrap(), None);
        let place = Place::claim(dir.path()).unwrap();
        assert_eq!(look(dir.path()).unwrap(), None);
        place.announce(&announcement()).unwrap();
        assert_eq!(look(dir.path()).unwrap(), Some(announcement()));
        let second = Place::claim(dir.path());
        assert!(matches!(second, Err(PlaceError::Taken { .. })));
        drop(place);
        assert_eq!(look(dir.path()).unwrap(), None);
        Place::claim(dir.path()).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_over_means_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "").unwrap();
        let left_over = serde_json::to_vec(&announcement()).unwrap();
        fs::write(dir.path().join(ANNOUNCEMENT), left_over).unwrap();
        assert_eq!(look(dir.path()).unwrap(), None);
        // The next one has the lock and has not announced itself: nobody may take it for the last.
        let _place = Place::claim(dir.path()).unwrap();
        assert_eq!(look(dir.path()).unwrap(), None);
        assert!(is_taken(dir.path()).unwrap());
    }

    #[tokio::test]
    async fn a_look_at_the_place_does_not_take_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(Place::claim(dir.path()).unwrap());
        let looking = File::open(dir.path().join(LOCK)).unwrap();
        looking.try_lock_shared().unwrap();
        let soon = async {
            sleep(LOOK_LIMIT / 4).await;
            drop(looking);
        };
        let (place, ()) = tokio::join!(Place::claim_patiently(dir.path()), soon);
        let _place = place.unwrap();
        let second = Place::claim_patiently(dir.path()).await;
        assert!(matches!(second, Err(PlaceError::Taken { .. })));
    }
}
