//! Local directories.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use object_store::local::LocalFileSystem;

use crate::error::StoreError;

/// Only the owner may look in: the catalog holds passwords, and pages hold everything else.
const STORE_MODE: u32 = 0o700;

/// Objects as files below a directory, each fsynced before it has its name.
pub(crate) fn open(directory: &Path) -> Result<LocalFileSystem, StoreError> {
    let path = directory.display().to_string();
    make_private(directory).map_err(|source| StoreError::Directory {
        path: path.clone(),
        source,
    })?;
    let local = LocalFileSystem::new_with_prefix(directory)
        .map_err(|source| StoreError::Files { path, source })?;
    Ok(local.with_fsync(true))
}

/// Makes the directory if it does not exist. Its parents are nothing special.
fn make_private(directory: &Path) -> io::Result<()> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(STORE_MODE).create(directory) {
        Err(_) if directory.is_dir() => Ok(()),
        outcome => outcome,
    }
}
