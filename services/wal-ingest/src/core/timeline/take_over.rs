//! Taking a timeline over: from the newest manifest, or from where another cluster or PostgreSQL timeline goes on.

use std::sync::{Arc, PoisonError};

use palimpsest_api::broker::Lost;
use palimpsest_manifest::{LsnSpan, SourceCluster, TimelineManifest, Versioned};
use palimpsest_read::Tail;
use palimpsest_types::Lsn;
use palimpsest_wal::{LogIdentity, SegmentSize};
use tokio::sync::Mutex;

use super::{Opened, Prepared, Resumed, Timeline};
use crate::core::{
    decoder::Decoder,
    error::{IngestError, Stop},
    growth::Growth,
    laggard::Beginning,
    local_layers::LocalLayers,
    slotless,
    succession::Switch,
    wal_files::WalFiles,
};

/// Who writes a timeline from an LSN on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Successor {
    pub(super) cluster: SourceCluster,
    begin: Lsn,
}

/// Holes that a status tells of.
const LOST: usize = 100;

impl Timeline {
    /// Takes the timeline over under a new epoch.
    pub(super) async fn take_over(
        &self,
        newest: Versioned<TimelineManifest>,
    ) -> Result<Prepared, IngestError> {
        let taken = self.taken(newest).await?;
        let manifest = taken.state.clone();
        let (epoch, start) = (manifest.writer_epoch, manifest.lsn);
        let interpreter = self.interpreter(&manifest).await?;
        let beginning = Beginning::new(start, interpreter.clone());
        let tail = Arc::new(Tail::new(epoch, start));
        let share = self.shared.budget.share(self.id().tenant);
        let (growth, frozen) = Growth::new(tail, share, &self.limits());
        let growth = Arc::new(growth);
        let segment_size = SegmentSize::new(manifest.source.wal_segment_size.get())
            .unwrap_or(SegmentSize::DEFAULT);
        let decoder = Decoder::new(start, segment_size, interpreter, Arc::clone(&growth));
        let decoder = decoder.of(LogIdentity {
            system_identifier: manifest.source.system_identifier,
            timeline: manifest.source.pg_timeline,
        });
        let disk = Arc::clone(&self.shared.disk);
        let (wal, layers) = (self.wal_directory(), self.directory().join("layers"));
        let pg_timeline = manifest.source.pg_timeline;
        let work = self.work.clone();
        let opening = self.spawn_blocking(move || {
            let local_layers = LocalLayers::prepare(Arc::clone(&disk), layers, work)?;
            let files = WalFiles::open(disk, wal, segment_size, pg_timeline, start)?;
            Ok::<_, IngestError>((local_layers, files))
        });
        let opening = opening.await.map_err(|error| self.wal_failed(error))?;
        let (local_layers, files) = opening?;
        growth.share().set_wal(files.size());
        let opened = Arc::new(Opened {
            epoch,
            epoch_start: start,
            growth,
            local_layers,
            wal: files.trim(),
            wal_reader: files.reader(),
            segment_size,
            beginning: Arc::new(beginning),
            manifest: Mutex::new(taken),
            over: self.scope.token().child_token(),
        });
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&opened));
        self.update(|status| {
            status.reason.clear();
            status.epoch = epoch;
            status.disk_consistent = start;
            status.remote_consistent = start;
            status.oldest_readable = manifest.oldest_readable;
            status.last_record = start;
            status.lost = lost(&manifest);
        });
        tracing::info!(timeline = %self.id(), %epoch, at = %start, "timeline taken over");
        let resumed = Resumed {
            manifest,
            files,
            decoder,
        };
        Ok((opened, resumed, frozen))
    }

    /// The manifest under a new epoch, and of the cluster that goes on where it ends, if that is another.
    async fn taken(
        &self,
        newest: Versioned<TimelineManifest>,
    ) -> Result<Versioned<TimelineManifest>, IngestError> {
        let Some(successor) = self.successor(&newest.state) else {
            return Ok(self.manifests().take_over(newest).await?);
        };
        let (Successor { cluster, begin }, end) = (successor, newest.state.lsn);
        if begin >= end && !self.is_settled() {
            // First what is here of the earlier one: it may be acknowledged.
            return Ok(self.manifests().take_over(newest).await?);
        }
        if begin != end {
            return Err(Stop::NotTheEnd { end, begin }.into());
        }
        // All that was history of it is in the object store.
        self.remove_directory().await?;
        if cluster.system_identifier == newest.state.source.system_identifier {
            slotless::after_promotion(self).await?;
        }
        let manifests = self.manifests();
        let taken = manifests.take_over_from(newest, (cluster, begin)).await?;
        let SourceCluster {
            system_identifier,
            pg_timeline,
            ..
        } = cluster;
        tracing::info!(timeline = %self.id(), cluster = %system_identifier, pg_timeline, at = %end, "another history goes on");
        Ok(taken)
    }

    /// Who writes the timeline where what the manifest tells of ends, if that is another than it says.
    pub(super) fn successor(&self, manifest: &TimelineManifest) -> Option<Successor> {
        let source = manifest.source;
        let switch = *self.switch.lock().unwrap_or_else(PoisonError::into_inner);
        let promoted = switch.map(|Switch { at, next }| Successor {
            begin: at,
            cluster: SourceCluster {
                pg_timeline: next,
                ..source
            },
        });
        let writer = self.assignment.writer.map(|writer| Successor {
            begin: writer.begin,
            cluster: SourceCluster {
                system_identifier: writer.system_identifier,
                pg_timeline: writer.pg_timeline,
                ..source
            },
        });
        // Where the manifest is, or beyond, nothing succeeds any more: who was promoted since has a later number.
        let later = |successor: &Successor| {
            let cluster = successor.cluster;
            cluster.system_identifier != source.system_identifier
                || cluster.pg_timeline > source.pg_timeline
        };
        writer.filter(later).or(promoted.filter(later))
    }
}

/// The latest of what was lost.
fn lost(manifest: &TimelineManifest) -> Vec<Lost> {
    let holes = manifest.holes().iter().rev().take(LOST).rev();
    let lost = |hole: &LsnSpan| Lost {
        after: hole.after,
        up_to: hole.up_to,
    };
    holes.map(lost).collect()
}
