//! The archives of a base backup, taken from the messages that carry them.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use palimpsest_postgres::{TarDecoder, TarEvent};
use palimpsest_types::Lsn;

use super::{
    super::{
        Tears,
        backup::{OutsideTablespace, data_dir_in},
    },
    wire::Message,
};

/// A base backup that is passing.
#[derive(Debug)]
pub(super) struct Copying {
    directory: PathBuf,
    archives: Vec<Archive>,
    open: Option<OpenArchive>,
    /// Known when the copy is over.
    end: Option<Lsn>,
    files_over: bool,
}

/// A base backup that has passed.
#[derive(Debug)]
pub(super) struct Copied {
    directory: PathBuf,
    pub(super) archives: Vec<Archive>,
    /// The first LSN at which replay has made its pages consistent.
    pub(super) end: Lsn,
}

/// A tar file.
#[derive(Debug)]
pub(super) struct Archive {
    name: String,
    /// What it is of; `None` is the data directory.
    pub(super) tablespace: Option<OutsideTablespace>,
}

#[derive(Debug)]
struct OpenArchive {
    copy: File,
    tar: TarDecoder,
    /// The file that is passing, and how much of it has.
    file: Option<(String, u64)>,
}

impl Copying {
    pub(super) fn begin(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            archives: Vec::new(),
            open: None,
            end: None,
            files_over: false,
        }
    }

    /// Whether the first archive comes next.
    pub(super) fn is_before_files(&self, message: &Message) -> bool {
        self.archives.is_empty() && message.kind() == b'd'
    }

    /// Copies what a message carries, torn where it is to be; at its end says what was copied.
    pub(super) fn take(&mut self, message: &mut Message, tears: &Tears) -> Result<Option<Copied>> {
        match message.kind() {
            b'd' => self.take_data(message, tears)?,
            b'c' => self.files_over = true,
            b'D' if self.files_over => self.end = Some(message.first_column()?.parse()?),
            b'Z' => {
                let copied = Copied {
                    directory: std::mem::take(&mut self.directory),
                    archives: std::mem::take(&mut self.archives),
                    end: self.end.context("the backup has no end")?,
                };
                return Ok(Some(copied));
            }
            b'E' => bail!("the server ended the backup with an error"),
            _ => {}
        }
        Ok(None)
    }

    fn take_data(&mut self, message: &mut Message, tears: &Tears) -> Result<()> {
        let (kind, content) = message
            .body_mut()
            .split_first_mut()
            .context("an empty message in a backup")?;
        match kind {
            b'n' => {
                let archive = Archive::named(content)?;
                self.open = Some(OpenArchive {
                    copy: File::create(self.directory.join(&archive.name))?,
                    tar: TarDecoder::new(),
                    file: None,
                });
                self.archives.push(archive);
                Ok(())
            }
            b'd' => {
                let archive = self.open.as_mut().context("bytes of no archive")?;
                archive.take(content, tears)
            }
            _ => Ok(()),
        }
    }
}

impl OpenArchive {
    fn take(&mut self, content: &mut [u8], tears: &Tears) -> Result<()> {
        let mut rest = Bytes::copy_from_slice(content);
        while let Some(event) = self.tar.decode(&mut rest)? {
            match event {
                TarEvent::File { path, .. } => self.file = Some((path, 0)),
                TarEvent::Data(data) => {
                    let (path, at) = self.file.as_mut().context("data of no file")?;
                    let end = content.len() - rest.len();
                    tears.apply(path, *at, &mut content[end - data.len()..end]);
                    *at += data.len() as u64;
                }
                TarEvent::FileEnd | TarEvent::Directory { .. } | TarEvent::Symlink { .. } => {}
            }
        }
        // To the page cache, a few kilobytes at a time: this holds up nobody for long.
        Ok(self.copy.write_all(content)?)
    }
}

impl Copied {
    pub(super) fn path_of(&self, archive: &Archive) -> PathBuf {
        self.directory.join(&archive.name)
    }
}

impl Archive {
    /// From its announcement: two strings that end in NUL, the second empty for the data directory.
    fn named(announcement: &[u8]) -> Result<Self> {
        let mut strings = announcement.split(|byte| *byte == 0);
        let mut string = || -> Result<&str> {
            let bytes = strings.next().context("an archive without a name")?;
            Ok(str::from_utf8(bytes)?)
        };
        let (name, location) = (string()?.to_owned(), string()?);
        let tablespace = match location {
            "" => None,
            location => Some(OutsideTablespace {
                oid: name.trim_end_matches(".tar").parse()?,
                location: location.into(),
            }),
        };
        Ok(Self { name, tablespace })
    }

    /// Where its files go in the directory of the whole backup.
    pub(super) fn extracted_to(&self, directory: &Path) -> PathBuf {
        match &self.tablespace {
            None => data_dir_in(directory),
            Some(tablespace) => tablespace.files_in(directory),
        }
    }
}
