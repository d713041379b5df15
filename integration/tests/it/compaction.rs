//! P1, P4, P5: while compactors make layers anew, are killed in the middle of it or halted and let go
//! on, every page at every LSN stays what PostgreSQL has.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, ManifestHistory, Process, Processes},
};
use palimpsest_manifest::{LayerEntry, LayerKind, TimelineManifest};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use crate::under_load::{Guard, Load, SERVICE, Source, TENANT};

const PAGES: &str = "compaction";
const STRIKES: &str = "compaction-strikes";
const COMPACTORS: [Process; 2] = [Process::Compactor, Process::SecondCompactor];
/// Two layers are compacted; one alone is not.
const FEW: usize = 1;
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn p1_p4_p5_pages_stay_as_they_are_while_layers_are_made_anew() {
    compaction().await.unwrap();
}

async fn compaction() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{PAGES}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    let timeline = processes
        .attach(TENANT, &source.cluster.conninfo("postgres"))
        .await?;
    let guard = Guard::start(&source, &processes, timeline).await?;
    let load = Load::start(&source.cluster);
    for compactor in COMPACTORS {
        processes.start(compactor)?;
    }
    let mut strikes = Judge::new(STRIKES, "P4");
    for _ in 0..size.pick(8, 110) {
        sleep(Duration::from_millis(random.random_range(0..900))).await;
        let victim = COMPACTORS[random.random_range(0..COMPACTORS.len())];
        strike(&mut processes, victim, &mut random).await?;
        strikes.check(guard.findings());
    }
    load.stop().await?;
    let history = ManifestHistory::watch(&processes.store(), timeline).await?;
    strikes.check(guard.finish().await?);
    let mut ending = source.finish(&processes, timeline).await?;
    let end = settled(&history).await?;
    strikes.check(history.check_layers().await?.pop());
    let compacted = end.layers().iter().filter(|layer| layer.level > 0).count();
    let images = end.layers().iter().filter(|layer| is_image(layer)).count();
    eprintln!(
        "{PAGES}: {compacted} layers, {images} of them images, by {} claims of compactors",
        end.compactor_epoch
    );
    ensure!(compacted > images, "nothing was compacted");
    ending.serve_anew(&mut processes, timeline).await?;
    let mut pages = Judge::new(PAGES, "P1");
    ending
        .compare(size.pick(3, 20), &mut random, &mut pages)
        .await?;
    pages.close();
    strikes.close();
    processes.stop();
    Ok(())
}

/// A compactor dies and comes back, or stands still for so long that others take its work.
async fn strike(processes: &mut Processes, victim: Process, random: &mut StdRng) -> Result<()> {
    if random.random() {
        processes.kill9(victim)?;
        processes.start(victim)
    } else {
        processes.sigstop(victim)?;
        sleep(Duration::from_millis(random.random_range(0..2500))).await;
        processes.sigcont(victim)
    }
}

/// The manifest once there is nothing to compact and an image of what was: the claims of the dead have
/// ended by then.
async fn settled(history: &ManifestHistory) -> Result<TimelineManifest> {
    let begun = Instant::now();
    loop {
        let newest = history.newest().await?;
        let written = newest.layers().iter().filter(|it| it.is_written());
        if written.count() <= FEW && newest.layers().iter().any(is_image) {
            return Ok(newest);
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "layers are left, or no image was made: {:?}",
            newest.layers()
        );
        sleep(Duration::from_millis(200)).await;
    }
}

/// Whether a compactor made it of what others have, to end reads.
fn is_image(layer: &LayerEntry) -> bool {
    matches!(layer.kind, LayerKind::Image(_))
}
