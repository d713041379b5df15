//! P2, P3, P9: whatever is killed, whenever, with its disk or without: nothing acknowledged is lost,
//! nothing that is served is wrong, and nobody has to help.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use palimpsest_api::{
    TimelineRef,
    broker::{BrokerClient, TimelineState, TimelineView},
};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, Processes},
};
use palimpsest_testkit::{Cluster, ClusterOptions, Session};
use palimpsest_types::Lsn;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    task::{JoinHandle, block_in_place, spawn_blocking},
    time::{sleep, timeout},
};

use crate::under_load::{Guard, Load, SERVICE, Source, TENANT};

const KILL: &str = "kill";
const PAGES: &str = "kill-pages";
const SYNC: &str = "sync-commit";
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A row of any size up to some KiB, so that records end anywhere in a page.
const INSERT: &str = "INSERT INTO commits SELECT repeat(md5(random()::text), (random() * 60)::int)";

/// One attack.
#[derive(Debug)]
struct Strike {
    victims: Vec<Process>,
    /// Whether everything that is written by then has arrived first.
    recovered: bool,
    /// Then so long.
    wait: Duration,
    /// How long they stay dead.
    down: Duration,
    /// The wal-ingest's disk dies, too.
    disk: bool,
    /// They come back elsewhere.
    elsewhere: bool,
}

impl Strike {
    fn draw(random: &mut StdRng) -> Self {
        let others = [
            Process::PageServe,
            Process::RedoWorker,
            Process::StorageBroker,
        ];
        let other = others.choose(random).copied().unwrap_or(others[0]);
        let mut victims = match random.random() {
            true => vec![Process::WalIngest],
            false => vec![other],
        };
        if random.random_ratio(1, 4) {
            let second = match victims[0] {
                Process::WalIngest => other,
                _ => Process::WalIngest,
            };
            victims.push(second);
        }
        let down = match random.random_ratio(1, 3) {
            true => random.random_range(0..2000),
            false => 0,
        };
        Self {
            victims,
            recovered: random.random(),
            wait: Duration::from_millis(random.random_range(0..1500)),
            down: Duration::from_millis(down),
            disk: random.random_ratio(1, 5),
            elsewhere: random.random_ratio(1, 5),
        }
    }

    /// A wal-ingest that loses its disk, after it was well.
    fn with_the_disk(self) -> Self {
        Self {
            victims: vec![Process::WalIngest],
            recovered: true,
            disk: true,
            ..self
        }
    }

    async fn carry_out(&self, processes: &mut Processes) -> Result<()> {
        sleep(self.wait).await;
        for victim in &self.victims {
            processes.kill9(*victim)?;
        }
        sleep(self.down).await;
        if self.disk && self.victims.contains(&Process::WalIngest) {
            processes.lose_disk(Process::WalIngest)?;
        }
        for victim in &self.victims {
            // The broker is where everybody was told it is.
            if self.elsewhere && *victim != Process::StorageBroker {
                processes.relocate(*victim)?;
            }
            processes.start(*victim)?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_p3_p9_kill_9_at_any_moment_loses_nothing_and_spoils_nothing() {
    kill().await.unwrap();
}

async fn kill() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{KILL}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    let conninfo = source.cluster.conninfo("postgres");
    let timeline = attach_through_a_kill(&mut processes, &conninfo, &mut random).await?;
    let guard = Guard::start(&source, &processes, timeline).await?;
    let load = Load::start(&source.cluster);

    let mut judge = Judge::new(KILL, "P2");
    let strikes = size.pick(8, 60);
    for number in 0..strikes {
        let mut strike = Strike::draw(&mut random);
        if number == strikes / 2 {
            strike = strike.with_the_disk();
        }
        eprintln!("{KILL}: {strike:?}");
        if strike.recovered {
            let written = block_in_place(|| source.cluster.flush_lsn())?;
            arrives(&processes, timeline, written).await?;
        }
        strike.carry_out(&mut processes).await?;
        judge.check(guard.findings());
        judge.pass(strike.victims.len() as u64 - 1);
    }
    let written = block_in_place(|| source.cluster.flush_lsn())?;
    arrives(&processes, timeline, written).await?;
    load.stop().await?;
    judge.check(guard.finish().await?);
    let mut pages = Judge::new(PAGES, "P2");
    let ending = source.finish(&processes, timeline).await?;
    ending
        .compare(size.pick(3, 10), &mut random, &mut pages)
        .await?;
    judge.close();
    pages.close();
    processes.stop();
    Ok(())
}

/// The wal-ingest dies before, during or after the base backup; the one that follows begins anew.
async fn attach_through_a_kill(
    processes: &mut Processes,
    conninfo: &str,
    random: &mut StdRng,
) -> Result<TimelineRef> {
    let mut broker = BrokerClient::new(&processes.address(Process::StorageBroker))?;
    let timeline = broker.attach_tenant(TENANT, conninfo, None).await?;
    sleep(Duration::from_millis(random.random_range(0..1500))).await;
    processes.kill9(Process::WalIngest)?;
    processes.start(Process::WalIngest)?;
    processes.attached(timeline).await?;
    Ok(timeline)
}

/// Waits until everything up to `lsn` is readable.
async fn arrives(processes: &Processes, timeline: TimelineRef, lsn: Lsn) -> Result<()> {
    let arrived = processes.wait_for(timeline, |view| view.status.last_record >= lsn);
    arrived.await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_no_commit_that_was_acknowledged_is_lost_with_the_primary() {
    sync_commit().await.unwrap();
}

async fn sync_commit() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{SYNC}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(SYNC, "P2");
    // Once the WAL files alone have the commits, once layers have some of them.
    for layers in [Layers::Rarely, Layers::Often] {
        crashes(layers, size.pick(2, 10), &mut random, &mut judge).await?;
    }
    judge.close();
    Ok(())
}

async fn crashes(
    layers: Layers,
    count: usize,
    random: &mut StdRng,
    judge: &mut Judge,
) -> Result<()> {
    // Nobody but the client commits, so an LSN that it sees is one of its own commits.
    let options = ClusterOptions {
        autovacuum: false,
        wal_segment_size_mib: 1,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::temporary(options.with("wal_keep_size", "0"))?;
    block_in_place(|| cluster.start())?;
    block_in_place(|| cluster.psql("postgres", "CREATE TABLE commits (t text)"))?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), layers).await?;
    let conninfo = cluster.conninfo("postgres");
    let timeline = processes.attach(TENANT, &conninfo).await?;
    let wait = format!(
        "ALTER SYSTEM SET synchronous_standby_names = 'palimpsest_{TENANT}'; \
         SELECT pg_reload_conf()"
    );
    block_in_place(|| cluster.psql("postgres", &wait))?;

    for _ in 0..count {
        synchrony(&cluster).await?;
        let client = commit(block_in_place(|| cluster.session("postgres"))?);
        sleep(Duration::from_millis(random.random_range(500..3000))).await;
        let before = processes.wait_for(timeline, |_| true).await?.status.epoch;
        let standby_first: bool = random.random();
        if standby_first {
            processes.kill9(Process::WalIngest)?;
        }
        block_in_place(|| cluster.kill9())?;
        if !standby_first {
            processes.kill9(Process::WalIngest)?;
        }
        let (commits, acknowledged) = client.await??;

        processes.start(Process::WalIngest)?;
        let replayed = |view: &TimelineView| {
            view.status.epoch > before && view.status.state == TimelineState::Disconnected
        };
        let status = processes.wait_for(timeline, replayed).await?.status;
        eprintln!(
            "{SYNC}: {commits} commits up to {acknowledged}; {} after the crash",
            status.last_record
        );
        let lost = status.last_record < acknowledged;
        judge.check(lost.then(|| format!("{acknowledged} was acknowledged: {status:?}")));
        judge.pass(commits);
        processes.served_up_to(timeline, acknowledged).await?;
        block_in_place(|| cluster.start())?;
    }
    processes.stop();
    Ok(())
}

/// Commits rows until the server is gone; how many were acknowledged, and the LSN of the last.
fn commit(mut session: Session) -> JoinHandle<Result<(u64, Lsn)>> {
    spawn_blocking(move || {
        let (mut count, mut newest) = (0, Lsn::ZERO);
        while session.run(INSERT).is_ok() {
            let Ok(lsn) = session.run("SELECT pg_current_wal_lsn()") else {
                break;
            };
            newest = lsn.parse()?;
            count += 1;
        }
        Ok((count, newest))
    })
}

/// Waits until commits wait for us.
async fn synchrony(cluster: &Cluster) -> Result<()> {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_replication \
         WHERE application_name = 'palimpsest_{TENANT}' AND sync_state = 'sync'"
    );
    let synchronous = async {
        while block_in_place(|| cluster.psql("postgres", &sql))? != "1" {
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    let synchronous = timeout(PATIENCE, synchronous).await;
    synchronous.context("the primary does not wait for us")?
}
