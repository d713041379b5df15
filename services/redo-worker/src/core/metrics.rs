//! What the redo-worker counts.

use palimpsest_telemetry::{Counter, Gauge, Histogram, Registry, sizes};

/// Jobs of all tenants together. Clones count together.
#[derive(Debug, Clone)]
pub struct RedoMetrics {
    /// Jobs in each message.
    pub batch_jobs: Histogram,
    /// Jobs that were read and are not worked on yet.
    pub waiting: Gauge,
    pub(super) running: Gauge,
    pub(super) jobs: Counter,
    pub(super) failures: Counter,
    pub(super) starts: Counter,
}

impl Default for RedoMetrics {
    fn default() -> Self {
        Self {
            batch_jobs: sizes(),
            waiting: Gauge::default(),
            running: Gauge::default(),
            jobs: Counter::default(),
            failures: Counter::default(),
            starts: Counter::default(),
        }
    }
}

impl RedoMetrics {
    /// Makes them part of what the service tells.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Jobs that came in one message";
        registry.register("redo_batch_jobs", help, self.batch_jobs.clone());
        let help = "Jobs that were read and wait for room";
        registry.register("redo_jobs_waiting", help, self.waiting.clone());
        let help = "Jobs that processes work on or that wait for a process";
        registry.register("redo_jobs_running", help, self.running.clone());
        registry.register("redo_jobs", "Jobs that ended", self.jobs.clone());
        let help = "Jobs that ended with an error";
        registry.register("redo_job_failures", help, self.failures.clone());
        let help = "Processes started for a tenant that had none";
        registry.register("redo_process_starts", help, self.starts.clone());
    }
}
