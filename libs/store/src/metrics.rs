//! What is asked of the store.

use std::sync::Arc;

use palimpsest_telemetry::{Counter, Registry, Sample, Sampled, Unit};

use crate::error::StoreError;

/// Counts of one store. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct StoreMetrics {
    operations: Arc<[Operations; 6]>,
    read: Counter,
    written: Counter,
}

/// What can be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Create,
    Look,
    Get,
    GetRange,
    List,
    Delete,
}

#[derive(Debug, Default)]
struct Operations {
    done: Counter,
    failed: Counter,
}

impl StoreMetrics {
    /// Makes them part of what a service tells.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Bytes read from the object store";
        registry.register_with_unit("store_read", help, Unit::Bytes, self.read.clone());
        let help = "Bytes written to the object store";
        registry.register_with_unit("store_written", help, Unit::Bytes, self.written.clone());
        let operations = Arc::clone(&self.operations);
        registry.register_collector(Sampled::new(move || samples(&operations)));
    }

    /// An operation has ended. That something exists or does not is an answer and no failure.
    pub(crate) fn ended<T>(&self, operation: Operation, outcome: &Result<T, StoreError>) {
        let Some(counts) = self.operations.get(operation as usize) else {
            return;
        };
        counts.done.inc();
        match outcome {
            Ok(_) | Err(StoreError::AlreadyExists { .. } | StoreError::NotFound { .. }) => {}
            Err(_) => drop(counts.failed.inc()),
        }
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.read.inc_by(bytes as u64);
    }

    pub(crate) fn written(&self, bytes: usize) {
        self.written.inc_by(bytes as u64);
    }
}

impl Operation {
    const ALL: [Self; 6] = [
        Self::Create,
        Self::Look,
        Self::Get,
        Self::GetRange,
        Self::List,
        Self::Delete,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Look => "look",
            Self::Get => "get",
            Self::GetRange => "get-range",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn samples(operations: &[Operations; 6]) -> Vec<Sample> {
    let help = "Operations of the object store that ended";
    let mut done = Sample::counter("store_operations", None, help);
    let help = "Operations of the object store that failed; those that matter are repeated";
    let mut failed = Sample::counter("store_failures", None, help);
    for (operation, counts) in Operation::ALL.into_iter().zip(operations) {
        let label = || [("operation", operation.name().to_owned())];
        done.push(label(), counts.done.get() as f64);
        failed.push(label(), counts.failed.get() as f64);
    }
    vec![done, failed]
}
