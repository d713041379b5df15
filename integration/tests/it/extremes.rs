//! P1 of what leaves where counters begin anew, and at moments that are awkward: at each of them a stock PostgreSQL starts from
//! what we give, and has what one has that recovered to there.

use anyhow::{Context as _, Error, Result, ensure};
use palimpsest_integration::judge::{Judge, JudgeSize, seed};
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::Counters};
use palimpsest_types::Lsn;
use rand::{SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::task::block_in_place;

use crate::exports::Case;

const NAME: &str = "extremes";
const SEGMENT_MIB: u32 = 1;
/// More than the counters have left, of each.
const TRANSACTIONS: u32 = 500;
const MULTIXACTS: u32 = 60;
const TABLES: u32 = 60;
/// What may come between, such as the record of running transactions, does not come every time.
const TRIES: u32 = 10;

/// Where a source stood when something had just happened.
type Moment = (&'static str, Lsn);

#[tokio::test(flavor = "multi_thread")]
async fn p1_counters_begin_anew_and_moments_are_awkward() {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut judge = Judge::new(NAME, "P1");
    let mut random = StdRng::seed_from_u64(seed);
    let all_wrap = Counters {
        epoch: 7,
        xid: u32::MAX - 300,
        multixact: u32::MAX - 30,
        member: u32::MAX - 60,
        oid: u32::MAX - 100,
    };
    // From where transactions of before are in the future for who compares them as numbers.
    let signs_change = Counters {
        epoch: 1 << 30,
        xid: (1 << 31) - 300,
        multixact: (1 << 31) - 30,
        member: (1 << 31) - 60,
        oid: (1 << 31) - 100,
    };
    for (counters, data_checksums) in [(all_wrap, true), (signs_change, false)] {
        let (case, moments) = prepare(counters, data_checksums).await.unwrap();
        let ends = case.ends().await.unwrap();
        // One is judged in ten seconds.
        let count = size.pick(4, moments.len());
        let chosen = moments.iter().sample(&mut random, count);
        eprintln!("{NAME}: {counters:?}: {chosen:?}");
        let lsns: Vec<_> = chosen.into_iter().map(|(_, lsn)| *lsn).collect();
        let (first, last) = (ends.first().unwrap(), ends.last().unwrap());
        assert!(lsns.iter().all(|lsn| (first..=last).contains(&lsn)));
        case.judge_each(&ends, lsns, &mut judge).await.unwrap();
        case.stop().await;
    }
    judge.close();
}

async fn prepare(counters: Counters, data_checksums: bool) -> Result<(Case, Vec<Moment>)> {
    let options = ClusterOptions {
        data_checksums,
        wal_segment_size_mib: SEGMENT_MIB,
        autovacuum: false,
        ..ClusterOptions::default()
    }
    .with("track_commit_timestamp", "on");
    let mut cluster = Cluster::temporary(options.clone())?;
    block_in_place(|| cluster.set_counters(counters))?;
    block_in_place(|| cluster.start())?;
    cluster.pgbench(&["--initialize", "--quiet", "--scale=1", "postgres"])?;
    // Exports have to make such ones anew.
    let forgets =
        "CREATE UNLOGGED TABLE forgets (n int PRIMARY KEY); INSERT INTO forgets VALUES (1)";
    block_in_place(|| cluster.psql("postgres", forgets))?;
    Case::of(options, cluster, |cluster| write(cluster, counters)).await
}

/// Uses all counters up, with something of before and of after at each.
fn write(cluster: &Cluster, counters: Counters) -> Result<Vec<Moment>> {
    let mut moments = Vec::new();
    let mut note = |what| -> Result<()> {
        moments.push((what, cluster.flush_lsn()?));
        Ok(())
    };
    let sql = |text: &str| cluster.psql("postgres", text);
    sql("CREATE TABLE many (n int, at xid DEFAULT pg_current_xact_id()::xid)")?;
    sql("CREATE TABLE shrinks AS SELECT generate_series(1, 5000) AS n")?;
    sql(
        "CREATE TABLE locked (n int PRIMARY KEY); INSERT INTO locked SELECT generate_series(1, 1000)",
    )?;
    sql("BEGIN; INSERT INTO many VALUES (-1); PREPARE TRANSACTION 'of before'")?;
    sql("BEGIN; INSERT INTO many VALUES (-2); PREPARE TRANSACTION 'of before, committed after'")?;
    let mut long = cluster.session("postgres")?;
    long.run("BEGIN; INSERT INTO many VALUES (-3); SAVEPOINT a; INSERT INTO many VALUES (-4)")?;
    // With its commit what the long one has done is flushed, too.
    sql("CREATE TABLE of_before ()")?;
    note("before anything begins anew")?;

    let before = sql("SELECT pg_current_xact_id()")?;
    sql(&format!(
        "DO $$ BEGIN FOR n IN 1..{TRANSACTIONS} LOOP INSERT INTO many VALUES (n); COMMIT; END LOOP; END $$"
    ))?;
    let (before, after) = (
        before.parse::<u64>()?,
        sql("SELECT pg_current_xact_id()")?.parse::<u64>()?,
    );
    let crossed = |bits: u32| before >> bits < after >> bits;
    ensure!(crossed(31), "from {before} to {after}");
    ensure!(before >> 32 == u64::from(counters.epoch), "{before}");
    note("transactions have begun anew, in the middle of a long one")?;
    long.run("SAVEPOINT b; INSERT INTO many VALUES (-5)")?;
    sql("COMMIT PREPARED 'of before, committed after'")?;
    note("what was prepared before is committed")?;
    long.run("COMMIT")?;
    note("the long one is committed")?;

    lock_many(cluster)?;
    sql("CHECKPOINT")?;
    let next = sql("SELECT next_multixact_id, next_multi_offset FROM pg_control_checkpoint()")?;
    let (multixact, member) = next.split_once('|').context("no counters")?;
    for (before, now) in [(counters.multixact, multixact), (counters.member, member)] {
        ensure!(is_beyond(before, now)?, "from {before} to {now}");
    }
    note("multixacts and their members have begun anew")?;
    for n in 0..TABLES {
        sql(&format!(
            "CREATE TABLE of_oid_{n} (n int PRIMARY KEY, t text)"
        ))?;
    }
    let last = sql(&format!("SELECT 'of_oid_{}'::regclass::oid", TABLES - 1))?;
    ensure!(
        is_beyond(counters.oid, &last)?,
        "from {} to {last}",
        counters.oid
    );
    note("object ids have begun anew")?;
    note_prepared(cluster, &mut note)?;
    sql("CREATE DATABASE copied TEMPLATE template1 STRATEGY file_copy")?;
    note("a database was made by copying files")?;
    sql("CREATE DATABASE logged TEMPLATE template1 STRATEGY wal_log")?;
    note("a database was made by writing to the log")?;
    let mut truncating = cluster.session("postgres")?;
    truncating.run("BEGIN; TRUNCATE shrinks")?;
    sql("INSERT INTO locked VALUES (-1)")?;
    note("a relation is being truncated")?;
    truncating.run("COMMIT")?;
    sql("INSERT INTO shrinks VALUES (1)")?;
    // They would keep what they might see.
    for gid in sql("SELECT gid FROM pg_prepared_xacts")?.lines() {
        sql(&format!("COMMIT PREPARED '{gid}'"))?;
    }
    let size = || {
        sql("SELECT pg_relation_size('locked')")?
            .parse::<u64>()
            .map_err(Error::from)
    };
    let before = size()?;
    sql("DELETE FROM locked WHERE n NOT BETWEEN 1 AND 100; VACUUM locked")?;
    let after = size()?;
    ensure!(after < before, "{before} bytes, then {after}");
    note("a relation has become shorter")?;
    cluster.switch_wal()?;
    note("a segment has ended early")?;
    sql("CHECKPOINT; VACUUM FREEZE; CHECKPOINT")?;
    let age = sql("SELECT age(relfrozenxid) FROM pg_class WHERE relname = 'many'")?;
    ensure!(age.parse::<u32>()? < TRANSACTIONS, "frozen {age} ago");
    note("all is frozen")?;
    // Something has to come after the last.
    sql("CREATE TABLE the_end ()")?;
    Ok(moments)
}

/// Whether a counter is where its highest bit is the other one.
fn is_beyond(before: u32, now: &str) -> Result<bool> {
    Ok((before ^ now.parse::<u32>()?) >> 31 == 1)
}

/// Each with members of its own: those that have the same share one.
fn lock_many(cluster: &Cluster) -> Result<()> {
    let (mut one, mut two) = (cluster.session("postgres")?, cluster.session("postgres")?);
    for n in 1..=MULTIXACTS {
        for session in [&mut one, &mut two] {
            session.run(&format!(
                "BEGIN; SELECT FROM locked WHERE n = {n} FOR SHARE"
            ))?;
        }
        one.run("COMMIT")?;
        two.run("COMMIT")?;
    }
    Ok(())
}

/// A transaction is prepared by the very first record of a segment, which is all that says what it did.
fn note_prepared(
    cluster: &Cluster,
    note: &mut impl FnMut(&'static str) -> Result<()>,
) -> Result<()> {
    let segment = u64::from(SEGMENT_MIB) << 20;
    for n in 0..TRIES {
        cluster.psql(
            "postgres",
            &format!("BEGIN; INSERT INTO many VALUES ({n}); SELECT pg_switch_wal(); PREPARE TRANSACTION 'first {n}'"),
        )?;
        let end = cluster.flush_lsn()?;
        let records = cluster.waldump(end.floor_to(segment), Some(end))?;
        if records
            .first()
            .is_some_and(|record| record.contains("desc: PREPARE"))
        {
            return note("prepared by the first record of a segment");
        }
    }
    anyhow::bail!("in {TRIES} tries none was prepared where a segment begins")
}
