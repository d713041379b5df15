//! Trouble on the way from an archive.

use std::{
    fs,
    path::PathBuf,
    process,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{TimelineRef, broker::TimelineStatus};
use palimpsest_disk::DiskStep;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{task::block_in_place, time::sleep};

use super::{ASKED, Case, PATIENCE, SLOT};
use crate::disk_full::is_disk_full;

const MID_STREAM: &str = "archive-mid-stream";
const TROUBLE: &str = "archive-trouble";
/// Nobody who stops a wal-ingest waits for what it has asked of an archive.
const STOP_LIMIT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn p9_wal_that_goes_while_it_is_read_comes_from_the_archive() {
    let mut case = Case::prepare().await.unwrap();
    let attached = case.oldest().await.unwrap();
    let needed = case.next_file().await.unwrap();
    // Who sends it stays behind, as over a line that is too slow.
    let sender = case.sender().await.unwrap();
    kill_process(sender, Signal::STOP).unwrap();
    let end = case.outlast(&needed).await.unwrap();
    kill_process(sender, Signal::CONT).unwrap();
    case.streams(end).await.unwrap();
    let asked = fs::read_to_string(case.archived(ASKED)).unwrap();
    assert!(asked.lines().any(|name| name == needed), "{asked}");
    case.has_a_slot_again().await.unwrap();
    assert_eq!(case.services.status(case.timeline).unwrap().lost, []);
    case.compare(MID_STREAM, attached).await.unwrap();
    case.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_command_that_hangs_ends_with_its_wal_ingest_and_a_full_disk_is_waited_for() {
    let mut case = Case::prepare().await.unwrap();
    let attached = case.oldest().await.unwrap();
    let end = case.lose(1).await.unwrap();
    let length = format!("7000.{}", process::id());
    let half = "head -c 100000 /dev/zero > %p";
    let hangs = format!("{half}; sleep {length} & sleep {length}; : %f");
    case.start_with(hangs).await.unwrap();
    count_of(&length, 2).await.unwrap();
    assert!(case.restored_path().exists());
    let begun = Instant::now();
    case.ingest.stop().await;
    assert!(begun.elapsed() < STOP_LIMIT, "{:?}", begun.elapsed());
    // With the shell those go that it has started.
    count_of(&length, 0).await.unwrap();
    assert!(!case.restored_path().exists());

    // As one ends that finds no room, or is killed.
    case.start_with(format!("{half}; : %f; exit 126"))
        .await
        .unwrap();
    case.says("restore-command failed").await.unwrap();
    case.ingest.stop().await;
    assert!(!case.restored_path().exists());

    case.disk.fill(DiskStep::Write, "pg_wal");
    case.start().await.unwrap();
    case.reach("the disk is full", is_disk_full).await.unwrap();
    case.ingest.stop().await;
    assert!(!case.restored_path().exists());
    // What is told of it may be what was told before.
    let refused = case.disk.refused();
    case.start().await.unwrap();
    let is_refused =
        |status: &TimelineStatus| is_disk_full(status) && case.disk.refused() > refused;
    case.reach("the disk is full again", is_refused)
        .await
        .unwrap();
    case.disk.empty();
    case.streams(end).await.unwrap();
    assert_eq!(case.services.status(case.timeline).unwrap().lost, []);
    case.compare(TROUBLE, attached).await.unwrap();

    // As one leaves it who is killed.
    case.ingest.stop().await;
    fs::write(case.restored_path(), "half").unwrap();
    case.start().await.unwrap();
    case.reach("it is removed", |_| !case.restored_path().exists())
        .await
        .unwrap();
    case.services.stop().await;
}

impl Case {
    /// Where commands put files.
    fn restored_path(&self) -> PathBuf {
        let TimelineRef { tenant, timeline } = self.timeline;
        let data = self.services.wal_ingest_settings().data;
        data.join(tenant.to_string())
            .join(timeline.to_string())
            .join("restored-wal")
    }

    /// The process of the source that sends WAL.
    async fn sender(&self) -> Result<Pid> {
        // Who looks after the slot has another name.
        let query = format!(
            "SELECT pid FROM pg_stat_replication WHERE state = 'streaming' AND application_name = '{SLOT}'"
        );
        let begun = Instant::now();
        loop {
            let pid = block_in_place(|| self.cluster.psql("postgres", &query))?;
            if let Ok(pid) = pid.trim().parse() {
                return Pid::from_raw(pid).context("no process");
            }
            ensure!(begun.elapsed() < PATIENCE, "no process sends WAL");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits until so many processes sleep for just so long.
async fn count_of(length: &str, expected: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let processes = fs::read_dir("/proc")?.flatten();
        let sleeps = |line: &Vec<u8>| line == format!("sleep\0{length}\0").as_bytes();
        let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        let count = lines.filter(sleeps).count();
        if count == expected {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "{count} processes, not {expected}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}
