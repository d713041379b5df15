//! P1, P4, P5: a compactor dies or stands still at each step of its work, alone or beside another one.
//! No version goes, who was superseded publishes nothing, and the work comes to an end.

use std::{num::NonZeroU32, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{TimelineRef, channel::connect_lazily, compaction::CompactorClient};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, ProcessState, Processes, is_written},
    strikes::{Action, DIARY_VARIABLE, Diary, Entry, Moment, Plan, STRIKES_VARIABLE, Step, Strike},
    versions::{VersionReader, VersionSum},
};
use palimpsest_manifest::TimelineManifest;
use palimpsest_types::Lsn;
use rand::{
    RngExt as _, SeedableRng as _,
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
/// Every compaction has these, or nearly every one. Not folding, which comes once there are hundreds of
/// layers.
const USUAL: [(Step, NonZeroU32); 8] = [
    (Step::Look, FIRST),
    (Step::Claim, FIRST),
    (Step::Sweep, FIRST),
    (Step::Read, FIRST),
    (Step::Upload, FIRST),
    (Step::Upload, SECOND),
    (Step::Renew, FIRST),
    (Step::Publish, FIRST),
];
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
/// Compactors look for work about so often.
const IDLE: Duration = Duration::from_secs(6);
/// Each strike may be the end of so many claims: of the victim, and when both are stopped.
const WASTED: usize = 4;
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
const GLANCE: Duration = Duration::from_millis(30);

/// What happens in one round.
struct Case {
    plan: Plan,
    /// Whether another compactor works on the timeline.
    mate: bool,
    /// Whether who halts stands still until many manifests are published.
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
        processes,
        timeline,
        guard,
        ..
    } = scene;
    strikes.check(guard.finish().await?);
    let ending = source.finish(&processes, timeline).await?;
    let mut pages = Judge::new(PAGES, "P1");
    ending
        .compare(size.pick(2, 6), &mut random, &mut pages)
        .await?;
    pages.close();
    strikes.close();
    processes.stop();
    Ok(())
}

/// The rounds, in any order. In quick size each step once, before and after, and what else is up to the
/// seed; in full size everything, and some of it again.
fn cases(size: JudgeSize, random: &mut StdRng) -> Vec<Case> {
    let mut plans: Vec<(Vec<Strike>, bool)> = Vec::new();
    for (step, number) in USUAL {
        for moment in Moment::ALL {
            let all = variants(moment, step, number);
            let count = size.pick(1, all.len());
            plans.extend(all.into_iter().sample(random, count));
        }
    }
    if size == JudgeSize::Full {
        let again = plans.iter().cloned().sample(random, AGAIN);
        plans.extend(again);
    }
    plans.extend(removals().into_iter().sample(random, size.pick(1, 4)));
    plans.shuffle(random);
    let case = |(plan, mate)| case(plan, mate, random);
    plans.into_iter().map(case).collect()
}

/// A step struck in both ways, alone and beside another compactor.
fn variants(moment: Moment, step: Step, number: NonZeroU32) -> Vec<(Vec<Strike>, bool)> {
    let strike = |action| Strike {
        number,
        ..Strike::first(moment, step, action)
    };
    let both = |action| [false, true].map(|mate| (vec![strike(action)], mate));
    Action::ALL.into_iter().flat_map(both).collect()
}

/// Only who hears that it was superseded removes what it has made: so it is struck twice.
fn removals() -> Vec<(Vec<Strike>, bool)> {
    let halt = Strike::first(Moment::After, Step::Upload, Action::Halt);
    let removal = |moment, action| vec![halt, Strike::first(moment, Step::Remove, action)];
    let both = |moment| Action::ALL.map(|action| (removal(moment, action), true));
    Moment::ALL.into_iter().flat_map(both).collect()
}

fn case(plan: Vec<Strike>, mate: bool, random: &mut StdRng) -> Case {
    let creates = |strike: &Strike| {
        strike.moment == Moment::Before
            && matches!(strike.step, Step::Claim | Step::Renew | Step::Publish)
    };
    Case {
        // Then the number that it creates may be free again.
        far: mate && plan.iter().any(creates) && random.random(),
        plan: Plan(plan),
        mate,
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
        let mate = match case.mate {
            true => Some(self.start_one(MATE, None)?),
            false => None,
        };
        for (at, strike) in case.plan.0.iter().enumerate() {
            self.struck(strike).await?;
            let is_last = at + 1 == case.plan.0.len();
            match (strike.action, &mate) {
                (Action::Kill, None) => {
                    self.lost.extend(unpublished(&victim.read()?));
                    let again = self.start_one(VICTIM, None)?;
                    published(&again).await?;
                }
                (Action::Kill, Some(mate)) => {
                    self.lost.extend(unpublished(&victim.read()?));
                    published(mate).await?;
                }
                (Action::Halt, None) => {
                    sleep(STILL).await;
                    self.processes.sigcont(VICTIM)?;
                    published(&victim).await?;
                }
                (Action::Halt, Some(mate)) => {
                    self.lost.extend(unpublished(&victim.read()?));
                    published(mate).await?;
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
        for process in [VICTIM, MATE] {
            let client = CompactorClient::new(connect_lazily(&self.processes.address(process))?);
            let begun = Instant::now();
            // While it starts it does not answer.
            while client
                .plan(self.timeline, None)
                .await
                .is_ok_and(|plan| !plan.inputs.is_empty() || !plan.images.is_empty())
                || client.activity().await.is_err()
            {
                ensure!(
                    begun.elapsed() < PATIENCE,
                    "there is always something to compact"
                );
                sleep(GLANCE).await;
            }
        }
        let claims = self.done(Step::Claim)?;
        let written = self.guard.history().written();
        sleep(IDLE).await;
        let idle_claims = self.done(Step::Claim)? - claims;
        // The source itself writes now and then.
        let idle_written = self.guard.history().written() - written;
        let (published, uploads) = (self.done(Step::Publish)?, self.done(Step::Upload)?);
        let (replaced, orphans) = self.guard.history().unreferenced().await?;
        eprintln!(
            "{NAME}: {written} layers were written; {claims} claims, {uploads} uploads, \
             {published} compactions; no manifest refers to {replaced} that were replaced and \
             {orphans} that came to nothing; {idle_claims} claims at rest"
        );
        let mut findings: Vec<_> = self.finding(sum, newest.lsn).await?.into_iter().collect();
        if idle_claims > idle_written {
            findings.push(format!("{idle_claims} claims though nothing is to be done"));
        }
        // Each compaction makes fewer generations of what was written.
        if claims > written + WASTED * strikes {
            findings.push(format!("{claims} claims for {written} layers"));
        }
        Ok((!findings.is_empty()).then(|| findings.join("; ")))
    }

    /// The manifest once it has enough to compact.
    async fn backlog(&self) -> Result<TimelineManifest> {
        let begun = Instant::now();
        loop {
            let newest = self.guard.history().newest().await?;
            if newest.layers().iter().filter(|it| is_written(it)).count() >= ENOUGH {
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

/// Layers that were made, or almost, and that are not published.
fn unpublished(entries: &[Entry]) -> Vec<String> {
    let last = entries.iter().rposition(|it| it.is_done(Step::Publish));
    let since = entries.iter().skip(last.map_or(0, |at| at + 1));
    let uploads = since.filter(|it| it.step == Step::Upload && it.moment == Moment::Before);
    uploads.map(|it| it.object.clone()).collect()
}

/// Waits until a compactor has published once more.
async fn published(diary: &Diary) -> Result<()> {
    once_more(diary, 1, |it| it.is_done(Step::Publish)).await
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
