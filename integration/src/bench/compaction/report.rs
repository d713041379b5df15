//! What was measured as lines of the table, as a table of rounds, and as a picture. Pure.

use std::fmt::Write as _;

use super::{
    pass::{CatchingUp, Compaction, Round, Work},
    reads::Depths,
    turns::Turns,
    volume::Volume,
};
use crate::bench::{
    Aim, Latencies, Row,
    chart::{Chart, Line},
};

/// What compaction costs and what it is good for.
#[derive(Debug)]
pub struct Report {
    pub(super) volume: Volume,
    /// Rounds while nobody compacts.
    pub(super) never: Vec<Round>,
    /// Rounds with a compactor.
    pub(super) compacted: Vec<Round>,
    pub(super) ingest: Work,
    pub(super) catching_up: CatchingUp,
    /// Of all rounds with a compactor.
    pub(super) turns: Turns,
}

/// What a compactor may have beside what it is set to.
const BESIDE: u64 = 256 << 20;

impl Report {
    /// Lines of the table.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = vec![
            self.throughput(),
            Row::figure(
                "the same by the clock, of compactions from begin to end",
                format!("{:.0} MB/s of WAL", self.by_the_clock()),
            ),
            self.memory(),
        ];
        rows.extend(self.latency());
        rows.extend(self.layers());
        rows.extend(self.amplification());
        rows
    }

    /// Layers per read as a picture, which is SVG.
    pub fn picture(&self) -> String {
        let line = |name, rounds: &[Round], percent, color| Line {
            name,
            color,
            dashed: percent == 99,
            points: points(rounds, |depths| depths.percentile(percent)),
        };
        let (without, with) = ("#dd6b20", "#2b6cb0");
        let chart = Chart {
            title: "Layers that a read of a random page visits".to_owned(),
            across: "WAL written (GB)",
            upwards: "layers per read",
            lines: vec![
                line("never compacted, p99", &self.never, 99, without),
                line("never compacted, p50", &self.never, 50, without),
                line("compacted, p99", &self.compacted, 99, with),
                line("compacted, p50", &self.compacted, 50, with),
            ],
        };
        chart.svg()
    }

    /// The rounds as Markdown.
    pub fn rounds(&self) -> String {
        let mut text = "| WAL | layers per read, never compacted: p50 / p99 / mean | compacted: p50 / p99 / mean | layers from WAL, compacted, images | stored by wal-ingest, by the compactor | of that per byte of WAL | GetPages p99, compactor halted | compacting | compactor's peak memory | took |\n\
             |---|---|---|---|---|---|---|---|---|---|\n".to_owned();
        for (never, with) in self.never.iter().zip(&self.compacted) {
            let Some(compaction) = &with.compaction else {
                continue;
            };
            let [fresh, compacted, images] = compaction.layers;
            // Writing to a string can't fail.
            let _ = writeln!(
                text,
                "| {:.0} MB | {} | {} | {fresh}, {compacted}, {images} | {:.0}, {:.0} MB | {:.2} | {} | {} | {} MiB | {:.0}, {:.0} s |",
                with.wal,
                never.depths,
                with.depths,
                with.ingested,
                compaction.stored,
                (with.ingested + compaction.stored) / with.in_layers,
                p99(&compaction.turns.halted),
                p99(&compaction.turns.working),
                compaction.peak_memory >> 20,
                never.seconds,
                with.seconds,
            );
        }
        text
    }

    fn throughput(&self) -> Row {
        let (ours, ingest) = (self.catching_up.work.rate(), self.ingest.rate());
        let what = format!(
            "compaction of {:.0} MB of pgbench's WAL that had piled up, per second of one CPU (reference: ingest of it)",
            self.catching_up.work.wal
        );
        let texts = (format!("{ours:.0} MB/s"), format!("{ingest:.0} MB/s"));
        Row::compared(what, texts, ours / ingest, Some(Aim::AtLeast(1.0)))
    }

    fn by_the_clock(&self) -> f64 {
        self.catching_up.work.wal / self.catching_up.seconds
    }

    fn memory(&self) -> Row {
        let peaks = self.compactions().map(|compaction| compaction.peak_memory);
        let peak = peaks.fold(self.catching_up.peak_memory, u64::max);
        let most = self.volume.target().get() + BESIDE;
        let texts = (format!("{} MiB", peak >> 20), format!("{} MiB", most >> 20));
        let what = "peak memory of the compactor (reference: target-size + 256 MiB)";
        Row::compared(
            what,
            texts,
            peak as f64 / most as f64,
            Some(Aim::AtMost(1.0)),
        )
    }

    /// Nothing if all was done so soon that there was no turn of one kind.
    fn latency(&self) -> Vec<Row> {
        let Turns { working, halted } = &self.turns;
        if working.count() == 0 || halted.count() == 0 {
            return Vec::new();
        }
        let text = |latencies: &Latencies, percent| format!("{:.0} µs", latencies.micros(percent));
        let ratio = |percent| working.micros(percent) / halted.micros(percent);
        let row = |percent, aim| {
            let texts = (text(working, percent), text(halted, percent));
            let what = format!(
                "GetPages, p{percent} while the compactor works (reference: it is halted), {} and {} reads",
                working.count(),
                halted.count()
            );
            Row::compared(what, texts, ratio(percent), aim)
        };
        vec![row(50, None), row(99, Some(Aim::AtMost(2.0)))]
    }

    fn layers(&self) -> Vec<Row> {
        let (Some(never), Some(with)) = (self.never.last(), self.compacted.last()) else {
            return Vec::new();
        };
        let row = |what: &str, ours: &Depths| {
            let texts = (ours.to_string(), never.depths.to_string());
            let ratio = ours.mean() / never.depths.mean();
            Row::compared(what, texts, ratio, None)
        };
        vec![
            row(
                "layers per read in the end, p50 / p99 / mean (reference: never compacted; ratio of the means)",
                &with.depths,
            ),
            row(
                "the same after compacting all of it at once",
                &self.catching_up.depths,
            ),
        ]
    }

    fn amplification(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if let Some(round) = self.compacted.last()
            && let Some(compaction) = &round.compaction
        {
            let per_wal = |stored: f64| stored / round.in_layers;
            let (ingest, compactor) = (per_wal(round.ingested), per_wal(compaction.stored));
            let text = format!(
                "{:.2} ({ingest:.2} by wal-ingest, {compactor:.2} by the compactor)",
                ingest + compactor
            );
            rows.push(Row::figure(
                "bytes put into the store per byte of WAL",
                text,
            ));
            let images = compaction.images;
            rows.push(Row::figure(
                "images among them",
                format!("{:.2} ({images:.0} MB)", per_wal(images)),
            ));
            rows.push(Row::figure(
                "bytes other than images that the compactor puts there per byte of layers that it replaces",
                per_replaced(compaction.stored - images, compaction.replaced),
            ));
        }
        let CatchingUp {
            stored,
            images,
            replaced,
            ..
        } = &self.catching_up;
        rows.push(Row::figure(
            "the same when compacting all at once",
            per_replaced(stored - images, *replaced),
        ));
        rows.push(Row::figure(
            "images that are made then",
            format!("{images:.0} MB"),
        ));
        rows
    }

    fn compactions(&self) -> impl Iterator<Item = &Compaction> {
        self.compacted
            .iter()
            .filter_map(|round| round.compaction.as_ref())
    }
}

/// Depths over WAL in GB.
fn points(rounds: &[Round], depth: impl Fn(&Depths) -> u32) -> Vec<(f64, f64)> {
    let point = |round: &Round| (round.wal / 1e3, f64::from(depth(&round.depths)));
    rounds.iter().map(point).collect()
}

/// MB that were put in the place of others, and what that is for each of those.
fn per_replaced(stored: f64, replaced: f64) -> String {
    let both = format!("{stored:.0} MB for {replaced:.0} MB");
    match replaced > 0.0 {
        true => format!("{:.2} ({both})", stored / replaced),
        // No compaction was worth it.
        false => both,
    }
}

pub(super) fn p99(latencies: &Latencies) -> String {
    match latencies.count() {
        0 => String::new(),
        _ => format!("{:.0} µs", latencies.micros(99)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::Table;

    fn report(turns: Turns) -> Report {
        let work = Work {
            wal: 100.0,
            cpu_seconds: 1.0,
        };
        let compaction = Compaction {
            stored: 30.0,
            images: 10.0,
            replaced: 25.0,
            layers: [0, 2, 1],
            peak_memory: 1 << 20,
            turns: turns.clone(),
        };
        let round = |compaction| Round {
            wal: 100.0,
            in_layers: 100.0,
            depths: Depths::default(),
            ingested: 25.0,
            compaction,
            seconds: 1.0,
        };
        Report {
            volume: Volume::of(512),
            never: vec![round(None)],
            compacted: vec![round(Some(compaction))],
            ingest: work,
            catching_up: CatchingUp {
                work,
                seconds: 1.0,
                stored: 0.0,
                images: 0.0,
                replaced: 0.0,
                peak_memory: 1 << 20,
                depths: Depths::default(),
            },
            turns,
        }
    }

    fn table(turns: Turns) -> Table {
        let mut table = Table::default();
        table.extend(report(turns).rows());
        table
    }

    #[test]
    fn latency_that_was_not_measured_misses_no_aim() {
        let mut latencies = Latencies::default();
        latencies.push(Duration::from_millis(1));
        let turns = Turns {
            working: latencies.clone(),
            halted: Latencies::default(),
        };
        let without = table(turns);
        assert_eq!(without.missed().count(), 0, "{without}");
        assert!(!without.to_string().contains("GetPages"), "{without}");
        let mut turns = Turns {
            working: latencies.clone(),
            halted: latencies,
        };
        turns.working.push(Duration::from_millis(5));
        let missed = table(turns);
        let missed: Vec<_> = missed.missed().collect();
        assert!(missed.len() == 1 && missed[0].starts_with("GetPages, p99"));
    }

    #[test]
    fn images_are_shown_apart_from_what_replaces_layers() {
        let text = table(Turns::default()).to_string();
        for row in [
            "| 0.55 (0.25 by wal-ingest, 0.30 by the compactor) |",
            "| images among them | 0.10 (10 MB) |",
            "per byte of layers that it replaces | 0.80 (20 MB for 25 MB) |",
            "| the same when compacting all at once | 0 MB for 0 MB |",
        ] {
            assert!(text.contains(row), "{row}: {text}");
        }
    }
}
