//! WAL of ours that is damaged. What follows the damage was acknowledged once, and the source may
//! not have it any more: so it is kept in a directory beside the segments until it has come again.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal::SegmentNumber;

use super::{Place, READ_SIZE, WalFiles, at};
use crate::core::error::IngestError;

/// Segments that were moved out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aside {
    directory: PathBuf,
    /// Where what is in it ends.
    end: Lsn,
    /// What it takes of the disk.
    bytes: u64,
}

/// Of the directories; what follows is the LSN from which on the WAL is to come again.
const PREFIX: &str = "damaged-";
/// A copy that is not complete.
const PARTIAL: &str = "partial";
/// After the name of a segment of which there is one already.
const AGAIN: &str = ".again";

impl WalFiles {
    /// Moves everything from `from` on into a directory, and says which: what comes next goes to
    /// `from`. Once as much has come again, the directory is removed.
    ///
    /// The segment with `from` is copied before anything else changes, then those after it are
    /// moved, the last first: whatever a crash leaves, nothing follows a gap, and the damage is
    /// found again. What is in the directory already stays, and what comes lies beside it.
    pub(in crate::core) fn set_aside(&mut self, from: Lsn) -> Result<PathBuf, IngestError> {
        let place = &self.place;
        let directory = place.aside_directory(from);
        let made = place.disk.create_dir_all(&directory);
        made.map_err(at(&directory))?;
        let first = place.size.number_of(from);
        let mut damaged = place.segments()?;
        damaged.retain(|(number, _)| *number >= first);
        for (number, len) in damaged.iter().filter(|(number, _)| *number == first) {
            place.copy(*number, *len, &directory)?;
        }
        for (number, _) in damaged.iter().rev().filter(|(number, _)| *number > first) {
            let (path, to) = (place.path(*number), place.free_name(*number, &directory));
            place.disk.rename(&path, &to).map_err(at(&path))?;
        }
        let synced = place.disk.sync_directory(&directory);
        synced.map_err(at(&directory))?;
        self.truncate(from)?;
        self.know_aside()?;
        Ok(directory)
    }

    /// Whether setting aside from here on was begun before, and is to be ended.
    pub(in crate::core) fn is_setting_aside(&self, from: Lsn) -> bool {
        let directory = self.place.aside_directory(from);
        self.aside.iter().any(|aside| aside.directory == directory)
    }

    /// The directories in which damaged WAL is kept, each until this LSN has come again.
    pub(in crate::core) fn awaited(&self) -> impl Iterator<Item = (&Path, Lsn)> {
        let awaited = self.aside.iter();
        awaited.map(|aside| (aside.directory.as_path(), aside.end))
    }

    /// Looks for what was set aside before.
    pub(super) fn know_aside(&mut self) -> Result<(), IngestError> {
        self.aside = self.place.find_aside()?;
        self.count_aside();
        Ok(())
    }

    fn count_aside(&self) {
        let bytes = self.aside.iter().map(|aside| aside.bytes).sum();
        self.place.held().aside = bytes;
    }

    /// Removes what has come again. If that fails, the next opening does it.
    pub(super) fn forget_aside(&mut self) {
        let (disk, end) = (&self.place.disk, self.end);
        self.aside.retain(|aside| {
            let kept = aside.end > end;
            if !kept && let Err(error) = disk.remove_dir_all(&aside.directory) {
                let directory = aside.directory.display();
                tracing::warn!(%error, %directory, "can't remove WAL that was damaged and has come again");
            }
            kept
        });
        self.count_aside();
    }
}

impl Place {
    /// What was set aside before.
    pub(super) fn find_aside(&self) -> Result<Vec<Aside>, IngestError> {
        let entries = self.disk.list(&self.directory);
        let entries = entries.map_err(at(&self.directory))?;
        let directories = entries
            .into_iter()
            .filter(|entry| entry.is_directory && entry.name.starts_with(PREFIX));
        let mut found = Vec::new();
        for entry in directories {
            let directory = self.directory.join(entry.name);
            found.push(self.look_into(directory)?);
        }
        Ok(found)
    }

    fn look_into(&self, directory: PathBuf) -> Result<Aside, IngestError> {
        let entries = self.disk.list(&directory).map_err(at(&directory))?;
        let bytes = entries.iter().map(|entry| entry.len).sum();
        let ends = entries.iter().filter_map(|entry| {
            let name = entry.name.trim_end_matches(AGAIN);
            let start = self.size.start_of(self.number(name)?)?;
            Some(Lsn::new(start.get().saturating_add(entry.len)))
        });
        let end = ends.max().unwrap_or(Lsn::ZERO);
        Ok(Aside {
            directory,
            end,
            bytes,
        })
    }

    /// Where a segment goes: under its own name, unless that is taken.
    fn free_name(&self, number: SegmentNumber, directory: &Path) -> PathBuf {
        let name = self.name(number);
        let path = directory.join(&name);
        match self.disk.len(&path) {
            Ok(_) => directory.join(format!("{name}{AGAIN}")),
            Err(_) => path,
        }
    }

    fn aside_directory(&self, from: Lsn) -> PathBuf {
        self.directory.join(format!("{PREFIX}{:016X}", from.get()))
    }

    /// Copies a segment, durably.
    fn copy(&self, number: SegmentNumber, len: u64, into: &Path) -> Result<(), IngestError> {
        let (from, to) = (self.path(number), self.free_name(number, into));
        let partial = into.join(PARTIAL);
        let mut copy = self.disk.create(&partial).map_err(at(&partial))?;
        let mut offset = 0;
        while offset < len {
            let mut portion = vec![0; ByteCount::new((len - offset).min(READ_SIZE)).as_len()];
            let read = self.disk.read_exact_at(&from, &mut portion, offset);
            read.map_err(at(&from))?;
            copy.write_all(&portion).map_err(at(&partial))?;
            offset += portion.len() as u64;
        }
        copy.sync().map_err(at(&partial))?;
        self.disk.rename(&partial, &to).map_err(at(&partial))?;
        self.disk.sync_directory(into).map_err(at(into))
    }
}
