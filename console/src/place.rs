//! The data directory of a `pal up`: who runs there, and where its storage-broker is.
//!
//! A lock on `pal.lock`, which the system drops when its holder dies, says that somebody runs
//! there. `pal.json` says who and where; without the lock it is left over and means nothing.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

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
    /// The directory that is the object store.
    pub store: PathBuf,
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

impl Place {
    /// Makes the directory if it is missing, and takes it.
    ///
    /// # Errors
    /// If somebody runs there, or it can't be written.
    pub fn claim(dir: &Path) -> Result<Self, PlaceError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let dir = dir.canonicalize().map_err(at(dir))?;
        let path = dir.join(LOCK);
        let lock = open_lock(&path).map_err(at(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(PlaceError::Taken { dir }),
            Err(TryLockError::Error(source)) => Err(at(&path)(source)),
        }
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
        let _ = fs::remove_file(self.dir.join(ANNOUNCEMENT));
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
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(true)
    };
    tokio::time::timeout(limit, free).await.unwrap_or(Ok(false))
}

fn is_taken(dir: &Path) -> Result<bool, PlaceError> {
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
            store: "/data/store".into(),
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
    }
}
