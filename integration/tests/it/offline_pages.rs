//! P1: every page made from a cold copy and the WAL is the page in PostgreSQL's own files.

use anyhow::Result;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use palimpsest_integration::{
    judge::Judge,
    offline::{OfflineTimeline, Sabotage, is_compared},
    oracle::{DataFiles, Oracle, Tally, visibility_differences},
};
use palimpsest_redo_postgres::Engine;
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_types::{BlockNumber, Fork, RelTag};
use palimpsest_wal::SegmentSize;

use crate::support::{checkpoint, engine};

/// Pages that are built at once.
const CONCURRENCY: usize = 64;

/// Runs the workload on a new cluster and keeps what is needed to judge it.
struct Case {
    timeline: OfflineTimeline,
    files: DataFiles,
    engine: Engine,
    _cluster: Cluster,
    _base: tempfile::TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_every_page_with_full_page_writes_is_postgres_own() {
    judge("offline-pages", ClusterOptions::default(), 1)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_every_page_without_full_page_writes_is_postgres_own() {
    let options = ClusterOptions::default().with("full_page_writes", "off");
    judge("offline-pages-no-fpw", options, 2).await.unwrap();
}

async fn judge(name: &'static str, options: ClusterOptions, seed: u32) -> Result<()> {
    let case = Case::start(options, seed).await?;
    let mut judge = Judge::new(name, "P1");
    let tally = case.compare_all(&mut judge, Sabotage::None).await?;
    eprintln!("{name}: {tally:?}");
    judge.close();

    // The oracle proves itself: with one change missing from each chain it must fail.
    let mut sabotaged = Judge::new(name, "P1");
    case.compare_all(&mut sabotaged, Sabotage::DropLastChange)
        .await?;
    eprintln!(
        "{name}: {} pages wrong when a change is left out",
        sabotaged.wrong()
    );
    assert!(
        sabotaged.wrong() > 100,
        "the oracle does not notice missing changes"
    );
    case.engine.stop().await;
    Ok(())
}

impl Case {
    /// initdb, cold copy, workload, clean shutdown; then all changes in memory.
    fn prepare(
        options: ClusterOptions,
        seed: u32,
    ) -> Result<(Cluster, tempfile::TempDir, OfflineTimeline, DataFiles)> {
        let mut cluster = Cluster::temporary(options)?;
        let start = checkpoint(cluster.data_dir())?;
        let base = tempfile::tempdir()?;
        let copy = base.path().join("base");
        cluster.copy_data_dir(&copy)?;
        cluster.start()?;
        Workload::full(seed, workload::QUICK).run(&cluster)?;
        cluster.stop()?;
        let pg_wal = cluster.data_dir().join("pg_wal");
        let timeline = OfflineTimeline::build(&copy, &pg_wal, start, start, SegmentSize::DEFAULT)?;
        let files = DataFiles::read(cluster.data_dir())?;
        Ok((cluster, base, timeline, files))
    }

    async fn start(options: ClusterOptions, seed: u32) -> Result<Self> {
        let prepared = tokio::task::spawn_blocking(move || Self::prepare(options, seed));
        let (cluster, base, timeline, files) = prepared.await??;
        let engine = engine(false).await?;
        Ok(Self {
            timeline,
            files,
            engine,
            _cluster: cluster,
            _base: base,
        })
    }

    async fn compare_all(&self, judge: &mut Judge, sabotage: Sabotage) -> Result<Tally> {
        let mut tally = Tally::default();
        let oracle = Oracle::new(self.engine.clone());
        for (rel, file) in self
            .files
            .iter()
            .filter(|(rel, _)| is_compared(&self.files, *rel))
        {
            let theirs = file.pages()?;
            let blocks = BlockNumber::new(theirs.len() as u32);
            if sabotage == Sabotage::None && rel.fork != Fork::VisibilityMap {
                let ours = self.timeline.sizes().get(rel);
                let wrong = ours != Some(blocks);
                judge.check(wrong.then(|| format!("{rel} has {blocks} blocks, ours {ours:?}")));
            }
            let chains = self.timeline.chains(rel, blocks)?;
            let build = |chain| OfflineTimeline::page(&self.engine, chain, sabotage);
            let pages: Vec<_> = stream::iter(chains)
                .map(build)
                .buffered(CONCURRENCY)
                .collect()
                .await;
            for (number, (ours, theirs)) in pages.into_iter().zip(&theirs).enumerate() {
                let block = BlockNumber::new(number as u32);
                let finding = match ours {
                    Err(error) => Some(format!("{error:#}")),
                    Ok(ours) if rel.fork == Fork::VisibilityMap => {
                        tally.visibility_map += 1;
                        self.compare_visibility(rel, block, [&ours, theirs], &mut tally)?
                    }
                    Ok(ours) => {
                        let comparison = oracle.compare(block, &ours, theirs).await?;
                        tally.count(rel, block, theirs, &comparison)
                    }
                };
                judge.check(finding);
            }
        }
        Ok(tally)
    }

    fn compare_visibility(
        &self,
        rel: RelTag,
        block: BlockNumber,
        [ours, theirs]: [&Bytes; 2],
        tally: &mut Tally,
    ) -> Result<Option<String>> {
        let heap = self.files.get(rel.with_fork(Fork::Main));
        let heap_blocks = heap
            .map(|file| file.blocks())
            .transpose()?
            .unwrap_or_default();
        let differences = visibility_differences(heap_blocks, block, ours, theirs);
        let copied = !self.timeline.base_has_database(rel.db);
        if copied && !differences.is_empty() && differences.iter().all(|found| found.lost_by_copy())
        {
            tally.lost_by_copy += 1;
            return Ok(None);
        }
        Ok(differences
            .first()
            .map(|found| format!("{rel} block {block}: {found:?}")))
    }
}
