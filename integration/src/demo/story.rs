//! What somebody does who has deleted something by accident: the commands that a person would type, one after the
//! other, with what must be true after each.

use std::{
    fmt::Display,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use palimpsest_api::TimelineRef;
use palimpsest_console::{Cli, CliError, Format, Output, cli::Common, commands};
use palimpsest_testkit::{
    Cluster,
    cluster::{SUPERUSER, pg_bin},
};

use super::check::{TENANT, wait_for};
use crate::embedded::ServedTimeline;

/// Rows that are deleted by accident.
const ROWS: &str = "1000";

/// The cluster that an accident happens to, and where its history is.
pub(super) struct Story<'a> {
    pub(super) common: &'a Common,
    pub(super) cluster: &'a Cluster,
    pub(super) served: &'a ServedTimeline,
    pub(super) timeline: TimelineRef,
}

impl Story<'_> {
    /// From the accident to a branch of the branch. What was started for it has ended afterwards.
    pub(super) async fn tell(&self) -> Result<()> {
        let told = self.undo_accident().await;
        for name in ["experiment", "before-oops"] {
            let stopped = self.pal("stop", Some(&name)).await;
            if told.is_ok() {
                stopped?;
                self.pal("branch delete", Some(&name)).await?;
            }
        }
        told
    }

    async fn undo_accident(&self) -> Result<()> {
        let before = self.accident().await?;
        let [rescue, experiment] = [port()?, port()?];

        self.pal("branch create before-oops --from check --at", Some(&before))
            .await?;
        self.pal("start before-oops --trust --port", Some(&rescue))
            .await?;
        expect(rescue, "SELECT count(*) FROM orders", ROWS)?;
        expect(rescue, "INSERT INTO orders VALUES (0) RETURNING n", "0")?;

        self.pal("branch create experiment --from before-oops", NONE)
            .await?;
        self.pal("start experiment --trust --port", Some(&experiment))
            .await?;
        expect(experiment, "SELECT count(*) FROM orders", "1001")?;
        expect(
            experiment,
            "DELETE FROM orders WHERE n = 0 RETURNING n",
            "0",
        )?;
        expect(rescue, "SELECT count(*) FROM orders", "1001")?;
        self.expect_at_source("SELECT count(*) FROM orders", "0")?;
        self.pal("branch list --tree", NONE).await
    }

    /// Deletes what should have stayed; a time before that.
    async fn accident(&self) -> Result<String> {
        let sql = |text: &str| tokio::task::block_in_place(|| self.cluster.psql(SUPERUSER, text));
        sql(&format!(
            "CREATE TABLE orders AS SELECT n FROM generate_series(1, {ROWS}) n"
        ))?;
        // What ended within the second of the base backup's checkpoint counts as before it.
        sql("SELECT pg_sleep(1.1)")?;
        let before = sql("SELECT clock_timestamp()")?;
        sql("SELECT pg_sleep(0.01)")?;
        say(format!(
            "it is {before}; and now somebody deletes all orders"
        ));
        sql("DELETE FROM orders")?;
        let end = tokio::task::block_in_place(|| self.cluster.flush_lsn())?;
        wait_for(self.served, self.timeline, end).await?;
        Ok(before)
    }

    /// Does what a person would have typed, with one word of which the shell would make several.
    async fn pal(&self, words: &str, last: Option<&dyn Display>) -> Result<()> {
        let last = last.map(ToString::to_string);
        let shown = last
            .as_ref()
            .map_or_else(String::new, |last| match last.contains(' ') {
                true => format!(" '{last}'"),
                false => format!(" {last}"),
            });
        Output::new(Format::Table).line(format!("$ pal {words}{shown}"))?;
        let typed = std::iter::once("pal").chain(words.split(' '));
        let mut cli = Cli::try_parse_from(typed.chain(last.as_deref()))?;
        cli.common = self.common.clone();
        commands::run(cli).await.map_err(in_full)
    }

    fn expect_at_source(&self, sql: &str, expected: &str) -> Result<()> {
        let found = tokio::task::block_in_place(|| self.cluster.psql(SUPERUSER, sql))?;
        ensure!(
            found == expected,
            "{sql} at the source: {found}, not {expected}"
        );
        say(format!("{TENANT} itself: {sql}: {found}"));
        Ok(())
    }
}

const NONE: Option<&dyn Display> = None;

/// Asks what was started for a branch.
fn expect(port: u16, sql: &str, expected: &str) -> Result<()> {
    let found = tokio::task::block_in_place(|| psql(&pg_bin(), port, sql))?;
    ensure!(found == expected, "{sql}: {found}, not {expected}");
    say(format!("port {port}: {sql}: {found}"));
    Ok(())
}

fn psql(pg_bin: &Path, port: u16, sql: &str) -> Result<String> {
    let output = Command::new(pg_bin.join("psql"))
        .args(["-XAtq", "-h", "127.0.0.1", "-U", SUPERUSER, "-p"])
        .arg(port.to_string())
        .args(["-c", sql, SUPERUSER])
        .output()
        .context("starting psql")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{sql}: {complaint}");
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

fn port() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// With what to do about it, which the chain of causes does not hold.
pub(super) fn in_full(error: CliError) -> anyhow::Error {
    match error.hint() {
        Some(hint) => anyhow::anyhow!("{}; {hint}", error.in_full()),
        None => error.into(),
    }
}

fn say(what: impl Display) {
    eprintln!("demo: {what}");
}
