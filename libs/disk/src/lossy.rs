//! A disk whose power can be cut.

mod content;
mod names;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use self::{
    content::Content,
    names::{Change, FileId, Names, Node},
};
use crate::{Disk, DiskEntry, DiskFile, OsDisk, os::refuse_directory};

/// A directory of the real disk that forgets, when its power is cut, what was not synced.
///
/// Programs see it as they see any directory; [`LossyDisk::crash`] makes every later operation
/// fail, as if the program were gone, and [`LossyDisk::recover`] leaves in the real directory what
/// a power cut would. Clones are the same disk. For tests: what was removed and not synced is held
/// in memory, and so is everything during recovery.
#[derive(Debug, Clone)]
pub struct LossyDisk {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

/// What is left of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    Nothing,
    /// By chance, from this seed: of each file's bytes and of all changes of names, those up to
    /// some point.
    Some(u64),
}

#[derive(Debug)]
struct State {
    names: Names,
    files: BTreeMap<FileId, Content>,
    next_id: u64,
    /// Counts the recoveries: what was opened before one is dead after it.
    life: u64,
    crashed: bool,
    durable_operations: u64,
    crash_at: Option<u64>,
}

#[derive(Debug)]
struct LossyFile {
    disk: LossyDisk,
    id: FileId,
    life: u64,
    file: File,
}

impl LossyDisk {
    /// The directory `root`, which exists. What is in it is durable.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        let state = State::found(&root, 0)?;
        Ok(Self {
            root,
            state: Arc::new(Mutex::new(state)),
        })
    }

    /// From now on every operation fails.
    pub fn crash(&self) {
        self.lock().crashed = true;
    }

    /// Crashes instead of doing the durable operation of this number, counted from 1: a sync of a
    /// file or a directory, a rename, a removal.
    pub fn crash_at(&self, number: u64) {
        self.lock().crash_at = Some(number);
    }

    /// Works again after a crash of the program alone: what was not synced is there, and may still be
    /// lost. Files that are open stay dead.
    pub fn restart(&self) {
        let mut state = self.lock();
        state.life += 1;
        state.crashed = false;
        state.crash_at = None;
    }

    /// How many durable operations there were since the beginning or the last recovery.
    pub fn durable_operations(&self) -> u64 {
        self.lock().durable_operations
    }

    /// Whether it has crashed and not recovered.
    pub fn is_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// Leaves in the directory what a power cut at this instant may leave, and works again. Files
    /// that are open stay dead.
    ///
    /// # Errors
    /// Those of the operating system; the directory is then in no defined state.
    pub fn recover(&self, survival: Survival) -> io::Result<()> {
        let mut state = self.lock();
        let mut chance = match survival {
            Survival::Nothing => None,
            Survival::Some(seed) => Some(StdRng::seed_from_u64(seed)),
        };
        let pending = state.names.pending();
        let kept = chance.as_mut().map(|rng| rng.random_range(0..=pending));
        let left = state
            .names
            .after_power_cut(&self.root, kept.unwrap_or_default());
        let present: BTreeMap<FileId, PathBuf> = state
            .names
            .files_below(&self.root)
            .into_iter()
            .map(|(path, id)| (id, path))
            .collect();
        let mut contents = Vec::new();
        for (path, node) in left {
            let Node::File(id) = node else {
                contents.push((path, None));
                continue;
            };
            let content = state.files.get(&id).cloned().unwrap_or_default();
            let bytes = match (present.get(&id), content.removed()) {
                (Some(path), _) => fs::read(path)?,
                (None, removed) => removed.unwrap_or_default().to_vec(),
            };
            contents.push((path, Some(content.after_power_cut(&bytes, chance.as_mut()))));
        }
        rewrite(&self.root, contents)?;
        *state = State::found(&self.root, state.life + 1)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, if the disk still works and `path` is on it.
    fn access(&self, path: &Path) -> io::Result<MutexGuard<'_, State>> {
        if !path.starts_with(&self.root) {
            let elsewhere = format!("{} is not on the lossy disk", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, elsewhere));
        }
        let state = self.lock();
        state.check()?;
        Ok(state)
    }

    fn open(&self, path: &Path, empty: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.access(path)?;
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(path)?;
        let id = match state.names.get(path) {
            Some(Node::File(id)) => id,
            Some(Node::Directory) | None => state.add_file(path),
        };
        if empty {
            state.cut(id, &mut file, 0)?;
        }
        Ok(Box::new(LossyFile {
            disk: self.clone(),
            id,
            life: state.life,
            file,
        }))
    }
}

impl Disk for LossyDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.access(path)?;
        let within = path.ancestors().take_while(|above| *above != self.root);
        let mut downwards: Vec<&Path> = within.collect();
        downwards.reverse();
        for directory in &downwards {
            if state.names.get(directory).is_none() {
                fs::create_dir(directory)?;
                let made = Change::Put(directory.to_path_buf(), Node::Directory);
                state.names.change(made);
            }
        }
        for directory in downwards {
            state.durable_operation()?;
            if let Some(parent) = directory.parent() {
                state.names.sync(parent);
            }
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path, true)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path, false)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.access(path)?;
        state.durable_operation()?;
        // For the errors only: what is durable is decided here.
        fs::read_dir(path)?;
        state.names.sync(path);
        state.forget_unused();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        drop(self.access(to)?);
        let mut state = self.access(from)?;
        refuse_directory(from)?;
        state.durable_operation()?;
        state.keep_content(to)?;
        fs::rename(from, to)?;
        let (from, to) = (from.to_owned(), to.to_owned());
        state.names.change(Change::Move { from, to });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.access(path)?;
        OsDisk.len(path)?;
        state.durable_operation()?;
        state.keep_content(path)?;
        fs::remove_file(path)?;
        state.names.change(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.access(path)?;
        if state.names.get(path).is_none() {
            return Ok(());
        }
        state.durable_operation()?;
        state.keep_content(path)?;
        fs::remove_dir_all(path)?;
        state.names.change(Change::RemoveAll(path.to_owned()));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        let _alive = self.access(path)?;
        OsDisk.list(path)
    }

    fn read_exact_at(&self, path: &Path, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let _alive = self.access(path)?;
        OsDisk.read_exact_at(path, buffer, offset)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        let _state = self.access(path)?;
        OsDisk.available(path)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let _alive = self.access(path)?;
        OsDisk.len(path)
    }
}

impl LossyFile {
    fn access(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        state.check()?;
        match state.life == self.life {
            true => Ok(state),
            false => Err(crashed()),
        }
    }
}

impl Write for LossyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _alive = self.access()?;
        (&self.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.access().map(drop)
    }
}

impl DiskFile for LossyFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.access()?;
        state.durable_operation()?;
        let len = self.file.metadata()?.len() as usize;
        state.files.entry(self.id).or_default().sync(len);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut file = self.file.try_clone()?;
        self.access()?.cut(self.id, &mut file, len)
    }
}

impl State {
    fn found(root: &Path, life: u64) -> io::Result<Self> {
        let mut state = Self {
            names: Names::default(),
            files: BTreeMap::new(),
            next_id: 0,
            life,
            crashed: false,
            durable_operations: 0,
            crash_at: None,
        };
        state.find(root)?;
        Ok(state)
    }

    fn find(&mut self, directory: &Path) -> io::Result<()> {
        for entry in OsDisk.list(directory)? {
            let path = directory.join(entry.name);
            if entry.is_directory {
                self.names.found(path.clone(), Node::Directory);
                self.find(&path)?;
            } else {
                let id = self.next_id();
                self.files.insert(id, Content::found(entry.len as usize));
                self.names.found(path, Node::File(id));
            }
        }
        Ok(())
    }

    fn next_id(&mut self) -> FileId {
        self.next_id += 1;
        FileId(self.next_id)
    }

    fn add_file(&mut self, path: &Path) -> FileId {
        let id = self.next_id();
        self.files.insert(id, Content::default());
        let made = Change::Put(path.to_owned(), Node::File(id));
        self.names.change(made);
        id
    }

    fn check(&self) -> io::Result<()> {
        if self.crashed {
            return Err(crashed());
        }
        Ok(())
    }

    fn durable_operation(&mut self) -> io::Result<()> {
        self.check()?;
        self.durable_operations += 1;
        self.crashed = self.crash_at == Some(self.durable_operations);
        self.check()
    }

    fn cut(&mut self, id: FileId, file: &mut File, len: u64) -> io::Result<()> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let content = self.files.entry(id).or_default();
        content.cut(&bytes, len as usize);
        file.set_len(len)
    }

    /// What is at `path` is about to lose its name, which a power cut may bring back.
    fn keep_content(&mut self, path: &Path) -> io::Result<()> {
        for (path, id) in self.names.files_below(path) {
            let bytes = fs::read(&path)?;
            self.files.entry(id).or_default().remove(bytes);
        }
        Ok(())
    }

    fn forget_unused(&mut self) {
        let in_use = self.names.in_use();
        self.files.retain(|id, _| in_use.contains(id));
    }
}

/// Replaces all that is below `root`. Directories come before what is in them.
fn rewrite(root: &Path, contents: Vec<(PathBuf, Option<Vec<u8>>)>) -> io::Result<()> {
    for entry in OsDisk.list(root)? {
        let path = root.join(entry.name);
        match entry.is_directory {
            true => fs::remove_dir_all(path)?,
            false => fs::remove_file(path)?,
        }
    }
    for (path, content) in contents {
        match content {
            None => fs::create_dir(path)?,
            Some(bytes) => fs::write(path, bytes)?,
        }
    }
    Ok(())
}

fn crashed() -> io::Error {
    io::Error::other("the disk has lost its power")
}
