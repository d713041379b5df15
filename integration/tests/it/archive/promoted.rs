//! The source died behind our back, a standby of it was promoted, and that has removed what comes next of both histories.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use palimpsest_integration::judge::seed;
use palimpsest_testkit::{Cluster, Workload, workload};
use palimpsest_types::Lsn;
use tokio::{task::block_in_place, time::sleep};

use super::{Archive, Case, PATIENCE};
use crate::promotion::{Standby, hosts_of};

const NAME: &str = "archive-promoted";

#[tokio::test(flavor = "multi_thread")]
async fn p9_wal_of_a_source_that_died_comes_from_its_archive_up_to_where_another_went_on() {
    let archive = Archive::new().unwrap();
    let mut first = Cluster::temporary(archive.options()).unwrap();
    block_in_place(|| first.start()).unwrap();
    let at_first = first.conninfo("postgres");
    let second = block_in_place(|| Standby::of(&first, &at_first, &archive.options())).unwrap();
    let hosts = hosts_of([first.socket_dir(), second.cluster.socket_dir()], &first);
    let mut case = Case::of(first, &hosts, archive).await.unwrap();
    let attached = case.oldest().await.unwrap();
    let needed = case.next_file().await.unwrap();
    case.ingest.stop().await;

    case.write_and_archive().await.unwrap();
    follows(&case.cluster, &second.cluster).await.unwrap();
    block_in_place(|| case.cluster.stop_immediate()).unwrap();
    let left = second.promote(2).unwrap();
    case.cluster = second.cluster;
    let end = case.outlast(&needed).await.unwrap();
    // Also what it has written itself, of which the first file has the end of the history before.
    let first_of_its_own = case.walfile(left).unwrap();
    let end = end.max(case.outlast(&first_of_its_own).await.unwrap());

    case.start().await.unwrap();
    case.streams(end).await.unwrap();
    case.has_a_slot_again().await.unwrap();
    assert_eq!(case.services.status(case.timeline).unwrap().lost, []);
    case.compare(NAME, attached).await.unwrap();
    case.services.stop().await;
}

impl Case {
    /// Several WAL files of everything, all archived but for the last, of which there is a beginning.
    async fn write_and_archive(&self) -> Result<()> {
        let sql = |text: &str| block_in_place(|| self.cluster.psql("postgres", text));
        let workload = Workload::full(seed() as u32, workload::QUICK);
        block_in_place(|| workload.run(&self.cluster))?;
        let last = sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
        sql("SELECT pg_switch_wal()")?;
        let begun = Instant::now();
        while !self.archived(last.trim()).exists() {
            ensure!(begun.elapsed() < PATIENCE, "{last} is never archived");
            sleep(Duration::from_millis(100)).await;
        }
        sql("CREATE TABLE archived_by_the_next AS SELECT generate_series(1, 10000) AS n").map(drop)
    }

    /// The file of the source's own history that has what comes behind an LSN.
    fn walfile(&self, lsn: Lsn) -> Result<String> {
        let query = format!("SELECT pg_walfile_name('{lsn}'::pg_lsn + 1)");
        let name = block_in_place(|| self.cluster.psql("postgres", &query))?;
        Ok(name.trim().to_owned())
    }
}

/// Waits until a standby has replayed all that its primary has.
async fn follows(primary: &Cluster, standby: &Cluster) -> Result<()> {
    let end = block_in_place(|| primary.flush_lsn())?;
    let query = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    let begun = Instant::now();
    while block_in_place(|| standby.psql("postgres", &query))?.trim() != "t" {
        ensure!(begun.elapsed() < PATIENCE, "the standby does not follow");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
