//! P1 and P5 of branches: a tree of them, made while the source is written to, of which each page at
//! each LSN is what a PostgreSQL has that recovers to it; and nothing goes that one of them needs.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{Branched, TimelineState},
    page::{LsnAtTime, PageClient, TimelineAt},
};
use palimpsest_catalog::{RelationName, ResolveError, resolve};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::boundaries,
    recovered::{BaseBackup, Recovery},
};
use palimpsest_manifest::{TimelineManifest, TimelineManifests};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_types::{ErrorKind, Lsn};
use palimpsest_wal::SegmentSize;
use rand::{
    RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, IteratorRandom as _},
};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use crate::support::compare_with_recovered;

const NAME: &str = "branches-at-lsn";
const UNHURRIED: u32 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A source that is written to, and the services that follow it.
struct Case {
    options: ClusterOptions,
    cluster: Cluster,
    backup: BaseBackup,
    services: Embedded,
    main: TimelineRef,
    files: tempfile::TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_p5_every_branch_is_what_postgres_recovers_to() {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut judge = Judge::new(NAME, "P1");
    judge_tree(size, StdRng::seed_from_u64(seed), &mut judge)
        .await
        .unwrap();
    judge.close();
}

async fn judge_tree(size: JudgeSize, mut random: StdRng, judge: &mut Judge) -> Result<()> {
    let mut case = Case::prepare().await?;
    let workload = Workload::full(random.random(), workload::QUICK);
    let branches = case.grow(&workload, size.pick(10, 40), &mut random).await?;
    let end = block_in_place(|| {
        let cluster = &case.cluster;
        cluster.psql("postgres", "SELECT pg_switch_wal()")?;
        cluster.psql("postgres", "CREATE TABLE the_end ()")?;
        cluster.flush_lsn()
    })?;
    let seen = case
        .services
        .wait_for(case.main, |view| view.status.last_record >= end);
    let oldest = seen.await?.status.oldest_readable;
    block_in_place(|| case.cluster.stop())?;

    judge.check(case.refuses_the_future(&branches).await?);
    // A page-serve that starts now knows of them only what is stored, and a storage-broker likewise.
    let scope = TaskScope::default();
    let address = case.services.start_page_serve(&scope).await?;
    for branch in branches.iter().sample(&mut random, size.pick(3, 12)) {
        let served = case.services.served_by(&address, branch.timeline).await?;
        // Once what it shares has arrived there, too.
        let readable = within_patience(async || {
            let readable = served.client().readable(branch.timeline).await?;
            match readable.1 < branch.lsn {
                true => Err(not_ready(readable.1)),
                false => Ok(readable),
            }
        });
        let readable = readable.await?;
        let expected = (oldest, branch.lsn);
        judge.check((readable != expected).then(|| format!("{branch:?}: readable {readable:?}")));
        let pg_wal = case.cluster.data_dir().join("pg_wal");
        let recovery = Recovery {
            base: &case.backup.data_dir(),
            archive: &pg_wal,
            options: &case.options,
        };
        let shared = oldest..=branch.lsn;
        let ends = boundaries(&pg_wal, case.backup.start(), SegmentSize::DEFAULT, shared)?;
        ensure!(
            ends.contains(&branch.lsn),
            "{branch:?} is at the end of no record"
        );
        let lsns = [Some(branch.lsn), ends.into_iter().choose(&mut random)];
        let lsns = lsns.into_iter().flatten();
        compare_with_recovered(NAME, &served, recovery, lsns, judge).await?;
    }
    scope.stop().await;
    for finding in case.forgets(branches).await? {
        judge.check(finding);
    }
    case.services.stop().await;
    Ok(())
}

impl Case {
    async fn prepare() -> Result<Self> {
        let options = ClusterOptions::default();
        let mut cluster = Cluster::temporary(options.clone())?;
        block_in_place(|| cluster.start())?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
        let backup = block_in_place(|| BaseBackup::take(&cluster, UNHURRIED))?;
        let files = tempfile::tempdir()?;
        let mut services = Embedded::start(files.path()).await?;
        let main = services
            .attach("judged", &cluster.conninfo("postgres"))
            .await?;
        Ok(Self {
            options,
            cluster,
            backup,
            services,
            main,
            files,
        })
    }

    /// Makes branches, of branches too, while the source is written to.
    async fn grow(
        &self,
        workload: &Workload,
        count: usize,
        random: &mut StdRng,
    ) -> Result<Vec<Branched>> {
        std::thread::scope(|threads| {
            let load = threads.spawn(|| workload.run(&self.cluster));
            let handle = tokio::runtime::Handle::current();
            let tree = block_in_place(|| {
                handle.block_on(async {
                    let mut tree = Vec::new();
                    while tree.len() < count || !load.is_finished() {
                        if tree.len() < 4 * count {
                            tree.push(self.branch(&tree, random).await?);
                        }
                        sleep(Duration::from_millis(random.random_range(0..800))).await;
                    }
                    Ok(tree)
                })
            });
            load.join()
                .map_err(|_| anyhow!("the workload panicked"))??;
            tree
        })
    }

    /// One more branch: on any timeline, where that ends or on what it begins on.
    async fn branch(&self, tree: &[Branched], random: &mut StdRng) -> Result<Branched> {
        let name = format!("b{}", tree.len());
        let mut broker = self.services.broker();
        let on = tree.choose(random).filter(|_| random.random_bool(0.6));
        let Some(on) = on else {
            return Ok(broker.create_branch(self.main, &name, None).await?);
        };
        // Before `on` began: of which another branch says that there was an end of a record.
        let other = tree.choose(random).filter(|other| other.lsn < on.lsn);
        let lsn = other.map(|other| other.lsn);
        let made = broker.create_branch(on.timeline, &name, lsn).await?;
        ensure!(made.lsn == lsn.unwrap_or(on.lsn), "{made:?} of {on:?}");
        ensure!(lsn.is_some() || made.begins_on == on.timeline, "{made:?}");
        // What is asked for twice is made once.
        let again = broker.create_branch(on.timeline, &name, lsn).await?;
        ensure!(again == made, "{again:?} is not {made:?}");
        Ok(made)
    }

    /// Behind the end of a branch there is nothing, neither to read nor to begin at.
    async fn refuses_the_future(&self, branches: &[Branched]) -> Result<Option<String>> {
        let branch = branches.first().context("no branches")?;
        // Further than the header of a page is long, in which nothing is new.
        let later = Lsn::new(branch.lsn.get() + 64);
        let mut broker = self.services.broker();
        let made = broker
            .create_branch(branch.timeline, "later", Some(later))
            .await;
        let kind = made.as_ref().map_err(|error| error.kind);
        let refused = kind == Err(ErrorKind::NotReady);
        Ok((!refused).then(|| format!("a branch behind the end: {made:?}")))
    }

    /// Removes all branches, each when nothing begins on it any more, and looks whether they are gone.
    async fn forgets(&self, mut branches: Vec<Branched>) -> Result<Vec<Option<String>>> {
        let mut findings = Vec::new();
        let mut broker = self.services.broker();
        let store = ObjectStore::open(&self.files.path().join("store")).await?;
        let needed = |branches: &[Branched], on: &Branched| {
            branches.iter().any(|other| other.begins_on == on.timeline)
        };
        let pins = manifest(&store, self.main).await?.pins().len();
        let on_main = branches
            .iter()
            .filter(|branch| branch.begins_on == self.main);
        let expected = on_main.count();
        findings.push((pins != expected).then(|| format!("{pins} pins, not {expected}")));
        while let Some(at) = branches
            .iter()
            .rposition(|branch| !needed(&branches, branch))
        {
            if let Some(on) = branches.iter().find(|branch| needed(&branches, branch)) {
                let kept = broker.delete_branch(on.timeline).await;
                let refused = kept
                    .as_ref()
                    .is_err_and(|error| error.kind == ErrorKind::Conflict);
                findings.push((!refused).then(|| format!("{on:?} is needed: {kept:?}")));
            }
            let branch = branches.swap_remove(at);
            broker.delete_branch(branch.timeline).await?;
            self.wait_until_gone(branch.timeline).await?;
            let left = objects(&self.files.path().join("store"), branch.timeline);
            findings.push(left.then(|| format!("objects of {branch:?} are left")));
        }
        ensure!(branches.is_empty(), "{branches:?} needs itself");
        let pins = manifest(&store, self.main).await?.pins().len();
        findings.push((pins != 0).then(|| format!("{pins} pins are left")));
        Ok(findings)
    }

    async fn wait_until_gone(&self, timeline: TimelineRef) -> Result<()> {
        let mut cluster = self.services.cluster().clone();
        let gone = cluster.wait_for(|view| view.timeline(timeline).is_none());
        let gone = tokio::time::timeout(PATIENCE, gone).await;
        gone.context("the branch is still there")??;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_what_was_deleted_is_found_on_a_branch_at_a_time_before() {
    let case = Case::prepare().await.unwrap();
    let sql = |text: &str| block_in_place(|| case.cluster.psql("postgres", text)).unwrap();
    sql("CREATE TABLE precious AS SELECT generate_series(1, 1000) AS n");
    // A time within the second of the base's checkpoint is before it.
    sql("SELECT pg_sleep(1.1)");
    let before = sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
    sql("SELECT pg_sleep(0.01)");
    sql("TRUNCATE precious");
    sql("DROP TABLE precious");
    let end = block_in_place(|| case.cluster.flush_lsn()).unwrap();
    let arrived = case
        .services
        .wait_for(case.main, |view| view.status.last_record >= end);
    arrived.await.unwrap();
    let main = case.services.served(case.main).await.unwrap();
    let micros = Duration::from_micros(before.trim().parse().unwrap());
    let time = UNIX_EPOCH + micros;
    // It has to have come to what comes after.
    let come = async || {
        let (_, newest) = main.client().readable(case.main).await?;
        (newest >= end)
            .then_some(())
            .ok_or_else(|| not_ready(newest))
    };
    within_patience(come).await.unwrap();
    let found = main.client().lsn_at_time(case.main, time).await.unwrap();
    let LsnAtTime::Exact(lsn) = found else {
        panic!("{found:?}");
    };
    let mut broker = case.services.broker();
    let branch = broker
        .create_branch(case.main, "before", Some(lsn))
        .await
        .unwrap();
    let served = case.services.served(branch.timeline).await.unwrap();
    let branch = branch.timeline;
    assert!(has_precious(served.client(), branch).await.unwrap());
    assert!(!has_precious(main.client(), case.main).await.unwrap());
    // To the branch the same time means where it ends.
    let there = served.client().lsn_at_time(branch, time).await.unwrap();
    assert_eq!(there, LsnAtTime::Newest(lsn));
    let there = served
        .client()
        .lsn_at_time(branch, UNIX_EPOCH)
        .await
        .unwrap();
    assert_eq!(there, LsnAtTime::BeforeOldest);
    // And the other way round: the last that committed there was the table, more than a second before that time.
    let late = served.client().time_at_lsn(branch, lsn.into()).await;
    let late = late.unwrap().unwrap();
    assert!(late <= time - Duration::from_secs(1), "{late:?} {time:?}");
    assert!(late > time - PATIENCE, "{late:?} {time:?}");
    let later = main.client().time_at_lsn(case.main, end.into()).await;
    let later = later.unwrap().unwrap();
    assert!(later > time, "{later:?} {time:?}");
    case.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_ids_of_one_tenant_mean_nothing_to_another() {
    let mut case = Case::prepare().await.unwrap();
    let mut other = Cluster::temporary(ClusterOptions::default()).unwrap();
    block_in_place(|| other.start()).unwrap();
    let conninfo = other.conninfo("postgres");
    let second = case.services.attach("other", &conninfo).await.unwrap();
    let mut broker = case.services.broker();
    let branch = broker.create_branch(case.main, "b", None).await.unwrap();
    let mixed = TimelineRef {
        tenant: second.tenant,
        timeline: branch.timeline.timeline,
    };
    let kinds = [
        broker.create_branch(mixed, "c", None).await.map(drop),
        broker.delete_branch(mixed).await,
        case.services
            .served(second)
            .await
            .unwrap()
            .client()
            .readable(mixed)
            .await
            .map(drop),
    ];
    for outcome in kinds {
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::NotFound);
    }
    // The same name is another branch there.
    let theirs = broker.create_branch(second, "b", None).await.unwrap();
    assert_eq!(theirs.timeline.tenant, second.tenant);
    broker.delete_branch(theirs.timeline).await.unwrap();
    case.wait_until_gone(theirs.timeline).await.unwrap();
    let view = case.services.cluster().borrow().clone();
    let state = view.timeline(branch.timeline).map(|view| view.status.state);
    assert_eq!(state, Some(TimelineState::Idle));
    case.services.stop().await;
}

/// Whether the table can be found at the newest LSN.
async fn has_precious(client: &PageClient, timeline: TimelineRef) -> Result<bool> {
    let RelationName::Qualified(name) = "postgres.public.precious".parse()? else {
        bail!("it is a name");
    };
    let (_, newest) = client.readable(timeline).await?;
    match resolve(&TimelineAt::new(client, timeline, newest), &name).await {
        Ok(_) => Ok(true),
        Err(ResolveError::NoRelation { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn not_ready(at: Lsn) -> RemoteError {
    RemoteError::new(ErrorKind::NotReady, format!("it is at {at}"))
}

/// Tries again while the answer is that it is not ready.
async fn within_patience<T>(mut ask: impl AsyncFnMut() -> Result<T, RemoteError>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask().await {
            Err(error) if error.kind == ErrorKind::NotReady && begun.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(100)).await;
            }
            outcome => return Ok(outcome?),
        }
    }
}

pub(crate) async fn manifest(
    store: &ObjectStore,
    timeline: TimelineRef,
) -> Result<TimelineManifest> {
    let manifests = TimelineManifests::new(store.clone(), timeline.tenant, timeline.timeline);
    let newest = manifests.newest().await?;
    Ok(newest.context("there is no manifest")?.state)
}

/// Whether anything of a timeline is stored below `store`.
fn objects(store: &Path, timeline: TimelineRef) -> bool {
    let path = StorePath::timeline(timeline.tenant, timeline.timeline).to_string();
    walk(&store.join(path))
}

/// Whether there is a file below a directory.
fn walk(directory: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return false;
    };
    let mut entries = entries.flatten();
    entries.any(|entry| match entry.path() {
        path if path.is_dir() => walk(&path),
        _ => true,
    })
}
