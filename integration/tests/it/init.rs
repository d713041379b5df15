//! A tenant that `pal init` makes: an empty cluster without a source, which `pal start` runs, and whose history is kept as any
//! other's.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser as _;
use palimpsest_api::{TimelineRef, broker::TimelineState};
use palimpsest_console::{Cli, commands};
use palimpsest_integration::{
    demo::Primary,
    embedded::Embedded,
    judge::Judge,
    oracle::{DataFiles, Oracle, PageSource as _},
};
use palimpsest_postgres::ControlFile;
use palimpsest_testkit::cluster::pg_bin;
use tempfile::TempDir;

use crate::{
    exports::{run, tool},
    support::engine,
};

/// The services, and where `pal` keeps what it starts.
struct Case {
    services: Embedded,
    endpoint: String,
    data: TempDir,
    files: TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_tenant_begins_with_an_empty_cluster_and_keeps_what_is_written_then() {
    let case = Case::prepare().await.unwrap();
    case.pal(&["init", "fresh"], &["--data-checksums"])
        .await
        .unwrap();
    let main = case.main("fresh").unwrap();
    case.is_left_alone(main).await.unwrap();
    let again = case.pal(&["init", "fresh"], &[]).await.unwrap_err();
    assert!(again.to_string().contains("already"), "{again}");

    case.pal(&["start", "fresh", "--trust"], &[]).await.unwrap();
    case.psql(
        main,
        "CREATE TABLE t AS SELECT generate_series(1, 5000) n; CREATE INDEX ON t (n)",
    )
    .unwrap();
    // What was committed a moment ago is on a branch at the newest LSN.
    case.pal(&["branch", "create", "fresh/copy"], &[])
        .await
        .unwrap();
    case.psql(main, "DELETE FROM t WHERE n > 10; CHECKPOINT")
        .unwrap();
    case.pal(&["start", "fresh/copy", "--trust"], &[])
        .await
        .unwrap();
    let copy = case.named("fresh/copy").unwrap();
    assert_eq!(case.psql(copy, "SELECT count(*) FROM t").unwrap(), "5000");
    assert_eq!(case.psql(main, "SELECT count(*) FROM t").unwrap(), "10");
    for name in ["fresh", "fresh/copy"] {
        case.pal(&["stop", name], &[]).await.unwrap();
    }
    case.compare(main).await.unwrap();

    let refused = case.pal(&["tenant", "delete", "fresh", "--yes"], &[]).await;
    assert!(refused.unwrap_err().to_string().contains("main"));
    case.pal(&["branch", "delete", "fresh/copy"], &[])
        .await
        .unwrap();
    let refused = case.pal(&["branch", "delete", "fresh"], &[]).await;
    assert!(refused.unwrap_err().to_string().contains("protected"));
    case.pal(&["branch", "protect", "fresh", "--off"], &[])
        .await
        .unwrap();
    case.pal(&["branch", "delete", "fresh"], &[]).await.unwrap();
    case.pal(&["tenant", "delete", "fresh", "--yes"], &[])
        .await
        .unwrap();
    let left = walk(&case.files.path().join("wal-ingest"));
    assert!(left.is_empty(), "{left:?}");
    case.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_tenant_that_can_not_be_made_nothing_is_left() {
    let case = Case::prepare().await.unwrap();
    let failed = case.pal(&["init", "fresh"], &["--locale=nonsense"]).await;
    let failed = failed.unwrap_err().to_string();
    assert!(failed.contains("nonsense"), "{failed}");
    assert!(case.main("fresh").is_err());
    let computes = walk(&case.data.path().join("computes"));
    assert!(computes.is_empty(), "{computes:?}");
    for name in ["../up", "a/b", ""] {
        let refused = case.pal(&["init", name], &[]).await.unwrap_err();
        assert!(refused.to_string().contains("not a name"), "{refused}");
    }
    // What one that was killed has left is in nobody's way.
    let left = case.data.path().join("computes/init-fresh/data");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("PG_VERSION"), "15").unwrap();
    case.pal(&["init", "fresh"], &[]).await.unwrap();
    assert!(case.main("fresh").is_ok());
    case.services.stop().await;
}

impl Case {
    async fn prepare() -> Result<Self> {
        let files = tempfile::tempdir()?;
        let services = Embedded::start(files.path()).await?;
        let data = tempfile::Builder::new().prefix("pal-").tempdir()?;
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            endpoint: services.broker_address().to_owned(),
            services,
            data,
            files,
        })
    }

    /// Runs a command as a person does; what comes after `--` is apart.
    async fn pal(&self, words: &[&str], last: &[&str]) -> Result<()> {
        let data = self.data.path().display().to_string();
        let options = ["pal", "--endpoint", &self.endpoint, "--data", &data];
        let bin = pg_bin().display().to_string();
        let more = match words.first() {
            Some(&("init" | "start" | "stop")) => vec!["--pg-bin", bin.as_str()],
            _ => Vec::new(),
        };
        let cli = Cli::try_parse_from([&options[..], words, &more, &["--"], last].concat())?;
        let done = commands::run(cli).await;
        done.map_err(|error| anyhow!("{words:?}: {}", error.in_full()))
    }

    fn named(&self, name: &str) -> Result<TimelineRef> {
        let view = self.services.cluster().borrow();
        let found = view
            .find(name)
            .with_context(|| format!("no timeline {name}"))?;
        Ok(found.timeline)
    }

    fn main(&self, tenant: &str) -> Result<TimelineRef> {
        self.named(tenant)
    }

    /// Nobody writes it, and nothing is left of what it was made of.
    async fn is_left_alone(&self, main: TimelineRef) -> Result<()> {
        let seen = self.services.wait_for(main, |view| {
            view.status.state == TimelineState::Idle && !view.is_written()
        });
        seen.await?;
        let computes = walk(&self.data.path().join("computes"));
        ensure!(computes.is_empty(), "{computes:?}");
        let ingest = self.files.path().join("wal-ingest");
        for _ in 0..100 {
            if walk(&ingest).is_empty() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Err(anyhow!("wal-ingest keeps {:?}", walk(&ingest)))
    }

    fn compute(&self, timeline: TimelineRef) -> PathBuf {
        let computes = self.data.path().join("computes");
        computes.join(timeline.timeline.to_string())
    }

    fn psql(&self, timeline: TimelineRef, sql: &str) -> Result<String> {
        let text = fs::read(self.compute(timeline).join("compute.json"))?;
        let told: serde_json::Value = serde_json::from_slice(&text)?;
        let port = told["port"].as_u64().context("no port")?.to_string();
        let mut psql = tool("psql");
        psql.args(["-XAtq", "-h", "127.0.0.1", "-U", "postgres", "-p", &port]);
        psql.args(["-c", sql, "postgres"]);
        run(&mut psql).map(|said| said.trim().to_owned())
    }

    /// Holds every page against the files of the PostgreSQL that was stopped.
    async fn compare(&self, main: TimelineRef) -> Result<()> {
        let data = self.compute(main).join("data");
        let control = ControlFile::parse(&fs::read(data.join("global/pg_control"))?.into())?;
        let served = self.services.served(main).await?;
        let engine = engine(true).await?;
        let oracle = Oracle::new(engine.clone());
        let mut judge = Judge::new("init", "P1");
        let begun = served.relations(control.checkpoint).await?;
        let primary = Primary {
            files: DataFiles::read(&data)?,
            attached_databases: begun.iter().map(|(rel, _)| rel.db).collect::<BTreeSet<_>>(),
        };
        let pages = primary.compare(&served, control.checkpoint, &oracle, &mut judge);
        let pages = pages.await?;
        engine.stop().await;
        ensure!(pages > 1000, "{pages} pages");
        judge.close();
        Ok(())
    }
}

/// The files below a directory.
fn walk(directory: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.flat_map(|entry| match entry.path() {
        path if path.is_dir() => walk(&path),
        path => vec![path],
    });
    below.collect()
}
