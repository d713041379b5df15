use std::time::Instant;

use palimpsest_telemetry::{Histogram, latencies, sizes};

/// How long the parts of reading a page take, and what they go through. Clones measure together.
#[derive(Debug, Clone)]
pub struct ReadTimes {
    /// Finding the changes that make pages which are asked for together, in memory and in layers.
    pub find: Histogram,
    /// Having the redo engine apply them.
    pub redo: Histogram,
    /// Layers that a page was looked for in, of pages that were looked for in any.
    pub layers: Histogram,
}

impl Default for ReadTimes {
    fn default() -> Self {
        Self {
            find: latencies(),
            redo: latencies(),
            layers: sizes(),
        }
    }
}

/// Counts the time of a future that ends well or badly; one that is dropped does not count.
pub(crate) async fn timed<T>(histogram: &Histogram, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let outcome = work.await;
    histogram.observe(begun.elapsed().as_secs_f64());
    outcome
}
