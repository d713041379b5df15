//! Clusters whose counters stand where years of use would have brought them.

use std::fs;

use anyhow::{Result, ensure};

use super::{Cluster, process};

/// Where a cluster's counters stand: what it gives out next.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    /// How often transaction ids have begun anew.
    pub epoch: u32,
    /// A transaction id.
    pub xid: u32,
    /// A multixact id.
    pub multixact: u32,
    /// The place of a multixact's first member.
    pub member: u32,
    /// An object id.
    pub oid: u32,
}

/// What is further ahead than 2^31 seems to be behind, so it takes several steps to get there, each of which freezes what there is.
const STEP: u32 = 1 << 30;
/// Of all SLRUs.
const PAGES_PER_SEGMENT: u32 = 32;
const PAGE: usize = 8192;
/// `CLOG_XACTS_PER_PAGE`, `MULTIXACT_OFFSETS_PER_PAGE` and `MULTIXACT_MEMBERS_PER_PAGE`.
const XACTS_PER_PAGE: u32 = 32_768;
const OFFSETS_PER_PAGE: u32 = 2_048;
const MEMBERS_PER_PAGE: u32 = 1_636;

impl Cluster {
    /// Makes a stopped cluster that has hardly lived as old as that. All that is in it is frozen there, so none of its
    /// transactions is further behind than it seems.
    pub fn set_counters(&mut self, counters: Counters) -> Result<()> {
        ensure!(
            !self.is_running(),
            "stop the server before its counters are set"
        );
        let steps = counters.xid.max(counters.multixact) / STEP;
        // Of as many equal parts as there are steps.
        let part = |of: u32, step: u32| {
            let part = u64::from(of) * u64::from(step + 1) / u64::from(steps + 1);
            // Both counters begin with ids that are special, and PostgreSQL's own are behind them.
            u32::try_from(part).unwrap_or(of).max(2_000)
        };
        for step in 0..=steps {
            self.reset(Counters {
                xid: part(counters.xid, step),
                multixact: part(counters.multixact, step),
                ..counters
            })?;
            self.start()?;
            self.freeze()?;
            self.stop()?;
        }
        Ok(())
    }

    fn reset(&self, counters: Counters) -> Result<()> {
        let Counters {
            epoch,
            xid,
            multixact,
            member,
            oid,
        } = counters;
        self.zeros("pg_xact", xid / XACTS_PER_PAGE)?;
        self.zeros("pg_multixact/offsets", multixact / OFFSETS_PER_PAGE)?;
        self.zeros("pg_multixact/members", member / MEMBERS_PER_PAGE)?;
        let mut reset = self.as_server("pg_resetwal");
        reset
            .arg(format!("--epoch={epoch}"))
            .arg(format!("--next-transaction-id={xid}"))
            .arg(format!("--multixact-ids={multixact},{multixact}"))
            .arg(format!("--multixact-offset={member}"))
            .arg(format!("--next-oid={oid}"))
            .arg(self.data_dir());
        process::output(&mut reset).map(drop)
    }

    /// The segment of an SLRU with this page, unless it is there: pg_resetwal leaves that to who uses it.
    fn zeros(&self, slru: &str, page: u32) -> Result<()> {
        let segment = page / PAGES_PER_SEGMENT;
        let path = self.data_dir().join(slru).join(format!("{segment:04X}"));
        if !path.exists() {
            fs::write(&path, vec![0; PAGES_PER_SEGMENT as usize * PAGE])?;
            self.account.own(&path)?;
        }
        Ok(())
    }

    fn freeze(&self) -> Result<()> {
        let template = |allowed: bool| {
            let sql = format!(
                "UPDATE pg_database SET datallowconn = {allowed} WHERE datname = 'template0'"
            );
            self.psql("postgres", &sql)
        };
        template(true)?;
        for database in ["template0", "template1", "postgres"] {
            self.psql(database, "VACUUM FREEZE")?;
        }
        template(false).map(drop)
    }
}
