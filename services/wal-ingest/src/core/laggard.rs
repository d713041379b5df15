//! Changes that memory no longer has: the local WAL, decoded again for one who is behind.
//!
//! Decoding can begin where the length of everything is known, which is at the manifest's LSN: older
//! changes are in layers of the object store. [`Beginning`] keeps that knowledge up to date, so that
//! a laggard is served although the object store is away, which is when there are laggards.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use palimpsest_layer::{DeltaLayer as _, LogRecord, OpenLayer, Visit};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ByteCount, Fork, Key, Lsn, RelTag, SlruKind};
use palimpsest_wal::{Interpreter, RecordReader, SegmentSize, Value};

use self::places::Behind;
use super::{
    back_off::BackOff, error::IngestError, follow::FollowError, local_layers::LocalLayer,
    timeline::Timeline, wal_files::WalReader,
};

mod places;
#[cfg(test)]
mod tests;

pub(super) use self::places::Places;

/// What decoding a timeline's local WAL again takes, beside the one who writes it.
#[derive(Debug, Clone)]
pub(super) struct LocalHistory {
    pub(super) wal: WalReader,
    pub(super) segment_size: SegmentSize,
    pub(super) beginning: Arc<Beginning>,
    /// Laggards of the node.
    pub(super) places: Arc<Places>,
    pub(super) scope: TaskScope,
    /// Not held: who follows does not keep a timeline from ending.
    pub(super) timeline: Weak<Timeline>,
}

/// The manifest's LSN, and an interpreter for the records after it.
#[derive(Debug)]
pub(super) struct Beginning(Mutex<Known>);

#[derive(Debug)]
struct Known {
    lsn: Lsn,
    /// `None` if the layers up to there have to be asked.
    interpreter: Option<Interpreter>,
}

/// What a layer says of the lengths, settings and numbers on which decoding depends: the newest
/// version of each such key. `None` if it changes whole databases, which are more than their own keys.
pub(super) type States = Option<Vec<(Key, Value)>>;

/// Decodes WAL files that are written and removed meanwhile.
#[derive(Debug)]
pub(super) struct Laggard {
    wal: WalReader,
    /// The next byte to read.
    at: Lsn,
    reader: RecordReader,
    interpreter: Interpreter,
    last_record: Lsn,
    _behind: Behind,
}

/// What some WAL came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Portion {
    /// Records that change something, and up to where there are no others.
    Decoded(Vec<LogRecord>, Lsn),
    /// The object store has what would come next, so the files are gone.
    Removed,
}

/// Changes in one message, about.
pub(super) const BATCH: ByteCount = ByteCount::mib(1);
/// WAL that is decoded before somebody looks whether it is still wanted.
const LOOK: u64 = 4 << 20;

const FIRST_REL: RelTag = RelTag {
    spc: 0,
    db: 0,
    rel: 0,
    fork: Fork::Main,
};

impl LocalHistory {
    /// Somebody who has everything up to `after`.
    pub(super) async fn begin(&self, after: Lsn) -> Result<Laggard, FollowError> {
        let mut back_off = BackOff::default();
        loop {
            // Anew each time: it moves on while one waits.
            self.beginning.check(after)?;
            let Some((start, interpreter)) = self.beginning.get() else {
                if let Err(error) = self.ask_layers().await {
                    tracing::warn!(
                        error = error.in_words(),
                        "can't learn how long relations are where a laggard begins; trying again"
                    );
                }
                back_off.wait().await;
                continue;
            };
            if start > after {
                continue;
            }
            tracing::info!(%after, from = %start, "memory does not go back so far; decoding local WAL again");
            return Ok(Laggard {
                wal: self.wal.clone(),
                at: start,
                reader: RecordReader::new(start, self.segment_size),
                interpreter,
                last_record: start,
                _behind: self.places.join(),
            });
        }
    }

    async fn ask_layers(&self) -> Result<(), IngestError> {
        let Some(timeline) = self.timeline.upgrade() else {
            return Ok(());
        };
        timeline.learn_beginning(&self.beginning).await
    }

    /// The next changes of one who has everything up to `after`, none beyond `until`; as soon as
    /// there is a place.
    pub(super) async fn next(
        &self,
        mut laggard: Laggard,
        after: Lsn,
        until: Lsn,
    ) -> Result<(Laggard, Portion), FollowError> {
        let place = self.places.decode().await?;
        let decoding = self.scope.spawn_blocking(move || {
            let _place = place;
            let portion = laggard.decode(after, until)?;
            Ok((laggard, portion))
        });
        let decoded = decoding.await.unwrap_or_else(|error| {
            Err(IngestError::WalFile {
                path: self.wal.directory().to_owned(),
                source: std::io::Error::other(error),
            })
        });
        decoded.map_err(|error| FollowError::Local(Box::new(error)))
    }
}

impl Beginning {
    /// Where a timeline was taken over.
    pub(super) fn new(lsn: Lsn, interpreter: Interpreter) -> Self {
        let interpreter = Some(interpreter);
        Self(Mutex::new(Known { lsn, interpreter }))
    }

    /// The manifest has these layers now, each of which begins where the one before ended.
    pub(super) fn advance(&self, layers: &[LocalLayer]) {
        let mut known = self.lock();
        for layer in layers {
            known.lsn = layer.span.up_to;
            match (&mut known.interpreter, &layer.states) {
                (Some(interpreter), Some(states)) => {
                    let mut noted = states
                        .iter()
                        .map(|(key, value)| interpreter.note(*key, value));
                    if noted.any(|outcome| outcome.is_err()) {
                        known.interpreter = None;
                    }
                }
                (interpreter, _) => *interpreter = None,
            }
        }
    }

    /// Whether decoding begins early enough for one who has everything up to `after`.
    fn check(&self, after: Lsn) -> Result<(), FollowError> {
        let start = self.lock().lsn;
        match after < start {
            true => Err(FollowError::Gone {
                asked: after,
                start,
            }),
            false => Ok(()),
        }
    }

    /// Where decoding begins and what is known there; `None` while the layers have to be asked.
    fn get(&self) -> Option<(Lsn, Interpreter)> {
        let known = self.lock();
        Some((known.lsn, known.interpreter.clone()?))
    }

    /// Whether the layers need not be asked.
    pub(super) fn is_known(&self) -> bool {
        self.lock().interpreter.is_some()
    }

    /// What the layers say of `lsn`, unless the manifest has moved on.
    pub(super) fn learn(&self, lsn: Lsn, interpreter: Interpreter) {
        let mut known = self.lock();
        if known.lsn == lsn {
            known.interpreter = Some(interpreter);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Laggard {
    /// Decodes until there is a message's worth, all up to `until` is decoded, or somebody should
    /// look. Blocking.
    fn decode(&mut self, after: Lsn, until: Lsn) -> Result<Portion, IngestError> {
        let look = self.at.get().saturating_add(LOOK);
        let (mut records, mut size) = (Vec::new(), 0);
        loop {
            while let Some(record) = self.reader.next_record()? {
                let changes = self.interpreter.interpret(&record)?;
                self.last_record = record.end_lsn;
                if record.end_lsn <= after || changes.is_empty() {
                    continue;
                }
                let lsn = record.end_lsn;
                let record = LogRecord { lsn, changes };
                size += record.size().get();
                records.push(record);
                if size >= BATCH.get() {
                    return Ok(Portion::Decoded(records, self.last_record));
                }
            }
            if self.at >= until && self.last_record < until {
                // A record ends where memory begins.
                let (expected, found) = (until, self.last_record);
                return Err(IngestError::WalGap { expected, found });
            }
            if self.at >= until || self.at.get() >= look {
                return Ok(Portion::Decoded(records, self.last_record));
            }
            let Some(bytes) = self.wal.read(self.at, until)? else {
                return Ok(Portion::Removed);
            };
            if bytes.is_empty() {
                // Memory has what the files do not.
                let (expected, found) = (until, self.at);
                return Err(IngestError::WalGap { expected, found });
            }
            let len = bytes.len() as u64;
            self.reader.push(self.at, bytes)?;
            self.at = Lsn::new(self.at.get() + len);
        }
    }
}

/// What a layer that is to be published will say of lengths and settings.
pub(super) fn states(piece: &OpenLayer) -> States {
    let end = piece.lsns().end;
    let whole = Key::Database { spc: 0, db: 0 };
    let mut whole_databases = false;
    let beyond = Key::Database {
        spc: u32::MAX,
        db: u32::MAX,
    };
    piece.newest(whole..beyond, end, &mut |_, _, _| whole_databases = true);
    if whole_databases {
        return None;
    }
    let mut states = Vec::new();
    let sizes = Key::RelSize(FIRST_REL)..Key::RelBlock(FIRST_REL, Default::default());
    let segments = Key::SlruSegment(SlruKind::Clog, 0)..Key::Parameters;
    for keys in [sizes, segments, Interpreter::origins()] {
        piece.newest(keys, end, &mut |key, _, value| {
            states.push((key, value.clone()));
        });
    }
    for key in [Key::Parameters]
        .into_iter()
        .chain(Interpreter::CLUSTER_KEYS)
    {
        piece.versions(key, end, &mut |_, value| {
            states.push((key, value.clone()));
            Visit::Stop
        });
    }
    Some(states)
}
