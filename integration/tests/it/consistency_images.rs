//! P1: replay gives, after every record, the page that the primary had.

use std::{collections::BTreeMap, num::NonZeroU32, time::Instant};

use anyhow::Result;
use palimpsest_integration::{
    consistency::{Log, compare_images},
    judge::{Judge, JudgeSize, seed},
};
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_wal::{ResourceManager, SegmentSize};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;

use crate::support::{checkpoint, engine};

const NAME: &str = "consistency-images";
/// Some three times the quick size, which is half a million images already.
const FULL_SCALE: NonZeroU32 = NonZeroU32::new(3).expect("not zero");
/// Of the pieces of history with a record left out, how many must be noticed. Not all can be: the
/// next record may cover the loss, as an update does after a row lock, or pruning after a delete.
const NOTICED_PERCENT: u64 = 80;
/// Whose records the workload must have brought about.
const OWNERS_OF_PAGES: [ResourceManager; 10] = [
    ResourceManager::Heap2,
    ResourceManager::Heap,
    ResourceManager::Btree,
    ResourceManager::Hash,
    ResourceManager::Gin,
    ResourceManager::Gist,
    ResourceManager::Sequence,
    ResourceManager::SpGist,
    ResourceManager::Brin,
    ResourceManager::Generic,
];

#[tokio::test(flavor = "multi_thread")]
async fn p1_every_record_makes_the_page_that_the_primary_had() {
    judge().await.unwrap();
}

async fn judge() -> Result<()> {
    let begun = Instant::now();
    let (size, seed) = (JudgeSize::from_env(), seed());
    let mut random = StdRng::seed_from_u64(seed);
    let data_checksums = random.random();
    eprintln!("{NAME}: {size:?}, seed {seed}, data checksums {data_checksums}");
    let options = ClusterOptions {
        data_checksums,
        ..ClusterOptions::default()
    }
    .with("wal_consistency_checking", "all")
    // There is an image of every page in every record: even so a log of a gigabyte and more.
    .with("wal_compression", "zstd");
    let workload = Workload::full(random.random(), size.pick(workload::QUICK, FULL_SCALE));
    let prepared = tokio::task::spawn_blocking(move || prepare(options, &workload));
    let (_cluster, _base, log) = prepared.await??;
    let written = begun.elapsed();

    let engine = engine(data_checksums).await?;
    let images = compare_images(log, engine.clone()).await?;
    engine.stop().await;
    let all = begun.elapsed();
    eprintln!(
        "{NAME}: {}; {written:.1?} of {all:.1?} to write them",
        counts(&images.compared)
    );
    eprintln!(
        "{NAME}: {} of {} pieces wrong with a record left out",
        images.noticed, images.sabotaged
    );

    let mut judge = Judge::new(NAME, "P1");
    judge.pass(images.compared.values().sum());
    for finding in images.wrong {
        judge.check(Some(finding));
    }
    for rmgr in OWNERS_OF_PAGES {
        let missing = !images.compared.contains_key(&rmgr);
        judge.check(missing.then(|| format!("no image of a {rmgr} record was compared")));
    }
    judge.close();
    assert!(
        images.noticed > 100 && images.noticed * 100 > images.sabotaged * NOTICED_PERCENT,
        "missing records are not noticed"
    );
    Ok(())
}

/// initdb, cold copy, workload, clean shutdown.
fn prepare(options: ClusterOptions, workload: &Workload) -> Result<(Cluster, TempDir, Log)> {
    let mut cluster = Cluster::temporary(options)?;
    let start = checkpoint(cluster.data_dir())?;
    let copy = tempfile::tempdir()?;
    let base = copy.path().join("base");
    cluster.copy_data_dir(&base)?;
    cluster.start()?;
    workload.run(&cluster)?;
    cluster.stop()?;
    let log = Log {
        base,
        pg_wal: cluster.data_dir().join("pg_wal"),
        start,
        segment_size: SegmentSize::DEFAULT,
    };
    Ok((cluster, copy, log))
}

/// `Heap 120000, Btree 50000`.
fn counts(compared: &BTreeMap<ResourceManager, u64>) -> String {
    let counts: Vec<_> = compared
        .iter()
        .map(|(rmgr, count)| format!("{rmgr} {count}"))
        .collect();
    counts.join(", ")
}
