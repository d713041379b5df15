//! Attaching: from a running PostgreSQL to a manifest with its base backup.
//!
//! The order makes every interruption harmless. The marker is durable before the slot exists, so a
//! slot found later is known to be ours; the manifest comes last, so without one there is nothing
//! to keep. Trying again begins by removing what an earlier try left.

use bytes::Bytes;
use palimpsest_api::broker::TimelineStatus;
use palimpsest_manifest::{
    LayerEntry, ManifestError, SourceCluster, TimelineManifest, TimelineManifests,
};
use palimpsest_postgres::{BackupEvent, BackupOptions, Connection, ControlFile};
use palimpsest_store::StoreError;
use palimpsest_types::{ByteCount, ErrorKind, Lsn, SystemIdentifier, WriterEpoch};

use super::{
    backup::BackupLayers,
    error::{IngestError, Stop},
    source::{CheckError, SourceReport, connect, inspect},
    timeline::Timeline,
};

/// A complete base backup.
struct Backup {
    start: Lsn,
    end: Lsn,
    layers: Vec<LayerEntry>,
    control: ControlFile,
}

/// Its presence says that an attach has begun and that the slot, if there is one, is ours.
const MARKER: &str = "attaching";

/// Attaches; afterwards there is a manifest. On failure nothing is left, here or at the source.
pub(super) async fn attach(timeline: &Timeline) -> Result<(), IngestError> {
    let outcome = try_attach(timeline).await;
    if outcome.is_err() && timeline.manifests().newest().await?.is_some() {
        // Only an answer was lost.
        return Ok(());
    }
    if outcome.is_err()
        && let Err(error) = clean_up(timeline).await
    {
        tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "could not undo the attach; deleting the tenant will");
    }
    outcome
}

async fn try_attach(timeline: &Timeline) -> Result<(), IngestError> {
    let mut connection = connect(&timeline.assignment.source).await?;
    let report = inspect(&mut connection).await?;
    refuse_second_attachment(timeline, report.system_identifier).await?;
    timeline.update(|status| status.warnings.clone_from(&report.warnings));
    prepare_slot(timeline, &mut connection).await?;
    let backup = take_backup(timeline, connection, &report).await?;
    publish(timeline, &report, backup).await?;
    let marker = timeline.store_path().child(MARKER);
    Ok(timeline.shared.store.delete(&marker).await?)
}

/// One cluster is one tenant: two slots would hold back its WAL twice for the same pages.
async fn refuse_second_attachment(
    timeline: &Timeline,
    id: SystemIdentifier,
) -> Result<(), IngestError> {
    for (other, name) in timeline.shared.other_timelines(timeline.id()) {
        let store = timeline.shared.store.clone();
        let manifests = TimelineManifests::new(store, other.tenant, other.timeline);
        let newest = manifests.newest().await?;
        if newest.is_some_and(|newest| newest.state.source.system_identifier == id) {
            return Err(CheckError::AttachedAlready { id, name }.into());
        }
    }
    Ok(())
}

/// Makes the slot, which keeps the WAL from before the backup's start on.
async fn prepare_slot(timeline: &Timeline, connection: &mut Connection) -> Result<(), IngestError> {
    let store = &timeline.shared.store;
    let marker = timeline.store_path().child(MARKER);
    let begun = match store.get(&marker).await {
        Ok(_) => true,
        Err(StoreError::NotFound { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    let exists = connection
        .read_replication_slot(&timeline.slot)
        .await?
        .is_some();
    if exists && !begun {
        return Err(Stop::ForeignSlot {
            slot: timeline.slot.to_string(),
        }
        .into());
    }
    if begun {
        tracing::info!(timeline = %timeline.id(), "an earlier attach was interrupted; beginning anew");
        remove_files(timeline).await?;
        if exists {
            connection.drop_slot(&timeline.slot).await?;
        }
    } else {
        store
            .create(&marker, Bytes::from(timeline.slot.to_string()))
            .await?;
    }
    connection
        .create_physical_slot(&timeline.slot, true)
        .await?;
    Ok(())
}

async fn take_backup(
    timeline: &Timeline,
    connection: Connection,
    report: &SourceReport,
) -> Result<Backup, IngestError> {
    let label = format!("palimpsest {}", timeline.slot);
    let mut events = connection.base_backup(&BackupOptions::new(label)).await?;
    let mut begun: Option<(Lsn, BackupLayers)> = None;
    let incomplete = || IngestError::Backup("it has no beginning");
    loop {
        let event = events.next().await?.ok_or_else(incomplete)?;
        match event {
            BackupEvent::Start(start) => {
                let total = start.total.unwrap_or_default();
                timeline.update(|status| status.backup_total = total);
                let store = timeline.shared.store.clone();
                let directory = timeline.store_path().child("layers");
                let blocks = report.relation_segment_blocks;
                let epoch = WriterEpoch::FIRST;
                let layers = BackupLayers::new(store, directory, start.lsn, epoch, blocks);
                begun = Some((start.lsn, layers));
            }
            BackupEvent::ArchiveStart { tablespace_oid, .. } => {
                begun
                    .as_mut()
                    .ok_or_else(incomplete)?
                    .1
                    .begin_archive(tablespace_oid)?;
            }
            BackupEvent::Data(data) => {
                timeline.update(|status| count_progress(status, data.len()));
                begun.as_mut().ok_or_else(incomplete)?.1.data(data).await?;
            }
            BackupEvent::Progress(_) => {}
            BackupEvent::End { lsn, .. } => {
                let (start, layers) = begun.ok_or_else(incomplete)?;
                let (layers, control) = layers.finish().await?;
                return Ok(Backup {
                    start,
                    end: lsn,
                    layers,
                    control,
                });
            }
        }
    }
}

fn count_progress(status: &mut TimelineStatus, bytes: usize) {
    let done = ByteCount::new(status.backup_done.get() + bytes as u64);
    // The total is the source's estimate; it may grow meanwhile.
    status.backup_total = status.backup_total.max(done);
    status.backup_done = done;
}

async fn publish(
    timeline: &Timeline,
    report: &SourceReport,
    backup: Backup,
) -> Result<(), IngestError> {
    if backup.control.system_identifier != report.system_identifier {
        return Err(IngestError::Backup("it is of another cluster"));
    }
    let source = SourceCluster {
        system_identifier: report.system_identifier,
        pg_version: report.pg_version,
        pg_timeline: report.pg_timeline,
        wal_segment_size: ByteCount::new(report.wal_segment_size.bytes()),
        wal_log_hints: report.wal_log_hints,
    };
    let mut manifest = TimelineManifest::new(source, backup.start, backup.end);
    manifest
        .add_layers(backup.layers)
        .map_err(ManifestError::Refused)?;
    timeline.manifests().publish(0, manifest).await?;
    Ok(())
}

/// Removes what an attach that failed has made. A slot that is not ours has no marker.
async fn clean_up(timeline: &Timeline) -> Result<(), IngestError> {
    let marker = timeline.store_path().child(MARKER);
    match timeline.shared.store.get(&marker).await {
        Ok(_) => {}
        Err(StoreError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let mut connection = connect(&timeline.assignment.source).await?;
    match connection.drop_slot(&timeline.slot).await {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    connection.close().await;
    remove_files(timeline).await?;
    Ok(timeline.shared.store.delete(&marker).await?)
}

/// The layers and lists of them in the store, and the WAL on our disk.
async fn remove_files(timeline: &Timeline) -> Result<(), IngestError> {
    for name in ["layers", "lists"] {
        let path = timeline.store_path().child(name);
        timeline.shared.store.delete_below(&path).await?;
    }
    timeline.remove_directory().await
}
