use std::{
    fs::Permissions, num::NonZeroU32, os::unix::fs::PermissionsExt as _, path::Path, time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    TimelineRef,
    broker::{BrokerClient, Role},
    channel::connect_lazily,
    page::PageClient,
};
use palimpsest_console::{
    Format, Output,
    cli::Common,
    commands::attach::attach,
    place::Place,
    stack::{Stack, StackSettings, default_redo_build},
};
use palimpsest_redo_postgres::{Engine, EngineSettings, RunAs};
use palimpsest_settings::PortBase;
use palimpsest_testkit::{
    Cluster, ClusterOptions, Workload,
    cluster::{SUPERUSER, pg_bin},
};
use palimpsest_types::Lsn;

use super::{primary::Primary, story::Story};
use crate::{
    embedded::ServedTimeline,
    judge::{self, Judge},
    oracle::{DataFiles, Oracle, PageSource as _, RecoveredTally, compare_at},
    recovered::{BaseBackup, Recovery},
};

/// The tenant's name.
pub(super) const TENANT: &str = "check";
/// Fast: the reference's backup is taken while nothing else happens.
const BACKUP_KIB_PER_SECOND: u32 = 1 << 20;
/// How long the last WAL may be on its way.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);
/// Findings that are shown.
const SHOWN: usize = 20;

/// A stopped cluster whose WAL has all arrived, with what to compare it with.
struct Case {
    cluster: Cluster,
    options: ClusterOptions,
    backup: BaseBackup,
    /// Ends of steps, when nothing else ran.
    boundaries: Vec<Lsn>,
    /// The start of the shutdown's checkpoint record, which changes no page.
    end: Lsn,
}

/// What is compared where, so far.
struct Comparison<'a> {
    served: &'a ServedTimeline,
    oracle: Oracle,
    judge: Judge,
    pages: u64,
    lsns: usize,
}

/// Attaches a new PostgreSQL, makes it write, and compares every page at `lsns` LSNs and the last.
pub async fn check(scale: NonZeroU32, lsns: usize) -> Result<()> {
    // PostgreSQL, which never runs as root, has to reach what is started for branches.
    let passable = Permissions::from_mode(0o755);
    let directory = tempfile::Builder::new()
        .prefix("pal-")
        .permissions(passable)
        .tempdir()?;
    let place = Place::claim(directory.path())?;
    let settings = StackSettings {
        port_base: PortBase::ANY,
        pg_bin: Some(pg_bin()),
        ..StackSettings::default()
    };
    let stack = Stack::start(&settings, &place)
        .await
        .context("starting the services")?;
    let comparison = attach_and_compare(&stack, place.dir(), scale, lsns).await;
    stack.stop().await;
    let [pages, lsns, differ] = comparison?;
    Output::new(Format::Table).line(format!(
        "demo: {pages} pages at {lsns} LSNs compared, {differ} differ"
    ))?;
    ensure!(differ == 0, "{differ} comparisons failed");
    Ok(())
}

/// Pages, LSNs and differences.
async fn attach_and_compare(
    stack: &Stack,
    directory: &Path,
    scale: NonZeroU32,
    lsns: usize,
) -> Result<[u64; 3]> {
    say("starting a PostgreSQL");
    let options = ClusterOptions::default();
    let (cluster, backup) = tokio::task::block_in_place(|| prepare(&options, scale))?;
    let common = Common {
        endpoint: Some(stack.broker().to_owned()),
        data: directory.to_owned(),
        output: Format::default(),
    };
    let oldest = attach(&common, TENANT, &cluster.conninfo(SUPERUSER), None)
        .await?
        .oldest;
    let (timeline, served) = serve(stack).await?;
    say(&format!("attached; readable from {oldest} on"));
    let story = Story {
        common: &common,
        cluster: &cluster,
        served: &served,
        timeline,
    };
    story.tell().await.context("undoing an accident")?;
    say("writing all kinds of WAL");

    let case = tokio::task::block_in_place(|| Case::finish(cluster, options, backup, scale))?;
    wait_for(&served, timeline, case.end).await?;
    let engine = engine().await?;
    let mut comparison = Comparison {
        served: &served,
        oracle: Oracle::new(engine.clone()),
        judge: Judge::new("demo", "P1"),
        pages: 0,
        lsns: 0,
    };
    for lsn in case.earlier(oldest, lsns) {
        comparison.with_recovered(&case, lsn).await?;
    }
    comparison.with_primary(&case, oldest).await?;
    engine.stop().await;
    Ok(comparison.conclude())
}

fn prepare(options: &ClusterOptions, scale: NonZeroU32) -> Result<(Cluster, BaseBackup)> {
    let mut cluster = Cluster::temporary(options.clone())?;
    cluster.start()?;
    let scale = format!("--scale={scale}");
    cluster.pgbench(&["--initialize", "--quiet", &scale, SUPERUSER])?;
    let backup = BaseBackup::take(&cluster, BACKUP_KIB_PER_SECOND)?;
    Ok((cluster, backup))
}

async fn serve(stack: &Stack) -> Result<(TimelineRef, ServedTimeline)> {
    let mut broker = BrokerClient::new(stack.broker())?;
    let view = broker.cluster().await?;
    let timeline: TimelineRef = view.find(TENANT).context("the tenant is gone")?.timeline;
    let addresses = view.addresses(Role::PageServe);
    let address = addresses.first().context("no page-serve has registered")?;
    let client = PageClient::connect(connect_lazily(address)?).await?;
    Ok((timeline, ServedTimeline::new(client, timeline)))
}

async fn engine() -> Result<Engine> {
    let mut settings = EngineSettings::discover(&pg_bin(), &default_redo_build())?;
    settings.run_as = RunAs::unprivileged()?;
    Ok(Engine::start(settings).await?)
}

pub(super) async fn wait_for(
    served: &ServedTimeline,
    timeline: TimelineRef,
    end: Lsn,
) -> Result<()> {
    let arrived = async {
        while served.client().readable(timeline).await?.1 < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    let arrived = tokio::time::timeout(ARRIVAL_LIMIT, arrived).await;
    arrived.with_context(|| format!("{end} has not arrived after {ARRIVAL_LIMIT:?}"))?
}

impl Case {
    /// Runs the workload and stops the cluster, which sends all its WAL before it ends.
    fn finish(
        mut cluster: Cluster,
        options: ClusterOptions,
        backup: BaseBackup,
        scale: NonZeroU32,
    ) -> Result<Self> {
        let seed = judge::seed() as u32;
        let boundaries = Workload::full(seed, scale).run(&cluster)?;
        cluster.stop()?;
        Ok(Self {
            end: checkpoint(&cluster)?,
            boundaries: boundaries.iter().map(|boundary| boundary.lsn).collect(),
            cluster,
            options,
            backup,
        })
    }

    /// Some boundaries, evenly spread, that both we and the reference can go to.
    fn earlier(&self, oldest: Lsn, count: usize) -> Vec<Lsn> {
        let oldest = oldest.max(self.backup.end());
        let usable = self.boundaries.iter().copied();
        let usable: Vec<_> = usable
            .filter(|lsn| *lsn >= oldest && *lsn < self.end)
            .collect();
        let count = count.min(usable.len());
        let pick = |index: usize| usable.get(index * usable.len() / count).copied();
        (0..count).filter_map(pick).collect()
    }
}

impl Comparison<'_> {
    /// With a PostgreSQL that recovered to an LSN.
    async fn with_recovered(&mut self, case: &Case, lsn: Lsn) -> Result<()> {
        say(&format!("recovering a PostgreSQL to {lsn} and comparing"));
        let recovery = Recovery {
            base: &case.backup.data_dir(),
            archive: &case.cluster.data_dir().join("pg_wal"),
            options: &case.options,
        };
        let reference = tokio::task::block_in_place(|| recovery.to(lsn))?;
        let mut tally = RecoveredTally::default();
        let files = reference.files();
        compare_at(
            self.served,
            files,
            lsn,
            &self.oracle,
            &mut self.judge,
            &mut tally,
        )
        .await?;
        self.pages += tally.pages.values().sum::<u64>() + tally.visibility_map;
        self.lsns += 1;
        Ok(())
    }

    /// With the files of the PostgreSQL itself.
    async fn with_primary(&mut self, case: &Case, oldest: Lsn) -> Result<()> {
        say(&format!(
            "comparing with PostgreSQL's own files at {}",
            case.end
        ));
        let attached = self.served.relations(oldest).await?;
        let primary = Primary {
            files: DataFiles::read(case.cluster.data_dir())?,
            attached_databases: attached.iter().map(|(rel, _)| rel.db).collect(),
        };
        let compared = primary.compare(self.served, case.end, &self.oracle, &mut self.judge);
        self.pages += compared.await?;
        self.lsns += 1;
        Ok(())
    }

    fn conclude(self) -> [u64; 3] {
        for finding in self.judge.findings().iter().take(SHOWN) {
            say(finding);
        }
        [self.pages, self.lsns as u64, self.judge.wrong() as u64]
    }
}

/// Where the newest checkpoint record of a stopped cluster begins.
fn checkpoint(cluster: &Cluster) -> Result<Lsn> {
    let output = std::process::Command::new(pg_bin().join("pg_controldata"))
        .arg(cluster.data_dir())
        .env("LC_ALL", "C")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Latest checkpoint location:"));
    let lsn = line.context("pg_controldata names no checkpoint")?;
    Ok(lsn.trim().parse()?)
}

fn say(what: &str) {
    eprintln!("demo: {what}");
}
