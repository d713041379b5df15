//! Which private directories are in use, and the removal of those that a killed process left.
//!
//! Each directory holds a file that its owner keeps locked. The system drops the lock when the
//! owner dies, however it dies, and a directory whose lock is free belongs to nobody.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, open, openat},
    process::geteuid,
};

use crate::RunAs;

/// What the names of private directories begin with.
pub(crate) const PREFIX: &str = "palimpsest-redo-";
const LOCK: &str = "palimpsest.lock";

/// Marks a new directory as in use for as long as the file is open.
pub(crate) fn claim(directory: &Path) -> io::Result<File> {
    // Under its name the file has been locked from the first moment on, so that nobody who looks
    // around just then takes the directory for an abandoned one.
    let unfinished = directory.join(format!("{LOCK}.new"));
    let lock = File::create_new(&unfinished)?;
    lock.try_lock()?;
    fs::rename(&unfinished, directory.join(LOCK))?;
    Ok(lock)
}

/// Removes the directories in `scratch` whose owners have died. What can't be removed, or may
/// belong to somebody else, stays.
pub(crate) fn remove_abandoned(scratch: &Path, run_as: Option<RunAs>) {
    let entries = match fs::read_dir(scratch) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::debug!(scratch = %scratch.display(), %error, "can't look for redo directories");
            return;
        }
    };
    for entry in entries.flatten() {
        if !entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes())
        {
            continue;
        }
        let path = entry.path();
        // The lock is held until the directory is gone: of two that look, one removes it.
        let Some(_lock) = abandoned(&path, run_as) else {
            continue;
        };
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed what a killed process left"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "can't remove a redo directory");
            }
        }
    }
}

/// The lock of a directory, if it is one of ours and nobody holds it. Anybody may make entries in a
/// directory for temporary files, so nothing is believed by its name, and no link is followed.
fn abandoned(path: &Path, run_as: Option<RunAs>) -> Option<File> {
    let ours = geteuid().as_raw();
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let directory = File::from(open(path, flags | OFlags::DIRECTORY, Mode::empty()).ok()?);
    let owner = directory.metadata().ok()?.uid();
    // The one whom a process runs as can't make the lock, which is a file of our own.
    if owner != ours && Some(owner) != run_as.map(|run_as| run_as.uid) {
        return None;
    }
    // A pipe of this name must not make us wait.
    let lock = openat(&directory, LOCK, flags | OFlags::NONBLOCK, Mode::empty()).ok()?;
    let lock = File::from(lock);
    let metadata = lock.metadata().ok()?;
    let genuine = metadata.is_file() && metadata.uid() == ours && metadata.nlink() == 1;
    (genuine && lock.try_lock().is_ok()).then_some(lock)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::PathBuf};

    use super::*;

    /// A directory with something in it, as a killed process leaves it.
    fn left_over(scratch: &Path, name: &str) -> PathBuf {
        let path = scratch.join(name);
        fs::create_dir_all(path.join("global")).unwrap();
        fs::write(path.join("global/pg_control"), "x").unwrap();
        drop(claim(&path).unwrap());
        path
    }

    #[test]
    fn a_directory_goes_when_its_owner_is_dead_and_not_before() {
        let scratch = tempfile::tempdir().unwrap();
        let dead = left_over(scratch.path(), "palimpsest-redo-dead");
        let living = left_over(scratch.path(), "palimpsest-redo-living");
        let lock = File::open(living.join(LOCK)).unwrap();
        lock.try_lock().unwrap();
        remove_abandoned(scratch.path(), None);
        assert!(!dead.exists() && living.join("global/pg_control").exists());
        drop(lock);
        remove_abandoned(scratch.path(), None);
        assert!(!living.exists());
    }

    #[test]
    fn a_new_directory_is_locked_when_its_lock_appears() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("palimpsest-redo-new");
        fs::create_dir(&path).unwrap();
        remove_abandoned(scratch.path(), None);
        let lock = claim(&path).unwrap();
        remove_abandoned(scratch.path(), None);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        drop(lock);
    }

    #[test]
    fn what_may_be_somebody_elses_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let target = left_over(elsewhere.path(), "palimpsest-redo-target");
        let at = |name: &str| scratch.path().join(name);

        let other_name = left_over(scratch.path(), "palimpsest-other");
        symlink(&target, at("palimpsest-redo-link")).unwrap();
        fs::write(at("palimpsest-redo-file"), "").unwrap();
        for name in ["unlocked", "linked", "hard-linked"] {
            fs::create_dir(at(&format!("{PREFIX}{name}"))).unwrap();
        }
        symlink(target.join(LOCK), at("palimpsest-redo-linked").join(LOCK)).unwrap();
        fs::hard_link(
            target.join(LOCK),
            at("palimpsest-redo-hard-linked").join(LOCK),
        )
        .unwrap();

        remove_abandoned(scratch.path(), None);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 6);
        assert!(other_name.exists() && target.join("global/pg_control").exists());
    }

    #[test]
    fn another_users_directory_stays() {
        if !geteuid().is_root() {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let other = RunAs {
            uid: 65534,
            gid: 65534,
        };
        let theirs = left_over(scratch.path(), "palimpsest-redo-theirs");
        std::os::unix::fs::chown(&theirs, Some(other.uid), Some(other.gid)).unwrap();
        remove_abandoned(scratch.path(), None);
        assert!(theirs.exists());
        // Given to the user whom our processes run as, it is ours.
        remove_abandoned(scratch.path(), Some(other));
        assert!(!theirs.exists());

        let forged = left_over(scratch.path(), "palimpsest-redo-forged");
        std::os::unix::fs::chown(forged.join(LOCK), Some(other.uid), None).unwrap();
        remove_abandoned(scratch.path(), Some(other));
        assert!(forged.exists());
    }
}
