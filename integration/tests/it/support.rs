//! What several judges need.

use std::path::Path;

use anyhow::{Context as _, Result};
use palimpsest_integration::{
    judge::Judge,
    oracle::{Oracle, PageSource, RecoveredTally, compare_at},
    recovered::Recovery,
};
use palimpsest_redo_postgres::{Engine, EngineSettings, RunAs};
use palimpsest_types::Lsn;
use tokio::task::block_in_place;

/// Where `make -C compute/redo` puts what it builds.
const REDO_BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../compute/redo/build/15");

/// An engine for a cluster with or without `wal_log_hints` (or checksums, which imply it).
pub(crate) async fn engine(wal_log_hints: bool) -> Result<Engine> {
    let bin = palimpsest_testkit::cluster::pg_bin();
    let mut settings = EngineSettings::discover(&bin, Path::new(REDO_BUILD))?;
    settings.wal_log_hints = wal_log_hints;
    settings.run_as = RunAs::unprivileged()?;
    Ok(Engine::start(settings).await?)
}

/// What `pg_controldata` says about a stopped cluster's newest checkpoint.
pub(crate) fn checkpoint(data: &Path) -> Result<Lsn> {
    let output =
        std::process::Command::new(palimpsest_testkit::cluster::pg_bin().join("pg_controldata"))
            .arg(data)
            .env("LC_ALL", "C")
            .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Latest checkpoint location:"));
    Ok(line
        .context("pg_controldata names no checkpoint")?
        .trim()
        .parse()?)
}

/// Compares every page at each of these LSNs with a PostgreSQL that is recovered to it.
pub(crate) async fn compare_with_recovered<S: PageSource>(
    name: &str,
    source: &S,
    recovery: Recovery<'_>,
    lsns: impl IntoIterator<Item = Lsn>,
    judge: &mut Judge,
) -> Result<()> {
    let tally = RecoveredTally::default();
    compare_each(name, (source, tally), recovery, lsns, judge).await
}

/// The same, where this tally says what is excused.
pub(crate) async fn compare_each<S: PageSource>(
    name: &str,
    (source, tally): (&S, RecoveredTally),
    recovery: Recovery<'_>,
    lsns: impl IntoIterator<Item = Lsn>,
    judge: &mut Judge,
) -> Result<()> {
    let engine = engine(recovery.options.data_checksums).await?;
    let oracle = Oracle::new(engine.clone());
    for lsn in lsns {
        let reference = block_in_place(|| recovery.to(lsn));
        let reference = reference.with_context(|| format!("recovering to {lsn}"))?;
        let mut tally = tally.clone();
        compare_at(source, reference.files(), lsn, &oracle, judge, &mut tally).await?;
        eprintln!("{name}: at {lsn}: {tally:?}");
    }
    engine.stop().await;
    Ok(())
}
