//! The PostgreSQL whose WAL is compacted.

use anyhow::{Context as _, Result};
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::SUPERUSER};
use palimpsest_types::{Lsn, RelTag};

use super::volume::Volume;
use crate::bench::pages::relation;

/// A database that pgbench updates, at random places.
#[derive(Debug)]
pub(super) struct Source(Cluster);

/// pgbench's table that has nearly all pages.
const TABLE: &str = "pgbench_accounts";
/// Of pgbench at a time, of each of its clients: some MB of WAL.
const TRANSACTIONS: &str = "--transactions=500";
/// A statement that hangs ends pgbench with an error.
const DATABASE: &str = "dbname=postgres options='-c statement_timeout=2min'";

impl Source {
    /// Starts one with its tables made.
    pub(super) fn start(volume: &Volume) -> Result<Self> {
        let options = ClusterOptions::default()
            .with("full_page_writes", "on")
            .with("synchronous_commit", "off")
            .with("shared_buffers", "512MB")
            // PostgreSQL makes a checkpoint about every half of that.
            .with(
                "max_wal_size",
                &format!("{}MB", volume.checkpoint_mebibytes()),
            )
            .with("wal_keep_size", "0");
        let mut cluster = Cluster::temporary(options)?;
        cluster.start()?;
        let scale = format!("--scale={}", volume.scale());
        cluster.pgbench(&["--initialize", "--quiet", &scale, DATABASE])?;
        // What was made is no part of what is measured.
        cluster.checkpoint()?;
        Ok(Self(cluster))
    }

    /// How it is attached.
    pub(super) fn conninfo(&self) -> String {
        self.0.conninfo(SUPERUSER)
    }

    /// The end of its WAL.
    pub(super) fn end(&self) -> Result<Lsn> {
        self.0.flush_lsn()
    }

    /// Has pgbench write until the WAL has come to `end`; returns where it is then.
    pub(super) fn write_up_to(&self, end: Lsn) -> Result<Lsn> {
        loop {
            let at = self.end()?;
            if at >= end {
                return Ok(at);
            }
            self.0.pgbench(&[
                "--client=4",
                "--jobs=2",
                TRANSACTIONS,
                "--no-vacuum",
                DATABASE,
            ])?;
        }
    }

    /// The table that is read, and its blocks.
    pub(super) fn table(&self) -> Result<(RelTag, u32)> {
        let size = format!("SELECT pg_relation_size('{TABLE}') / 8192");
        let blocks = self.0.psql("postgres", &size)?;
        let blocks = blocks.parse().context("the blocks of a table")?;
        Ok((relation(&self.0, TABLE)?, blocks))
    }
}
