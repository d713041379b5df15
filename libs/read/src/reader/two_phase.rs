//! Prepared transactions.

use bytes::Bytes;
use palimpsest_redo::Engine;
use palimpsest_types::{Key, KeyRange, Lsn, SlruKind};
use palimpsest_wal::{Value, Xid, clog_page_of, transaction_end};

use super::TimelineReader;
use crate::{error::ReadError, versions::Versions as _};

impl<E: Engine> TimelineReader<E> {
    /// Transactions that are prepared and have not ended, in order of their ids, each with its file
    /// in `pg_twophase` as a checkpoint would write it.
    ///
    /// A base backup may have a file that was about to be removed, of a transaction that ended before
    /// the backup began. Its status tells, as it does to PostgreSQL (`ProcessTwoPhaseBuffer`).
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn prepared_transactions(&self, lsn: Lsn) -> Result<Vec<(Xid, Bytes)>, ReadError> {
        let mut prepared = Vec::new();
        for entry in self.newest_in(all_prepared(), lsn).await?.versions {
            if let (Key::TwoPhase(xid), (_, Value::File(content))) = entry
                && !self.has_ended(xid, lsn).await?
            {
                prepared.push((xid, content));
            }
        }
        Ok(prepared)
    }

    async fn has_ended(&self, xid: Xid, lsn: Lsn) -> Result<bool, ReadError> {
        let page = self.slru_page(SlruKind::Clog, clog_page_of(xid), lsn);
        Ok(page
            .await?
            .is_some_and(|page| transaction_end(&page, xid).is_some()))
    }
}

fn all_prepared() -> KeyRange {
    Key::TwoPhase(0)..Key::SlruSegment(SlruKind::Clog, 0)
}
