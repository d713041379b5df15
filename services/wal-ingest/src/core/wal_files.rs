//! WAL on our own disk: PostgreSQL's own segment files, which `pg_waldump` reads.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use palimpsest_disk::{Disk, DiskFile};
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal::{SegmentNumber, SegmentSize};

use super::error::IngestError;

mod aside;
#[cfg(test)]
mod tests;

use aside::Aside;

/// The segment files of one timeline, written from a segment's start on without a gap.
///
/// Blocking: callers keep it off the runtime's threads.
#[derive(Debug)]
pub(super) struct WalFiles {
    place: Arc<Place>,
    end: Lsn,
    open: Option<OpenSegment>,
    /// A write failed: beyond `end` there may be bytes that were not acknowledged.
    torn: bool,
    /// What was damaged, until it has come again.
    aside: Vec<Aside>,
}

/// Removes old segments of files that somebody else writes, and looks for room. Blocking.
#[derive(Debug, Clone)]
pub(super) struct WalTrim(Arc<Place>);

/// Reads files that somebody else writes, and removes at any moment. Blocking.
#[derive(Debug, Clone)]
pub(super) struct WalReader(Arc<Place>);

#[derive(Debug)]
struct Place {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    size: SegmentSize,
    pg_timeline: u32,
    held: Mutex<Held>,
}

/// From the start of the first segment to the end of what is fsynced.
#[derive(Debug, Clone, Copy)]
struct Held {
    first: SegmentNumber,
    /// Those before may be removed already.
    needed: SegmentNumber,
    end: Lsn,
    /// Bytes that were set aside.
    aside: u64,
}

#[derive(Debug)]
struct OpenSegment {
    number: SegmentNumber,
    file: Box<dyn DiskFile>,
}

/// Free bytes for which going on after the disk was full is worth while: some batches of WAL.
const ROOM: u64 = 8 << 20;
/// What reading the files back gives at once.
const READ_SIZE: u64 = 1 << 20;

impl WalFiles {
    /// The files below `directory`, of which the first holds `start`.
    ///
    /// Those that are there already are taken over as far as they follow each other; older ones and
    /// those after a gap, which a crash left, are removed. What was taken over is fsynced again: the
    /// one who wrote it may have died before that.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        size: SegmentSize,
        pg_timeline: u32,
        start: Lsn,
    ) -> Result<Self, IngestError> {
        disk.create_dir_all(&directory).map_err(at(&directory))?;
        let first = size.number_of(start);
        let held = Held {
            first,
            needed: first,
            end: start.floor_to(size.bytes()),
            aside: 0,
        };
        let place = Arc::new(Place {
            disk,
            directory,
            size,
            pg_timeline,
            held: Mutex::new(held),
        });
        let segments = place.segments()?;
        let end = contiguous_end(&segments, held, size);
        let mut files = Self {
            place,
            end,
            open: None,
            torn: false,
            aside: Vec::new(),
        };
        files.know_aside()?;
        for (number, _) in &segments {
            if *number < held.first {
                files.place.remove(*number)?;
            }
        }
        files.truncate(end)?;
        files.sync_full()?;
        files.forget_aside();
        Ok(files)
    }

    /// Fsyncs the last segment if it is full: [`WalFiles::truncate`] has no reason to touch it.
    fn sync_full(&self) -> Result<(), IngestError> {
        let size = self.place.size;
        let start = size.start_of(self.place.held().first);
        let full = self.end.offset_in(size.bytes()) == 0 && start.is_some_and(|it| it < self.end);
        if full {
            let number = size.number_of(Lsn::new(self.end.get() - 1));
            let mut file = self.place.append(number)?;
            file.sync().map_err(at(&self.place.path(number)))?;
        }
        Ok(())
    }

    /// Where the next byte goes. Everything before survives a crash.
    pub(super) fn end(&self) -> Lsn {
        self.end
    }

    /// Bytes held on the disk.
    pub(super) fn size(&self) -> ByteCount {
        self.place.bytes()
    }

    /// What removes old segments while this writes new ones.
    pub(super) fn trim(&self) -> WalTrim {
        WalTrim(Arc::clone(&self.place))
    }

    /// What reads what is here while this writes more.
    pub(super) fn reader(&self) -> WalReader {
        WalReader(Arc::clone(&self.place))
    }

    /// Forgets everything from `end` on: bytes that a crash left half written. If they end earlier,
    /// that is left as it is: a byte's place in its file follows from its LSN, so nothing may be
    /// passed over.
    ///
    /// The file is cut before those after it are removed, so that a crash between the two leaves a
    /// gap, which [`WalFiles::open`] sees.
    pub(super) fn truncate(&mut self, end: Lsn) -> Result<(), IngestError> {
        self.open = None;
        let end = end.min(self.end);
        let number = self.place.size.number_of(end);
        let offset = end.offset_in(self.place.size.bytes());
        for (other, _) in self.place.segments()? {
            if other == number && offset > 0 {
                let mut file = self.place.append(number)?;
                let cut = file.set_len(offset).and_then(|()| file.sync());
                cut.map_err(at(&self.place.path(number)))?;
            } else if other >= number {
                self.place.remove(other)?;
            }
        }
        self.place.sync_directory()?;
        self.settle(end);
        Ok(())
    }

    /// Writes the bytes that come next and fsyncs them: when this returns they survive a crash.
    ///
    /// After an error none of them count, and the next call begins where this one did. It writes
    /// all of them again, because after a failed fsync nobody knows which were lost.
    pub(super) fn append(&mut self, chunks: &[Bytes]) -> Result<(), IngestError> {
        if self.torn {
            self.truncate(self.end)?;
        }
        self.torn = true;
        let appended = self.append_all(chunks);
        if appended.is_ok() {
            self.forget_aside();
        } else {
            // What does not count need not lie on a disk that is full. If this fails as well, the
            // next call does it.
            let _ = self.truncate(self.end);
        }
        appended
    }

    fn append_all(&mut self, chunks: &[Bytes]) -> Result<(), IngestError> {
        let mut position = self.end;
        for chunk in chunks {
            let mut rest = chunk.as_ref();
            while !rest.is_empty() {
                let segment_left =
                    self.place.size.bytes() - position.offset_in(self.place.size.bytes());
                let len = rest.len().min(ByteCount::new(segment_left).as_len());
                let (now, later) = rest.split_at(len);
                self.write(position, now)?;
                position = Lsn::new(position.get() + len as u64);
                rest = later;
            }
        }
        self.sync()?;
        self.settle(position);
        Ok(())
    }

    /// The bytes from `from` on, as many as are shown at once; `None` at the end.
    pub(super) fn read(&self, from: Lsn) -> Result<Option<Bytes>, IngestError> {
        self.place.read(from, self.end)
    }

    fn write(&mut self, position: Lsn, bytes: &[u8]) -> Result<(), IngestError> {
        let number = self.place.size.number_of(position);
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            self.sync()?;
            let file = self.place.append(number)?;
            self.open = Some(OpenSegment { number, file });
            if position.offset_in(self.place.size.bytes()) == 0 {
                self.place.sync_directory()?;
            }
        }
        match &mut self.open {
            Some(open) => io::Write::write_all(&mut open.file, bytes)
                .map_err(at(&self.place.path(open.number))),
            None => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), IngestError> {
        match &mut self.open {
            Some(open) => open.file.sync().map_err(at(&self.place.path(open.number))),
            None => Ok(()),
        }
    }

    /// What is there now is whole and fsynced.
    fn settle(&mut self, end: Lsn) {
        self.end = end;
        self.torn = false;
        self.place.held().end = end;
    }
}

impl WalTrim {
    /// Whether the disk has room for going on. If it does not say, trying will tell.
    pub(super) fn has_room(&self) -> bool {
        let available = self.0.disk.available(&self.0.directory);
        available.map_or(true, |bytes| bytes >= ROOM)
    }

    /// Removes the segments that lie wholly below `lsn`, and never the one that is written; returns
    /// the bytes that are left.
    pub(super) fn remove_below(&self, lsn: Lsn) -> Result<ByteCount, IngestError> {
        let place = &self.0;
        let before = *place.held();
        let keep = place.size.number_of(lsn.min(before.end));
        // Before anything is removed, so that a reader knows why a file is not there.
        place.held().needed = keep.max(before.needed);
        let mut first = before.first;
        // A crash may undo the removals; opening repeats them.
        while first < keep {
            place.remove(first)?;
            first = first.next();
            place.held().first = first;
        }
        if before.first < keep {
            place.sync_directory()?;
        }
        Ok(place.bytes())
    }
}

impl WalReader {
    /// The bytes from `from` on and before `to`, as many as are shown at once; `None` if they were
    /// removed.
    pub(super) fn read(&self, from: Lsn, to: Lsn) -> Result<Option<Bytes>, IngestError> {
        let place = &self.0;
        let outcome = place.read(from, to.min(place.held().end));
        match outcome {
            // A file that was open in time is read to its end.
            Ok(bytes) => Ok(Some(bytes.unwrap_or_default())),
            Err(_) if place.size.number_of(from) < place.held().needed => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0.directory
    }
}

impl Place {
    /// The bytes from `from` on and before `end`; `None` if there are none.
    fn read(&self, from: Lsn, end: Lsn) -> Result<Option<Bytes>, IngestError> {
        let segment = self.size.bytes();
        let offset = from.offset_in(segment);
        let left = end.saturating_sub(from).min(segment - offset);
        if left == 0 {
            return Ok(None);
        }
        let path = self.path(self.size.number_of(from));
        let mut portion = vec![0; ByteCount::new(left.min(READ_SIZE)).as_len()];
        let read = self.disk.read_exact_at(&path, &mut portion, offset);
        read.map_err(at(&path))?;
        Ok(Some(portion.into()))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> ByteCount {
        let held = *self.held();
        let start = self.size.start_of(held.first).unwrap_or(held.end);
        ByteCount::new(held.end.saturating_sub(start) + held.aside)
    }

    /// The segments that are there, in order, with their lengths. Other files are not ours.
    fn segments(&self) -> Result<Vec<(SegmentNumber, u64)>, IngestError> {
        let entries = self.disk.list(&self.directory);
        let entries = entries.map_err(at(&self.directory))?;
        let mut segments: Vec<(SegmentNumber, u64)> = entries
            .into_iter()
            .filter_map(|entry| Some((self.number(&entry.name)?, entry.len)))
            .collect();
        segments.sort_unstable();
        Ok(segments)
    }

    /// The segment that a file is, if its name is one of this timeline's.
    fn number(&self, name: &str) -> Option<SegmentNumber> {
        let field = |at: usize| u64::from_str_radix(name.get(at..at + 8)?, 16).ok();
        let start = field(8)?
            .checked_mul(1 << 32)?
            .checked_add(field(16)?.checked_mul(self.size.bytes())?)?;
        let number = self.size.number_of(Lsn::new(start));
        (self.size.file_name(self.pg_timeline, number) == name).then_some(number)
    }

    fn append(&self, number: SegmentNumber) -> Result<Box<dyn DiskFile>, IngestError> {
        let path = self.path(number);
        self.disk.append(&path).map_err(at(&path))
    }

    fn remove(&self, number: SegmentNumber) -> Result<(), IngestError> {
        let path = self.path(number);
        match self.disk.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn sync_directory(&self) -> Result<(), IngestError> {
        let synced = self.disk.sync_directory(&self.directory);
        synced.map_err(at(&self.directory))
    }

    fn path(&self, segment: SegmentNumber) -> PathBuf {
        self.directory.join(self.name(segment))
    }

    fn name(&self, segment: SegmentNumber) -> String {
        self.size.file_name(self.pg_timeline, segment)
    }
}

/// How far segments follow each other: whole ones, of which only the last may be shorter.
fn contiguous_end(segments: &[(SegmentNumber, u64)], held: Held, size: SegmentSize) -> Lsn {
    let mut end = held.end;
    let mut expected = held.first;
    let own = segments.iter().filter(|(number, _)| *number >= held.first);
    for (number, len) in own {
        if *number != expected {
            break;
        }
        end = Lsn::new(end.get() + (*len).min(size.bytes()));
        if *len < size.bytes() {
            break;
        }
        expected = expected.next();
    }
    end
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> IngestError {
    let path = path.to_owned();
    |source| IngestError::WalFile { path, source }
}
