//! WAL on our own disk: PostgreSQL's own segment files, which `pg_waldump` reads.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use palimpsest_types::Lsn;
use palimpsest_wal::{SegmentNumber, SegmentSize};

use super::error::IngestError;

/// The segment files of one timeline, written from a segment's start on without a gap.
///
/// Blocking: callers keep it off the runtime's threads.
#[derive(Debug)]
pub(super) struct WalFiles {
    directory: PathBuf,
    size: SegmentSize,
    pg_timeline: u32,
    end: Lsn,
    open: Option<OpenSegment>,
}

#[derive(Debug)]
struct OpenSegment {
    number: SegmentNumber,
    file: File,
}

/// What reading the files back gives at once.
const READ_SIZE: usize = 1 << 20;

impl WalFiles {
    /// The files below `directory`, of which the first begins at `start`, a segment's start. Those
    /// that are there already are taken over as far as they follow each other.
    pub(super) fn open(
        directory: PathBuf,
        size: SegmentSize,
        pg_timeline: u32,
        start: Lsn,
    ) -> Result<Self, IngestError> {
        fs::create_dir_all(&directory).map_err(at(&directory))?;
        let start = start.floor_to(size.bytes());
        let mut files = Self {
            directory,
            size,
            pg_timeline,
            end: start,
            open: None,
        };
        let mut segment = size.number_of(start);
        loop {
            let path = files.path(segment);
            let len = match fs::metadata(&path) {
                Ok(metadata) => metadata.len().min(size.bytes()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(at(&path)(error)),
            };
            files.end = Lsn::new(files.end.get() + len);
            if len < size.bytes() {
                break;
            }
            segment = segment.next();
        }
        Ok(files)
    }

    /// Where the next byte goes.
    pub(super) fn end(&self) -> Lsn {
        self.end
    }

    /// Forgets everything from `end` on: bytes that a crash left half written.
    pub(super) fn truncate(&mut self, end: Lsn) -> Result<(), IngestError> {
        self.open = None;
        let mut segment = self.size.number_of(end);
        let path = self.path(segment);
        if let Ok(file) = OpenOptions::new().write(true).open(&path) {
            file.set_len(end.offset_in(self.size.bytes()))
                .map_err(at(&path))?;
            file.sync_all().map_err(at(&path))?;
        }
        loop {
            segment = segment.next();
            match fs::remove_file(self.path(segment)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(at(&self.path(segment))(error)),
            }
        }
        self.end = end;
        self.sync_directory()
    }

    /// Writes the bytes that come next and fsyncs them: when this returns they survive a crash.
    pub(super) fn append(&mut self, chunks: &[Bytes]) -> Result<(), IngestError> {
        for chunk in chunks {
            let mut rest = chunk.as_ref();
            while !rest.is_empty() {
                let room = self.size.bytes() - self.end.offset_in(self.size.bytes());
                let len = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
                let (now, later) = rest.split_at(len);
                self.write(now)?;
                rest = later;
            }
        }
        self.sync()
    }

    /// Shows all bytes from `from` on, in portions.
    pub(super) fn read(
        &self,
        from: Lsn,
        mut show: impl FnMut(Lsn, Bytes) -> Result<(), IngestError>,
    ) -> Result<(), IngestError> {
        let mut position = from;
        while position < self.end {
            let path = self.path(self.size.number_of(position));
            let offset = position.offset_in(self.size.bytes());
            let segment_left = self.size.bytes() - offset;
            let left = self.end.saturating_sub(position).min(segment_left);
            let len = usize::try_from(left).unwrap_or(READ_SIZE).min(READ_SIZE);
            let mut portion = vec![0; len];
            let read = File::open(&path).and_then(|file| {
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut portion, offset)
            });
            read.map_err(at(&path))?;
            show(position, portion.into())?;
            position = Lsn::new(position.get() + len as u64);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), IngestError> {
        let number = self.size.number_of(self.end);
        let path = self.path(number);
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            self.sync()?;
            let is_new = !path.exists();
            let file = OpenOptions::new().create(true).append(true).open(&path);
            self.open = Some(OpenSegment {
                number,
                file: file.map_err(at(&path))?,
            });
            if is_new {
                self.sync_directory()?;
            }
        }
        if let Some(open) = &mut self.open {
            open.file.write_all(bytes).map_err(at(&path))?;
        }
        self.end = Lsn::new(self.end.get() + bytes.len() as u64);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), IngestError> {
        match &self.open {
            Some(open) => open.file.sync_data().map_err(at(&self.path(open.number))),
            None => Ok(()),
        }
    }

    fn sync_directory(&self) -> Result<(), IngestError> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(at(&self.directory))
    }

    fn path(&self, segment: SegmentNumber) -> PathBuf {
        self.directory
            .join(self.size.file_name(self.pg_timeline, segment))
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> IngestError {
    let path = path.to_owned();
    |source| IngestError::WalFile { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path) -> WalFiles {
        let size = SegmentSize::new(1 << 20).unwrap();
        WalFiles::open(directory.to_owned(), size, 1, Lsn::new((3 << 20) + 5)).unwrap()
    }

    fn content(files: &WalFiles, from: Lsn) -> Vec<u8> {
        let mut all = Vec::new();
        files
            .read(from, |_, bytes| {
                all.extend_from_slice(&bytes);
                Ok(())
            })
            .unwrap();
        all
    }

    #[test]
    fn what_was_appended_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = open(directory.path());
        assert_eq!(files.end(), Lsn::new(3 << 20));
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i / 1000) as u8).collect();
        files.append(&[Bytes::copy_from_slice(&bytes)]).unwrap();
        let again = open(directory.path());
        assert_eq!(again.end(), files.end());
        assert!(content(&again, Lsn::new(3 << 20)) == bytes);
        assert!(directory.path().join("000000010000000000000003").exists());
    }

    #[test]
    fn truncating_removes_what_follows() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = open(directory.path());
        files.append(&[Bytes::from(vec![1; 3 << 20])]).unwrap();
        let end = Lsn::new((4 << 20) + 100);
        files.truncate(end).unwrap();
        assert_eq!(open(directory.path()).end(), end);
        files.append(&[Bytes::from_static(&[2; 10])]).unwrap();
        assert_eq!(content(&open(directory.path()), end), [2; 10]);
    }
}
