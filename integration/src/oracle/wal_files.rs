use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use palimpsest_types::Lsn;
use palimpsest_wal::{RawRecord, RecordReader, SegmentSize};

/// Shows every record of the segment files below a directory, from a record's start on.
///
/// Ends where the WAL ends: at a record that was never written, or at a missing segment.
pub fn read_wal(
    pg_wal: &Path,
    start: Lsn,
    size: SegmentSize,
    mut show: impl FnMut(RawRecord) -> Result<()>,
) -> Result<Lsn> {
    let mut reader = RecordReader::new(start, size);
    let mut segment = size.number_of(start);
    let mut end = start;
    loop {
        let Some(path) = file_of(pg_wal, &size.file_name(1, segment))? else {
            return Ok(end);
        };
        let mut bytes =
            bytes::Bytes::from(fs::read(&path).with_context(|| path.display().to_string())?);
        let at = reader.expects();
        bytes = bytes.slice(usize::try_from(at.offset_in(size.bytes()))?..);
        reader.push(at, bytes)?;
        loop {
            match reader.next_record() {
                Ok(Some(record)) => {
                    end = record.end_lsn;
                    show(record)?;
                }
                Ok(None) => break,
                // Behind the last record of a stopped server stand zeros or a recycled segment.
                Err(_) => return Ok(end),
            }
        }
        segment = segment.next();
    }
}

/// The file of a segment, of the newest PostgreSQL timeline that the log has: that begins with what it has in
/// common with the one before.
fn file_of(pg_wal: &Path, name: &str) -> Result<Option<PathBuf>> {
    let (_, segment) = name.split_at(8);
    let entries = fs::read_dir(pg_wal).with_context(|| pg_wal.display().to_string())?;
    let mut newest = None;
    for entry in entries {
        let path = entry?.path();
        let found = path.file_name().and_then(|found| found.to_str());
        if found.is_some_and(|found| found.len() == name.len() && found.ends_with(segment)) {
            newest = newest.max(Some(path));
        }
    }
    Ok(newest)
}

/// The ends of all records in a range, in order. To recover to anything else would apply a record
/// that begins before it.
pub fn boundaries(
    pg_wal: &Path,
    start: Lsn,
    size: SegmentSize,
    range: RangeInclusive<Lsn>,
) -> Result<Vec<Lsn>> {
    let mut found = Vec::new();
    read_wal(pg_wal, start, size, |record| {
        found.extend(Some(record.end_lsn).filter(|lsn| range.contains(lsn)));
        Ok(())
    })?;
    Ok(found)
}
