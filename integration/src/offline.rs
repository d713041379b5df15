//! A timeline without services: a cold copy as the base, and every change since in memory.
//!
//! This is the shortest way from WAL to pages, so that the judges of decoding and redo need
//! nothing else to work.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use palimpsest_layer::{DeltaLayer as _, LogRecord, OpenLayer, Visit};
use palimpsest_read::{Images, Listing, ReadError, Versions, relations_at};
use palimpsest_redo::{Chain, reconstruct};
use palimpsest_redo_postgres::Engine;
use palimpsest_types::{BlockNumber, Fork, Key, KeyRange, Lsn, Oid, RelTag, WriterEpoch};
use palimpsest_wal::{
    BaseFacts, Interpreter, RawRecord, RelationSizes, ResourceManager, SegmentSize, Value,
};

use crate::oracle::{DataFiles, PageSource, read_wal};

/// A base and the changes since.
#[derive(Debug)]
pub struct OfflineTimeline {
    base: DataFiles,
    base_sizes: BTreeMap<Key, Value>,
    changes: OpenLayer,
    sizes: RelationSizes,
    boundaries: Vec<Lsn>,
}

/// An offline timeline with what it takes to make pages of it.
#[derive(Debug)]
pub struct OfflineSource<'a> {
    timeline: &'a OfflineTimeline,
    engine: Engine,
    sabotage: Sabotage,
    sabotaged: AtomicU64,
}

/// Cuts chains short, to show that the oracle notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Chains as they are.
    None,
    /// The last change of every chain with more than one is left out, if pages show whether it was there.
    DropLastChange,
}

/// `XLOG_HEAP_OPMASK` of PostgreSQL's `heapam_xlog.h`.
const HEAP_OPMASK: u8 = 0x70;
/// `XLOG_HEAP2_VISIBLE`, likewise.
const HEAP2_VISIBLE: u8 = 0x40;
/// Pages that are built at once.
const CONCURRENCY: usize = 64;

impl Sabotage {
    fn cuts(self, chain: &Chain) -> bool {
        let [_, .., last] = chain.changes.as_slice() else {
            return false;
        };
        self == Self::DropLastChange && !is_masked(chain.rel, last)
    }
}

/// Whether a change does nothing to a page but what PostgreSQL's masks hide: making a heap page all-visible
/// (`heap_xlog_visible`) sets a bit of its header. After a VACUUM of much it is the last change of most pages.
fn is_masked(rel: RelTag, change: &Value) -> bool {
    let Value::Record { record, .. } = change else {
        return false;
    };
    let header = record.header();
    rel.fork == Fork::Main
        && header.is_some_and(|header| {
            header.rmid == ResourceManager::Heap2.number()
                && header.rmgr_info() & HEAP_OPMASK == HEAP2_VISIBLE
        })
}

impl OfflineTimeline {
    /// Takes the files of a cluster that was stopped with its checkpoint at `checkpoint`, or of a
    /// base backup that begins there and ends at `consistent_from`, and the WAL from there on.
    pub fn build(
        base_dir: &Path,
        pg_wal: &Path,
        checkpoint: Lsn,
        consistent_from: Lsn,
        segment_size: SegmentSize,
    ) -> Result<Self> {
        let base = DataFiles::read(base_dir)?;
        let mut sizes = RelationSizes::default();
        let mut base_sizes = BTreeMap::new();
        for (rel, file) in base.iter() {
            let blocks = file.blocks()?;
            sizes.set(rel, blocks);
            base_sizes.insert(Key::RelSize(rel), Value::RelSize(blocks));
        }
        let mut interpreter = Interpreter::new(
            sizes,
            BaseFacts {
                consistent_from,
                ..BaseFacts::consistent()
            },
        );
        let mut changes = OpenLayer::new(WriterEpoch::FIRST, checkpoint);
        let mut boundaries = Vec::new();
        read_wal(pg_wal, checkpoint, segment_size, |record: RawRecord| {
            boundaries.push(record.end_lsn);
            let found = interpreter.interpret(&record)?;
            let mut values = found.iter().map(|change| &change.value);
            // Chains are looked for in one history only.
            let copies = values.any(|value| matches!(value, Value::CopyOf { .. }));
            ensure!(!copies, "a database is copied at {}", record.end_lsn);
            Ok(changes.append(LogRecord {
                lsn: record.end_lsn,
                changes: found,
            })?)
        })?;
        let sizes = interpreter.sizes().clone();
        Ok(Self {
            base,
            base_sizes,
            changes,
            sizes,
            boundaries,
        })
    }

    /// The ends of all records, in order.
    pub fn boundaries(&self) -> &[Lsn] {
        &self.boundaries
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
        let base = self.base_pages(rel)?;
        let chain = |number: u32| {
            let block = BlockNumber::new(number);
            let mut chain = self.chain(rel, block, &base, Lsn::MAX);
            if rel.fork == Fork::VisibilityMap && block >= logged {
                chain.changes = vec![Value::ZeroPage];
            }
            chain
        };
        Ok((0..blocks.get()).map(chain).collect())
    }

    /// The chain of one page at an LSN, on the pages that the base has of its fork.
    fn chain(&self, rel: RelTag, block: BlockNumber, base: &[Bytes], lsn: Lsn) -> Chain {
        let mut changes = Vec::new();
        self.changes
            .versions(Key::RelBlock(rel, block), lsn, &mut |_, value: &Value| {
                changes.push(value.clone());
                if value.stands_alone() {
                    Visit::Stop
                } else {
                    Visit::Continue
                }
            });
        changes.reverse();
        let begins_alone = changes.first().is_some_and(Value::stands_alone);
        let base = base
            .get(block.get() as usize)
            .filter(|_| !begins_alone)
            .cloned();
        Chain {
            rel,
            block,
            base,
            changes,
        }
    }

    fn base_pages(&self, rel: RelTag) -> Result<Vec<Bytes>> {
        let file = self.base.get(rel);
        Ok(file
            .map(|file| file.pages())
            .transpose()?
            .unwrap_or_default())
    }

    /// The page that a chain leads to.
    pub async fn page(engine: &Engine, mut chain: Chain, sabotage: Sabotage) -> Result<Bytes> {
        if sabotage.cuts(&chain) {
            chain.changes.pop();
        }
        let place = format!("{} block {}", chain.rel, chain.block);
        reconstruct(engine, chain).await.context(place)
    }
}

/// Sizes; pages come from chains.
impl Versions for OfflineTimeline {
    async fn newest(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> Result<Option<(Lsn, Value)>, ReadError> {
        let of_base = self.base_sizes.get(&key);
        let mut newest = of_base.map(|value| (self.changes.start(), value.clone()));
        self.changes.versions(key, *lsns.end(), &mut |at, value| {
            newest = Some((at, value.clone()));
            Visit::Stop
        });
        Ok(newest.filter(|(at, _)| lsns.contains(at)))
    }

    async fn newest_in(&self, keys: KeyRange, up_to: Lsn) -> Result<Listing, ReadError> {
        let of_base = self.base_sizes.range(keys.clone());
        let at_start = |(key, value): (&Key, &Value)| (*key, (self.changes.start(), value.clone()));
        let mut versions: BTreeMap<_, _> = of_base.map(at_start).collect();
        self.changes.newest(keys, up_to, &mut |key, at, value| {
            versions.insert(key, (at, value.clone()));
        });
        Ok(Listing {
            versions,
            images: Images::default(),
        })
    }
}

impl<'a> OfflineSource<'a> {
    /// A source of the timeline's pages, true or not.
    pub fn new(timeline: &'a OfflineTimeline, engine: Engine, sabotage: Sabotage) -> Self {
        Self {
            timeline,
            engine,
            sabotage,
            sabotaged: AtomicU64::new(0),
        }
    }

    /// How many of the pages that it gave were made from a chain that was cut.
    pub fn sabotaged(&self) -> u64 {
        self.sabotaged.load(Ordering::Relaxed)
    }
}

impl PageSource for OfflineSource<'_> {
    async fn relations(&self, lsn: Lsn) -> Result<Vec<(RelTag, BlockNumber)>> {
        let relations = relations_at(self.timeline, lsn).await?;
        Ok(relations.into_iter().collect())
    }

    async fn pages(&self, rel: RelTag, blocks: &[BlockNumber], lsn: Lsn) -> Vec<Result<Bytes>> {
        let base = match self.timeline.base_pages(rel) {
            Ok(base) => base,
            Err(error) => {
                let error = format!("{error:#}");
                let fail = |_| Err(anyhow!("the base of {rel}: {error}"));
                return blocks.iter().map(fail).collect();
            }
        };
        let chain = |block: &BlockNumber| self.timeline.chain(rel, *block, &base, lsn);
        // Gathered first: closures that borrow within a stream confuse the check that it is Send.
        let chains: Vec<_> = blocks.iter().map(chain).collect();
        let cut = chains.iter().filter(|chain| self.sabotage.cuts(chain));
        self.sabotaged
            .fetch_add(cut.count() as u64, Ordering::Relaxed);
        stream::iter(chains)
            .map(|chain| OfflineTimeline::page(&self.engine, chain, self.sabotage))
            .buffered(CONCURRENCY)
            .collect()
            .await
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
