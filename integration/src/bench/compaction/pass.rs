//! One source, the services, and WAL in parts.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{TimelineRef, compaction::LayerInfo};
use palimpsest_types::{Lsn, RelTag};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

use super::{
    reads::{Depths, Reads},
    report::p99,
    source::Source,
    turns::{self, Turns, answered},
    volume::Volume,
};
use crate::{
    bench::{
        Places,
        told::{Metrics, cpu_seconds, hold_to_one_cpu, peak_memory},
    },
    judge::seed,
    processes::{Layers, Process, Processes},
};

/// So little that nearly every read has to look for its page.
const LITTLE: &str = "4MiB";
const WRITTEN: &str = "palimpsest_store_written_bytes_total";
const IMAGES: &str = "palimpsest_compaction_images_bytes_total";
const REPLACED: &str = "palimpsest_compaction_read_bytes_total";
const MEGA: f64 = 1e6;
/// A layer is made and put into the store sooner, and heartbeats tell of it.
const UNCHANGED: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);
/// All layers of a round, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is written to, and what takes it in.
#[derive(Debug)]
pub(super) struct Pass {
    name: &'static str,
    volume: Volume,
    source: Source,
    processes: Processes,
    directory: PathBuf,
    timeline: TimelineRef,
    /// With the blocks that it has had from the beginning.
    table: (RelTag, u32),
    random: StdRng,
    /// When all that is counted began.
    begun: Beginning,
}

#[derive(Debug, Clone, Copy)]
struct Beginning {
    lsn: Lsn,
    /// What wal-ingest had put into the store: the base.
    stored: f64,
    ingest_cpu: f64,
}

/// How everything was after one part of the WAL.
#[derive(Debug, Clone)]
pub(super) struct Round {
    /// WAL since the beginning, in MB.
    pub(super) wal: f64,
    /// Of it in layers.
    pub(super) in_layers: f64,
    pub(super) depths: Depths,
    /// MB that wal-ingest has put into the store.
    pub(super) ingested: f64,
    pub(super) compaction: Option<Compaction>,
    pub(super) seconds: f64,
}

/// What a compactor has done until the end of a round.
#[derive(Debug, Clone)]
pub(super) struct Compaction {
    /// MB that it has put into the store.
    pub(super) stored: f64,
    /// Of that images.
    pub(super) images: f64,
    /// MB of layers that it has replaced.
    pub(super) replaced: f64,
    /// Layers of changes as they were made of WAL, others of changes, and images.
    pub(super) layers: [usize; 3],
    /// In bytes.
    pub(super) peak_memory: u64,
    /// Of this round.
    pub(super) turns: Turns,
}

/// The same of ingest and of compaction: MB of WAL, and what they took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) wal: f64,
    pub(super) cpu_seconds: f64,
}

/// Compaction of all that had piled up, on one CPU.
#[derive(Debug, Clone)]
pub(super) struct CatchingUp {
    pub(super) work: Work,
    /// From the beginning of each compaction to its end, together.
    pub(super) seconds: f64,
    /// MB that it has put into the store.
    pub(super) stored: f64,
    /// Of that images.
    pub(super) images: f64,
    /// MB of layers that it has replaced.
    pub(super) replaced: f64,
    /// In bytes.
    pub(super) peak_memory: u64,
    /// Afterwards.
    pub(super) depths: Depths,
}

impl Work {
    /// MB of WAL in a second of one CPU.
    pub(super) fn rate(self) -> f64 {
        self.wal / self.cpu_seconds
    }
}

impl Pass {
    pub(super) async fn start(places: &Places, name: &'static str, volume: Volume) -> Result<Self> {
        let begun = Instant::now();
        let source = Source::start(&volume)?;
        let table = source.table()?;
        let directory = places.directory(name)?;
        let layers = Layers::Of(volume.layer_mebibytes());
        let variables = [("PALIMPSEST_PAGE_SERVE__PAGE_CACHE", LITTLE)];
        let processes =
            Processes::launch_with(places.service(), &directory, layers, &variables).await?;
        let timeline = processes.attach("compaction", &source.conninfo()).await?;
        let beginning = Beginning {
            lsn: source.end()?,
            stored: Metrics::of(&processes, Process::WalIngest)
                .await?
                .get(WRITTEN)?,
            ingest_cpu: cpu_seconds(&processes, Process::WalIngest)?,
        };
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("{name}: attached at {} after {seconds:.0} s", beginning.lsn);
        Ok(Self {
            name,
            volume,
            source,
            processes,
            directory,
            timeline,
            table,
            random: StdRng::seed_from_u64(seed()),
            begun: beginning,
        })
    }

    pub(super) fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    /// Has one more part written, and with `turns`, which get what was read, compacted; then looks.
    pub(super) async fn round(&mut self, number: u64, turns: Option<&mut Turns>) -> Result<Round> {
        let begun = Instant::now();
        if turns.is_some() {
            self.processes.sigstop(Process::Compactor)?;
        }
        let end = self.begun.lsn.get() + self.volume.after(number);
        let at = self.source.write_up_to(Lsn::new(end))?;
        let mut reads = self.reads(at).await?;
        let of_this = match turns {
            Some(turns) => {
                let of_this = turns::settle(&self.processes, &mut reads).await?;
                turns.extend(of_this.clone());
                Some(of_this)
            }
            None => {
                self.layers_have_come().await?;
                None
            }
        };
        let depths = reads.depths(&self.processes).await?;
        let compaction = match of_this {
            Some(turns) => Some(self.compaction(turns).await?),
            None => None,
        };
        let metrics = Metrics::of(&self.processes, Process::WalIngest).await?;
        let round = Round {
            wal: at.saturating_sub(self.begun.lsn) as f64 / MEGA,
            in_layers: self.in_layers()?,
            depths,
            ingested: (metrics.get(WRITTEN)? - self.begun.stored) / MEGA,
            compaction,
            seconds: begun.elapsed().as_secs_f64(),
        };
        let (name, wal, seconds, depths) = (self.name, round.wal, round.seconds, &round.depths);
        eprintln!(
            "{name}: round {number}: {wal:.0} MB of WAL, layers per read {depths} (p50 / p99 / mean), {seconds:.0} s"
        );
        let turns = round
            .compaction
            .as_ref()
            .map(|compaction| &compaction.turns);
        if let Some(turns) = turns.filter(|turns| turns.working.count() > 0) {
            let (name, halted, working) = (self.name, p99(&turns.halted), p99(&turns.working));
            eprintln!(
                "{name}: GetPages p99 while the compactor is halted {halted}, while it works {working}"
            );
        }
        Ok(round)
    }

    /// What wal-ingest has taken for all the WAL until now.
    pub(super) async fn ingested(&self) -> Result<Work> {
        let at = self.source.end()?;
        self.processes.served_up_to(self.timeline, at).await?;
        let cpu = cpu_seconds(&self.processes, Process::WalIngest)?;
        Ok(Work {
            wal: at.saturating_sub(self.begun.lsn) as f64 / MEGA,
            cpu_seconds: cpu - self.begun.ingest_cpu,
        })
    }

    /// Stops everything and removes its files.
    pub(super) fn end(self) -> Result<()> {
        let Self {
            processes,
            directory,
            source,
            ..
        } = self;
        processes.stop();
        drop(source);
        fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))
    }

    /// Reads at an LSN, once it has arrived.
    async fn reads(&mut self, at: Lsn) -> Result<Reads> {
        self.processes.served_up_to(self.timeline, at).await?;
        let random = StdRng::from_rng(&mut self.random);
        Reads::new(&self.processes, self.timeline, self.table, at, random).await
    }

    /// Waits until the last layer of what was written so far is where readers see it.
    async fn layers_have_come(&self) -> Result<()> {
        let begun = Instant::now();
        let (mut last, mut since) = (self.in_layers()?, Instant::now());
        while since.elapsed() < UNCHANGED {
            ensure!(begun.elapsed() < PATIENCE, "layers come and come");
            sleep(LOOK).await;
            let now = self.in_layers()?;
            if now > last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// MB of WAL that layers in the store have.
    fn in_layers(&self) -> Result<f64> {
        let view = self.processes.cluster().borrow();
        let view = view.timeline(self.timeline);
        let end = view
            .context("the timeline is gone")?
            .status
            .remote_consistent;
        Ok(end.saturating_sub(self.begun.lsn) as f64 / MEGA)
    }

    /// What the compactor has done, which is let go on to be asked and then halted again.
    async fn compaction(&self, turns: Turns) -> Result<Compaction> {
        self.processes.sigcont(Process::Compactor)?;
        let told = self.told().await;
        self.processes.sigstop(Process::Compactor)?;
        let (metrics, layers) = told?;
        Ok(Compaction {
            stored: metrics.get(WRITTEN)? / MEGA,
            images: metrics.get(IMAGES)? / MEGA,
            replaced: metrics.get(REPLACED)? / MEGA,
            layers: counts(&layers),
            peak_memory: peak_memory(&self.processes, Process::Compactor)?,
            turns,
        })
    }

    async fn told(&self) -> Result<(Metrics, Vec<LayerInfo>)> {
        let client = turns::client(&self.processes)?;
        let layers = answered(client.layers(self.timeline)).await?;
        let metrics = Metrics::of(&self.processes, Process::Compactor).await?;
        Ok((metrics, layers))
    }
}

/// Lets a compactor on one CPU make up for what was never compacted.
pub(super) async fn catch_up(pass: &mut Pass) -> Result<CatchingUp> {
    let begun = Instant::now();
    turns::start(&mut pass.processes).await?;
    hold_to_one_cpu(&pass.processes, Process::Compactor)?;
    turns::finish(&pass.processes).await?;
    let (metrics, layers) = pass.told().await?;
    let client = turns::client(&pass.processes)?;
    let (_, done) = answered(client.activity()).await?;
    let seconds: f64 = done.iter().map(|done| done.took.as_secs_f64()).sum();
    let work = Work {
        wal: compacted(&layers) / MEGA,
        cpu_seconds: cpu_seconds(&pass.processes, Process::Compactor)?,
    };
    ensure!(work.wal > 0.0, "nothing was compacted");
    let at = pass.source.end()?;
    let mut reads = pass.reads(at).await?;
    let caught_up = CatchingUp {
        work,
        seconds,
        stored: metrics.get(WRITTEN)? / MEGA,
        images: metrics.get(IMAGES)? / MEGA,
        replaced: metrics.get(REPLACED)? / MEGA,
        peak_memory: peak_memory(&pass.processes, Process::Compactor)?,
        depths: reads.depths(&pass.processes).await?,
    };
    let (name, took) = (pass.name, begun.elapsed().as_secs_f64());
    let CatchingUp {
        seconds, depths, ..
    } = &caught_up;
    eprintln!(
        "{name}: compacted in the end in {seconds:.1} s, layers per read {depths}, {took:.0} s with waiting"
    );
    Ok(caught_up)
}

/// Bytes of WAL whose changes are in layers that were compacted.
fn compacted(layers: &[LayerInfo]) -> f64 {
    let compacted = || {
        layers
            .iter()
            .filter(|layer| !layer.image && layer.level > 0)
    };
    let after = compacted().map(|layer| layer.after).min();
    let up_to = compacted().map(|layer| layer.up_to).max();
    match (after, up_to) {
        (Some(after), Some(up_to)) => up_to.saturating_sub(after) as f64,
        _ => 0.0,
    }
}

/// Layers of changes as they were made of WAL, others of changes, and images. The layers of a base backup
/// are told of as images, and are none that a compactor has made.
fn counts(layers: &[LayerInfo]) -> [usize; 3] {
    let count = |of: fn(&LayerInfo) -> bool| layers.iter().filter(|layer| of(layer)).count();
    [
        count(|layer| !layer.image && layer.level == 0),
        count(|layer| !layer.image && layer.level > 0),
        count(|layer| layer.image && layer.level > 0),
    ]
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{ByteCount, Key, WriterEpoch};

    use super::*;

    fn layer(after: u64, up_to: u64, level: u8) -> LayerInfo {
        LayerInfo {
            name: String::new(),
            image: after == up_to,
            after: Lsn::new(after),
            up_to: Lsn::new(up_to),
            first: Key::Parameters,
            last: Key::Parameters,
            size: ByteCount::mib(1),
            entries: 1,
            level,
            epoch: WriterEpoch::FIRST,
        }
    }

    #[test]
    fn what_was_compacted_ends_where_layers_are_as_written() {
        let layers = [
            layer(5, 5, 1),
            layer(10, 40, 2),
            layer(40, 70, 1),
            layer(70, 90, 0),
        ];
        assert!((compacted(&layers) - 60.0).abs() < f64::EPSILON);
        assert!(compacted(&layers[3..]).abs() < f64::EPSILON);
    }

    #[test]
    fn layers_of_the_base_backup_are_no_images_of_a_compactor() {
        let base = layer(5, 5, 0);
        let layers = [
            base.clone(),
            base,
            layer(5, 40, 1),
            layer(40, 40, 1),
            layer(40, 70, 0),
        ];
        assert_eq!(counts(&layers), [1, 1, 1]);
    }
}
