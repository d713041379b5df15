//! A tar archive as files below a directory.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    str::FromStr,
};

use bytes::Bytes;
use palimpsest_postgres::{TarDecoder, TarError, TarEvent};
use palimpsest_types::Oid;

/// Writes an archive's files as its bytes arrive. Nothing is written over.
#[derive(Debug)]
pub(crate) struct Unpacker {
    root: PathBuf,
    /// What we have made and is not within something else that we have made, in order.
    made: Vec<PathBuf>,
    decoder: TarDecoder,
    file: Option<(PathBuf, File)>,
    /// Tablespaces that are to be elsewhere.
    mappings: Vec<Mapping>,
    /// The directories of those that are, each with what leads there.
    outside: Vec<(PathBuf, PathBuf)>,
}

/// Where a tablespace is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Its object id.
    pub tablespace: Oid,
    /// The directory that is to hold it.
    pub directory: PathBuf,
}

/// The text does not say where a tablespace is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a tablespace's object id and a directory, as 16385=/mnt/fast")]
pub struct ParseMappingError;

impl FromStr for Mapping {
    type Err = ParseMappingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tablespace, directory) = text.split_once('=').ok_or(ParseMappingError)?;
        let tablespace = tablespace.parse().map_err(|_| ParseMappingError)?;
        match directory {
            "" => Err(ParseMappingError),
            directory => Ok(Self {
                tablespace,
                directory: directory.into(),
            }),
        }
    }
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
    /// A tablespace that is to be elsewhere is not there.
    #[error("there is no tablespace {0} at that LSN")]
    NoTablespace(Oid),
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
    pub(crate) fn into(root: &Path, mappings: Vec<Mapping>) -> Result<Self, UnpackError> {
        let made = empty_directory(root)?;
        Ok(Self {
            root: root.to_owned(),
            made,
            decoder: TarDecoder::new(),
            file: None,
            mappings,
            outside: Vec::new(),
        })
    }

    /// Writes what these bytes complete.
    pub(crate) fn take(&mut self, mut chunk: Bytes) -> Result<(), UnpackError> {
        while let Some(event) = self.decoder.decode(&mut chunk)? {
            match event {
                TarEvent::Directory { path } => self.directory(&path)?,
                TarEvent::File { path, mode, .. } => {
                    let path = self.root.join(path);
                    let mut options = OpenOptions::new();
                    let file = options.write(true).create_new(true).mode(mode).open(&path);
                    let file = file.map_err(failed(&path))?;
                    self.note(&path);
                    self.file = Some((path, file));
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

    /// A directory, or a link to where a tablespace is to be.
    fn directory(&mut self, path: &str) -> Result<(), UnpackError> {
        let at = self.root.join(path);
        let tablespace = path
            .strip_prefix("pg_tblspc/")
            .and_then(|name| name.parse().ok());
        let mapping = |mapping: &Mapping| Some(mapping.tablespace) == tablespace;
        let Some(found) = self.mappings.iter().position(mapping) else {
            make_directory(&at)?;
            self.note(&at);
            return Ok(());
        };
        let outside = self.mappings.swap_remove(found).directory;
        let made = empty_directory(&outside)?;
        // The server resolves it from where it runs.
        let target = outside.canonicalize().map_err(failed(&outside))?;
        self.made.extend(made.iter().map(|_| target.clone()));
        symlink(&target, &at).map_err(failed(&at))?;
        self.outside.push((target, at));
        Ok(())
    }

    /// Something was made. What it is in is ours already, or a directory that was there before.
    fn note(&mut self, path: &Path) {
        let is_of = |directory: &Path| path.parent() == Some(directory);
        let leads = |(_, link): &(PathBuf, PathBuf)| is_of(link);
        if is_of(&self.root) || self.outside.iter().any(leads) {
            self.made.push(path.to_owned());
        }
    }

    /// Ends when all of it is on disk.
    pub(crate) fn finish(&self) -> Result<(), UnpackError> {
        self.decoder.check_end()?;
        if let Some(Mapping { tablespace, .. }) = self.mappings.first() {
            return Err(UnpackError::NoTablespace(*tablespace));
        }
        let outside = self.outside.iter().map(|(target, _)| target);
        for directory in outside.chain([&self.root]) {
            let opened = File::open(directory).map_err(failed(directory))?;
            // Of the whole file system, because there may be a hundred thousand files.
            let synced = rustix::fs::syncfs(&opened).map_err(io::Error::from);
            synced.map_err(failed(directory))?;
        }
        Ok(())
    }

    /// Removes what was written, and nothing else.
    ///
    /// # Errors
    /// If some of it is left.
    pub(crate) fn undo(self) -> Result<(), UnpackError> {
        let mut outcome = Ok(());
        for path in self.made.iter().rev() {
            let removed = match path.symlink_metadata() {
                Ok(found) if !found.is_dir() => fs::remove_file(path),
                // What is there besides is not ours.
                Ok(_) if self.is_directory_of_others(path) => fs::remove_dir(path),
                Ok(_) => fs::remove_dir_all(path),
                Err(error) => Err(error),
            };
            outcome = outcome.and(removed.map_err(failed(path)));
        }
        outcome
    }

    /// A directory that was made by its name, so that others could put something into it at once.
    fn is_directory_of_others(&self, path: &Path) -> bool {
        let is_target = |(target, _): &(PathBuf, PathBuf)| path == target;
        path == self.root || self.outside.iter().any(is_target)
    }
}

/// Makes a directory that is told by a person, or takes one that is empty, so that PostgreSQL does not refuse it.
/// Gives what was made.
fn empty_directory(path: &Path) -> Result<Vec<PathBuf>, UnpackError> {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(UnpackError::NotEmpty(path.to_owned()));
            }
            let mode = fs::Permissions::from_mode(DIRECTORY_MODE);
            fs::set_permissions(path, mode).map_err(failed(path))?;
            Ok(Vec::new())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(failed(parent))?;
            }
            make_directory(path)?;
            Ok(vec![path.to_owned()])
        }
        Err(source) => Err(failed(path)(source)),
    }
}

/// Makes a directory that nobody else may read.
fn make_directory(path: &Path) -> Result<(), UnpackError> {
    let made = DirBuilder::new().mode(DIRECTORY_MODE).create(path);
    made.map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> UnpackError + use<> {
    let path = path.to_owned();
    |source| UnpackError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with a tablespace in it.
    fn archive() -> Bytes {
        let mut archive = tar::Builder::new(Vec::new());
        let directory = |path: &str, archive: &mut tar::Builder<Vec<u8>>| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o700);
            header.set_size(0);
            archive.append_data(&mut header, path, io::empty()).unwrap();
        };
        for path in ["pg_tblspc/", "pg_tblspc/16385/", "pg_tblspc/16385/PG_15/"] {
            directory(path, &mut archive);
        }
        for path in ["PG_VERSION", "pg_tblspc/16385/PG_15/1"] {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o600);
            header.set_size(3);
            archive
                .append_data(&mut header, path, &b"15\n"[..])
                .unwrap();
        }
        archive.into_inner().unwrap().into()
    }

    fn mapping(tablespace: Oid, directory: &Path) -> Vec<Mapping> {
        let directory = directory.to_owned();
        vec![Mapping {
            tablespace,
            directory,
        }]
    }

    #[test]
    fn an_archive_becomes_files_and_its_tablespaces_are_where_they_should_be() {
        let place = tempfile::tempdir().unwrap();
        let (root, outside) = (place.path().join("data"), place.path().join("fast"));
        for (mappings, is_link) in [(Vec::new(), false), (mapping(16385, &outside), true)] {
            let mut unpacker = Unpacker::into(&root, mappings).unwrap();
            for chunk in archive().chunks(700) {
                unpacker.take(Bytes::copy_from_slice(chunk)).unwrap();
            }
            unpacker.finish().unwrap();
            let link = root.join("pg_tblspc/16385");
            assert_eq!(link.is_symlink(), is_link);
            assert_eq!(fs::read(link.join("PG_15/1")).unwrap(), b"15\n");
            // Nothing is written over, and nothing is left.
            let again = Unpacker::into(&root, Vec::new());
            assert!(matches!(again, Err(UnpackError::NotEmpty(_))));
            unpacker.undo().unwrap();
            assert!(!root.exists() && !outside.exists());
        }
    }

    #[test]
    fn half_an_archive_and_a_tablespace_that_is_not_there_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let archive = archive();
        let mut unpacker = Unpacker::into(place.path(), Vec::new()).unwrap();
        unpacker.take(archive.slice(..archive.len() / 2)).unwrap();
        assert!(matches!(unpacker.finish(), Err(UnpackError::Archive(_))));
        unpacker.undo().unwrap();
        // What was there before stays.
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        let elsewhere = mapping(1, &place.path().join("fast"));
        let mut unpacker = Unpacker::into(&place.path().join("data"), elsewhere).unwrap();
        unpacker.take(archive).unwrap();
        assert!(matches!(
            unpacker.finish(),
            Err(UnpackError::NoTablespace(1))
        ));
    }

    #[test]
    fn what_others_have_put_there_meanwhile_stays() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("new/data");
        let mut unpacker = Unpacker::into(&root, Vec::new()).unwrap();
        fs::write(root.join("PG_VERSION"), "theirs").unwrap();
        let refused = unpacker.take(archive());
        assert!(matches!(refused, Err(UnpackError::File { .. })));
        assert!(unpacker.undo().is_err(), "it is not empty");
        let left: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["PG_VERSION"]);
        assert_eq!(fs::read(root.join("PG_VERSION")).unwrap(), b"theirs");
    }

    #[test]
    fn a_mapping_is_an_object_id_and_a_directory() {
        let expected = mapping(16385, Path::new("/mnt/a=b")).pop();
        assert_eq!("16385=/mnt/a=b".parse().ok(), expected);
        for text in ["", "16385", "16385=", "fast=/mnt", "=/mnt"] {
            assert!(text.parse::<Mapping>().is_err(), "{text}");
        }
    }
}
