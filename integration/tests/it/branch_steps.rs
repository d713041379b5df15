//! P2, P5: a storage-broker is killed in the middle of making and removing branches, until each step was
//! hit. What was acknowledged is there, what was not is whole or can be asked for again, and whatever is
//! listed can be read: its pin and its manifest are there.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{Branched, BrokerClient, TimelineView},
};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, Processes},
};
use palimpsest_manifest::{PinKind, TimelineManifest, TimelineManifests};
use palimpsest_storage_broker::core::{Branch, CatalogStore};
use palimpsest_store::ObjectStore;
use palimpsest_types::{ErrorKind, Lsn, TimelineId};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use crate::under_load::{SERVICE, Source, TENANT};

const NAME: &str = "branch-steps";
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Within one of these, in microseconds, the storage-broker dies: how long a step takes is the machine's affair.
const WITHIN: [u64; 4] = [5_000, 20_000, 80_000, 320_000];
/// Rounds until each step must have been hit.
const MOST: usize = 2_000;

/// How far it was with a branch when it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Nothing,
    Pinned,
    Written,
    Listed,
    Going,
    Emptied,
    Unpinned,
    Gone,
}

/// What is stored.
struct Stored {
    store: ObjectStore,
    main: TimelineRef,
    /// Up to here main is there.
    lsn: Lsn,
}

/// What is stored at one moment.
struct Picture {
    branches: Vec<Branch>,
    pins: Vec<TimelineId>,
    /// Those with a manifest, of the branches and pins.
    written: Vec<TimelineId>,
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_p5_a_broker_may_die_at_any_step_of_a_branch() {
    steps().await.unwrap();
}

async fn steps() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    let main = processes
        .attach(TENANT, &source.cluster.conninfo("postgres"))
        .await?;
    let store = ObjectStore::open(processes.store()).await?;
    block_in_place(|| source.cluster.psql("postgres", "CREATE TABLE something ()"))?;
    let stored = |view: &TimelineView| view.status.remote_consistent >= view.status.oldest_readable;
    let lsn = processes
        .wait_for(main, stored)
        .await?
        .status
        .remote_consistent;
    let stored = Stored { store, main, lsn };
    let mut judge = Judge::new(NAME, "P5");
    let mut hit: BTreeMap<Step, usize> = BTreeMap::new();
    let making = [Step::Nothing, Step::Pinned, Step::Written, Step::Listed];
    let removing = [Step::Going, Step::Emptied, Step::Unpinned, Step::Gone];
    let least = size.pick(20, 150);
    for round in 0..MOST {
        let all_hit = |steps: &[Step]| steps.iter().all(|step| hit.contains_key(step));
        let enough = match size {
            // Of the steps of a removal some are too short to be hit soon.
            JudgeSize::Quick => all_hit(&making),
            JudgeSize::Full => all_hit(&making) && all_hit(&removing),
        };
        if round >= least && enough {
            break;
        }
        let name = format!("k{round}");
        let (step, made) = make(&mut processes, &stored, &name, &mut random, &mut judge).await?;
        *hit.entry(step).or_default() += 1;
        let step = remove(&mut processes, &stored, made, &mut random, &mut judge).await?;
        *hit.entry(step).or_default() += 1;
        if round % 10 == 9 {
            eprintln!("{NAME}: {hit:?}");
        }
    }
    eprintln!("{NAME}: {hit:?}");
    let of_removal = removing.iter().take(size.pick(0, removing.len()));
    let mut needed = making.iter().chain(of_removal);
    ensure!(
        needed.all(|step| hit.contains_key(step)),
        "not each step was hit: {hit:?}"
    );
    let left = stored.look().await?;
    judge.check((!left.branches.is_empty()).then(|| format!("{:?} are left", left.branches)));
    // What attempts have left waits for its time.
    let halves = [Step::Pinned, Step::Written].map(|step| hit.get(&step).copied().unwrap_or(0));
    let halves: usize = halves.into_iter().sum();
    judge.check(
        (left.pins.len() != halves).then(|| format!("{} pins for {halves}", left.pins.len())),
    );
    judge.close();
    processes.stop();
    Ok(())
}

/// Makes a branch while the storage-broker dies, and again when there is one.
async fn make(
    processes: &mut Processes,
    stored: &Stored,
    name: &str,
    random: &mut StdRng,
    judge: &mut Judge,
) -> Result<(Step, Branched)> {
    let before = stored.look().await?;
    let mut broker = client(processes)?;
    let (main, called) = (stored.main, name.to_owned());
    // Where it is known to have come: the storage-broker has just started.
    let lsn = Some(stored.lsn);
    let asked = async move { broker.create_branch(main, &called, lsn).await };
    let answer = struck(processes, asked, random).await?;
    let after = stored.look().await?;
    let step = after.made(&before, name);
    processes.start(Process::StorageBroker)?;
    let mut broker = client(processes)?;
    let made = until_ready(async || broker.create_branch(main, name, lsn).await).await?;
    judge.check(match answer {
        Ok(answered) if answered != made => Some(format!("{answered:?} became {made:?}")),
        Ok(_) if step != Step::Listed => Some(format!("{made:?} was told of at {step:?}")),
        _ => None,
    });
    judge.check(stored.look().await?.is_wrong(&made));
    Ok((step, made))
}

/// Removes a branch while the storage-broker dies, and again when there is one.
async fn remove(
    processes: &mut Processes,
    stored: &Stored,
    made: Branched,
    random: &mut StdRng,
    judge: &mut Judge,
) -> Result<Step> {
    let mut broker = client(processes)?;
    let asked = async move { broker.delete_branch(made.timeline).await };
    let answer = struck(processes, asked, random).await?;
    let step = stored.look().await?.removed(&made);
    judge.check(match answer {
        Ok(()) if step == Step::Listed => Some(format!("{made:?} was to go, and is not told so")),
        _ => None,
    });
    processes.start(Process::StorageBroker)?;
    let mut broker = client(processes)?;
    let again = until_ready(async || match broker.delete_branch(made.timeline).await {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    });
    again.await?;
    let begun = Instant::now();
    while stored.look().await?.removed(&made) != Step::Gone {
        ensure!(begun.elapsed() < PATIENCE, "{made:?} does not go");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(step)
}

/// The answer to a question, shortly after which the storage-broker dies.
async fn struck<T: Send + 'static>(
    processes: &mut Processes,
    asked: impl Future<Output = Result<T, RemoteError>> + Send + 'static,
    random: &mut StdRng,
) -> Result<Result<T, RemoteError>> {
    let asked = tokio::spawn(asked);
    let within = WITHIN[random.random_range(0..WITHIN.len())];
    sleep(Duration::from_micros(random.random_range(0..within))).await;
    processes.kill9(Process::StorageBroker)?;
    Ok(asked.await?)
}

fn client(processes: &Processes) -> Result<BrokerClient> {
    Ok(BrokerClient::new(
        &processes.address(Process::StorageBroker),
    )?)
}

/// Asks until somebody is there to answer.
async fn until_ready<T>(mut ask: impl AsyncFnMut() -> Result<T, RemoteError>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask().await {
            Err(error) if error.kind == ErrorKind::NotReady && begun.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(20)).await;
            }
            outcome => return Ok(outcome?),
        }
    }
}

impl Stored {
    async fn look(&self) -> Result<Picture> {
        // In this order a branch that is made meanwhile is not seen listed without its pin.
        let catalog = CatalogStore::new(self.store.clone()).newest().await?.state;
        let tenant = catalog.tenant(self.main).context("the tenant is gone")?;
        let branches = tenant.branches.clone();
        let main = self
            .manifest(self.main.timeline)
            .await?
            .context("main has no manifest")?;
        let pins = main.pins().iter().filter_map(|pin| match pin.kind {
            PinKind::Branch { timeline } => Some(timeline),
            _ => None,
        });
        let pins: Vec<_> = pins.collect();
        let mut written = Vec::new();
        let listed = branches.iter().map(|branch| branch.id);
        for timeline in listed.chain(pins.iter().copied()) {
            if self.manifest(timeline).await?.is_some() {
                written.push(timeline);
            }
        }
        Ok(Picture {
            branches,
            pins,
            written,
        })
    }

    async fn manifest(&self, timeline: TimelineId) -> Result<Option<TimelineManifest>> {
        let manifests = TimelineManifests::new(self.store.clone(), self.main.tenant, timeline);
        let newest = manifests.newest().await?;
        Ok(newest.map(|newest| newest.state))
    }
}

impl Picture {
    /// How far a branch of a name is that was not there before.
    fn made(&self, before: &Self, name: &str) -> Step {
        if self
            .branches
            .iter()
            .any(|branch| branch.name.as_str() == name)
        {
            return Step::Listed;
        }
        let mut new = self.pins.iter().filter(|pin| !before.pins.contains(pin));
        match new.next() {
            None => Step::Nothing,
            Some(pin) if self.written.contains(pin) => Step::Written,
            Some(_) => Step::Pinned,
        }
    }

    /// How far the removal of a branch is.
    fn removed(&self, made: &Branched) -> Step {
        let id = made.timeline.timeline;
        let listed = self.branches.iter().find(|branch| branch.id == id);
        let (written, pinned) = (self.written.contains(&id), self.pins.contains(&id));
        match listed {
            Some(branch) if !branch.deleting => Step::Listed,
            Some(_) if written => Step::Going,
            Some(_) if pinned => Step::Emptied,
            Some(_) => Step::Unpinned,
            None => Step::Gone,
        }
    }

    /// What a branch lacks, if anything.
    fn is_wrong(&self, made: &Branched) -> Option<String> {
        let id = made.timeline.timeline;
        let listed = self
            .branches
            .iter()
            .filter(|branch| branch.id == id)
            .count();
        let whole = listed == 1 && self.pins.contains(&id) && self.written.contains(&id);
        (!whole).then(|| format!("{made:?} is listed {listed} times, or lacks pin or manifest"))
    }
}
