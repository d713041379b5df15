//! P4, P5: a wal-ingest dies at each step of going on from another base backup, right before and right after it looks at the
//! newest manifest, takes over, stores a layer, removes one that was left, or publishes. Another one begins anew: only who
//! publishes has gone on, and what comes of it is as if nobody had died.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    TimelineRef,
    broker::{BrokerClient, TimelineState, TimelineView},
};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    oracle::{RecoveredTally, boundaries},
    processes::{Layers, Process, Processes},
    recovered::{BackupTap, Recovery},
    strikes::{Diary, Moment, Step, Strike},
};
use palimpsest_manifest::TimelineManifests;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_testkit::Cluster;
use palimpsest_types::Lsn;
use palimpsest_wal::SegmentSize;
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

use super::{
    BEFORE, PATIENCE, SEEN, SEGMENT_MIB, Source, another, goes_on, is_whole, logged, some_time,
    wait_for,
};
use crate::{
    struck::{dies_at, newest_of, place},
    support::compare_each,
    under_load::SERVICE,
};

const NAME: &str = "reattach-steps";
const PAGES: &str = "reattach-steps-pages";
const VICTIM: Process = Process::WalIngest;
/// Looks at the newest manifest before the first layer is stored: before each take-over and after it, and before a slot is made.
const LOOKS: u32 = 5;
const GLANCE: Duration = Duration::from_millis(20);

/// A timeline that is to go on from another base backup.
struct Scene {
    processes: Processes,
    timeline: TimelineRef,
    manifests: TimelineManifests,
    store: ObjectStore,
    /// Where its history had ended when that was asked for.
    after: Lsn,
    files: TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_p5_a_wal_ingest_may_die_at_any_step_of_a_reattach() {
    steps().await.unwrap();
}

async fn steps() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut source = block_in_place(|| Source::new(&mut random))?;
    let tap = BackupTap::to(source.cluster.socket_dir(), source.cluster.port())?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    let work = source.work()?;
    let conninfo = tap.conninfo("postgres");
    let timeline = processes.attach("judged", &conninfo).await?;
    let backup = block_in_place(|| tap.take_backup())?;
    some_time(&mut random).await;
    block_in_place(|| source.end(work))?;
    block_in_place(|| source.cluster.psql("postgres", SEEN))?;
    block_in_place(|| source.cluster.psql("postgres", BEFORE))?;
    let had = block_in_place(|| source.cluster.flush_lsn())?;
    let arrived = |view: &TimelineView| view.status.last_record >= had;
    processes.wait_for(timeline, arrived).await?;
    processes.kill9(VICTIM)?;
    until_nobody_reads(&source.cluster).await?;
    block_in_place(|| source.lose(had))?;
    processes.start(VICTIM)?;
    let stopped = |view: &TimelineView| view.status.state == TimelineState::Stopped;
    wait_for(processes.cluster(), timeline, stopped).await?;
    let work = source.work()?;
    let mut broker = BrokerClient::new(&processes.address(Process::StorageBroker))?;
    let after = broker.reattach(timeline, another()).await?;
    // It may have begun.
    processes.kill9(VICTIM)?;

    let store = ObjectStore::open(processes.store()).await?;
    let mut scene = Scene {
        manifests: TimelineManifests::new(store.clone(), timeline.tenant, timeline.timeline),
        store,
        processes,
        timeline,
        after,
        files,
    };
    let mut judge = Judge::new(NAME, "P4");
    for (at, strike) in places(&mut random).into_iter().enumerate() {
        let begun = Instant::now();
        let finding = scene.round(at, strike).await;
        let finding = finding.with_context(|| strike.to_string())?;
        eprintln!("{NAME}: {strike}: {:.1?}", begun.elapsed());
        judge.check(finding.map(|finding| format!("{strike}: {finding}")));
    }
    judge.check(scene.is_left().await?);
    let Scene { mut processes, .. } = scene;
    processes.start(VICTIM)?;
    let view = wait_for(processes.cluster(), timeline, goes_on).await?;
    let lost = *view.status.lost.last().context("nothing was lost")?;
    judge.check(
        (lost.after < had || view.status.lost.len() != 1)
            .then(|| format!("lost: {:?}", view.status.lost)),
    );
    some_time(&mut random).await;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let slots = block_in_place(|| source.cluster.psql("postgres", slots))?;
    judge.check((slots.trim() != "1").then(|| format!("{} slots", slots.trim())));
    block_in_place(|| {
        source.end(work)?;
        let end = "COMMIT PREPARED 'ends later'";
        source.cluster.psql("postgres", end)?;
        source
            .cluster
            .psql("postgres", "ROLLBACK PREPARED 'begins lost'")
    })?;
    let end = block_in_place(|| source.cluster.flush_lsn())?;
    let served = processes.served_up_to(timeline, end).await?;
    judge.close();

    block_in_place(|| source.cluster.stop())?;
    let mut judge = Judge::new(PAGES, "P1");
    let log = source.whole_log()?;
    let segment = SegmentSize::new(u64::from(SEGMENT_MIB) << 20)?;
    let all = boundaries(log, backup.start(), segment, backup.end()..=end)?;
    // The last one is of no use: nothing comes after it that tells recovery that it was reached.
    let all: BTreeSet<Lsn> = all.into_iter().rev().skip(1).collect();
    let later = all.range(lost.up_to..);
    let mut lsns: BTreeSet<Lsn> = later.clone().take(1).copied().collect();
    lsns.extend(later.sample(&mut random, size.pick(0, 4)));
    lsns.extend(all.last());
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: log,
        options: &source.options,
    };
    let later = (&served, RecoveredTally::of_primary());
    compare_each(PAGES, later, recovery, lsns, &mut judge).await?;
    block_in_place(|| source.cluster.start())?;
    let expected = block_in_place(|| logged(&source.cluster))?;
    judge.check(is_whole(&served, (timeline, end), &source.options, &expected).await?);
    judge.close();
    processes.stop();
    Ok(())
}

/// Where it dies, in this order: what is published last is published once.
fn places(random: &mut StdRng) -> Vec<Strike> {
    // The first is for the end of what is here, the second for what comes instead.
    let steps = [(Step::TakeOver, 1), (Step::TakeOver, 2)];
    let looks = (1..=LOOKS).map(|number| (Step::Look, number));
    let mut places = Vec::new();
    for (step, number) in steps.into_iter().chain(looks) {
        places.extend(Moment::ALL.map(|moment| place(moment, step, number)));
    }
    places.push(place(Moment::Before, Step::Upload, 1));
    places.shuffle(random);
    // Of this one a slot and a layer are left, which the next ones remove. Once the slot is dropped there is another look.
    let stored = place(Moment::After, Step::Upload, 1);
    for moment in Moment::ALL {
        places.extend([stored, place(moment, Step::Look, LOOKS + 1)]);
    }
    places.push(stored);
    for step in [Step::Remove, Step::Publish] {
        places.extend(Moment::ALL.map(|moment| place(moment, step, 1)));
    }
    places
}

impl Scene {
    /// Layers of those who died before they had published any.
    async fn is_left(&self) -> Result<Option<String>> {
        let TimelineRef { tenant, timeline } = self.timeline;
        let layers = StorePath::timeline(tenant, timeline).child("layers");
        let layers = self.store.list(&layers).await?;
        let reread = layers.iter().filter_map(|layer| layer.file_name());
        let reread: Vec<_> = reread.filter(|name| name.starts_with("reread-")).collect();
        // `reread-LSN-EPOCH-…`
        let epochs: BTreeSet<_> = reread.iter().map(|name| name.split('-').nth(2)).collect();
        Ok((epochs.len() != 1).then(|| format!("{reread:?} are stored")))
    }

    /// Starts one that dies at a place; says what is wrong then, if anything.
    async fn round(&mut self, at: usize, strike: Strike) -> Result<Option<String>> {
        let diary = Diary::at(self.files.path().join(format!("diary-{at}")));
        dies_at(
            &mut self.processes,
            self.timeline,
            (strike, &diary),
            goes_on,
        )
        .await?;
        let newest = self.manifests.newest().await?;
        let newest = newest.context("the manifest is gone")?.state;
        let is_done = newest.was_reread_after(self.after);
        let is_last = strike.moment == Moment::After && strike.step == Step::Publish;
        ensure!(
            !is_done || is_last,
            "it had gone on: {:?}",
            newest_of(&diary)?
        );
        Ok((!is_done && is_last).then(|| format!("published for nothing: {:?}", newest.holes())))
    }
}

/// A server needs a moment to see that who was killed is gone.
async fn until_nobody_reads(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
    while block_in_place(|| cluster.psql("postgres", active))?.trim() != "0" {
        ensure!(begun.elapsed() < PATIENCE, "the slot stays active");
        sleep(GLANCE).await;
    }
    Ok(())
}
