//! P1 from a backup with torn pages.
//!
//! A server copies its files while it writes them, so a backup may have a page of which one half is
//! older than the other. The first change of a page after a backup's beginning logs the whole page
//! (`full_page_writes` is on while one runs, whatever its setting), so replay mends it. Here pages
//! are torn on their way: half as they were when the backup began, half as they are now. The attach
//! and the reference begin with the same torn pages.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::{boundaries, read_wal, relation_of},
    recovered::{BackupTap, BaseBackup, Recovery, Tears},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, Lsn, PAGE_SIZE, RelTag};
use palimpsest_wal::SegmentSize;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::task::block_in_place;

use crate::support::compare_with_recovered;

const NAME: &str = "torn-backup";

/// Torn pages of which the older half differs from the newer, at least.
const ENOUGH: usize = 100;

/// A table whose pages all change, with an index of every kind.
const MAKE: &str = "CREATE EXTENSION pg_trgm;
    CREATE TABLE torn (id int PRIMARY KEY, n int, tags int[], p point, name text)
        WITH (fillfactor = 60);
    INSERT INTO torn SELECT i, 0, ARRAY[i % 7, i], point(i, i % 50), md5(i::text)
        FROM generate_series(1, 20000) i;
    CREATE INDEX torn_gin ON torn USING gin (tags) WITH (fastupdate = off);
    CREATE INDEX torn_gist ON torn USING gist (p);
    CREATE INDEX torn_spgist ON torn USING spgist (p);
    CREATE INDEX torn_hash ON torn USING hash (name);
    CREATE INDEX torn_brin ON torn USING brin (id) WITH (pages_per_range = 1);";

/// Every page of the table changes, and most of the indexes'.
const CHANGE: &str = "UPDATE torn SET n = n + 1, name = md5(name) WHERE id % 2 = 0;
    DELETE FROM torn WHERE id % 17 = 0;
    INSERT INTO torn SELECT i, 0, ARRAY[i % 7, i], point(i, i % 50), md5(i::text)
        FROM (SELECT max(id) + 1 AS next FROM torn) AS top, generate_series(next, next + 3000) i;
    CHECKPOINT;";

#[tokio::test(flavor = "multi_thread")]
async fn p1_pages_torn_in_the_backup_are_mended_as_postgres_mends_them() {
    let size = JudgeSize::from_env();
    let seed = seed();
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(NAME, "P1");
    let all = [(true, true), (true, false), (false, true), (false, false)];
    let drawn = [(true, random.random()), (false, random.random())];
    let cells = size.pick(drawn.to_vec(), all.to_vec());
    for (checksums, full_page_writes) in cells {
        let options = ClusterOptions {
            data_checksums: checksums,
            autovacuum: false,
            ..ClusterOptions::default()
        };
        let full_page_writes = if full_page_writes { "on" } else { "off" };
        let options = options.with("full_page_writes", full_page_writes);
        judge_cell(options, size, &mut random, &mut judge)
            .await
            .unwrap();
    }
    judge.close();
}

async fn judge_cell(
    options: ClusterOptions,
    size: JudgeSize,
    random: &mut StdRng,
    judge: &mut Judge,
) -> Result<()> {
    let mut cluster = Cluster::temporary(options.clone())?;
    block_in_place(|| cluster.start())?;
    block_in_place(|| cluster.psql("postgres", MAKE))?;
    let files = block_in_place(|| files_of_torn(&cluster))?;

    let tap = BackupTap::to(cluster.socket_dir(), cluster.port())?;
    tap.halt();
    let directory = tempfile::tempdir()?;
    let mut services = Embedded::start(directory.path()).await?;
    let conninfo = tap.conninfo("postgres");
    let change = async {
        tap.halted().await?;
        block_in_place(|| {
            let old = read_all(&cluster, &files)?;
            cluster.psql("postgres", CHANGE)?;
            let tears = Tearing::between(&old, &read_all(&cluster, &files)?, random);
            tap.go_on(tears.tears.clone());
            Ok(tears)
        })
    };
    let (timeline, tearing) = tokio::try_join!(services.attach("judged", &conninfo), change)?;
    let backup = block_in_place(|| tap.take_backup())?;
    let torn = tearing.seen_in(&backup)?;
    eprintln!(
        "{NAME}: checksums {}, {:?}: {} of {} pages are torn",
        options.data_checksums,
        options.settings,
        torn.len(),
        tearing.tears.pages().count()
    );

    let end = block_in_place(|| -> Result<Lsn> {
        cluster.psql("postgres", CHANGE)?;
        cluster.psql("postgres", "VACUUM torn")?;
        cluster.flush_lsn()
    })?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    block_in_place(|| cluster.stop())?;
    let pg_wal = cluster.data_dir().join("pg_wal");
    expect_mended(&torn, &files, &backup, &cluster)?;
    ensure!(torn.len() >= ENOUGH, "too few pages were torn");

    let judged = backup.end()..=end;
    let boundaries = boundaries(&pg_wal, backup.start(), SegmentSize::DEFAULT, judged)?;
    let mut lsns: Vec<Lsn> = boundaries.iter().copied().sample(random, size.pick(1, 5));
    // At the first of all, pages are what the backup's own time made of them.
    lsns.extend(
        [boundaries.first(), boundaries.last()]
            .into_iter()
            .flatten(),
    );

    let served = services.served(timeline).await?;
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: &pg_wal,
        options: &options,
    };
    compare_with_recovered(NAME, &served, recovery, lsns, judge).await?;
    services.stop().await;
    Ok(())
}

/// The files of the table and its indexes: their paths, and the relations.
fn files_of_torn(cluster: &Cluster) -> Result<BTreeMap<String, RelTag>> {
    let sql = "SELECT pg_relation_filepath(oid) FROM pg_class WHERE relname LIKE 'torn%'";
    let paths = cluster.psql("postgres", sql)?;
    let relation = |path: &str| Ok((path.to_owned(), relation_of(path)?));
    paths.lines().map(relation).collect()
}

type Contents = BTreeMap<String, Vec<u8>>;

fn read_all(cluster: &Cluster, files: &BTreeMap<String, RelTag>) -> Result<Contents> {
    let read = |path: &String| Ok((path.clone(), fs::read(cluster.data_dir().join(path))?));
    files.keys().map(read).collect()
}

/// What is to be torn, and the pages that it is torn from.
struct Tearing {
    tears: Tears,
    old: BTreeMap<(String, u64), Vec<u8>>,
}

impl Tearing {
    /// Tears pages that were changed by logged changes: those have another `pd_lsn`.
    fn between(old: &Contents, new: &Contents, random: &mut StdRng) -> Self {
        const LSN: std::ops::Range<usize> = 0..8;
        let mut tearing = Self {
            tears: Tears::default(),
            old: BTreeMap::new(),
        };
        for (path, new) in new {
            let Some(old) = old.get(path) else { continue };
            let pages = old.chunks_exact(PAGE_SIZE).zip(new.chunks_exact(PAGE_SIZE));
            for (block, (old, new)) in (0_u32..).zip(pages) {
                if old[LSN] != new[LSN] {
                    tearing.tears.tear(path, block, old, random.random());
                    let page = (path.clone(), u64::from(block));
                    tearing.old.insert(page, old.to_vec());
                }
            }
        }
        tearing
    }

    /// The pages of the backup that are neither what they were nor what any moment made of them:
    /// exactly one half is old.
    fn seen_in(&self, backup: &BaseBackup) -> Result<BTreeSet<(String, u64)>> {
        let mut torn = BTreeSet::new();
        let mut contents = Contents::new();
        for (path, block) in self.tears.pages() {
            if !contents.contains_key(path) {
                let content = fs::read(backup.data_dir().join(path))?;
                contents.insert(path.to_owned(), content);
            }
            let at = usize::try_from(block)? * PAGE_SIZE;
            let page = contents.get(path).and_then(|it| it.get(at..at + PAGE_SIZE));
            let page = page.with_context(|| format!("{path} is too short"))?;
            let key = (path.to_owned(), block);
            let old = self.old.get(&key).context("an unknown page")?;
            let half = PAGE_SIZE / 2;
            if (page[..half] == old[..half]) != (page[half..] == old[half..]) {
                torn.insert(key);
            }
        }
        Ok(torn)
    }
}

/// Every torn page is logged as a whole, or built from nothing, before the backup's end. Otherwise
/// the case is not one that PostgreSQL makes.
fn expect_mended(
    torn: &BTreeSet<(String, u64)>,
    files: &BTreeMap<String, RelTag>,
    backup: &BaseBackup,
    cluster: &Cluster,
) -> Result<()> {
    let pg_wal = cluster.data_dir().join("pg_wal");
    let mut whole: BTreeSet<(RelTag, BlockNumber)> = BTreeSet::new();
    read_wal(&pg_wal, backup.start(), SegmentSize::DEFAULT, |record| {
        if record.end_lsn <= backup.end() {
            let blocks = record.decode()?.blocks.into_iter();
            let applied = |image: &palimpsest_wal::BlockImage| image.apply;
            let blocks = blocks.filter(|it| it.will_init || it.image.as_ref().is_some_and(applied));
            whole.extend(blocks.map(|it| (it.rel, it.block)));
        }
        Ok(())
    })?;
    for (path, block) in torn {
        let block = BlockNumber::new(u32::try_from(*block)?);
        ensure!(
            whole.contains(&(files[path], block)),
            "{path} block {block} is torn and nothing mends it"
        );
    }
    Ok(())
}
