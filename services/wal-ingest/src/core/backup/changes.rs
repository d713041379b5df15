//! A base backup as changes of what was there before: for a timeline that goes on from it, because WAL was lost.
//!
//! A layer is full when the backup has brought so much, and nobody knows how many there will be. In delta layers of the same
//! LSNs the same key would be looked for in one only. So each gets LSNs of its own, from the end of what was there on: nobody
//! reads at them, and the last layer ends where the backup begins.
//!
//! Most pages have not changed since the end of what was there, and are left out.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use palimpsest_layer::delta_file::write_delta_entries;
use palimpsest_manifest::{KeySpan, LayerEntry, LayerKind, LsnSpan};
use palimpsest_read::TimelineReader;
use palimpsest_redo::NoEngine;
use palimpsest_types::{BlockNumber, Fork, Key, Lsn, Oid, PAGE_SIZE, RelTag, WriterEpoch};
use palimpsest_wal::{CommitTime, Value};

use super::form::{Form, LAYER_SIZE, Layer, Shelf};
use crate::core::error::IngestError;

/// What there was at the end of a timeline, of which something may be gone.
#[derive(Debug)]
pub(in crate::core) struct Before {
    /// Where that can be read.
    pub(in crate::core) reader: TimelineReader<NoEngine>,
    /// Whether the source's history is ours up to its end, so that page LSNs tell something.
    pub(in crate::core) trusts_lsns: bool,
    /// Sizes and files; pages go with those.
    pub(in crate::core) keys: BTreeSet<Key>,
    /// The latest time at which a transaction ended.
    pub(in crate::core) latest: Option<CommitTime>,
}

/// The backup as changes.
pub(in crate::core) struct Changes {
    shelf: Shelf,
    /// From the end of what was before to where the backup begins, less what layers have.
    lsns: LsnSpan,
    /// Where what was before ends.
    end: Lsn,
    before: Before,
    /// Pages that may be as they were, of one fork.
    fresh: Vec<(BlockNumber, Bytes)>,
    fork: Option<RelTag>,
    open: BTreeMap<Key, Value>,
    bytes: usize,
    /// Pages that came, and those that were as they were.
    pages: u64,
    same: u64,
    /// What there is besides pages.
    found: BTreeSet<Key>,
    begun_at: Option<u64>,
}

/// The names of these layers begin with it.
const REREAD: &str = "reread";
/// Pages that are looked for together in what was before.
const TOGETHER: usize = 512;
/// LSNs of a layer, but for the last one.
const STEP: u64 = 8;
/// In microseconds.
const SECOND: i64 = 1_000_000;
/// From 1970 to 2000, in seconds.
const UNIX_TO_2000: i64 = 946_684_800;

impl Changes {
    /// Changes of what was there `before`, from the end of that to where the backup begins.
    pub(in crate::core) fn new(shelf: Shelf, lsns: LsnSpan, before: Before) -> Self {
        Self {
            shelf,
            lsns,
            end: lsns.after,
            before,
            fresh: Vec::new(),
            fork: None,
            open: BTreeMap::new(),
            bytes: 0,
            pages: 0,
            same: 0,
            found: BTreeSet::new(),
            begun_at: None,
        }
    }

    fn put(&mut self, key: Key, value: Value) {
        self.bytes += size_of::<Value>() + value.own_bytes() as usize;
        self.open.insert(key, value);
    }

    /// Keeps those of the pages that came which are not as they were.
    async fn sift(&mut self) -> Result<(), IngestError> {
        let fresh = std::mem::take(&mut self.fresh);
        let Some(rel) = self.fork.take() else {
            return Ok(());
        };
        let Before {
            reader,
            trusts_lsns,
            ..
        } = &self.before;
        // Boxed: its state is large, and this is a part of what reads the backup.
        let same = Box::pin(reader.same_pages(rel, &fresh, self.end, *trusts_lsns)).await?;
        for ((block, page), is_same) in fresh.into_iter().zip(same) {
            self.pages += 1;
            match is_same {
                true => self.same += 1,
                false => self.put(Key::RelBlock(rel, block), Value::Image(page)),
            }
        }
        Ok(())
    }

    async fn upload(&mut self, lsns: LsnSpan) -> Result<(), IngestError> {
        let entries = std::mem::take(&mut self.open);
        self.bytes = 0;
        let epoch = self.shelf.epoch();
        let writing = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            let (after, up_to) = (lsns.after, lsns.up_to);
            let versions = entries.iter().map(|(key, value)| (*key, up_to, value));
            let summary = write_delta_entries(epoch, after..up_to, versions, &mut bytes);
            summary.map(|summary| (bytes, summary))
        });
        let failed = || IngestError::Backup("a layer of it can't be made");
        let written = writing.await.map_err(|_| failed())?;
        let (bytes, summary) = written.map_err(|_| failed())?;
        let missing = IngestError::Backup("a layer of it would be empty");
        let keys = summary.keys.ok_or(missing)?;
        let layer = Layer {
            bytes: bytes.into(),
            kind: LayerKind::Delta(lsns),
            keys: KeySpan {
                first: keys.first,
                last: keys.last,
            },
            entries: summary.entries,
        };
        self.shelf.add(REREAD, layer).await
    }

    /// What the backup does not have of what was there.
    fn drop_what_is_gone(&mut self) {
        let before = std::mem::take(&mut self.before.keys);
        let databases: BTreeSet<_> = self.found.iter().filter_map(database_of).collect();
        for key in before.difference(&self.found) {
            let gone = match database_of(key) {
                // All that it had, as when it is dropped.
                Some((spc, db)) if !databases.contains(&(spc, db)) => Key::Database { spc, db },
                Some(_) | None => *key,
            };
            self.open.insert(gone, Value::Dropped);
        }
    }

    /// When the transactions ended whose end was lost: at the latest when the backup began. So a time before that, and after
    /// what came before, means an LSN that can't be read.
    fn note_lost_ends(&mut self) {
        let Some(begun_at) = self.begun_at.and_then(|at| i64::try_from(at).ok()) else {
            return;
        };
        // The second may have been under way.
        let since_2000 = begun_at.saturating_add(1).saturating_sub(UNIX_TO_2000);
        let time = since_2000.saturating_mul(SECOND);
        if self.before.latest.is_none_or(|latest| latest.time < time) {
            let end = CommitTime {
                time,
                record: self.lsns.up_to,
            };
            self.put(Key::CommitTime, Value::File(end.to_bytes()));
        }
    }
}

impl Form for Changes {
    async fn page(&mut self, key: Key, page: &[u8; PAGE_SIZE]) -> Result<(), IngestError> {
        let page = Bytes::copy_from_slice(page);
        match key {
            // Pages of maps have no LSN that tells anything.
            Key::RelBlock(rel, block) if rel.fork == Fork::Main => {
                if self.fork != Some(rel) || self.fresh.len() >= TOGETHER {
                    self.sift().await?;
                    self.fork = Some(rel);
                }
                self.fresh.push((block, page));
            }
            _ => self.put(key, Value::Image(page)),
        }
        Ok(())
    }

    fn size(&mut self, key: Key, blocks: BlockNumber) {
        self.found.insert(key);
        self.put(key, Value::RelSize(blocks));
    }

    fn file(&mut self, key: Key, content: &[u8]) {
        self.found.insert(key);
        self.put(key, Value::File(content.to_vec().into()));
    }

    fn begun_at(&mut self, unix_seconds: u64) {
        self.begun_at = Some(unix_seconds);
    }

    async fn store_full(&mut self) -> Result<(), IngestError> {
        if self.bytes < LAYER_SIZE {
            return Ok(());
        }
        let LsnSpan { after, up_to } = self.lsns;
        let next = after.get().saturating_add(STEP);
        if next >= up_to.get() {
            return Err(IngestError::TooSoon {
                end: after,
                start: up_to,
            });
        }
        let next = Lsn::new(next);
        self.lsns.after = next;
        self.upload(LsnSpan { after, up_to: next }).await
    }

    async fn finish(mut self) -> Result<Vec<LayerEntry>, IngestError> {
        self.sift().await?;
        let (pages, same) = (self.pages, self.same);
        tracing::info!(
            pages,
            same,
            "pages of relations in the base backup, and those that were as they were"
        );
        self.note_lost_ends();
        self.drop_what_is_gone();
        self.upload(self.lsns).await?;
        Ok(self.shelf.into_stored())
    }
}

/// Whether a layer is of a backup that was read over what ends at `end`, and never came to an end. Of who has taken over since
/// this writer did nothing is: that is somebody's work, or somebody's layer.
pub(in crate::core) fn is_leftover(name: &str, end: Lsn, writer: WriterEpoch) -> bool {
    let mut parts = name.split('-');
    let is_ours = parts.next() == Some(REREAD);
    let up_to = parts.next().map(|lsn| u64::from_str_radix(lsn, 16));
    let epoch = parts.next().map(str::parse);
    match (up_to, epoch) {
        (Some(Ok(up_to)), Some(Ok(epoch))) => {
            is_ours && Lsn::new(up_to) > end && WriterEpoch::new(epoch) < writer
        }
        _ => false,
    }
}

/// The database that has a key.
fn database_of(key: &Key) -> Option<(Oid, Oid)> {
    match *key {
        Key::RelSize(rel) => Some((rel.spc, rel.db)),
        Key::RelMap { spc, db } => Some((spc, db)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p4_only_layers_of_those_before_are_left_over() {
        let end = Lsn::new(0x1000);
        let is_left = |name| is_leftover(name, end, WriterEpoch::new(5));
        assert!(is_left("reread-0000000000001008-4-00000000000000aa-0"));
        assert!(!is_left("reread-0000000000001008-5-00000000000000aa-0"));
        assert!(!is_left("reread-0000000000001008-6-00000000000000aa-0"));
        // In use once, and compacted since.
        assert!(!is_left("reread-0000000000001000-4-00000000000000aa-0"));
        assert!(!is_left("image-0000000000001008-4-00000000000000aa-0"));
        assert!(!is_left("reread-x"));
    }
}
