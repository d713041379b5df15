//! Local directories.

use std::{
    fs::{self, DirBuilder, File},
    io,
    ops::Range,
    os::unix::fs::{DirBuilderExt as _, FileExt as _},
    path::Path,
};

use bytes::Bytes;
use object_store::{local::LocalFileSystem, path::Path as RawPath};

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

/// A range of an object, as `LocalFileSystem::get_range` has it, but read by the calling thread.
pub(crate) fn read(
    files: &LocalFileSystem,
    path: &RawPath,
    range: Range<u64>,
) -> object_store::Result<Bytes> {
    let file_path = files.path_to_filesystem(path)?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => object_store::Error::NotFound {
            path: file_path.display().to_string(),
            source: error.into(),
        },
        _ => object_store::Error::Generic {
            store: "LocalFileSystem",
            source: error.into(),
        },
    };
    let file = File::open(&file_path).map_err(failed)?;
    // What a damaged index claims is not believed.
    let len = file.metadata().map_err(failed)?.len();
    if range.start >= range.end.min(len) {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    let size = range.end.min(len).saturating_sub(range.start);
    let size = usize::try_from(size).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, range.start)
        .map_err(failed)?;
    Ok(bytes.into())
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
