use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use palimpsest_layer::{DeltaLayer, LogRecord, OpenLayer, OutOfOrderError, Visit};
use palimpsest_types::{ByteCount, Key, KeyRange, Lsn, WriterEpoch};
use palimpsest_wal::Value;
use tokio::sync::watch;

/// The changes that layer files do not have yet, growing, with readers that wait for an LSN.
#[derive(Debug)]
pub struct Tail {
    pieces: RwLock<Pieces>,
    newest: watch::Sender<Lsn>,
}

/// A tail at one moment: pieces that follow each other without a gap, of which only the last grows.
#[derive(Debug)]
pub struct Pieces {
    frozen: VecDeque<Arc<OpenLayer>>,
    open: OpenLayer,
}

/// Changes could not be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// They do not follow.
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrderError),
    /// There is no room for them.
    #[error("the changes held in memory reach {size}, the limit is {limit}")]
    Full {
        /// Bytes held.
        size: ByteCount,
        /// Bytes allowed.
        limit: ByteCount,
    },
}

impl Tail {
    /// An empty tail after `start`.
    pub fn new(epoch: WriterEpoch, start: Lsn) -> Self {
        let (newest, _) = watch::channel(start);
        let pieces = Pieces {
            frozen: VecDeque::new(),
            open: OpenLayer::new(epoch, start),
        };
        Self {
            pieces: RwLock::new(pieces),
            newest,
        }
    }

    /// The tail as it is, for a moment: never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Pieces> {
        self.pieces.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest LSN that can be read.
    pub fn newest(&self) -> Lsn {
        *self.newest.borrow()
    }

    /// Tells when there is more to read.
    pub fn watch(&self) -> watch::Receiver<Lsn> {
        self.newest.subscribe()
    }

    /// Adds records and makes everything up to `up_to` readable, unless the tail would then hold
    /// more than `limit`.
    ///
    /// # Errors
    /// If the records do not follow or there is no room; those before the error are added.
    pub fn extend(
        &self,
        records: Vec<LogRecord>,
        up_to: Lsn,
        limit: ByteCount,
    ) -> Result<(), TailError> {
        let mut pieces = self.write();
        let size = pieces.size();
        if size >= limit && !records.is_empty() {
            return Err(TailError::Full { size, limit });
        }
        for record in records {
            pieces.open.append(record)?;
        }
        pieces.open.advance(up_to);
        self.announce(pieces);
        Ok(())
    }

    /// Ends the growing piece and begins another. `None` if nothing came since the last time.
    pub fn freeze(&self) -> Option<Arc<OpenLayer>> {
        let mut pieces = self.write();
        let (epoch, last) = (pieces.open.epoch(), pieces.open.last());
        if pieces.open.start() == last {
            return None;
        }
        let frozen = std::mem::replace(&mut pieces.open, OpenLayer::new(epoch, last));
        let frozen = Arc::new(frozen);
        pieces.frozen.push_back(Arc::clone(&frozen));
        Some(frozen)
    }

    /// Lets go of frozen pieces that layer files up to `lsn` have wholly.
    pub fn drop_until(&self, lsn: Lsn) {
        let mut pieces = self.write();
        while pieces
            .frozen
            .front()
            .is_some_and(|piece| piece.last() <= lsn)
        {
            pieces.frozen.pop_front();
        }
    }

    /// Goes on under another writer, whose history begins at `start`: what an earlier one told of
    /// later LSNs is forgotten. If it never came as far as `start`, begins there anew.
    pub fn rewind(&self, epoch: WriterEpoch, start: Lsn) {
        let mut pieces = self.write();
        if pieces.open.last() < start {
            pieces.frozen.clear();
            pieces.open = OpenLayer::new(epoch, start);
            return self.announce(pieces);
        }
        let open = std::mem::replace(&mut pieces.open, OpenLayer::new(epoch, start));
        pieces.frozen.push_back(Arc::new(open));
        while pieces
            .frozen
            .back()
            .is_some_and(|piece| piece.start() >= start)
        {
            pieces.frozen.pop_back();
        }
        if let Some(last) = pieces.frozen.back_mut() {
            Arc::make_mut(last).cut_after(start);
        } else {
            // Everything was later: older LSNs are in layer files.
            pieces.open = OpenLayer::new(epoch, start);
        }
        self.announce(pieces);
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pieces> {
        self.pieces.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, pieces: RwLockWriteGuard<'_, Pieces>) {
        let newest = pieces.open.last();
        drop(pieces);
        self.newest
            .send_if_modified(|lsn| std::mem::replace(lsn, newest) != newest);
    }
}

impl Pieces {
    /// Memory they take, about.
    pub fn size(&self) -> ByteCount {
        ByteCount::new(self.oldest_first().map(|piece| piece.size().get()).sum())
    }

    /// Memory that the growing piece takes, about.
    pub fn open_size(&self) -> ByteCount {
        self.open.size()
    }

    /// Only changes after here are held.
    pub fn start(&self) -> Lsn {
        self.frozen
            .front()
            .map_or(self.open.start(), |piece| piece.start())
    }

    /// Everything up to here is held.
    pub fn last(&self) -> Lsn {
        self.open.last()
    }

    /// Records after `after` in order, until they hold about `limit` bytes, and the LSN up to which
    /// they are complete. `None` if the oldest that is held is later.
    pub fn log_after(&self, after: Lsn, limit: ByteCount) -> Option<(Vec<LogRecord>, Lsn)> {
        if after < self.start() {
            return None;
        }
        for piece in self.oldest_first().filter(|piece| piece.last() > after) {
            let records = piece.log_after(after, limit);
            if let Some(last) = records.last() {
                let up_to = last.lsn;
                return Some((records, up_to));
            }
        }
        Some((Vec::new(), self.last()))
    }

    fn oldest_first(&self) -> impl DoubleEndedIterator<Item = &OpenLayer> {
        let frozen = self.frozen.iter().map(AsRef::as_ref);
        frozen.chain(std::iter::once(&self.open))
    }
}

impl DeltaLayer for Pieces {
    fn epoch(&self) -> WriterEpoch {
        self.open.epoch()
    }

    fn lsns(&self) -> Range<Lsn> {
        self.start()..self.last()
    }

    fn versions(&self, key: Key, up_to: Lsn, visit: &mut dyn FnMut(Lsn, &Value) -> Visit) {
        let mut stopped = false;
        for piece in self.oldest_first().rev() {
            piece.versions(key, up_to, &mut |lsn, value| {
                let wish = visit(lsn, value);
                stopped = wish == Visit::Stop;
                wish
            });
            if stopped {
                return;
            }
        }
    }

    /// Older pieces first, so a key may be shown more than once: the last time counts.
    fn newest(&self, keys: KeyRange, up_to: Lsn, visit: &mut dyn FnMut(Key, Lsn, &Value)) {
        for piece in self.oldest_first() {
            piece.newest(keys.clone(), up_to, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{BlockNumber, Fork, RelTag};
    use palimpsest_wal::Change;
    use proptest::prelude::*;

    use super::*;

    const UNBOUNDED: ByteCount = ByteCount::new(u64::MAX);

    fn key() -> Key {
        Key::RelSize(RelTag {
            spc: 1,
            db: 2,
            rel: 3,
            fork: Fork::Main,
        })
    }

    fn resized(lsn: u64) -> LogRecord {
        let value = Value::RelSize(BlockNumber::new(lsn as u32));
        LogRecord {
            lsn: Lsn::new(lsn),
            changes: vec![Change { key: key(), value }],
        }
    }

    fn versions(tail: &Tail, up_to: u64) -> Vec<u64> {
        let mut found = Vec::new();
        tail.read().versions(key(), Lsn::new(up_to), &mut |lsn, _| {
            found.push(lsn.get());
            Visit::Continue
        });
        found
    }

    fn log(tail: &Tail, after: u64) -> Option<Vec<u64>> {
        let mut after = Lsn::new(after);
        let mut all = Vec::new();
        loop {
            let (records, up_to) = tail.read().log_after(after, ByteCount::new(1))?;
            if records.is_empty() {
                return Some(all);
            }
            all.extend(records.iter().map(|record| record.lsn.get()));
            after = up_to;
        }
    }

    #[test]
    fn pieces_are_one_to_the_reader_until_they_are_dropped() {
        let tail = Tail::new(WriterEpoch::FIRST, Lsn::new(100));
        assert!(tail.freeze().is_none());
        for lsn in [110, 120, 130, 140] {
            tail.extend(vec![resized(lsn)], Lsn::new(lsn + 5), UNBOUNDED)
                .unwrap();
            if lsn < 140 {
                let frozen = tail.freeze().unwrap();
                assert_eq!(frozen.last(), Lsn::new(lsn + 5));
            }
        }
        assert_eq!(versions(&tail, 135), [130, 120, 110]);
        assert_eq!(log(&tail, 100), Some(vec![110, 120, 130, 140]));
        tail.drop_until(Lsn::new(125));
        assert_eq!(tail.read().start(), Lsn::new(125));
        assert_eq!(versions(&tail, 999), [140, 130]);
        assert_eq!(log(&tail, 124), None);
        assert_eq!(log(&tail, 125), Some(vec![130, 140]));
        assert_eq!(tail.newest(), Lsn::new(145));
    }

    #[test]
    fn a_full_tail_takes_nothing_more() {
        let tail = Tail::new(WriterEpoch::FIRST, Lsn::new(100));
        tail.extend(vec![resized(110)], Lsn::new(110), ByteCount::new(1))
            .unwrap();
        let full = tail.extend(vec![resized(120)], Lsn::new(120), ByteCount::new(1));
        assert!(matches!(full, Err(TailError::Full { .. })));
        assert_eq!(tail.newest(), Lsn::new(110));
    }

    proptest! {
        /// However it is cut into pieces, a tail after a rewind holds what came before the new
        /// writer's start, then what the new writer says.
        #[test]
        fn a_rewound_tail_forgets_what_came_later(
            freezes in prop::collection::vec(any::<bool>(), 1..9),
            dropped in 0..100_u64,
            start in 0..120_u64,
        ) {
            let tail = Tail::new(WriterEpoch::FIRST, Lsn::ZERO);
            let mut kept = Vec::new();
            for (at, freeze) in freezes.iter().enumerate() {
                let lsn = (at as u64 + 1) * 10;
                tail.extend(vec![resized(lsn)], Lsn::new(lsn), UNBOUNDED).unwrap();
                kept.push(lsn);
                if *freeze {
                    tail.freeze();
                }
            }
            let last = tail.newest().get();
            tail.drop_until(Lsn::new(dropped));
            let held_from = tail.read().start().get();
            let epoch = WriterEpoch::FIRST.next().unwrap();
            tail.rewind(epoch, Lsn::new(start));
            prop_assert_eq!(tail.newest().get(), start);
            prop_assert_eq!(tail.read().epoch(), epoch);
            kept.retain(|lsn| *lsn <= start && *lsn > held_from && last >= start);
            kept.reverse();
            prop_assert_eq!(versions(&tail, u64::MAX), kept.clone());
            tail.extend(vec![resized(start + 7)], Lsn::new(start + 7), UNBOUNDED).unwrap();
            kept.insert(0, start + 7);
            prop_assert_eq!(versions(&tail, u64::MAX), kept);
        }
    }
}
