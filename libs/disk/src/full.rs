//! A disk that is full when a test wants it to be.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Disk, DiskEntry, DiskFile, OsDisk};

/// The real disk, on which some steps fail because it is full. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct FullDisk {
    state: Arc<Mutex<State>>,
}

/// At what of a write the disk turns out to be full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskStep {
    /// Making a file, or opening one to append.
    Open,
    /// Writing bytes; half of them get there.
    Write,
    /// Syncing a file: a system may promise room that it does not have.
    Sync,
    /// Giving a file another name.
    Rename,
    /// Syncing a directory.
    SyncDirectory,
    /// All of them.
    Any,
}

#[derive(Debug, Default)]
struct State {
    full: Option<Full>,
    refused: u64,
}

#[derive(Debug, Clone)]
struct Full {
    step: DiskStep,
    directory: String,
}

#[derive(Debug)]
struct File {
    disk: FullDisk,
    path: PathBuf,
    inner: Box<dyn DiskFile>,
}

impl DiskStep {
    /// Each of them alone.
    pub const EACH: [Self; 5] = [
        Self::Open,
        Self::Write,
        Self::Sync,
        Self::Rename,
        Self::SyncDirectory,
    ];
}

impl FullDisk {
    /// From now on `step` fails below every directory of this name.
    pub fn fill(&self, step: DiskStep, directory: &str) {
        self.lock().full = Some(Full {
            step,
            directory: directory.to_owned(),
        });
    }

    /// There is room again.
    pub fn empty(&self) {
        self.lock().full = None;
    }

    /// Steps that have failed.
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    fn check(&self, step: DiskStep, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let Some(full) = &state.full else {
            return Ok(());
        };
        let meant = full.step == step || full.step == DiskStep::Any;
        let within = path.iter().any(|part| part == full.directory.as_str());
        if !meant || !within {
            return Ok(());
        }
        state.refused += 1;
        Err(io::ErrorKind::StorageFull.into())
    }

    fn opened(&self, path: &Path, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(File {
            disk: self.clone(),
            path: path.to_owned(),
            inner,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for FullDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir_all(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.check(DiskStep::Open, path)?;
        Ok(self.opened(path, OsDisk.create(path)?))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.check(DiskStep::Open, path)?;
        Ok(self.opened(path, OsDisk.append(path)?))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.check(DiskStep::SyncDirectory, path)?;
        OsDisk.sync_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(DiskStep::Rename, to)?;
        OsDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        OsDisk.list(path)
    }

    fn read_exact_at(&self, path: &Path, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        OsDisk.read_exact_at(path, buffer, offset)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        match self.lock().full {
            Some(_) => Ok(0),
            None => OsDisk.available(path),
        }
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        OsDisk.len(path)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(full) = self.disk.check(DiskStep::Write, &self.path) {
            self.inner.write_all(&bytes[..bytes.len() / 2])?;
            return Err(full);
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.check(DiskStep::Sync, &self.path)?;
        self.inner.sync()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::is_full;

    #[test]
    fn a_step_fails_where_it_is_to_and_until_there_is_room() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("layers");
        let disk = FullDisk::default();
        disk.create_dir_all(&directory).unwrap();
        disk.fill(DiskStep::Write, "layers");
        let mut file = disk.create(&directory.join("a")).unwrap();
        let error = file.write_all(&[1; 10]).unwrap_err();
        assert!(is_full(&error), "{error}");
        assert_eq!(disk.len(&directory.join("a")).unwrap(), 5);
        assert_eq!(disk.available(&directory).unwrap(), 0);
        let mut other = disk.create(&root.path().join("b")).unwrap();
        other.write_all(&[1; 10]).unwrap();
        disk.empty();
        file.write_all(&[1; 10]).unwrap();
        file.sync().unwrap();
        assert!(disk.available(&directory).unwrap() > 0);
        assert_eq!(disk.refused(), 1);
    }

    #[test]
    fn each_step_says_that_the_disk_is_full() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("layers"));
        let disk = FullDisk::default();
        disk.create(&from).unwrap();
        for step in DiskStep::EACH {
            disk.fill(step, "layers");
            let all = || -> io::Result<()> {
                let mut file = disk.append(&to)?;
                file.write_all(&[1])?;
                file.sync()?;
                disk.rename(&from, &to)?;
                disk.sync_directory(&to)
            };
            assert!(is_full(&all().unwrap_err()), "{step:?}");
        }
    }
}
