use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use palimpsest_redo::{Chain, Limits, Step, plan};
use palimpsest_redo_postgres::{ApplyRequest, Engine, RedoRecord};
use palimpsest_types::{BlockNumber, Fork, RelTag};
use palimpsest_wal::{RawRecord, ResourceManager, Value, truncate_visibility_map_page};

/// A page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageId {
    pub(super) rel: RelTag,
    pub(super) block: BlockNumber,
}

/// Some changes of one page, and the page before them.
#[derive(Debug)]
pub(super) struct History {
    id: PageId,
    before: Option<Bytes>,
    changes: Vec<Value>,
}

/// What came of replaying a history.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) id: PageId,
    /// The page after it, or what is wrong.
    pub(super) page: Result<Option<Bytes>>,
    /// Images compared on the way, by the resource manager of their record.
    pub(super) compared: BTreeMap<ResourceManager, u64>,
    /// Pieces of it with a record left out.
    pub(super) proofs: Vec<ApplyRequest>,
}

/// One piece of history in so many is to be replayed once more with a record left out.
const PROVE_EVERY: u64 = 10;
/// Shorter pieces are no good for that: before the record left out one must make the page, and one
/// after it carries an image that shows the loss.
const PROVE_FROM: usize = 3;
/// Records begin at multiples of this.
const RECORD_ALIGNMENT: u64 = 8;

impl PageId {
    /// The pages of a fork, in order.
    pub(super) fn all(rel: RelTag) -> impl Iterator<Item = Self> {
        (0..).map(move |number| Self {
            rel,
            block: BlockNumber::new(number),
        })
    }
}

impl History {
    pub(super) fn new(id: PageId, before: Option<Bytes>, changes: Vec<Value>) -> Self {
        Self {
            id,
            before,
            changes,
        }
    }

    /// Replays all of it, even what a later change makes superfluous.
    pub(super) async fn replay(self, engine: &Engine) -> Replay {
        let mut replay = Replay {
            id: self.id,
            page: Ok(None),
            compared: BTreeMap::new(),
            proofs: Vec::new(),
        };
        replay.page = replay.runs(engine, self.before, self.changes).await;
        replay
    }
}

/// Runs of changes, of which all but the first begin with one that needs no page before it.
fn split(changes: Vec<Value>) -> Vec<Vec<Value>> {
    let mut runs: Vec<Vec<Value>> = Vec::new();
    for change in changes {
        match runs.last_mut().filter(|_| !change.stands_alone()) {
            Some(run) => run.push(change),
            None => runs.push(vec![change]),
        }
    }
    runs
}

impl Replay {
    async fn runs(
        &mut self,
        engine: &Engine,
        before: Option<Bytes>,
        changes: Vec<Value>,
    ) -> Result<Option<Bytes>> {
        let mut page = before;
        for run in split(changes) {
            page = Some(self.run(engine, page, run).await?);
        }
        Ok(page)
    }

    async fn run(
        &mut self,
        engine: &Engine,
        before: Option<Bytes>,
        changes: Vec<Value>,
    ) -> Result<Bytes> {
        let PageId { rel, block } = self.id;
        let begins_alone = changes.first().is_some_and(Value::stands_alone);
        let chain = Chain {
            rel,
            block,
            base: before.filter(|_| !begins_alone),
            changes,
        };
        let mut page = None;
        for step in plan(chain, Limits::default())? {
            page = Some(match step {
                Step::Start(start) => start,
                Step::Replay(records) => self.verify(engine, page, records).await?,
                Step::TruncateVisibilityMap(heap_blocks) => {
                    let mut bytes = Vec::from(page.context("no map to truncate")?);
                    truncate_visibility_map_page(&mut bytes, heap_blocks);
                    bytes.into()
                }
            });
        }
        page.context("the changes make no page")
    }

    /// Replays one piece in the engine, which compares after every record.
    async fn verify(
        &mut self,
        engine: &Engine,
        base: Option<Bytes>,
        records: Vec<RawRecord>,
    ) -> Result<Bytes> {
        let images = self.images(&records)?;
        let request = self.id.request(base, &records);
        self.proofs.extend(self.id.proof(&request));
        let verified = engine.apply_verify(request.clone()).await?;
        if verified.differing > 0 {
            return self.id.find_difference(engine, request).await;
        }
        let expected: u64 = images.values().sum();
        ensure!(
            u64::from(verified.compared) == expected,
            "{} images were compared of {expected}",
            verified.compared
        );
        for (rmgr, count) in images {
            *self.compared.entry(rmgr).or_default() += count;
        }
        Ok(verified.page)
    }

    /// How many images of this page the records have only to compare with.
    fn images(&self, records: &[RawRecord]) -> Result<BTreeMap<ResourceManager, u64>> {
        let mut images = BTreeMap::new();
        for record in records {
            let decoded = record.decode()?;
            let mut own = decoded.blocks.iter().filter(|block| {
                let image = block.image.as_ref();
                (block.rel, block.block) == (self.id.rel, self.id.block)
                    && image.is_some_and(|image| !image.apply)
            });
            let rmgr = ResourceManager::from_number(decoded.header.rmid);
            if let Some(rmgr) = rmgr.filter(|_| own.next().is_some()) {
                *images.entry(rmgr).or_default() += 1;
            }
        }
        Ok(images)
    }
}

impl PageId {
    fn request(self, base: Option<Bytes>, records: &[RawRecord]) -> ApplyRequest {
        let record = |record: &RawRecord| RedoRecord {
            start_lsn: record.start_lsn,
            end_lsn: record.end_lsn,
            bytes: record.bytes.clone(),
        };
        ApplyRequest {
            rel: self.rel,
            block: self.block,
            base,
            records: records.iter().map(record).collect(),
        }
    }

    /// The request with a record left out, of some requests. Not of visibility maps: the mask hides
    /// all their bits.
    fn proof(self, request: &ApplyRequest) -> Option<ApplyRequest> {
        let records = &request.records;
        let start = records.first()?.start_lsn.get();
        let drawn = (start / RECORD_ALIGNMENT).is_multiple_of(PROVE_EVERY);
        let fits = records.len() >= PROVE_FROM && self.rel.fork != Fork::VisibilityMap;
        (drawn && fits).then(|| {
            let mut proof = request.clone();
            proof.records.remove(records.len() / 2);
            proof
        })
    }

    /// Names the first record after which the page differs from its image.
    async fn find_difference(self, engine: &Engine, request: ApplyRequest) -> Result<Bytes> {
        let mut base = request.base.clone();
        for record in request.records {
            let one = ApplyRequest {
                rel: self.rel,
                block: self.block,
                base,
                records: vec![record.clone()],
            };
            let verified = engine.apply_verify(one).await?;
            if verified.differing > 0 {
                bail!(
                    "differs from its image after the record at {}",
                    record.start_lsn
                );
            }
            base = Some(verified.page);
        }
        bail!("differs from an image, but not when replayed record by record")
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rel, block } = self;
        write!(f, "{rel} block {block}")
    }
}
