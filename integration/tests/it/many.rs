//! P6, P7, P8: of page-serves and redo-workers there may be several. One that is killed costs those
//! who talk to it an error at most, and nobody else anything; one that joins is used. One that stands
//! still costs some time.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{ClusterView, Role},
    channel::connect_lazily,
    page::{PageClient, PagePool, Pages, PagesRequest, ReadAt},
};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, Processes},
};
use palimpsest_types::{BlockNumber, Fork, Lsn, RelTag};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    sync::watch,
    task::{JoinHandle, block_in_place},
    time::{Instant, sleep, timeout},
};

use crate::under_load::{Guard, Load, SERVICE, Source, TENANT};

const NAME: &str = "many";
const PAGES: &str = "many-pages";
const PATIENCE: Duration = Duration::from_secs(120);
/// Requests under way at each page-serve, and through the pool.
const READERS: usize = 3;
const BLOCKS: u32 = 8;
/// Nobody waits longer for an answer: one that stands still is noticed within 10 seconds, and then
/// somebody else's.
const LONGEST: Duration = Duration::from_secs(20);
/// Answers under load that are asked for again in the end, about; more would prove no more.
const KEPT: usize = 400;
const ONE_IN: u32 = 5;

const PAGE_SERVES: [Process; 2] = [Process::PageServe, Process::SecondPageServe];
const REDO_WORKERS: [Process; 2] = [Process::RedoWorker, Process::SecondRedoWorker];

#[tokio::test(flavor = "multi_thread")]
async fn p6_p7_p8_one_of_many_may_die_under_load() {
    many().await.unwrap();
}

async fn many() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    let conninfo = source.cluster.conninfo("postgres");
    let timeline = processes.attach(TENANT, &conninfo).await?;
    let guard = Guard::start(&source, &processes, timeline).await?;
    let load = Load::start(&source.cluster);
    // They join when there is work already.
    processes.start(Process::SecondPageServe)?;
    processes.start(Process::SecondRedoWorker)?;
    all_alive(&processes).await?;
    for page_serve in PAGE_SERVES {
        follows(&source, &processes, timeline, page_serve).await?;
    }

    let mut judge = Judge::new(NAME, "P8");
    let targets = Targets::start(&processes, timeline);
    let pool = Readers::of_all(&processes, &targets, seed);
    let rounds = size.pick(6, 50);
    for round in 0..rounds {
        let victims = [
            vec![PAGE_SERVES[round % 2]],
            vec![REDO_WORKERS[round % 2]],
            vec![PAGE_SERVES[(round / 2) % 2], REDO_WORKERS[round % 2]],
        ];
        // Of many rounds two are of the other sort: they take long.
        let (blow, victims) = match round {
            1 => (Blow::Halt, vec![REDO_WORKERS[seed as usize % 2]]),
            2 => (Blow::Halt, vec![PAGE_SERVES[seed as usize % 2]]),
            _ => {
                let victims = victims.choose(&mut random).cloned();
                (Blow::Kill, victims.unwrap_or_default())
            }
        };
        eprintln!("{NAME}: {blow:?} {victims:?}");
        let survivors = PAGE_SERVES.iter().filter(|one| !victims.contains(one));
        let readers: Vec<_> = survivors
            .map(|one| Readers::of_one(&processes, *one, &targets, seed ^ round as u64))
            .collect();
        sleep(Duration::from_millis(random.random_range(200..1500))).await;
        blow.strike(&mut processes, &victims)?;
        let pause = random.random_range(0..2500);
        sleep(blow.least() + Duration::from_millis(pause)).await;
        blow.mend(&mut processes, &victims)?;
        all_alive(&processes).await?;
        for victim in victims.iter().filter(|one| PAGE_SERVES.contains(one)) {
            follows(&source, &processes, timeline, *victim).await?;
        }
        for worker in REDO_WORKERS {
            judge.check(works(&processes, worker).await?);
        }
        for readers in readers {
            readers.finish(&mut judge).await?;
        }
        judge.check(guard.findings());
    }
    pool.finish(&mut judge).await?;
    targets.check_again(&processes, &mut judge).await?;
    load.stop().await?;
    judge.check(guard.finish().await?);

    let mut pages = Judge::new(PAGES, "P8");
    let mut ending = source.finish(&processes, timeline).await?;
    for page_serve in PAGE_SERVES {
        let served = processes.served_by(page_serve, timeline, ending.end());
        ending.serve_from(served.await?);
        ending
            .compare(size.pick(1, 5), &mut random, &mut pages)
            .await?;
    }
    judge.close();
    pages.close();
    processes.stop();
    Ok(())
}

/// What happens to a process.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// It is killed, and started anew.
    Kill,
    /// It stands still for longer than anybody waits, with its connections open, and goes on.
    Halt,
}

impl Blow {
    fn strike(self, processes: &mut Processes, victims: &[Process]) -> Result<()> {
        victims.iter().try_for_each(|victim| match self {
            Self::Kill => processes.kill9(*victim),
            Self::Halt => processes.sigstop(*victim),
        })
    }

    fn mend(self, processes: &mut Processes, victims: &[Process]) -> Result<()> {
        victims.iter().try_for_each(|victim| match self {
            Self::Kill => processes.start(*victim),
            Self::Halt => processes.sigcont(*victim),
        })
    }

    /// How long it lasts at least.
    const fn least(self) -> Duration {
        match self {
            Self::Kill => Duration::ZERO,
            Self::Halt => Duration::from_secs(25),
        }
    }
}

/// Waits until the broker shows two of each kind.
async fn all_alive(processes: &Processes) -> Result<()> {
    let mut cluster = processes.cluster().clone();
    let all = |view: &ClusterView| {
        let expected = [
            (Role::PageServe, PAGE_SERVES),
            (Role::RedoWorker, REDO_WORKERS),
        ];
        expected.iter().all(|(role, which)| {
            let alive = view.addresses(*role);
            let mut which = which.iter();
            which.all(|process| alive.contains(&processes.address(*process)))
        })
    };
    let alive = timeout(PATIENCE, cluster.wait_for(all)).await;
    alive.context("the broker does not show all")??;
    Ok(())
}

/// Waits until a page-serve has all that is written by now.
async fn follows(
    source: &Source,
    processes: &Processes,
    timeline: TimelineRef,
    page_serve: Process,
) -> Result<()> {
    let written = block_in_place(|| source.cluster.flush_lsn())?;
    let served = processes.served_by(page_serve, timeline, written);
    served.await.map(drop)
}

/// Waits until a redo-worker has been given work: then it has a process for the tenant.
async fn works(processes: &Processes, worker: Process) -> Result<Option<String>> {
    let working = async {
        while processes.children(worker)? == 0 {
            sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    match timeout(PATIENCE, working).await {
        Ok(outcome) => outcome.map(|()| None),
        Err(_) => Ok(Some(format!("{} was given no work", worker.name()))),
    }
}

/// What to read: relations as they are at some LSN, renewed all the time; and some of the answers.
struct Targets {
    timeline: TimelineRef,
    newest: watch::Receiver<(Lsn, Vec<(RelTag, BlockNumber)>)>,
    answers: Mutex<Vec<(PagesRequest, Pages)>>,
    renewing: JoinHandle<()>,
}

impl Targets {
    fn start(processes: &Processes, timeline: TimelineRef) -> Arc<Self> {
        let (sender, newest) = watch::channel((Lsn::ZERO, Vec::new()));
        let addresses = PAGE_SERVES.map(|one| processes.address(one));
        let renewing = tokio::spawn(async move {
            for address in addresses.iter().cycle() {
                // One of them may be down.
                if let Ok(known) = relations(address, timeline).await {
                    let _ = sender.send(known);
                }
                sleep(Duration::from_millis(300)).await;
            }
        });
        Arc::new(Self {
            timeline,
            newest,
            answers: Mutex::default(),
            renewing,
        })
    }

    /// Some pages of some relation, now or at an LSN of a moment ago.
    fn draw(&self, random: &mut StdRng) -> Option<PagesRequest> {
        let newest = self.newest.borrow();
        let (rel, blocks) = *newest.1.choose(random)?;
        let first = random.random_range(0..blocks.get());
        let blocks = first..blocks.get().min(first + BLOCKS);
        Some(PagesRequest {
            timeline: self.timeline,
            at: ReadAt {
                lsn: Some(newest.0),
                ..ReadAt::default()
            },
            rel,
            blocks: blocks.map(BlockNumber::new).collect(),
        })
    }

    fn keep(&self, request: PagesRequest, pages: Pages) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() < KEPT {
            answers.push((request, pages));
        }
    }

    /// What was answered under load is what both answer now.
    async fn check_again(&self, processes: &Processes, judge: &mut Judge) -> Result<()> {
        self.renewing.abort();
        let answers =
            std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(!answers.is_empty(), "nothing was read under load");
        for page_serve in PAGE_SERVES {
            let channel = connect_lazily(&processes.address(page_serve))?;
            let client = PageClient::connect(channel).await?;
            for (request, then) in &answers {
                let now = client.pages(request.clone()).await?;
                let differs = now.pages != then.pages;
                judge.check(differs.then(|| format!("{request:?} is answered otherwise now")));
            }
        }
        Ok(())
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Relations with pages, and the LSN at which they are.
async fn relations(
    address: &str,
    timeline: TimelineRef,
) -> Result<(Lsn, Vec<(RelTag, BlockNumber)>), RemoteError> {
    let client = PageClient::connect(connect_lazily(address)?).await?;
    let (lsn, all) = client.relations(timeline, ReadAt::default()).await?;
    let with_pages = all
        .into_iter()
        .filter(|(rel, blocks)| rel.fork == Fork::Main && *blocks > BlockNumber::ZERO);
    Ok((lsn, with_pages.collect()))
}

/// Those who read all the time, and whom nothing may go wrong for.
struct Readers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Tally>>,
}

#[derive(Default)]
struct Tally {
    answered: u64,
    /// The longest that an answer took.
    longest: Duration,
    /// How often what was said.
    refused: BTreeMap<String, u64>,
}

/// Whom is asked.
enum Asked {
    One(Box<PageClient>),
    Any(PagePool),
}

impl Readers {
    /// They ask one page-serve, which is to live.
    fn of_one(
        processes: &Processes,
        page_serve: Process,
        targets: &Arc<Targets>,
        seed: u64,
    ) -> Self {
        let address = processes.address(page_serve);
        Self::start(targets, seed, move || {
            let address = address.clone();
            async move {
                let client = PageClient::connect(connect_lazily(&address)?).await?;
                Ok(Asked::One(Box::new(client)))
            }
        })
    }

    /// They ask any of them.
    fn of_all(processes: &Processes, targets: &Arc<Targets>, seed: u64) -> Self {
        let cluster = processes.cluster().clone();
        Self::start(targets, seed, move || {
            let pool = PagePool::new(cluster.clone());
            async move { Ok(Asked::Any(pool)) }
        })
    }

    fn start<F>(targets: &Arc<Targets>, seed: u64, connect: impl Fn() -> F) -> Self
    where
        F: Future<Output = Result<Asked, RemoteError>> + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..READERS).map(|number| {
            let random = StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(number as u64));
            let (targets, stop) = (Arc::clone(targets), Arc::clone(&stop));
            let connecting = connect();
            tokio::spawn(async move {
                match connecting.await {
                    Ok(asked) => read(&asked, &targets, &stop, random).await,
                    Err(error) => Tally {
                        refused: BTreeMap::from([(error.message, 1)]),
                        ..Tally::default()
                    },
                }
            })
        });
        Self {
            tasks: tasks.collect(),
            stop,
        }
    }

    async fn finish(self, judge: &mut Judge) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let Tally {
                answered,
                longest,
                refused,
            } = task.await?;
            judge.pass(answered);
            let late = longest > LONGEST;
            judge.check(late.then(|| format!("an answer took {longest:?}")));
            for (message, count) in refused {
                judge.check(Some(format!("{count} times: {message}")));
            }
        }
        Ok(())
    }
}

async fn read(asked: &Asked, targets: &Targets, stop: &AtomicBool, mut random: StdRng) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let Some(request) = targets.draw(&mut random) else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let begun = Instant::now();
        let answer = match asked {
            Asked::One(client) => client.pages(request.clone()).await,
            Asked::Any(pool) => pool.pages(request.clone()).await,
        };
        tally.longest = tally.longest.max(begun.elapsed());
        match answer {
            Ok(pages) => {
                tally.answered += 1;
                if random.random_ratio(1, ONE_IN) {
                    targets.keep(request, pages);
                }
            }
            Err(error) => *tally.refused.entry(error.message).or_default() += 1,
        }
    }
    tally
}
