//! The cluster as a whole at an LSN: what a control file must say there, and which LSN a time means.

use std::{collections::BTreeMap, ops::RangeInclusive};

use bytes::Bytes;
use palimpsest_types::{Key, Lsn};
use palimpsest_wal::{
    CommitTime, ControlData, Interpreter, NextMultiXact, OriginProgress, Value, v15::Parameters,
};

use crate::{error::ReadError, versions::Versions};

/// A cluster as a whole at an LSN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The control file that the base backup before it came with: what never changes is as it is there.
    pub control_file: Bytes,
    /// What the log has changed of it.
    pub control: ControlData,
    /// The next multixact.
    pub next_multi: NextMultiXact,
    /// The settings.
    pub parameters: Parameters,
    /// How far each replication origin is replayed.
    pub origins: BTreeMap<u16, Lsn>,
}

/// Which LSN a time means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeAt {
    /// Here; the next record is of a transaction that ended later.
    Lsn(Lsn),
    /// The newest LSN: no transaction has ended later, but one that did not may still come.
    Newest,
    /// An LSN that can't be read any more, or could not yet.
    BeforeOldest,
}

/// In microseconds.
const SECOND: i64 = 1_000_000;
/// From 1970 to 2000, in seconds.
const UNIX_TO_2000: i64 = 946_684_800;

/// The cluster at an LSN; `None` if the timeline was attached before this was kept.
///
/// # Errors
/// If a version can't be read.
pub async fn cluster_at<V: Versions>(versions: &V, lsn: Lsn) -> Result<Option<Cluster>, ReadError> {
    let Some(control_file) = file(versions, Key::ControlFile, lsn).await? else {
        return Ok(None);
    };
    let control = required(versions, Key::ControlData, lsn, ControlData::decode).await?;
    let next_multi = required(versions, Key::NextMultiXact, lsn, NextMultiXact::decode).await?;
    let parameters = required(versions, Key::Parameters, lsn, Parameters::decode).await?;
    let mut origins = BTreeMap::new();
    let listing = versions.newest_in(Interpreter::origins(), lsn).await?;
    for (key, (_, value)) in listing.versions {
        if let (Key::Origin(id), Some(content)) = (key, content(key, value)?) {
            let progress = OriginProgress::decode(&content);
            let OriginProgress(up_to) = progress.map_err(|_| ReadError::WrongValue(key))?;
            origins.insert(id, up_to);
        }
    }
    Ok(Some(Cluster {
        control_file,
        control,
        next_multi,
        parameters,
        origins,
    }))
}

/// Which of these LSNs a time means, in microseconds since the beginning of the year 2000: the one
/// before the first end of a transaction that is later, by [`CommitTime::PRECISION`]. That is what
/// `recovery_target_time` means. A time within the second of the checkpoint that the timeline began with counts
/// as before it.
///
/// # Errors
/// If a version can't be read.
pub async fn lsn_at_time<V: Versions>(
    versions: &V,
    time: i64,
    readable: RangeInclusive<Lsn>,
) -> Result<TimeAt, ReadError> {
    let latest = async |up_to| latest_end(versions, up_to).await;
    let later = |end: &(Lsn, CommitTime)| end.1.is_after(time);
    let mut before = *readable.start();
    let is_before = match latest(before).await? {
        Some(end) => later(&end),
        // Of what ended before the base there is nothing but that it was before its checkpoint.
        None => {
            let checkpoint = checkpoint_second(versions, before).await?;
            checkpoint.is_some_and(|second| time < second.saturating_add(SECOND))
        }
    };
    if is_before {
        return Ok(TimeAt::BeforeOldest);
    }
    let Some(mut first) = latest(*readable.end()).await?.filter(later) else {
        return Ok(TimeAt::Newest);
    };
    // All of these are of the running maximum, so the first that is later can be bisected for.
    while let Some(middle) = between(before, first.0) {
        match latest(middle).await?.filter(later) {
            Some(end) => first = end,
            None => before = middle,
        }
    }
    let (_, end) = first;
    Ok(TimeAt::Lsn(end.record.max(*readable.start())))
}

/// The latest time at which a transaction had ended at an LSN, in microseconds since the beginning of the year 2000, by
/// [`CommitTime::PRECISION`]; `None` if none has since the base backup.
///
/// # Errors
/// If a version can't be read.
pub async fn time_at_lsn<V: Versions>(versions: &V, lsn: Lsn) -> Result<Option<i64>, ReadError> {
    let latest = latest_end(versions, lsn).await?;
    Ok(latest.map(|(_, end)| end.time))
}

/// The second in which the newest checkpoint at an LSN was made, if that is known: as a time of an end.
async fn checkpoint_second<V: Versions>(versions: &V, lsn: Lsn) -> Result<Option<i64>, ReadError> {
    let key = Key::ControlData;
    let Some(content) = file(versions, key, lsn).await? else {
        return Ok(None);
    };
    let control = ControlData::decode(&content).map_err(|_| ReadError::WrongValue(key))?;
    let since_2000 = control.time.saturating_sub(UNIX_TO_2000);
    Ok(Some(since_2000.saturating_mul(SECOND)))
}

/// The end of a transaction with the latest time up to an LSN.
async fn latest_end<V: Versions>(
    versions: &V,
    up_to: Lsn,
) -> Result<Option<(Lsn, CommitTime)>, ReadError> {
    let key = Key::CommitTime;
    match versions.newest(key, Lsn::ZERO..=up_to).await? {
        None => Ok(None),
        Some((at, Value::File(content))) => {
            let end = CommitTime::decode(&content);
            Ok(Some((at, end.map_err(|_| ReadError::WrongValue(key))?)))
        }
        Some(_) => Err(ReadError::WrongValue(key)),
    }
}

/// An LSN between two, if there is one.
fn between(low: Lsn, high: Lsn) -> Option<Lsn> {
    let apart = high.saturating_sub(low);
    (apart > 1).then(|| Lsn::new(low.get() + apart / 2))
}

/// What the control file came with, or the log has made of it since.
async fn required<V: Versions, T, E>(
    versions: &V,
    key: Key,
    lsn: Lsn,
    decode: impl FnOnce(&Bytes) -> Result<T, E>,
) -> Result<T, ReadError> {
    let content = file(versions, key, lsn).await?;
    let content = content.ok_or(ReadError::NotInBackup(key))?;
    decode(&content).map_err(|_| ReadError::WrongValue(key))
}

async fn file<V: Versions>(versions: &V, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
    match versions.newest(key, Lsn::ZERO..=lsn).await? {
        None => Ok(None),
        Some((_, value)) => content(key, value),
    }
}

fn content(key: Key, value: Value) -> Result<Option<Bytes>, ReadError> {
    match value {
        Value::File(content) => Ok(Some(content)),
        Value::Dropped => Ok(None),
        _ => Err(ReadError::WrongValue(key)),
    }
}

#[cfg(test)]
mod tests;
