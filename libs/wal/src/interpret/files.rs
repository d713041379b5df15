//! Records about files as a whole: what transactions drop, prepared transactions, storage, relation
//! maps, settings.

use palimpsest_types::{BlockNumber, Fork, Key, Lsn, RelTag};

use super::{
    Reason,
    changes::Changes,
    maps::{HEAP_BLOCKS_PER_VM_PAGE, free_space_map_len},
};
use crate::{change::Value, clog::TransactionEnd, record::DecodedRecord, v15};

const STORAGE_CREATE: u8 = 0x10;
const STORAGE_TRUNCATE: u8 = 0x20;

impl Changes<'_> {
    pub(super) fn transaction(
        &mut self,
        record: &DecodedRecord,
        start: Lsn,
        track_commit_timestamp: bool,
    ) -> Result<(), Reason> {
        if let Some(prepared) = v15::prepared_transaction(record)? {
            self.cluster.prepared(&prepared);
            self.push(Key::TwoPhase(prepared.xid), Value::File(prepared.file));
        }
        let Some(ended) = v15::ended_transaction(record)? else {
            return Ok(());
        };
        self.cluster.ended(&ended, start);
        self.transactions_ended(ended.end, &ended.xids)?;
        if track_commit_timestamp && ended.end == TransactionEnd::Committed {
            self.cluster.commit_ts(&ended.xids);
            self.committed_at(&ended.xids, ended.at)?;
        }
        if let Some(xid) = ended.prepared {
            self.push(Key::TwoPhase(xid), Value::Dropped);
        }
        for rel in ended.dropped {
            for fork in Fork::ALL {
                self.drop_fork(rel.with_fork(fork));
            }
        }
        Ok(())
    }

    pub(super) fn storage(&mut self, record: &DecodedRecord) -> Result<(), Reason> {
        match record.header.rmgr_info() {
            STORAGE_CREATE => {
                let rel = v15::created_fork(&record.main_data)?;
                // Replay may create a fork that the base already has: that changes nothing.
                if self.sizes.get(rel).is_none() {
                    self.resize(rel, BlockNumber::ZERO);
                }
                Ok(())
            }
            STORAGE_TRUNCATE => {
                self.truncate(v15::truncation(&record.main_data)?);
                Ok(())
            }
            unknown => Err(Reason::UnknownRecord(unknown)),
        }
    }

    /// As `smgr_redo` does, with `visibilitymap_prepare_truncate` and its like for the maps.
    fn truncate(&mut self, truncation: v15::Truncation) {
        let heap_blocks = truncation.blocks;
        if truncation.heap {
            self.shrink(truncation.rel, heap_blocks);
        }
        if truncation.visibility_map {
            let rel = truncation.rel.with_fork(Fork::VisibilityMap);
            let page = BlockNumber::new(heap_blocks.get() / HEAP_BLOCKS_PER_VM_PAGE);
            let inside = heap_blocks.get() % HEAP_BLOCKS_PER_VM_PAGE;
            let keeps_part = inside > 0;
            if keeps_part && self.sizes.get(rel).is_some_and(|size| page < size) {
                let value = Value::TruncateVisibilityMap { heap_blocks };
                self.push(Key::RelBlock(rel, page), value);
            }
            self.shrink(rel, BlockNumber::new(page.get() + u32::from(keeps_part)));
        }
        if truncation.free_space_map {
            let rel = truncation.rel.with_fork(Fork::FreeSpaceMap);
            self.shrink(rel, free_space_map_len(heap_blocks));
        }
    }

    /// Truncation never makes a fork longer, nor brings one into being.
    fn shrink(&mut self, rel: RelTag, blocks: BlockNumber) {
        if self.sizes.get(rel).is_some_and(|size| size > blocks) {
            self.resize(rel, blocks);
        }
    }

    /// One of the log's own records.
    pub(super) fn log_event(&mut self, event: v15::LogEvent) {
        match event {
            v15::LogEvent::Checkpoint(said) => self.cluster.checkpoint(&said),
            v15::LogEvent::NextOid(oid) => self.cluster.next_oid(oid),
            v15::LogEvent::Parameters(after) => self.parameters(after),
            v15::LogEvent::FullPageWrites(on) => self.cluster.full_page_writes(on),
            v15::LogEvent::EndOfRecovery { timeline, previous } => {
                self.cluster.timeline(timeline, previous);
            }
        }
    }

    /// Settings from here on. PostgreSQL makes the first page of `pg_commit_ts` at once when that is
    /// turned on; here it comes with the first transaction on it.
    fn parameters(&mut self, after: v15::Parameters) {
        self.cluster.keep_commit_ts(after.track_commit_timestamp);
        if !after.track_commit_timestamp {
            self.drop_commit_timestamps();
        }
        let content = after.to_bytes().to_vec();
        self.push(Key::Parameters, Value::File(content.into()));
    }

    pub(super) fn relation_map(&mut self, record: &DecodedRecord) -> Result<(), Reason> {
        let (spc, db, content) = v15::relation_map(&record.main_data)?;
        self.push(Key::RelMap { spc, db }, Value::File(content));
        Ok(())
    }
}
