//! P1: what a GiST split leaves on its left half, although no image of the page has it.
//!
//! The comparisons elsewhere use PostgreSQL's mask, which hides just that: a page's NSN and the flag
//! that says "follow the right link". A scan that meets a stale one reads wrong pages, or the same
//! rows twice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use palimpsest_integration::{
    offline::{OfflineTimeline, Sabotage},
    oracle::{DataFiles, read_wal},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, Fork, Lsn, PAGE_SIZE, RelTag};
use palimpsest_wal::{ResourceManager, SegmentSize};

use crate::support::{checkpoint, engine};

const NAME: &str = "gist-follow-right";

/// Keys of a kilobyte: seven on a page, so that most inserts split a page or two. They rise, so that
/// left halves are left alone.
const INSERT: &str = "INSERT INTO boxes SELECT cube(array_fill(i::float8, ARRAY[60]), \
    array_fill(i + 0.5::float8, ARRAY[60])) FROM generate_series(1, 12000) i";

/// Tries until a checkpoint falls between a split and its downlink; about ten do in each.
const ROUNDS: usize = 5;

/// What a GiST page ends with: NSN, right link, flags, page id.
const SPECIAL: usize = PAGE_SIZE - 16;
/// A hint in the flags that is not logged.
const HAS_GARBAGE: u8 = 1 << 4;

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_completed_gist_split_is_marked_on_a_restored_page() {
    compare().await.unwrap();
}

async fn compare() -> Result<()> {
    let prepared = tokio::task::spawn_blocking(prepare);
    let (cluster, _base, timeline, rel, start) = prepared.await??;
    let restored = restored_left_halves(&cluster, start)?;
    ensure!(restored > 0, "no image of a left half was logged");

    let engine = engine(false).await?;
    let files = DataFiles::read(cluster.data_dir())?;
    let theirs = files.get(rel).context("the index has no file")?.pages()?;
    let blocks = BlockNumber::new(u32::try_from(theirs.len())?);
    let chains = timeline.chains(rel, blocks)?;
    for (chain, theirs) in chains.into_iter().zip(&theirs) {
        let place = format!("{rel} block {}", chain.block);
        let ours = OfflineTimeline::page(&engine, chain, Sabotage::None).await?;
        let (ours, theirs) = (special(&ours), special(theirs));
        ensure!(
            ours == theirs,
            "{place} ends with {ours:02x?}, PostgreSQL's with {theirs:02x?}"
        );
    }
    eprintln!(
        "{NAME}: {} pages, {restored} left halves restored from images",
        theirs.len()
    );
    engine.stop().await;
    Ok(())
}

/// initdb, cold copy, inserts with checkpoints in between, clean shutdown.
fn prepare() -> Result<(Cluster, tempfile::TempDir, OfflineTimeline, RelTag, Lsn)> {
    let mut cluster = Cluster::temporary(ClusterOptions::default())?;
    cluster.start()?;
    cluster.psql(
        "postgres",
        "CREATE EXTENSION cube; CREATE TABLE boxes (c cube) WITH (autovacuum_enabled = off); \
         CREATE INDEX boxes_c ON boxes USING gist (c)",
    )?;
    let rel = relation(&cluster, "boxes_c")?;
    cluster.stop()?;
    let start = checkpoint(cluster.data_dir())?;
    let base = tempfile::tempdir()?;
    let copy = base.path().join("base");
    cluster.copy_data_dir(&copy)?;
    cluster.start()?;
    for _ in 0..ROUNDS {
        insert_between_checkpoints(&cluster)?;
        if restored_left_halves(&cluster, start)? > 0 {
            break;
        }
    }
    cluster.stop()?;
    let pg_wal = cluster.data_dir().join("pg_wal");
    let timeline = OfflineTimeline::build(&copy, &pg_wal, start, start, SegmentSize::DEFAULT)?;
    Ok((cluster, base, timeline, rel, start))
}

/// An image of a left half is logged when a checkpoint begins between a split and its downlink.
fn insert_between_checkpoints(cluster: &Cluster) -> Result<()> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let inserting = scope.spawn(|| {
            let inserted = cluster.psql("postgres", INSERT);
            done.store(true, Ordering::Relaxed);
            inserted
        });
        let mut session = cluster.session("postgres")?;
        while !done.load(Ordering::Relaxed) {
            session.run("CHECKPOINT")?;
        }
        let inserted = inserting.join();
        inserted.map_err(|_| anyhow!("the inserting thread panicked"))??;
        Ok(())
    })
}

fn relation(cluster: &Cluster, name: &str) -> Result<RelTag> {
    let sql = format!(
        "SELECT oid, pg_relation_filenode('{name}') FROM pg_database \
         WHERE datname = current_database()"
    );
    let row = cluster.psql("postgres", &sql)?;
    let (db, rel) = row.trim().split_once('|').context("no such relation")?;
    Ok(RelTag {
        spc: 1663,
        db: db.parse()?,
        rel: rel.parse()?,
        fork: Fork::Main,
    })
}

/// How often a record that completes a split has an image of the left half.
fn restored_left_halves(cluster: &Cluster, start: Lsn) -> Result<usize> {
    const PAGE_UPDATE: u8 = 0x00;
    const PAGE_SPLIT: u8 = 0x30;
    let mut count = 0;
    let pg_wal = cluster.data_dir().join("pg_wal");
    read_wal(&pg_wal, start, SegmentSize::DEFAULT, |record| {
        let record = record.decode()?;
        let left_half = match record.header.rmgr_info() {
            PAGE_UPDATE => record.block(1),
            PAGE_SPLIT => record.block(0),
            _ => None,
        };
        let is_gist = record.header.rmid == ResourceManager::Gist.number();
        let has_image = left_half.is_some_and(|block| block.image.is_some());
        count += usize::from(is_gist && has_image);
        Ok(())
    })?;
    Ok(count)
}

fn special(page: &Bytes) -> Vec<u8> {
    let mut special = page[SPECIAL..].to_vec();
    special[12] &= !HAS_GARBAGE;
    special
}
