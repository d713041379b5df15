//! What a server begins with: a control file as after a shutdown, and the checkpoint record that it points to.

use std::{fmt::Write as _, ops::Range};

use bytes::Bytes;
use palimpsest_postgres::{CheckPoint, ControlFile, ShutDown, Tli};
use palimpsest_read::Cluster;
use palimpsest_types::{Lsn, SystemIdentifier};
use palimpsest_wal::{
    LogHead, LogIdentity, ResourceManager, SegmentNumber, SegmentSize, WAL_PAGE_SIZE, record_of,
    record_place,
};

use crate::error::BackupError;

/// Who the cluster is that starts from a base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Another cluster than the one whose history is read, so that neither's archive or standbys take the log of
    /// the other; the same if it is `None`.
    pub system_identifier: Option<SystemIdentifier>,
    /// PostgreSQL's timeline of what it writes. It must come after the one that it leaves ([`fresh_timeline`]).
    pub timeline: Tli,
}

/// Where a server starts, and from what.
#[derive(Debug)]
pub(crate) struct Start {
    /// What it sees of the log: records that end here or before.
    pub(crate) lsn: Lsn,
    /// Where its own checkpoint record is.
    pub(crate) checkpoint: Lsn,
    pub(crate) identity: LogIdentity,
    pub(crate) parent: Tli,
    history: History,
    pub(crate) control_file: Bytes,
    pub(crate) log: LogHead,
    pub(crate) segment_size: SegmentSize,
    /// Pages of a file of a relation, but for the last.
    pub(crate) relation_segment: u32,
    pub(crate) has_checksums: bool,
    pub(crate) catalog_version: u32,
    /// When the newest checkpoint before was made, in seconds of Unix time.
    pub(crate) time: i64,
}

/// What came before.
#[derive(Debug)]
pub(crate) struct History {
    /// PostgreSQL timelines before the parent, each with where it was left.
    pub(crate) left: Vec<(Tli, Lsn)>,
    /// Who wrote the end of it.
    pub(crate) cluster: SystemIdentifier,
}

/// `XLOG_CHECKPOINT_SHUTDOWN`.
const SHUTDOWN: u8 = 0x00;
/// Timelines of base backups are below: who counts on from there has as many again.
const FRESH: Tli = 1 << 31;

/// A PostgreSQL timeline for what is written after this one is left, chosen by a random number. PostgreSQL itself
/// counts on from the newest that it finds in its archive. Who looks at the past of a cluster that lives on must
/// not take a number that this one may take next, nor that of another such copy: their logs would have
/// the same names.
pub fn fresh_timeline(parent: Tli, random: u32) -> Option<Tli> {
    let first = parent.checked_add(1)?;
    let room = FRESH.checked_sub(first).filter(|room| *room > 0)?;
    // A part of what there is: copies of copies of copies need some, too.
    first.checked_add(random % room.div_ceil(16))
}

impl Start {
    /// The start of a cluster as it was at an LSN.
    pub(crate) fn new(
        cluster: &Cluster,
        lsn: Lsn,
        wanted: Identity,
        history: History,
    ) -> Result<Self, BackupError> {
        let base = ControlFile::parse(&cluster.control_file)?;
        let parent = cluster.control.timeline;
        if wanted.timeline <= parent {
            return Err(BackupError::Timeline {
                wanted: wanted.timeline,
                parent,
            });
        }
        // Records begin at multiples of 8: the same are seen.
        let lsn = lsn.floor_to(8);
        let segment_size = SegmentSize::new(base.wal_segment_size.into())?;
        let place = record_place(lsn, segment_size).ok_or(BackupError::NoRoom(lsn))?;
        let system_identifier = wanted.system_identifier;
        let identity = LogIdentity {
            system_identifier: system_identifier.unwrap_or(history.cluster),
            timeline: wanted.timeline,
        };
        let checkpoint = checkpoint_at(cluster, place, wanted.timeline);
        let previous = Some(cluster.control.checkpoint).filter(|previous| *previous < place);
        let log = record_of(
            ResourceManager::Xlog,
            SHUTDOWN,
            previous.unwrap_or(Lsn::ZERO),
            &checkpoint.to_bytes(),
        )
        .and_then(|record| LogHead::new(record, place, identity, segment_size))
        .ok_or(BackupError::NoRoom(lsn))?;
        let state = shut_down(cluster, identity.system_identifier, checkpoint);
        Ok(Self {
            lsn,
            checkpoint: place,
            identity,
            parent,
            history,
            control_file: ControlFile::shut_down(&cluster.control_file, &state)?,
            log,
            segment_size,
            relation_segment: base.relation_segment_size.max(1),
            has_checksums: base.data_checksum_version != 0,
            catalog_version: base.catalog_version,
            time: cluster.control.time,
        })
    }

    /// Files of the log.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (String, SegmentNumber)> {
        let (size, timeline) = (self.segment_size, self.identity.timeline);
        let segments = self.log.segments();
        segments.map(move |segment| (size.file_name(timeline, segment), segment))
    }

    /// These pages of a segment of the log.
    pub(crate) fn log_pages(&self, segment: SegmentNumber, pages: Range<u64>) -> Vec<Bytes> {
        let Some(start) = self.segment_size.start_of(segment) else {
            return Vec::new();
        };
        let pages = pages.map_while(|page| {
            let at = start.checked_add(page.checked_mul(WAL_PAGE_SIZE)?)?;
            Some(self.log.page(at))
        });
        pages.collect()
    }

    /// The file that says which timelines were left, where (`timeline.c`).
    pub(crate) fn history(&self) -> (String, Bytes) {
        let name = format!("{:08X}.history", self.identity.timeline);
        (
            name,
            history(&self.history.left, (self.parent, self.lsn)).into(),
        )
    }
}

fn history(left: &[(Tli, Lsn)], (parent, end): (Tli, Lsn)) -> String {
    let mut lines = String::new();
    for (timeline, at) in left {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{timeline}\t{at}\tleft by the source");
    }
    let _ = writeln!(
        lines,
        "{parent}\t{end}\tleft for a base backup by Palimpsest"
    );
    lines
}

/// The record of a shutdown: nothing is running, and the next of everything is given.
fn checkpoint_at(cluster: &Cluster, at: Lsn, timeline: Tli) -> CheckPoint {
    let control = &cluster.control;
    CheckPoint {
        redo: at,
        timeline,
        previous_timeline: timeline,
        full_page_writes: true,
        next_xid: control.next_xid,
        next_oid: control.next_oid,
        next_multi: cluster.next_multi.id,
        next_multi_offset: cluster.next_multi.offset,
        oldest_xid: control.oldest_xid,
        oldest_xid_db: control.oldest_xid_db,
        oldest_multi: control.oldest_multi,
        oldest_multi_db: control.oldest_multi_db,
        time: control.time,
        oldest_commit_ts_xid: control.oldest_commit_ts_xid,
        newest_commit_ts_xid: control.newest_commit_ts_xid,
        oldest_active_xid: 0,
    }
}

fn shut_down(
    cluster: &Cluster,
    system_identifier: SystemIdentifier,
    record: CheckPoint,
) -> ShutDown {
    let parameters = &cluster.parameters;
    ShutDown {
        system_identifier,
        checkpoint: record.redo,
        record,
        wal_level: parameters.wal_level,
        wal_log_hints: parameters.wal_log_hints,
        limits: [
            parameters.max_connections,
            parameters.max_worker_processes,
            parameters.max_wal_senders,
            parameters.max_prepared_transactions,
            parameters.max_locks_per_transaction,
        ],
        track_commit_timestamp: parameters.track_commit_timestamp,
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_postgres::TimelineHistory;

    use super::*;

    #[test]
    fn the_history_names_all_that_were_left() {
        let (left, end) = ([(1, Lsn::new(0x300_0060))], (2, Lsn::new(0x500_0028)));
        let text = history(&left, end);
        let history = TimelineHistory::parse("00000007.history", &text).unwrap();
        let ancestors: Vec<_> = history
            .ancestors
            .iter()
            .map(|ancestor| (ancestor.timeline, ancestor.end))
            .collect();
        assert_eq!(ancestors, [left[0], end]);
    }

    #[test]
    fn a_fresh_timeline_comes_after_the_one_that_is_left() {
        for parent in [0, 1, 77, FRESH - 2] {
            for random in [0, 1, u32::MAX / 2, u32::MAX] {
                let fresh = fresh_timeline(parent, random).unwrap();
                assert!(fresh > parent && fresh < FRESH, "{fresh}");
            }
        }
        // Copies of copies, each with the number that leaves least.
        let mut parent = 1;
        for _ in 0..200 {
            let most = (FRESH - parent - 1).div_ceil(16) - 1;
            parent = fresh_timeline(parent, most).unwrap();
        }
        for parent in [FRESH - 1, FRESH, u32::MAX] {
            assert_eq!(fresh_timeline(parent, 0), None);
        }
    }
}
