//! P1 of a relation that PostgreSQL keeps in several files: it comes from all of them, is written to in the last, and leaves as
//! just such files.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use palimpsest_integration::{
    embedded::{Embedded, ServedTimeline},
    judge::Judge,
    oracle::{Oracle, PageSource as _, Tally},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, Lsn, PAGE_SIZE, RelTag};
use tokio::task::block_in_place;

use crate::{
    exports::{Export, amcheck, request, trust},
    support::{checkpoint, engine},
};

const NAME: &str = "large-relation";
/// Blocks of a file of a relation: 1 GiB, as in every PostgreSQL that was not built otherwise.
const FILE_BLOCKS: u32 = 131_072;
/// Of the first file, when the first rows come.
const LEFT: u32 = 40;
/// Four are a page.
const ROWS: u32 = 2000;
/// Compared at once.
const PAGES: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_relation_of_several_files_comes_and_leaves_as_such() {
    let mut judge = Judge::new(NAME, "P1");
    several_files(&mut judge).await.unwrap();
    judge.close();
}

async fn several_files(judge: &mut Judge) -> Result<()> {
    let options = ClusterOptions {
        data_checksums: true,
        autovacuum: false,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::temporary(options.clone())?;
    let path = block_in_place(|| with_two_files(&mut cluster))?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let conninfo = cluster.conninfo("postgres");
    let timeline = services.attach("judged", &conninfo).await?;
    let told = block_in_place(|| {
        insert(&cluster, ROWS)?;
        cluster.psql("postgres", "DELETE FROM large WHERE n % 7 = 0")?;
        cluster.psql("postgres", "VACUUM large")?;
        tell(&cluster)
    })?;
    block_in_place(|| cluster.stop())?;
    let end = checkpoint(cluster.data_dir())?;
    let arrived = services.wait_for(timeline, |view| view.status.last_record > end);
    arrived.await?;
    let served = services.served(timeline).await?;
    let rel: RelTag = path.replacen("base", "1663", 1).parse()?;
    compare(&served, rel, cluster.data_dir().join(&path), end, judge).await?;

    let export = Export::of(&served, request(timeline, end)).await?;
    block_in_place(|| export.verify(true, end, judge))?;
    let sizes = |data: &Path| sizes(&data.join(&path));
    let (ours, theirs) = (sizes(&export.data_dir())?, sizes(cluster.data_dir())?);
    judge.check((ours != theirs).then(|| format!("files of {ours:?} bytes, not {theirs:?}")));
    block_in_place(|| lives(&export, options, &told, judge))?;
    services.stop().await;
    Ok(())
}

/// A running cluster with a table, the first file of which is full, or nearly: of pages that nobody has used yet, as a server
/// leaves them that was killed when it had just made room.
fn with_two_files(cluster: &mut Cluster) -> Result<String> {
    cluster.start()?;
    let sql = |cluster: &Cluster, text: &str| cluster.psql("postgres", text);
    sql(cluster, "CREATE TABLE large (n int PRIMARY KEY, t text)")?;
    let path = sql(cluster, "SELECT pg_relation_filepath('large')")?;
    let path = path.trim().to_owned();
    cluster.stop()?;
    let first = cluster.data_dir().join(&path);
    let len = u64::from(FILE_BLOCKS - LEFT) * PAGE_SIZE as u64;
    File::options().write(true).open(&first)?.set_len(len)?;
    cluster.start()?;
    insert(cluster, 0)?;
    sql(cluster, "CHECKPOINT")?;
    let second = fs::metadata(second_of(&first))?.len();
    ensure!(second > 0, "all of it is in one file");
    Ok(path)
}

/// Rows of about 2 KB, which lie where they are.
fn insert(cluster: &Cluster, after: u32) -> Result<()> {
    let last = after + ROWS;
    cluster.psql(
        "postgres",
        &format!(
            "INSERT INTO large SELECT n, repeat(md5(n::text), 58) FROM generate_series({after} + 1, {last}) n"
        ),
    )?;
    Ok(())
}

/// Every row, in few words, by the heap and by the index.
fn tell(cluster: &Cluster) -> Result<[String; 2]> {
    let heap = "SELECT count(*), sum(hashtext(t)), max(ctid), pg_relation_size('large') FROM large";
    let index =
        "SET enable_seqscan = off; SELECT count(*) FROM large WHERE n BETWEEN 1500 AND 2500";
    Ok([
        cluster.psql("postgres", heap)?,
        cluster.psql("postgres", index)?,
    ])
}

/// Every page from the first that is used on, against PostgreSQL's files.
async fn compare(
    served: &ServedTimeline,
    rel: RelTag,
    first: PathBuf,
    lsn: Lsn,
    judge: &mut Judge,
) -> Result<()> {
    let engine = engine(true).await?;
    let oracle = Oracle::new(engine.clone());
    let used = (FILE_BLOCKS - LEFT) as usize - 1;
    let mut theirs = Vec::new();
    let mut end = File::open(&first)?;
    end.seek(SeekFrom::Start((used * PAGE_SIZE) as u64))?;
    end.read_to_end(&mut theirs)?;
    theirs.extend(fs::read(second_of(&first))?);
    let mut tally = Tally::default();
    let pages: Vec<_> = theirs
        .chunks(PAGE_SIZE)
        .map(Bytes::copy_from_slice)
        .collect();
    let numbered: Vec<_> = (used..).zip(pages).collect();
    for some in numbered.chunks(PAGES) {
        let blocks = some
            .iter()
            .map(|(number, _)| Ok(BlockNumber::new(u32::try_from(*number)?)));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        let ours = served.pages(rel, &blocks, lsn).await;
        for ((ours, block), (_, theirs)) in ours.into_iter().zip(blocks).zip(some) {
            let comparison = oracle.compare(block, &ours?, theirs).await?;
            judge.check(tally.count(rel, block, theirs, &comparison));
        }
    }
    eprintln!("{NAME}: {tally:?}");
    engine.stop().await;
    Ok(())
}

/// A stock PostgreSQL finds all rows in it, and nothing wrong.
fn lives(
    export: &Export,
    options: ClusterOptions,
    told: &[String; 2],
    judge: &mut Judge,
) -> Result<()> {
    let data = export.data_dir();
    trust(&data)?;
    let directory = data.parent().context("a directory of its own")?;
    let mut cluster = Cluster::open(directory, options)?;
    cluster.start()?;
    let ours = tell(&cluster)?;
    judge.check((ours != *told).then(|| format!("{ours:?}, not {told:?}")));
    judge.check(amcheck(&cluster)?);
    insert(&cluster, 3 * ROWS)?;
    judge.check(amcheck(&cluster)?);
    cluster.stop()
}

/// Of the files of a relation.
fn sizes(first: &Path) -> Result<[u64; 2]> {
    Ok([
        fs::metadata(first)?.len(),
        fs::metadata(second_of(first))?.len(),
    ])
}

fn second_of(first: &Path) -> PathBuf {
    first.with_extension("1")
}
