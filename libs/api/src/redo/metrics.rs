//! What a caller of redo workers can tell about them.

use palimpsest_telemetry::{Counter, Registry, Sample, Sampled};

use super::{RedoPool, lock};

/// Counts of one pool. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct PoolMetrics {
    pub(super) repeated: Counter,
    pub(super) breaks: Counter,
    pub(super) quarantined: Counter,
}

impl RedoPool {
    /// Makes what there is to know about the pool part of what a service tells.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Jobs sent to another redo worker because one went away or could not do them";
        let repeated = self.metrics.repeated.clone();
        registry.register("redo_jobs_repeated", help, repeated);
        let help = "Connections to redo workers that broke";
        registry.register("redo_connection_breaks", help, self.metrics.breaks.clone());
        let help = "Jobs refused at once because their records killed redo processes a moment ago";
        let quarantined = self.metrics.quarantined.clone();
        registry.register("redo_jobs_quarantined", help, quarantined);
        let pool = self.clone();
        registry.register_collector(Sampled::new(move || vec![pool.outstanding()]));
    }

    /// Jobs without an answer, by worker.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn outstanding(&self) -> Sample {
        let help = "Jobs that a redo worker was given, or waits to be given, and has not answered";
        let mut outstanding = Sample::gauge("redo_jobs_outstanding", None, help);
        for (address, worker) in &lock(&self.workers).connected {
            let jobs = worker.outstanding() as f64;
            outstanding.push([("worker", address.clone())], jobs);
        }
        outstanding
    }
}
