//! P1 for names: `database.schema.table` gives, at each LSN, the files that PostgreSQL said it had
//! then; and the transaction status by which that is decided is the one in PostgreSQL's own files.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    TimelineRef,
    page::{PageClient, TimelineAt},
};
use palimpsest_catalog::{CatalogSource as _, QualifiedName, ResolveError, resolve};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
};
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_types::{Fork, Lsn, PAGE_SIZE, RelTag, SlruKind};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::task::block_in_place;

const NAMES: &str = "names-at-lsn";
const STATUS: &str = "clog-at-lsn";

/// Databases whose relations are named. The first is `initdb`'s.
const DATABASES: [&str; 2] = ["postgres", "Other.One"];

/// Steps after each of which names mean something else, and where they are taken.
const STEPS: [(usize, &str); 10] = [
    (0, "CREATE TABLE kept (id serial PRIMARY KEY, body text)"),
    (0, "CREATE DATABASE \"Other.One\""),
    (
        1,
        "CREATE SCHEMA \"Sch.ema\"; CREATE TABLE \"Sch.ema\".\"T:able\" (a int); \
         CREATE INDEX ON \"Sch.ema\".\"T:able\" (a)",
    ),
    (0, "ALTER TABLE kept RENAME TO renamed"),
    (
        0,
        "BEGIN; CREATE TABLE never (a int); SAVEPOINT s; CREATE TABLE nor_this (a int); ROLLBACK",
    ),
    (
        0,
        "BEGIN; CREATE TABLE half (a int); SAVEPOINT s; ALTER TABLE half RENAME TO undone; \
         ROLLBACK TO s; CREATE TABLE other_half (a int); COMMIT",
    ),
    // Mapped catalogs move, among them those that names are looked up in.
    (0, "VACUUM FULL pg_class"),
    (1, "VACUUM FULL pg_database"),
    (0, "CLUSTER renamed USING kept_pkey; TRUNCATE half"),
    (
        1,
        "DROP SCHEMA \"Sch.ema\" CASCADE; CREATE MATERIALIZED VIEW mv AS SELECT 1 AS a",
    ),
];

/// Every relation of the current database that has files, with their place.
const LIST: &str = "SELECT nspname, relname, \
    CASE WHEN relisshared THEN '1664/0' ELSE \
      coalesce(nullif(c.reltablespace, 0), d.dattablespace) || '/' || d.oid END \
    || '/' || pg_relation_filenode(c.oid) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace, pg_database d \
    WHERE datname = current_database() AND pg_relation_filenode(c.oid) IS NOT NULL \
    AND relpersistence = 'p'";

/// What PostgreSQL said when the log was at `lsn`.
struct Moment {
    lsn: Lsn,
    relations: BTreeSet<(QualifiedNameKey, RelTag)>,
}

/// Database, schema and name.
type QualifiedNameKey = (String, String, String);

#[tokio::test(flavor = "multi_thread")]
async fn p1_names_mean_what_they_meant_at_each_lsn() {
    names().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_transaction_status_is_that_of_postgres() {
    status().await.unwrap();
}

async fn names() -> Result<()> {
    let (cluster, _files, mut services) = start(&[("autovacuum", "off")]).await?;
    let conninfo = cluster.conninfo("postgres");
    let timeline = services.attach("named", &conninfo).await?;
    let mut moments = Vec::new();
    for (database, sql) in STEPS {
        moments.push(block_in_place(|| -> Result<Moment> {
            // Each statement on its own, but for transactions: VACUUM refuses company.
            match sql.starts_with("BEGIN") {
                true => drop(cluster.psql(DATABASES[database], sql)?),
                false => sql
                    .split("; ")
                    .try_for_each(|one| cluster.psql(DATABASES[database], one).map(drop))?,
            }
            moment(&cluster)
        })?);
    }
    moments.extend(block_in_place(|| change_while_held(&cluster))?);
    let end = block_in_place(|| cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;

    let size = JudgeSize::from_env();
    let mut random = StdRng::seed_from_u64(seed());
    let served = services.served(timeline).await?;
    let mut judge = Judge::new(NAMES, "P1");
    let all: BTreeSet<_> = moments.iter().flat_map(|it| it.relations.iter()).collect();
    let all: BTreeSet<_> = all.into_iter().map(|(name, _)| name.clone()).collect();
    for moment in &moments {
        // User relations always; of the many system ones, some.
        let system = |name: &&QualifiedNameKey| name.1 == "pg_catalog" || name.1 == "pg_toast";
        let mut chosen: Vec<_> = all.iter().filter(|name| !system(name)).collect();
        chosen.extend(
            all.iter()
                .filter(system)
                .sample(&mut random, size.pick(20, 200)),
        );
        let source = TimelineAt::new(served.client(), timeline, moment.lsn);
        for key in chosen {
            judge.check(compare(&source, moment, key).await);
        }
    }
    judge.close();
    services.stop().await;
    Ok(())
}

/// Another transaction has a row of a catalog locked while it changes, so that a multixact says who
/// changed it.
fn change_while_held(cluster: &Cluster) -> Result<Vec<Moment>> {
    let mut holder = cluster.session(DATABASES[0])?;
    let mut moments = Vec::new();
    for change in ["TRUNCATE renamed", "BEGIN; TRUNCATE renamed; ROLLBACK"] {
        holder.run("BEGIN; SELECT 1 FROM pg_class WHERE relname = 'renamed' FOR KEY SHARE")?;
        cluster.psql(DATABASES[0], change)?;
        moments.push(moment(cluster)?);
        holder.run("COMMIT")?;
        moments.push(moment(cluster)?);
    }
    Ok(moments)
}

async fn compare(
    source: &TimelineAt<'_>,
    moment: &Moment,
    key: &QualifiedNameKey,
) -> Option<String> {
    let (database, schema, table) = key.clone();
    let name = QualifiedName {
        database,
        schema,
        table,
        fork: Fork::Main,
    };
    let mut expected = moment.relations.iter();
    let expected = expected.find_map(|(known, rel)| (known == key).then_some(*rel));
    let found = match resolve(source, &name).await {
        Ok(rel) => Some(rel),
        Err(
            ResolveError::NoDatabase(_)
            | ResolveError::NoSchema { .. }
            | ResolveError::NoRelation { .. },
        ) => None,
        Err(error) => return Some(format!("{name} at {}: {error:?}", moment.lsn)),
    };
    (found != expected).then(|| {
        format!(
            "{name} at {}: {found:?} instead of {expected:?}",
            moment.lsn
        )
    })
}

fn moment(cluster: &Cluster) -> Result<Moment> {
    let lsn = cluster.flush_lsn()?;
    let databases = cluster.psql("postgres", "SELECT datname FROM pg_database")?;
    let mut relations = BTreeSet::new();
    for database in DATABASES {
        if !databases.lines().any(|line| line == database) {
            continue;
        }
        for line in cluster.psql(database, LIST)?.lines() {
            let parts: Vec<_> = line.split('|').collect();
            let [schema, table, files] = parts[..] else {
                anyhow::bail!("unexpected row {line:?}");
            };
            let key = (database.to_owned(), schema.to_owned(), table.to_owned());
            relations.insert((key, files.parse()?));
        }
    }
    Ok(Moment { lsn, relations })
}

async fn status() -> Result<()> {
    let (mut cluster, _files, mut services) = start(&[]).await?;
    // Subtransactions enough for several pages.
    let burn = "DO $$ BEGIN FOR i IN 1..40000 LOOP \
        BEGIN PERFORM txid_current(); INSERT INTO burnt VALUES (i); \
        IF i % 3 = 0 THEN RAISE division_by_zero; END IF; \
        EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$";
    block_in_place(|| cluster.psql("postgres", "CREATE TABLE burnt (i int)"))?;
    let timeline = services
        .attach("judged", &cluster.conninfo("postgres"))
        .await?;
    let mut random = StdRng::seed_from_u64(seed());
    let workload = Workload::full(random.random(), workload::QUICK);
    block_in_place(|| -> Result<()> {
        workload.run(&cluster)?;
        cluster.psql("postgres", burn).map(drop)
    })?;
    let end = block_in_place(|| cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    block_in_place(|| cluster.stop())?;
    let served = services.served(timeline).await?;
    let mut judge = Judge::new(STATUS, "P1");
    compare_status(
        &mut judge,
        served.client(),
        timeline,
        end,
        &cluster.data_dir().join("pg_xact"),
    )
    .await?;
    judge.close();
    services.stop().await;
    Ok(())
}

async fn compare_status(
    judge: &mut Judge,
    client: &PageClient,
    timeline: TimelineRef,
    lsn: Lsn,
    pg_xact: &Path,
) -> Result<()> {
    let source = TimelineAt::new(client, timeline, lsn);
    for entry in std::fs::read_dir(pg_xact)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let segment = u32::from_str_radix(name.context("a segment's name")?, 16)?;
        let bytes = std::fs::read(&path)?;
        for (number, expected) in bytes.chunks(PAGE_SIZE).enumerate() {
            let page = segment * SlruKind::PAGES_PER_SEGMENT + number as u32;
            let served = source.slru_page(SlruKind::Clog, page).await?;
            ensure!(expected.len() == PAGE_SIZE, "a torn page");
            let same = served.as_deref() == Some(expected);
            judge.check((!same).then(|| format!("pg_xact page {page} differs")));
        }
    }
    Ok(())
}

async fn start(
    settings: &[(&'static str, &'static str)],
) -> Result<(Cluster, tempfile::TempDir, Embedded)> {
    let with = |options: ClusterOptions, (name, value)| options.with(name, value);
    let settings = settings.iter().copied();
    let options = settings.fold(ClusterOptions::default(), with);
    let mut cluster = Cluster::temporary(options)?;
    block_in_place(|| cluster.start())?;
    let files = tempfile::tempdir()?;
    let services = Embedded::start(files.path()).await?;
    Ok((cluster, files, services))
}
