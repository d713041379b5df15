//! What page-serve measures and counts.

use std::time::Instant;

use palimpsest_read::{CacheUse, ReadTimes};
use palimpsest_telemetry::{Counter, Family, Histogram, Registry, Sample, Unit, latencies, sizes};

/// Times and counts of reads, of all timelines together. Clones count together.
#[derive(Debug, Clone)]
pub struct ReadMetrics {
    phases: Phases,
    settle: Histogram,
    total: Histogram,
    pub(super) times: ReadTimes,
    pages: Counter,
    failures: Counter,
    pub(super) feed_breaks: Counter,
    pub(super) gave_way: Counter,
}

/// A `GetPages` request under way.
#[derive(Debug)]
pub struct Timer<'a> {
    metrics: &'a ReadMetrics,
    begun: Instant,
}

type Phase = [(&'static str, &'static str); 1];
type Phases = Family<Phase, Histogram, fn() -> Histogram>;

impl Default for ReadMetrics {
    fn default() -> Self {
        let phases = Phases::new_with_constructor(latencies as fn() -> Histogram);
        let phase = |name| phases.get_or_create_owned(&[("phase", name)]);
        Self {
            settle: phase("settle"),
            total: phase("total"),
            times: ReadTimes {
                find: phase("find"),
                redo: phase("redo"),
                layers: sizes(),
            },
            phases,
            pages: Counter::default(),
            failures: Counter::default(),
            feed_breaks: Counter::default(),
            gave_way: Counter::default(),
        }
    }
}

impl ReadMetrics {
    /// Makes them part of what the service tells.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Time that reading takes: a request until its LSN is there (settle) and as a \
                    whole (total), a page until its changes are found (find) and applied (redo)";
        registry.register_with_unit("read", help, Unit::Seconds, self.phases.clone());
        let help = "Layers that a page was looked for in, of pages that were looked for in any: \
                    compaction keeps it small";
        registry.register("read_layers", help, self.times.layers.clone());
        registry.register("read_pages", "Pages served", self.pages.clone());
        let help = "GetPages requests answered with an error";
        registry.register("read_failures", help, self.failures.clone());
        let help = "Change feeds that broke and were asked for again";
        registry.register("feed_breaks", help, self.feed_breaks.clone());
        let help = "Times that a timeline let go of its changes so that others had room for theirs";
        registry.register("feed_gave_way", help, self.gave_way.clone());
    }

    /// A request begins.
    pub fn begin(&self) -> Timer<'_> {
        Timer {
            metrics: self,
            begun: Instant::now(),
        }
    }
}

impl Timer<'_> {
    /// The LSN is there.
    pub fn settled(&self) {
        self.metrics
            .settle
            .observe(self.begun.elapsed().as_secs_f64());
    }

    /// It is answered with so many pages, or with an error.
    pub fn end(self, pages: Option<usize>) {
        match pages {
            Some(pages) => drop(self.metrics.pages.inc_by(pages as u64)),
            None => drop(self.metrics.failures.inc()),
        }
        self.metrics
            .total
            .observe(self.begun.elapsed().as_secs_f64());
    }
}

/// What there is to know about caches, and about other parts of the memory: each with what is in use
/// and what may be.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) fn samples(
    caches: &[(&'static str, CacheUse)],
    others: &[(&'static str, u64, u64)],
) -> Vec<Sample> {
    let help = "Lookups that a cache answered";
    let mut hits = Sample::counter("cache_hits", None, help);
    let help = "Lookups that a cache could not answer";
    let mut misses = Sample::counter("cache_misses", None, help);
    let mut used = Sample::gauge("memory_used", Some(Unit::Bytes), "Memory in use");
    let help = "Memory that may be used";
    let mut budget = Sample::gauge("memory_budget", Some(Unit::Bytes), help);
    for (name, cache) in caches {
        let label = |key| [(key, (*name).to_owned())];
        hits.push(label("cache"), cache.hits as f64);
        misses.push(label("cache"), cache.misses as f64);
        used.push(label("part"), cache.used.get() as f64);
        budget.push(label("part"), cache.budget.get() as f64);
    }
    for (name, bytes, most) in others {
        let label = || [("part", (*name).to_owned())];
        used.push(label(), *bytes as f64);
        budget.push(label(), *most as f64);
    }
    vec![hits, misses, used, budget]
}
