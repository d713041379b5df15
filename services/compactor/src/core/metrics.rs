//! What a compactor counts.

use palimpsest_telemetry::{Counter, Gauge, Registry, Unit};

use super::{activity::Done, imaging::Images};

/// Of all timelines together. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct CompactionMetrics {
    pub(super) done: Counter,
    pub(super) failures: Counter,
    pub(super) images: Counter,
    pub(super) image_bytes: Counter,
    pub(super) layers_read: Counter,
    pub(super) layers_written: Counter,
    pub(super) bytes_read: Counter,
    pub(super) bytes_written: Counter,
    /// Layers as they were written from WAL that some timeline has at the moment, at most.
    pub(super) backlog: Gauge,
}

impl CompactionMetrics {
    /// A compaction was published.
    pub(super) fn note(&self, done: &Done) {
        let Done { read, written, .. } = done;
        self.done.inc();
        self.layers_read.inc_by(read.0 as u64);
        self.layers_written.inc_by(written.0 as u64);
        self.bytes_read.inc_by(read.1.get());
        self.bytes_written.inc_by(written.1.get());
    }

    /// Images were published.
    pub(super) fn note_images(&self, images: &Images) {
        self.images.inc_by(images.count as u64);
        self.image_bytes.inc_by(images.size.get());
    }

    /// Makes them part of what the service tells.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name, help, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        let help = "Compactions published";
        counter("compactions", help, &self.done);
        let help = "Compactions that came to nothing and are tried again";
        counter("compaction_failures", help, &self.failures);
        let help = "Layers that were replaced";
        counter("compaction_layers_read", help, &self.layers_read);
        let help = "Layers that were put in their place";
        counter("compaction_layers_written", help, &self.layers_written);
        let help = "Images published, at which reads end";
        counter("compaction_images", help, &self.images);
        let mut bytes = |name, help, counter: &Counter| {
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
        };
        let help = "Size of the layers that were replaced";
        bytes("compaction_read", help, &self.bytes_read);
        let help = "Size of the layers that were put in their place";
        bytes("compaction_written", help, &self.bytes_written);
        let help = "Size of the images published";
        bytes("compaction_images", help, &self.image_bytes);
        let help = "Layers not compacted yet of the timeline that has most of them; reads visit each. \
                    Growing for long means that compaction does not keep up: start more compactors";
        registry.register("compaction_backlog", help, self.backlog.clone());
    }
}
