//! P1: a database of very many relations is kept as any other is, also by compaction, and takes time for
//! each of them, not for each pair: see what is printed.

use std::{ops::Range, path::Path, time::Duration};

use anyhow::{Result, ensure};
use palimpsest_api::broker::{TimelineState, TimelineView};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    oracle::PageSource as _,
    processes::{Layers, ManifestHistory, Process, Processes},
};
use palimpsest_manifest::LayerKind;
use palimpsest_testkit::Cluster;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use crate::under_load::{SERVICE, Source, TENANT};

const NAME: &str = "many-relations";
/// What one costs is told after each part of them.
const PARTS: u32 = 4;
/// Made in one transaction, which locks each.
const AT_ONCE: u32 = 250;
/// A compactor that has nothing to do for so long has done all.
const QUIET: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread")]
async fn p1_very_many_relations_are_kept_as_few_are() {
    many_relations().await.unwrap();
}

async fn many_relations() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (relations, layers) = size.pick((4_000, Layers::Often), (100_000, Layers::Of(16)));
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), layers).await?;
    let timeline = processes
        .attach(TENANT, &source.cluster.conninfo("postgres"))
        .await?;
    let history = ManifestHistory::watch(&processes.store(), timeline).await?;
    processes.start(Process::Compactor)?;
    let part = relations / PARTS;
    for at in 1..=PARTS {
        let begun = Instant::now();
        let written = block_in_place(|| {
            make(&source.cluster, part * (at - 1)..part * at)?;
            source.cluster.flush_lsn()
        })?;
        let made = begun.elapsed();
        let arrived = |view: &TimelineView| view.status.last_record >= written;
        processes.wait_for(timeline, arrived).await?;
        let arrived = begun.elapsed();
        settled(&history).await?;
        let settled = begun.elapsed().saturating_sub(QUIET);
        let served = processes.served_up_to(timeline, written).await?;
        let begun = Instant::now();
        let listed = served.relations(written).await?.len();
        let listing = begun.elapsed();
        processes.kill9(Process::WalIngest)?;
        let begun = Instant::now();
        processes.start(Process::WalIngest)?;
        let newer = block_in_place(|| {
            let cluster = &source.cluster;
            cluster.psql("postgres", "INSERT INTO r0 VALUES (1)")?;
            cluster.flush_lsn()
        })?;
        let goes_on = |view: &TimelineView| {
            view.status.state == TimelineState::Streaming && view.status.last_record >= newer
        };
        processes.wait_for(timeline, goes_on).await?;
        eprintln!(
            "{NAME}: {listed} forks: {part} tables made in {made:?}, taken in after {arrived:?}, compacted after {settled:?}; listed in {listing:?}, taken over in {:?}",
            begun.elapsed()
        );
    }
    let end = history.newest().await?;
    let layers = end.layers().iter();
    let images = layers.filter(|layer| matches!(layer.kind, LayerKind::Image(_)));
    let images = images.count();
    eprintln!(
        "{NAME}: {} layers, {images} of them images",
        end.layers().len()
    );
    ensure!(images > 0, "no image was made");
    let ending = source.finish(&processes, timeline).await?;
    let mut pages = Judge::new(NAME, "P1");
    ending
        .compare(size.pick(2, 3), &mut random, &mut pages)
        .await?;
    pages.close();
    processes.stop();
    Ok(())
}

/// Makes tables with these numbers; drops one of ten again, and puts a row into another.
fn make(cluster: &Cluster, numbers: Range<u32>) -> Result<()> {
    for first in numbers.clone().step_by(AT_ONCE as usize) {
        let last = numbers.end.min(first + AT_ONCE) - 1;
        let sql = format!(
            "DO $$ BEGIN FOR i IN {first}..{last} LOOP
                EXECUTE format('CREATE TABLE r%s (i int)', i);
                IF i % 10 = 5 THEN EXECUTE format('INSERT INTO r%s VALUES (%s)', i, i); END IF;
                IF i % 10 = 9 THEN EXECUTE format('DROP TABLE r%s', i - 1); END IF;
            END LOOP; END $$"
        );
        cluster.psql("postgres", &sql)?;
    }
    Ok(())
}

/// Waits until compaction has nothing to do for a while.
async fn settled(history: &ManifestHistory) -> Result<()> {
    let names = async || {
        let newest = history.newest().await?;
        let layers = newest.layers().iter().map(|layer| layer.name.clone());
        anyhow::Ok(layers.collect::<Vec<_>>())
    };
    let (mut known, mut since) = (names().await?, Instant::now());
    while since.elapsed() < QUIET {
        sleep(LOOK).await;
        let now = names().await?;
        if now != known {
            (known, since) = (now, Instant::now());
        }
    }
    Ok(())
}
