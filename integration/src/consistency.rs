//! Consistency images: under `wal_consistency_checking` the primary puts into each record an image
//! of every page as it is after the record. Replay must give that page, record by record.
//!
//! A `Walk` replays each page's whole history once, oldest change first, and has the engine
//! compare after each record. Such a log is large, so it is walked in portions: between two
//! portions only the pages are kept. Images that redo would put in a page's place are taken as the
//! page, and prove nothing.

use std::{collections::BTreeMap, mem, path::PathBuf};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use palimpsest_redo_postgres::{ApplyRequest, Engine};
use palimpsest_types::{ByteCount, Key, Lsn};
use palimpsest_wal::{
    BaseFacts, Interpreter, RawRecord, RelationSizes, ResourceManager, SegmentSize, Value,
};
use tokio::sync::mpsc;

use crate::oracle::{DataFiles, read_wal};

mod history;

use history::{History, PageId};

/// Where the history begins and where it is written.
#[derive(Debug, Clone)]
pub struct Log {
    /// Files of a cluster that was stopped with its checkpoint at `start`.
    pub base: PathBuf,
    /// WAL from there on.
    pub pg_wal: PathBuf,
    /// Start of the first record.
    pub start: Lsn,
    /// Size of the files.
    pub segment_size: SegmentSize,
}

/// What a walk found.
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// Images compared, by the resource manager of their record.
    pub compared: BTreeMap<ResourceManager, u64>,
    /// What is wrong: pages that differ from their image, or could not be made.
    pub wrong: Vec<String>,
    /// Pieces of history replayed once more with a record left out.
    pub sabotaged: u64,
    /// How many of these did not go well, as they must not.
    pub noticed: u64,
}

/// All pages on their way through the log.
#[derive(Debug)]
struct Walk {
    engine: Engine,
    interpreter: Interpreter,
    pages: BTreeMap<PageId, Bytes>,
    portion: BTreeMap<PageId, Vec<Value>>,
    portion_bytes: u64,
    found: Images,
}

/// Records kept in memory before pages are made of them.
const PORTION: ByteCount = ByteCount::mib(128);
/// Records on their way from the reader.
const QUEUE: usize = 1024;
/// Pages that are replayed at once.
const CONCURRENCY: usize = 64;
/// Pieces of history that are replayed with a record left out, at most. The engine's process dies
/// of most of them, and the engine waits longer the more often that happens on end.
const PROOFS: u64 = 400;

/// Replays all pages that the log changes, and compares them with the images in it.
///
/// # Errors
/// If the log cannot be read. What is wrong with pages is in the result.
pub async fn compare_images(log: Log, engine: Engine) -> Result<Images> {
    let mut walk = Walk::begin(&DataFiles::read(&log.base)?, engine)?;
    let (sender, mut records) = mpsc::channel(QUEUE);
    let reader = tokio::task::spawn_blocking(move || {
        read_wal(&log.pg_wal, log.start, log.segment_size, |record| {
            let sent = sender.blocking_send(record);
            sent.map_err(|_| anyhow!("the walk ended before the log"))
        })
    });
    while let Some(record) = records.recv().await {
        walk.add(&record)?;
        if walk.portion_bytes >= PORTION.get() {
            walk.replay_portion().await;
        }
    }
    reader.await??;
    walk.replay_portion().await;
    Ok(walk.found)
}

impl Walk {
    fn begin(base: &DataFiles, engine: Engine) -> Result<Self> {
        let mut sizes = RelationSizes::default();
        let mut pages = BTreeMap::new();
        for (rel, file) in base.iter() {
            sizes.set(rel, file.blocks()?);
            pages.extend(PageId::all(rel).zip(file.pages()?));
        }
        Ok(Self {
            engine,
            interpreter: Interpreter::new(sizes, BaseFacts::consistent()),
            pages,
            portion: BTreeMap::new(),
            portion_bytes: 0,
            found: Images::default(),
        })
    }

    fn add(&mut self, record: &RawRecord) -> Result<()> {
        self.portion_bytes += record.bytes.len() as u64;
        for change in self.interpreter.interpret(record)? {
            if let Key::RelBlock(rel, block) = change.key {
                let changes = self.portion.entry(PageId { rel, block }).or_default();
                changes.push(change.value);
            }
        }
        Ok(())
    }

    async fn replay_portion(&mut self) {
        self.portion_bytes = 0;
        let mut histories = Vec::new();
        for (id, changes) in mem::take(&mut self.portion) {
            let before = self.pages.remove(&id);
            histories.push(History::new(id, before, changes));
        }
        let replays: Vec<_> = stream::iter(histories)
            .map(|history| history.replay(&self.engine))
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        for replay in replays {
            for request in replay.proofs {
                if self.found.sabotaged < PROOFS {
                    self.prove(request).await;
                }
            }
            for (rmgr, count) in replay.compared {
                *self.found.compared.entry(rmgr).or_default() += count;
            }
            match replay.page {
                Ok(page) => self.pages.extend(page.map(|page| (replay.id, page))),
                Err(error) => self.found.wrong.push(format!("{}: {error:#}", replay.id)),
            }
        }
    }

    /// Replays what lacks a record. One at a time: the engine's process may well die of it.
    async fn prove(&mut self, request: ApplyRequest) {
        self.found.sabotaged += 1;
        let verified = self.engine.apply_verify(request).await;
        let unnoticed = verified.is_ok_and(|verified| verified.differing == 0);
        self.found.noticed += u64::from(!unnoticed);
    }
}
