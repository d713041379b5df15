//! A timeline without services: a cold copy as the base, and every change since in memory.
//!
//! This is the shortest way from WAL to pages, so that the judges of decoding and redo need
//! nothing else to work.

use std::path::Path;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use palimpsest_layer::{DeltaLayer as _, LogRecord, OpenLayer, Visit};
use palimpsest_redo::{Chain, reconstruct};
use palimpsest_redo_postgres::Engine;
use palimpsest_types::{BlockNumber, Fork, Key, Lsn, Oid, RelTag, WriterEpoch};
use palimpsest_wal::{Interpreter, RawRecord, RelationSizes, SegmentSize, Value};

use crate::oracle::{DataFiles, read_wal};

/// A base and the changes since.
#[derive(Debug)]
pub struct OfflineTimeline {
    base: DataFiles,
    changes: OpenLayer,
    sizes: RelationSizes,
}

/// Cuts chains short, to show that the oracle notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Chains as they are.
    None,
    /// The last change of every chain with more than one is left out.
    DropLastChange,
}

impl OfflineTimeline {
    /// Takes the files of a cluster that was stopped with its checkpoint at `checkpoint`, and the
    /// WAL from there on.
    pub fn build(
        base_dir: &Path,
        pg_wal: &Path,
        checkpoint: Lsn,
        segment_size: SegmentSize,
    ) -> Result<Self> {
        let base = DataFiles::read(base_dir)?;
        let mut sizes = RelationSizes::default();
        for (rel, file) in base.iter() {
            sizes.set(rel, file.blocks()?);
        }
        let mut interpreter = Interpreter::new(sizes);
        let mut changes = OpenLayer::new(WriterEpoch::FIRST, checkpoint);
        read_wal(pg_wal, checkpoint, segment_size, |record: RawRecord| {
            let found = interpreter.interpret(&record)?;
            Ok(changes.append(LogRecord {
                lsn: record.end_lsn,
                changes: found,
            })?)
        })?;
        let sizes = interpreter.sizes().clone();
        Ok(Self {
            base,
            changes,
            sizes,
        })
    }

    /// True if the base has files of this database.
    pub fn base_has_database(&self, db: Oid) -> bool {
        self.base.iter().any(|(rel, _)| rel.db == db)
    }

    /// Sizes of all forks at the end.
    pub fn sizes(&self) -> &RelationSizes {
        &self.sizes
    }

    /// The chain of every page of a fork at the end of the WAL; pages that never changed have a
    /// base and no changes.
    ///
    /// A visibility map may be longer in PostgreSQL's file than in the log, because the primary
    /// extends it without logging that; the pages there are empty.
    pub fn chains(&self, rel: RelTag, blocks: BlockNumber) -> Result<Vec<Chain>> {
        let logged = self.sizes.get(rel).unwrap_or_default();
        let base = self
            .base
            .get(rel)
            .map(|file| file.pages())
            .transpose()?
            .unwrap_or_default();
        let chain = |number: u32| {
            let block = BlockNumber::new(number);
            let mut changes = Vec::new();
            self.changes.versions(
                Key::RelBlock(rel, block),
                Lsn::MAX,
                &mut |_, value: &Value| {
                    changes.push(value.clone());
                    if value.stands_alone() {
                        Visit::Stop
                    } else {
                        Visit::Continue
                    }
                },
            );
            changes.reverse();
            if rel.fork == Fork::VisibilityMap && block >= logged {
                changes = vec![Value::ZeroPage];
            }
            let begins_alone = changes.first().is_some_and(Value::stands_alone);
            let base = base.get(number as usize).filter(|_| !begins_alone).cloned();
            Chain {
                rel,
                block,
                base,
                changes,
            }
        };
        Ok((0..blocks.get()).map(chain).collect())
    }

    /// The page that a chain leads to.
    pub async fn page(engine: &Engine, mut chain: Chain, sabotage: Sabotage) -> Result<Bytes> {
        if sabotage == Sabotage::DropLastChange && chain.changes.len() > 1 {
            chain.changes.pop();
        }
        let place = format!("{} block {}", chain.rel, chain.block);
        reconstruct(engine, chain).await.context(place)
    }
}

/// True for forks that are compared page by page.
pub fn is_compared(files: &DataFiles, rel: RelTag) -> bool {
    match rel.fork {
        // The log does not hold it; PostgreSQL rebuilds it.
        Fork::FreeSpaceMap => false,
        Fork::Init => true,
        Fork::Main | Fork::VisibilityMap => !files.is_unlogged(rel),
    }
}
