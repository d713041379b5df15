//! P4, P5: a wal-ingest dies at each step of going on with a server that was promoted, right before and right after it looks
//! at the newest manifest, stores a layer, publishes or takes over. Another one goes on at that step: the timeline is of the one before until it has come to the
//! promotion, and then of the next, which begins there.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::broker::TimelineView;
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, Processes},
    recovered::{BackupTap, Recovery},
    strikes::{Diary, Moment, Step, Strike},
};
use palimpsest_manifest::TimelineManifests;
use palimpsest_store::ObjectStore;
use palimpsest_testkit::Cluster;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::{task::block_in_place, time::Instant};

use super::{MAKE, Standby, ended, expect_slot, hosts_of, options, some_lsns, some_time, work_on};
use crate::{
    struck::{dies_at, newest_of, place},
    support::compare_with_recovered,
    under_load::SERVICE,
};

const NAME: &str = "promotion-steps";
const PAGES: &str = "promotion-steps-pages";
const VICTIM: Process = Process::WalIngest;
/// Looks at the newest manifest before the next history begins: at the beginning, after taking over, and when all is stored.
const LOOKS: u32 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn p4_p5_a_wal_ingest_may_die_at_any_step_of_a_promotion() {
    steps().await.unwrap();
}

async fn steps() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let options = options(&mut random);
    let mut first = Cluster::temporary(options.clone())?;
    block_in_place(|| {
        first.start()?;
        first.psql("postgres", MAKE)
    })?;
    let primary = first.conninfo("postgres");
    let mut second = block_in_place(|| Standby::of(&first, &primary, &options))?;
    let tap = BackupTap::to(first.socket_dir(), first.port())?;
    let hosts = hosts_of([tap.socket_dir(), second.cluster.socket_dir()], &first);
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    let work = work_on(&first)?;
    let timeline = processes.attach("judged", &hosts).await?;
    let backup = block_in_place(|| tap.take_backup())?;
    some_time(&mut random).await;

    // What the second has and the services don't is of the first's timeline.
    processes.kill9(VICTIM)?;
    some_time(&mut random).await;
    block_in_place(|| first.kill9())?;
    ended(work)?;
    let begins = block_in_place(|| second.promote(2))?;
    eprintln!("{NAME}: promoted at {begins}");
    let work = work_on(&second.cluster)?;
    let store = ObjectStore::open(processes.store()).await?;
    let manifests = TimelineManifests::new(store, timeline.tenant, timeline.timeline);
    let mut judge = Judge::new(NAME, "P4");
    for (at, strike) in places(&mut random).into_iter().enumerate() {
        let begun = Instant::now();
        let diary = Diary::at(files.path().join(format!("diary-{at}")));
        let is_over = |view: &TimelineView| view.status.last_record > begins;
        let died = dies_at(&mut processes, timeline, (strike, &diary), is_over).await;
        died.with_context(|| strike.to_string())?;
        eprintln!("{NAME}: {strike}: {:.1?}", begun.elapsed());
        let newest = manifests.newest().await?;
        let newest = newest.context("the manifest is gone")?.state;
        let has_begun = newest.source.pg_timeline == 2;
        ensure!(
            !has_begun || is_last(strike),
            "it had gone on: {:?}",
            newest_of(&diary)?
        );
        let is_right = match has_begun {
            true => newest.lsn == begins,
            false => newest.lsn <= begins && !is_last(strike),
        };
        judge.check(
            (!is_right)
                .then(|| format!("{strike}: {} at {}", newest.source.pg_timeline, newest.lsn)),
        );
    }
    processes.start(VICTIM)?;
    some_time(&mut random).await;
    block_in_place(|| second.cluster.kill9())?;
    ended(work)?;
    block_in_place(|| second.cluster.start())?;
    let end = block_in_place(|| second.cluster.flush_lsn())?;
    let served = processes.served_up_to(timeline, end).await?;
    expect_slot(&second.cluster).await?;
    let begun = manifests.newest().await?.context("the manifest is gone")?;
    let begun: Vec<_> = begun
        .state
        .pg_timeline_history
        .iter()
        .map(|begun| (begun.pg_timeline, begun.begin))
        .collect();
    judge.check(
        (begun.last() != Some(&(2, begins)) || begun.len() > 2).then(|| format!("{begun:?}")),
    );
    judge.close();

    block_in_place(|| second.cluster.stop())?;
    let mut judge = Judge::new(PAGES, "P1");
    let pg_wal = second.cluster.data_dir().join("pg_wal");
    let lsns = some_lsns(
        &pg_wal,
        (&backup, end),
        &[begins],
        size.pick(1, 6),
        &mut random,
    )?;
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: &pg_wal,
        options: &options,
    };
    compare_with_recovered(PAGES, &served, recovery, lsns, &mut judge).await?;
    judge.close();
    processes.stop();
    Ok(())
}

/// Where it dies, in this order: there is something to be stored only at first, and the next history begins once.
fn places(random: &mut StdRng) -> Vec<Strike> {
    let both = |step, number| Moment::ALL.map(|moment| place(moment, step, number));
    let mut places: Vec<_> = [Step::Upload, Step::Publish]
        .into_iter()
        .flat_map(|step| both(step, 1))
        .collect();
    let mut later: Vec<_> = (1..=LOOKS)
        .flat_map(|number| both(Step::Look, number))
        .collect();
    later.extend(both(Step::TakeOver, 1));
    later.shuffle(random);
    places.extend(later);
    places.extend(both(Step::TakeOver, 2));
    places
}

fn is_last(strike: Strike) -> bool {
    strike == place(Moment::After, Step::TakeOver, 2)
}
