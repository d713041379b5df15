//! How long it takes until a branch is there, and until its PostgreSQL answers, beside a copy that PostgreSQL's own programs make.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{TimelineRef, broker::BrokerClient};
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::SUPERUSER};
use tokio::time::sleep;

use super::{Latencies, Places, ROUNDS, Rounds, Row};
use crate::{
    processes::{Layers, Process, Processes},
    recovered::BaseBackup,
};

const TENANT: &str = "branched";
/// Made in each round one after the other while the source is idle, and as many while it is written to.
const BRANCHES: usize = 60;
/// So long pgbench writes before it is measured.
const START: Duration = Duration::from_secs(1);
/// Of the source before a branch is wanted, so that there are records to apply.
const TRANSACTIONS: &str = "--transactions=5000";
/// A row somewhere in the largest table, by its index.
const QUERY: &str = "SELECT count(*) FROM pgbench_accounts WHERE aid = 77777";
/// One of pgbench's units, with its index.
const SCALE_MIB: u64 = 15;

/// A source, the services that have its history, and who types commands.
struct Site {
    cluster: Cluster,
    processes: Processes,
    timeline: TimelineRef,
    pal: PathBuf,
    /// For what `pal` starts.
    data: PathBuf,
}

/// Lines of the table, of a database that is about so large.
///
/// # Errors
/// If a service, `pal` or PostgreSQL fails.
pub async fn measure(places: &Places, mebibytes: u64) -> Result<Vec<Row>> {
    let site = Site::start(places, mebibytes).await?;
    let [mut idle, mut loaded] = <[Latencies; 2]>::default();
    for _ in 0..ROUNDS {
        idle.extend(site.create().await?);
        let mut load = site.load()?;
        sleep(START).await;
        loaded.extend(site.create().await?);
        load.check()?;
    }
    let text = |latencies: &Latencies| {
        let (p50, p99) = (latencies.micros(50), latencies.micros(99));
        format!("p50 {:.1} ms, p99 {:.1} ms", p50 / 1e3, p99 / 1e3)
    };
    let ratio = loaded.micros(99) / idle.micros(99);
    let what = format!(
        "a branch is made while pgbench writes (reference: while nobody does), {} each; ratio of p99",
        idle.count()
    );
    let made = Row::compared(what, (text(&loaded), text(&idle)), ratio, None);
    let mut rows = vec![made];
    rows.extend(site.first_answers()?);
    site.processes.stop();
    Ok(rows)
}

/// pgbench, which ends with this.
struct Load(Child);

impl Load {
    fn check(&mut self) -> Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "pgbench ended by itself");
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The PostgreSQL of a branch, which is stopped with this, whatever became of it.
struct Started<'a> {
    site: &'a Site,
    name: &'a str,
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.site.pal(&["stop", self.name]) {
            eprintln!("{error:#}");
        }
    }
}

impl Site {
    async fn start(places: &Places, mebibytes: u64) -> Result<Self> {
        let mut cluster = Cluster::temporary(durable())?;
        cluster.start()?;
        let scale = format!("--scale={}", (mebibytes / SCALE_MIB).max(1));
        cluster.pgbench(&["--initialize", "--quiet", &scale, "postgres"])?;
        cluster.checkpoint()?;
        let directory = places.directory("branches")?;
        let processes = Processes::launch(places.service(), &directory, Layers::Of(256)).await?;
        let timeline = processes
            .attach(TENANT, &cluster.conninfo(SUPERUSER))
            .await?;
        cluster.pgbench(&[TRANSACTIONS, "--client=4", "--no-vacuum", "postgres"])?;
        processes
            .served_up_to(timeline, cluster.flush_lsn()?)
            .await?;
        Ok(Self {
            cluster,
            processes,
            timeline,
            pal: places.pal()?,
            data: directory.join("pal"),
        })
    }

    /// Makes branches at the newest LSN, one after the other; they go again.
    async fn create(&self) -> Result<Latencies> {
        let mut broker = BrokerClient::new(&self.processes.address(Process::StorageBroker))?;
        let (mut latencies, mut made) = (Latencies::default(), Vec::new());
        for number in 0..BRANCHES {
            let name = format!("branch-{number}");
            let begun = Instant::now();
            let branch = broker.create_branch(self.timeline, &name, None).await?;
            latencies.push(begun.elapsed());
            made.push(branch.timeline);
        }
        for branch in made {
            broker.delete_branch(branch).await?;
        }
        Ok(latencies)
    }

    fn load(&self) -> Result<Load> {
        let words = ["--client=4", "--no-vacuum", "--time=3600", "postgres"];
        self.cluster.start_pgbench(&words).map(Load)
    }

    /// From the wish for a copy to write to until that answers, by turns.
    fn first_answers(&self) -> Result<Vec<Row>> {
        let size = self.cluster.psql(
            "postgres",
            "SELECT round(sum(pg_database_size(oid)) / 1000000) FROM pg_database",
        )?;
        let [mut ours, mut creating, mut reference, mut copying] = <[Rounds; 4]>::default();
        for round in 0..ROUNDS {
            let (created, answered) = self.branch_answers(round)?;
            creating.push(created.as_secs_f64());
            ours.push(answered.as_secs_f64());
            let (copied, answered) = self.copy_answers()?;
            copying.push(copied.as_secs_f64());
            reference.push(answered.as_secs_f64());
        }
        let text = |rounds: &Rounds| format!("{:.2} s", rounds.median());
        let compared = |what: String, ours: &Rounds, reference: &Rounds| {
            let ratio = ours.median() / reference.median();
            Row::compared(what, (text(ours), text(reference)), ratio, None)
        };
        Ok(vec![
            compared(
                format!(
                    "from `pal branch create` until its PostgreSQL has answered (reference: from `pg_basebackup` until its copy has), {size} MB"
                ),
                &ours,
                &reference,
            ),
            compared(
                "of that until the branch is there (reference: until the copy is)".to_owned(),
                &creating,
                &copying,
            ),
        ])
    }

    /// Until a branch is there, and until its PostgreSQL has answered.
    fn branch_answers(&self, round: usize) -> Result<(Duration, Duration)> {
        let name = format!("answers-{round}");
        let begun = Instant::now();
        self.pal(&["branch", "create", &name, "--from", TENANT])?;
        let created = begun.elapsed();
        let started = Started {
            site: self,
            name: &name,
        };
        self.pal(&["start", &name, "--trust"])?;
        let answer = self.pal(&["psql", &name, "--", "-XAtqc", QUERY])?;
        let answered = begun.elapsed();
        ensure!(answer.trim() == "1", "{QUERY}: {answer}");
        drop(started);
        self.pal(&["branch", "delete", &name])?;
        Ok((created, answered))
    }

    /// Until a copy is there, and until its PostgreSQL has answered.
    fn copy_answers(&self) -> Result<(Duration, Duration)> {
        let begun = Instant::now();
        let backup = BaseBackup::take_with_wal(&self.cluster)?;
        let copied = begun.elapsed();
        let data = backup.data_dir();
        let directory = data.parent().context("a directory of its own")?;
        let mut copy = Cluster::open(directory, durable())?;
        copy.start()?;
        let answer = copy.psql("postgres", QUERY)?;
        let answered = begun.elapsed();
        ensure!(answer == "1", "{QUERY}: {answer}");
        Ok((copied, answered))
    }

    /// Does what a person would type; what it prints.
    fn pal(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(&self.pal)
            .arg("--endpoint")
            .arg(self.processes.address(Process::StorageBroker))
            .arg("--data")
            .arg(&self.data)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", self.pal.display()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pal {words:?}: {complaint}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A server that fsyncs, as those do that `pal` starts.
fn durable() -> ClusterOptions {
    ClusterOptions {
        durable: true,
        ..ClusterOptions::default()
    }
}
