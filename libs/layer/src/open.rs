use std::{collections::BTreeMap, ops::Range};

use palimpsest_types::{ByteCount, Key, KeyRange, Lsn, WriterEpoch};
use palimpsest_wal::{Change, Value};

use crate::delta::{DeltaLayer, Visit};

/// The newest changes of a timeline: a log in LSN order and an index by key.
///
/// wal-ingest writes one and feeds subscribers from its log; page-serve rebuilds the same from the
/// feed as its tail.
#[derive(Debug, Clone)]
pub struct OpenLayer {
    epoch: WriterEpoch,
    start: Lsn,
    last: Lsn,
    log: Vec<Entry>,
    index: BTreeMap<Key, Vec<u32>>,
    bytes: u64,
}

/// The changes of one WAL record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// End of the record.
    pub lsn: Lsn,
    /// What it changes; each key at most once.
    pub changes: Vec<Change>,
}

/// A record came that is not after the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes at {found} came after those at {last}")]
pub struct OutOfOrderError {
    /// End of the newest record so far.
    pub last: Lsn,
    /// End of the record that came.
    pub found: Lsn,
}

#[derive(Debug, Clone)]
struct Entry {
    lsn: Lsn,
    key: Key,
    value: Value,
}

/// What an entry takes beside its value: itself and its place in the index.
const ENTRY_OVERHEAD: u64 = 128;

impl LogRecord {
    /// Memory that its changes take, about.
    pub fn size(&self) -> ByteCount {
        let values = || self.changes.iter().map(|change| &change.value);
        let own: u64 = values()
            .map(|value| ENTRY_OVERHEAD + value.own_bytes())
            .sum();
        let shared = values().map(Value::record_bytes).max().unwrap_or_default();
        ByteCount::new(own + shared)
    }
}

impl OpenLayer {
    /// An empty layer for changes after `start`.
    pub fn new(epoch: WriterEpoch, start: Lsn) -> Self {
        Self {
            epoch,
            start,
            last: start,
            log: Vec::new(),
            index: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Only changes after here are in it.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// Everything up to here has been applied.
    pub fn last(&self) -> Lsn {
        self.last
    }

    /// True if it holds no changes, however far it has come.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// Memory it takes, about.
    pub fn size(&self) -> ByteCount {
        ByteCount::new(self.bytes)
    }

    /// Adds the changes of the next record, which may be none.
    ///
    /// # Errors
    /// If the record is not after the last one.
    pub fn append(&mut self, record: LogRecord) -> Result<(), OutOfOrderError> {
        let size = record.size();
        let LogRecord { lsn, changes } = record;
        if lsn <= self.last {
            return Err(OutOfOrderError {
                last: self.last,
                found: lsn,
            });
        }
        self.last = lsn;
        self.bytes += size.get();
        for Change { key, value } in changes {
            self.index
                .entry(key)
                .or_default()
                .push(self.log.len() as u32);
            self.log.push(Entry { lsn, key, value });
        }
        Ok(())
    }

    /// Forgets everything after `lsn`.
    pub fn cut_after(&mut self, lsn: Lsn) {
        let lsn = lsn.max(self.start);
        if self.last <= lsn {
            return;
        }
        let mut kept = Self::new(self.epoch, self.start);
        for record in self.log_after(self.start, ByteCount::new(u64::MAX)) {
            if record.lsn <= lsn {
                // They were in order before.
                let _ = kept.append(record);
            }
        }
        kept.advance(lsn);
        *self = kept;
    }

    /// All changes, by key and then by LSN, as they stand in files.
    pub fn entries(&self) -> impl Iterator<Item = (Key, Lsn, &Value)> + Clone {
        self.index.iter().flat_map(|(key, positions)| {
            positions.iter().filter_map(|position| {
                let entry = self.log.get(*position as usize)?;
                Some((*key, entry.lsn, &entry.value))
            })
        })
    }

    /// Records that change nothing were read up to here.
    pub fn advance(&mut self, lsn: Lsn) {
        self.last = self.last.max(lsn);
    }

    /// Records after `after` in order, until they hold about `limit` bytes.
    pub fn log_after(&self, after: Lsn, limit: ByteCount) -> Vec<LogRecord> {
        let from = self.log.partition_point(|entry| entry.lsn <= after);
        let mut records: Vec<LogRecord> = Vec::new();
        let mut bytes = 0;
        for entry in self.log.get(from..).unwrap_or_default() {
            let change = Change {
                key: entry.key,
                value: entry.value.clone(),
            };
            bytes += ENTRY_OVERHEAD + entry.value.own_bytes();
            let full = bytes > limit.get() && !records.is_empty();
            match records.last_mut().filter(|record| record.lsn == entry.lsn) {
                Some(record) => record.changes.push(change),
                None if full => break,
                None => {
                    bytes += entry.value.record_bytes();
                    records.push(LogRecord {
                        lsn: entry.lsn,
                        changes: vec![change],
                    });
                }
            }
        }
        records
    }

    fn at_or_before<'a>(&'a self, positions: &'a [u32], up_to: Lsn) -> &'a [u32] {
        let end = positions.partition_point(|position| {
            self.log
                .get(*position as usize)
                .is_some_and(|entry| entry.lsn <= up_to)
        });
        positions.get(..end).unwrap_or_default()
    }
}

impl DeltaLayer for OpenLayer {
    fn epoch(&self) -> WriterEpoch {
        self.epoch
    }

    fn lsns(&self) -> Range<Lsn> {
        self.start..self.last
    }

    fn versions(&self, key: Key, up_to: Lsn, visit: &mut dyn FnMut(Lsn, &Value) -> Visit) {
        let Some(positions) = self.index.get(&key) else {
            return;
        };
        for position in self.at_or_before(positions, up_to).iter().rev() {
            let Some(entry) = self.log.get(*position as usize) else {
                return;
            };
            if visit(entry.lsn, &entry.value) == Visit::Stop {
                return;
            }
        }
    }

    fn newest(&self, keys: KeyRange, up_to: Lsn, visit: &mut dyn FnMut(Key, Lsn, &Value)) {
        for (key, positions) in self.index.range(keys) {
            let newest = self.at_or_before(positions, up_to).last();
            if let Some(entry) = newest.and_then(|position| self.log.get(*position as usize)) {
                visit(*key, entry.lsn, &entry.value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{BlockNumber, Fork, RelTag};

    use super::*;

    fn key(block: u32) -> Key {
        let rel = RelTag {
            spc: 1,
            db: 2,
            rel: 3,
            fork: Fork::Main,
        };
        Key::RelBlock(rel, BlockNumber::new(block))
    }

    fn layer() -> OpenLayer {
        let mut layer = OpenLayer::new(WriterEpoch::FIRST, Lsn::new(100));
        for (lsn, block) in [(110, 1), (120, 2), (130, 1)] {
            let value = Value::RelSize(BlockNumber::new(lsn));
            let changes = vec![Change {
                key: key(block),
                value,
            }];
            layer
                .append(LogRecord {
                    lsn: Lsn::new(lsn.into()),
                    changes,
                })
                .unwrap();
        }
        layer
    }

    fn versions(layer: &OpenLayer, block: u32, up_to: u64) -> Vec<u64> {
        let mut found = Vec::new();
        layer.versions(key(block), Lsn::new(up_to), &mut |lsn, _| {
            found.push(lsn.get());
            Visit::Continue
        });
        found
    }

    #[test]
    fn shows_versions_newest_first_and_none_from_the_future() {
        let layer = layer();
        assert_eq!(versions(&layer, 1, 130), [130, 110]);
        assert_eq!(versions(&layer, 1, 129), [110]);
        assert_eq!(versions(&layer, 1, 109), [0; 0]);
        assert_eq!(versions(&layer, 9, 999), [0; 0]);
    }

    #[test]
    fn refuses_what_does_not_come_after() {
        let mut layer = layer();
        let lsn = Lsn::new(130);
        assert!(
            layer
                .append(LogRecord {
                    lsn,
                    changes: vec![]
                })
                .is_err()
        );
        layer.advance(Lsn::new(140));
        assert_eq!(layer.last(), Lsn::new(140));
    }

    #[test]
    fn cutting_forgets_what_came_later_and_nothing_else() {
        let mut layer = layer();
        let whole = layer.size();
        layer.cut_after(Lsn::new(120));
        assert_eq!(layer.last(), Lsn::new(120));
        assert_eq!(versions(&layer, 1, 999), [110]);
        assert_eq!(versions(&layer, 2, 999), [120]);
        assert!(layer.size() < whole);
        layer.cut_after(Lsn::new(50));
        assert!(layer.is_empty());
        assert_eq!(layer.last(), Lsn::new(100));
    }

    #[test]
    fn entries_come_by_key_and_then_by_lsn() {
        let layer = layer();
        let entries = layer.entries().map(|(key, lsn, _)| (key, lsn.get()));
        let expected = [(key(1), 110), (key(1), 130), (key(2), 120)];
        assert_eq!(entries.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_log_is_read_in_bounded_portions_and_never_cuts_a_record() {
        let layer = layer();
        let portion = layer.log_after(Lsn::new(100), ByteCount::new(1));
        assert_eq!(portion.len(), 1);
        let rest = layer.log_after(portion[0].lsn, ByteCount::mib(1));
        assert_eq!(
            rest.iter().map(|r| r.lsn.get()).collect::<Vec<_>>(),
            [120, 130]
        );
        assert!(layer.log_after(Lsn::new(130), ByteCount::mib(1)).is_empty());
    }

    #[test]
    fn shows_the_newest_of_each_key() {
        let mut found = Vec::new();
        layer().newest(key(0)..key(9), Lsn::new(125), &mut |key, lsn, _| {
            found.push((key, lsn.get()));
        });
        assert_eq!(found, [(key(1), 110), (key(2), 120)]);
    }
}
