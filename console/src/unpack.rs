//! A tar archive as files below a directory.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use palimpsest_postgres::{TarDecoder, TarError, TarEvent};

/// Writes an archive's files as its bytes arrive. Nothing is written over.
#[derive(Debug)]
pub(crate) struct Unpacker {
    root: PathBuf,
    /// The directory was not there before.
    is_new: bool,
    decoder: TarDecoder,
    file: Option<(PathBuf, File)>,
}

/// The files can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// There is something in the directory.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The archive is damaged.
    #[error("what page-serve sends is not an archive that can be used")]
    Archive(#[from] TarError),
    /// The archive has what a data directory has not.
    #[error("the archive has a link, {0}, which is not followed")]
    Link(String),
    /// The file system says no.
    #[error("can't write {}", path.display())]
    File {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// PostgreSQL refuses a data directory that others can read.
const DIRECTORY_MODE: u32 = 0o700;

impl Unpacker {
    /// Makes the directory, or takes it if it is empty.
    pub(crate) fn into(root: &Path) -> Result<Self, UnpackError> {
        let is_new = match fs::read_dir(root) {
            Ok(mut entries) => match entries.next() {
                None => false,
                Some(_) => return Err(UnpackError::NotEmpty(root.to_owned())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                directory(root, true)?;
                true
            }
            Err(source) => return Err(failed(root)(source)),
        };
        Ok(Self {
            root: root.to_owned(),
            is_new,
            decoder: TarDecoder::new(),
            file: None,
        })
    }

    /// Writes what these bytes complete.
    pub(crate) fn take(&mut self, mut chunk: Bytes) -> Result<(), UnpackError> {
        while let Some(event) = self.decoder.decode(&mut chunk)? {
            match event {
                TarEvent::Directory { path } => directory(&self.root.join(path), false)?,
                TarEvent::File { path, mode, .. } => {
                    let path = self.root.join(path);
                    let mut options = OpenOptions::new();
                    let file = options.write(true).create_new(true).mode(mode).open(&path);
                    self.file = Some((path.clone(), file.map_err(failed(&path))?));
                }
                TarEvent::Data(data) => {
                    if let Some((path, file)) = &mut self.file {
                        file.write_all(&data).map_err(failed(path))?;
                    }
                }
                TarEvent::FileEnd => self.file = None,
                TarEvent::Symlink { path, .. } => return Err(UnpackError::Link(path)),
            }
        }
        Ok(())
    }

    /// Ends when all of it is on disk.
    pub(crate) fn finish(self) -> Result<(), UnpackError> {
        self.decoder.finish()?;
        let root = File::open(&self.root).map_err(failed(&self.root))?;
        // Of the whole file system, because there may be a hundred thousand files.
        let synced = rustix::fs::syncfs(&root).map_err(io::Error::from);
        synced.map_err(failed(&self.root))
    }

    /// Removes what was written.
    pub(crate) fn undo(self) -> io::Result<()> {
        if self.is_new {
            return fs::remove_dir_all(&self.root);
        }
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }
}

fn directory(path: &Path, with_parents: bool) -> Result<(), UnpackError> {
    let mut builder = DirBuilder::new();
    let made = builder
        .mode(DIRECTORY_MODE)
        .recursive(with_parents)
        .create(path);
    made.map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> UnpackError + use<> {
    let path = path.to_owned();
    |source| UnpackError::File { path, source }
}
