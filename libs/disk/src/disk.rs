use std::{
    fmt::Debug,
    io::{self, Write},
    path::Path,
};

/// Files and directories whose durability matters. All calls block.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Makes a directory and the missing ones above it, all durable when this returns.
    ///
    /// # Errors
    /// Those of the operating system; what was made until then stays.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Opens an empty file for writing. One that is there already loses its content.
    ///
    /// # Errors
    /// Those of the operating system.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for writing at its end; it is made if it is not there.
    ///
    /// # Errors
    /// Those of the operating system.
    fn append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Makes the names in a directory durable: those that came, moved and went.
    ///
    /// # Errors
    /// Those of the operating system.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name; a file that has it already is replaced.
    ///
    /// # Errors
    /// Those of the operating system. Directories can't be renamed.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the operating system; `NotFound` if there is none.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory with all that is in it. One that is not there is removed already.
    ///
    /// # Errors
    /// Those of the operating system; a part may be gone then.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// What is in a directory, in the order of names. Names that are not UTF-8 are left out: no
    /// file of ours has one.
    ///
    /// # Errors
    /// Those of the operating system; `NotFound` if there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>>;

    /// Fills `buffer` from a file, beginning at `offset`.
    ///
    /// # Errors
    /// Those of the operating system; `UnexpectedEof` if the file ends too early.
    fn read_exact_at(&self, path: &Path, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Bytes that may still be written below a directory, as far as the system knows: a quota, or
    /// somebody who is quicker, may leave less.
    ///
    /// # Errors
    /// Those of the operating system; `NotFound` if there is no such directory.
    fn available(&self, path: &Path) -> io::Result<u64>;

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// Those of the operating system; `NotFound` if there is none.
    fn len(&self, path: &Path) -> io::Result<u64>;
}

/// A file that is open for writing. Dropping it syncs nothing.
pub trait DiskFile: Write + Debug + Send {
    /// Makes all that was written durable. The file's name is its directory's matter.
    ///
    /// After an error it is unknown what is durable, and a second try proves nothing: the
    /// operating system may have forgotten what it could not write. Write the bytes again.
    ///
    /// # Errors
    /// Those of the operating system.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file, or lengthens it by zeros. Durable after the next [`DiskFile::sync`].
    ///
    /// # Errors
    /// Those of the operating system.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskEntry {
    /// Its name there.
    pub name: String,
    /// Bytes in it; 0 for a directory.
    pub len: u64,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// Whether an operation failed because nothing more fits on the disk: waiting may help, and so does
/// removing what is there.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
