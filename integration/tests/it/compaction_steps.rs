//! P1, P4, P5: a compactor dies or stands still at each step of its work, alone or beside another one.
//! No version goes, who was superseded publishes nothing, and the work comes to an end.

use std::{num::NonZeroU32, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{TimelineRef, channel::connect_lazily, compaction::CompactorClient};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, ProcessState, Processes},
    strikes::{Action, DIARY_VARIABLE, Diary, Entry, Moment, Plan, STRIKES_VARIABLE, Step, Strike},
    versions::{VersionReader, VersionSum},
};
use palimpsest_manifest::TimelineManifest;
use palimpsest_types::Lsn;
use rand::{
    SeedableRng as _,
    rngs::StdRng,
    seq::{IteratorRandom as _, SliceRandom as _},
};
use tempfile::TempDir;
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use crate::under_load::{Guard, Load, SERVICE, Source, TENANT};

const NAME: &str = "compaction-steps";
const PAGES: &str = "compaction-steps-pages";
/// Who is struck, and who works beside it.
const VICTIM: Process = Process::Compactor;
const MATE: Process = Process::SecondCompactor;
/// What all compactors do soon. Not folding, which comes once there are hundreds of layers.
const USUAL: [(Step, NonZeroU32); 9] = [
    (Step::Look, FIRST),
    (Step::Claim, FIRST),
    (Step::Sweep, FIRST),
    (Step::Read, FIRST),
    (Step::Upload, FIRST),
    (Step::Renew, FIRST),
    (Step::Publish, FIRST),
    (Step::Image, FIRST),
    (Step::Add, FIRST),
];
/// For these a quick run has no time.
const MORE: [(Step, NonZeroU32); 2] = [(Step::Upload, SECOND), (Step::LetGo, FIRST)];
const FIRST: NonZeroU32 = NonZeroU32::MIN;
const SECOND: NonZeroU32 = NonZeroU32::new(2).expect("2 is not 0");
/// So many rounds are played once more in full size, with the rest of the world in another state.
const AGAIN: usize = 40;
/// So many layers as they were written are compacted.
const ENOUGH: usize = 2;
/// Longer than a claim, so that it has ended when who made it goes on.
const STILL: Duration = Duration::from_millis(1200);
/// By so many manifests later the numbers from before are free again.
const FAR: usize = 12;
/// A superseded compactor publishes nothing once it has looked so often: the first time may be to see
/// whether what it has just created counts.
const LOOKS: usize = 2;
/// Compactors look for work more often.
const IDLE: Duration = Duration::from_secs(6);
/// Each strike may be the end of so many claims: of the victim, and when both are stopped.
const WASTED: usize = 4;
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
const GLANCE: Duration = Duration::from_millis(30);

/// What happens in one round.
#[derive(Clone)]
struct Case {
    plan: Plan,
    /// Whether another compactor works on the timeline.
    mate: bool,
    /// Whether who halts stands still until many manifests are published: then the number that it
    /// creates may be free again.
    far: bool,
}

struct Scene {
    processes: Processes,
    timeline: TimelineRef,
    guard: Guard,
    versions: VersionReader,
    files: TempDir,
    diaries: Vec<Diary>,
    /// Layers that were made for nothing: no manifest may ever refer to them.
    lost: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_p4_p5_a_compactor_may_be_struck_at_any_step() {
    steps().await.unwrap();
}

async fn steps() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let source = block_in_place(Source::start)?;
    let mut scene = Scene::start(&source).await?;
    let load = Load::start_gently(&source.cluster);
    let mut strikes = Judge::new(NAME, "P4");
    for case in cases(size, &mut random) {
        let begun = Instant::now();
        let context = || format!("{}, mate: {}, far: {}", case.plan, case.mate, case.far);
        let finding = scene.round(&case).await.with_context(context)?;
        eprintln!("{}: {:.1?}", context(), begun.elapsed());
        let finding = finding.map(|finding| format!("{}: {finding}", context()));
        strikes.check(finding);
        // Each strike counts, though what comes of all of a plan is looked at once.
        strikes.pass(case.plan.0.len() as u64 - 1);
    }
    load.stop().await?;
    strikes.check(scene.comes_to_rest(strikes.checked() as usize).await?);
    let Scene {
        mut processes,
        timeline,
        guard,
        ..
    } = scene;
    strikes.check(guard.finish().await?);
    let mut ending = source.finish(&processes, timeline).await?;
    ending.serve_anew(&mut processes, timeline).await?;
    let mut pages = Judge::new(PAGES, "P1");
    ending
        .compare(size.pick(2, 6), &mut random, &mut pages)
        .await?;
    pages.close();
    strikes.close();
    processes.stop();
    Ok(())
}

/// The rounds, in any order. In quick size each usual step once, before and after, and what else is up to
/// the seed; in full size everything, and some of it again.
fn cases(size: JudgeSize, random: &mut StdRng) -> Vec<Case> {
    let more = MORE.into_iter().take(size.pick(0, MORE.len()));
    let mut cases: Vec<Case> = Vec::new();
    for (step, number) in USUAL.into_iter().chain(more) {
        for moment in Moment::ALL {
            let all = variants(moment, step, number);
            let count = size.pick(1, all.len());
            cases.extend(all.into_iter().sample(random, count));
        }
    }
    if size == JudgeSize::Full {
        let again = cases.iter().cloned().sample(random, AGAIN);
        cases.extend(again);
    }
    cases.extend(removals().into_iter().sample(random, size.pick(1, 4)));
    cases.shuffle(random);
    cases
}

/// A step struck in both ways, alone and beside another compactor, from which many manifests may come.
fn variants(moment: Moment, step: Step, number: NonZeroU32) -> Vec<Case> {
    let creates = moment == Moment::Before
        && matches!(
            step,
            Step::Claim | Step::Renew | Step::Add | Step::Publish | Step::LetGo
        );
    let mut cases: Vec<Case> = Vec::new();
    for action in Action::ALL {
        let strike = Strike {
            number,
            ..Strike::first(moment, step, action)
        };
        let case = |mate, far| Case {
            plan: Plan(vec![strike]),
            mate,
            far,
        };
        cases.extend([case(false, false), case(true, false)]);
        // Only who goes on creates anything.
        if creates && action == Action::Halt {
            cases.push(case(true, true));
        }
    }
    cases
}

/// Only who hears that it was superseded removes what it has made: so it is struck twice.
fn removals() -> Vec<Case> {
    let halt = Strike::first(Moment::After, Step::Upload, Action::Halt);
    let removal = |moment, action| Case {
        plan: Plan(vec![halt, Strike::first(moment, Step::Remove, action)]),
        mate: true,
        far: false,
    };
    let both = |moment| Action::ALL.map(|action| removal(moment, action));
    Moment::ALL.into_iter().flat_map(both).collect()
}

impl Case {
    /// Whether the other compactor is there from the beginning. Images come after compactions, and some
    /// of all would be the other's: a victim that is to make one could wait for long.
    fn is_mate_early(&self) -> bool {
        let of_images = |it: &Strike| matches!(it.step, Step::Image | Step::Add | Step::LetGo);
        self.mate && !self.plan.0.iter().any(of_images)
    }
}

impl Scene {
    async fn start(source: &Source) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
        let conninfo = source.cluster.conninfo("postgres");
        let timeline = processes.attach(TENANT, &conninfo).await?;
        let guard = Guard::start(source, &processes, timeline).await?;
        let versions = VersionReader::open(&processes.store(), timeline).await?;
        Ok(Self {
            processes,
            timeline,
            guard,
            versions,
            files,
            diaries: Vec::new(),
            lost: Vec::new(),
        })
    }

    /// Strikes as the case says, lets the others go on, and says what is wrong then, if anything.
    async fn round(&mut self, case: &Case) -> Result<Option<String>> {
        let before = self.backlog().await?;
        let up_to = before.lsn;
        let sum = self.versions.sum(&before, up_to).await?;
        let victim = self.start_one(VICTIM, Some(&case.plan))?;
        let mut mate = None;
        if case.is_mate_early() {
            mate = Some(self.start_one(MATE, None)?);
        }
        for (at, strike) in case.plan.0.iter().enumerate() {
            self.struck(strike).await?;
            if case.mate && mate.is_none() {
                mate = Some(self.start_one(MATE, None)?);
            }
            let is_last = at + 1 == case.plan.0.len();
            match (strike.action, &mate) {
                (Action::Kill, None) => {
                    self.lost.extend(unpublished(&victim.read()?));
                    let again = self.start_one(VICTIM, None)?;
                    gone_on(&again).await?;
                }
                (Action::Kill, Some(mate)) => {
                    self.lost.extend(unpublished(&victim.read()?));
                    gone_on(mate).await?;
                }
                (Action::Halt, None) => {
                    sleep(STILL).await;
                    self.processes.sigcont(VICTIM)?;
                    gone_on(&victim).await?;
                }
                (Action::Halt, Some(mate)) => {
                    self.lost.extend(unpublished(&victim.read()?));
                    gone_on(mate).await?;
                    if case.far {
                        self.many_manifests().await?;
                    }
                    self.processes.sigcont(VICTIM)?;
                    if is_last {
                        looked(&victim).await?;
                    }
                }
            }
        }
        let finding = self.finding(sum, up_to).await;
        for process in [VICTIM, MATE] {
            if self.processes.pid(process).is_some() {
                self.processes.kill9(process)?;
            }
        }
        finding
    }

    /// What is wrong with the newest manifest, if anything: up to this LSN it has these versions.
    async fn finding(&mut self, sum: VersionSum, up_to: Lsn) -> Result<Option<String>> {
        let history = self.guard.history();
        let mut findings = history.check_layers().await?;
        let after = history.newest().await?;
        let now = self.versions.sum(&after, up_to).await?;
        if now != sum {
            findings.push(format!(
                "versions up to {up_to} were {sum:?}, and are {now:?}"
            ));
        }
        let named = self.lost.iter().filter(|layer| history.has_named(layer));
        findings.extend(named.map(|layer| format!("{layer} of a superseded one was published")));
        findings.extend(self.guard.findings());
        Ok((!findings.is_empty()).then(|| findings.join("; ")))
    }

    /// With two compactors and no more strikes there is nothing left to do soon, and then nothing is
    /// done.
    async fn comes_to_rest(&mut self, strikes: usize) -> Result<Option<String>> {
        self.start_one(VICTIM, None)?;
        self.start_one(MATE, None)?;
        let newest = self.guard.history().newest().await?;
        let sum = self.versions.sum(&newest, newest.lsn).await?;
        let idle_claims = self.claims_at_rest().await?;
        let written = self.guard.history().written();
        let (claims, published) = (self.done(Step::Claim)?, self.done(Step::Publish)?);
        let (uploads, images) = (self.done(Step::Upload)?, self.done(Step::Image)?);
        let added = self.done(Step::Add)?;
        let (replaced, orphans) = self.guard.history().unreferenced().await?;
        eprintln!(
            "{NAME}: {written} layers were written; {claims} claims, {published} compactions with \
             {uploads} uploads, {added} of {images} images added; no manifest refers to {replaced} \
             that were replaced and {orphans} that came to nothing; {idle_claims} claims at rest"
        );
        let mut findings: Vec<_> = self.finding(sum, newest.lsn).await?.into_iter().collect();
        if idle_claims > 0 {
            findings.push(format!("{idle_claims} claims though nothing is to be done"));
        }
        if claims > written + WASTED * strikes {
            findings.push(format!("{claims} claims for {written} layers"));
        }
        Ok((!findings.is_empty()).then(|| findings.join("; ")))
    }

    /// How often a compactor claims the timeline while there is nothing to do for any, and no layer comes.
    /// The source itself writes now and then.
    async fn claims_at_rest(&self) -> Result<usize> {
        let mut clients = Vec::new();
        for process in [VICTIM, MATE] {
            let channel = connect_lazily(&self.processes.address(process))?;
            clients.push(CompactorClient::new(channel));
        }
        let begun = Instant::now();
        loop {
            // Asked before the plans and after the claims, so that any layer between them shows.
            let lsn = self.guard.history().newest().await?.lsn;
            self.nothing_to_do(&clients, begun).await?;
            // Who had looked before that has claimed by then.
            sleep(STILL).await;
            let before = self.done(Step::Claim)?;
            sleep(IDLE).await;
            let claims = self.done(Step::Claim)? - before;
            if self.guard.history().newest().await?.lsn == lsn {
                return Ok(claims);
            }
            ensure!(begun.elapsed() < PATIENCE, "layers come and come");
        }
    }

    /// Waits until no compactor has anything to do, nor does it.
    async fn nothing_to_do(&self, clients: &[CompactorClient], begun: Instant) -> Result<()> {
        loop {
            let mut idle = 0;
            for client in clients {
                // Who does not answer, as while it starts, says nothing.
                let is_idle = client.plan(self.timeline, None).await.is_ok_and(|plan| {
                    let is_nothing = plan.inputs.is_empty() && plan.images.is_empty();
                    is_nothing && plan.claimed_for.is_zero()
                });
                idle += usize::from(is_idle);
            }
            if idle == clients.len() {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "there is always something to compact"
            );
            sleep(GLANCE).await;
        }
    }

    /// The manifest once it has enough to compact.
    async fn backlog(&self) -> Result<TimelineManifest> {
        let begun = Instant::now();
        loop {
            let newest = self.guard.history().newest().await?;
            if newest.layers().iter().filter(|it| it.is_written()).count() >= ENOUGH {
                return Ok(newest);
            }
            ensure!(begun.elapsed() < PATIENCE, "no layers are written");
            sleep(GLANCE).await;
        }
    }

    /// Starts a compactor that writes a diary of its own.
    fn start_one(&mut self, process: Process, plan: Option<&Plan>) -> Result<Diary> {
        let file = format!("diary-{}", self.diaries.len());
        let diary = Diary::at(self.files.path().join(file));
        let path = diary.path().to_str().context("a path that is no text")?;
        let plan = plan.map(Plan::to_string);
        let mut variables = vec![(DIARY_VARIABLE, path)];
        variables.extend(plan.as_deref().map(|plan| (STRIKES_VARIABLE, plan)));
        self.processes.start_with(process, &variables)?;
        self.diaries.push(diary.clone());
        Ok(diary)
    }

    /// Waits until the victim has struck itself.
    async fn struck(&mut self, strike: &Strike) -> Result<()> {
        let expected = match strike.action {
            Action::Kill => ProcessState::Killed,
            Action::Halt => ProcessState::Halted,
        };
        let begun = Instant::now();
        loop {
            match self.processes.state(VICTIM)? {
                ProcessState::Running => {}
                state => {
                    ensure!(state == expected, "it was struck otherwise: {state:?}");
                    return Ok(());
                }
            }
            ensure!(begun.elapsed() < PATIENCE, "it never comes to the step");
            sleep(GLANCE).await;
        }
    }

    async fn many_manifests(&self) -> Result<()> {
        let published = || self.guard.history().summary().0;
        let (before, begun) = (published(), Instant::now());
        while published() < before + FAR {
            ensure!(begun.elapsed() < PATIENCE, "no manifests are published");
            sleep(GLANCE).await;
        }
        Ok(())
    }

    /// How many steps of a kind all compactors have done together.
    fn done(&self, step: Step) -> Result<usize> {
        let mut done = 0;
        for diary in &self.diaries {
            done += diary.read()?.iter().filter(|it| it.is_done(step)).count();
        }
        Ok(done)
    }
}

/// Layers that were made, or almost, and that are not published: images are added one by one, others all
/// together.
fn unpublished(entries: &[Entry]) -> Vec<String> {
    let mut unpublished = not_followed(entries, Step::Upload, Step::Publish);
    unpublished.extend(not_followed(entries, Step::Image, Step::Add));
    unpublished
}

/// The objects of steps of one kind after which there is none of another kind.
fn not_followed(entries: &[Entry], step: Step, by: Step) -> Vec<String> {
    let last = entries.iter().rposition(|it| it.is_done(by));
    let since = entries.iter().skip(last.map_or(0, |at| at + 1));
    let begun = since.filter(|it| it.step == step && it.moment == Moment::Before);
    begun.map(|it| it.object.clone()).collect()
}

/// Waits until a compactor has made something of a claim once more.
async fn gone_on(diary: &Diary) -> Result<()> {
    let is_it = |it: &Entry| it.is_done(Step::Publish) || it.is_done(Step::Add);
    once_more(diary, 1, is_it).await
}

/// Waits until a compactor that was halted has looked what is there now.
async fn looked(diary: &Diary) -> Result<()> {
    once_more(diary, LOOKS, |it| it.is_done(Step::Look)).await
}

async fn once_more(diary: &Diary, times: usize, is_it: fn(&Entry) -> bool) -> Result<()> {
    let count = || anyhow::Ok(diary.read()?.into_iter().filter(is_it).count());
    let (before, begun) = (count()?, Instant::now());
    while count()? < before + times {
        ensure!(begun.elapsed() < PATIENCE, "nothing comes of it");
        sleep(GLANCE).await;
    }
    Ok(())
}
