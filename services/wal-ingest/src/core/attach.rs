//! Attaching: from a running PostgreSQL to a manifest with its base backup.
//!
//! The order makes every interruption harmless. That an attempt begins is durable before the slot
//! exists, so a slot found later is known to be ours; that it is completed comes last, so without
//! that there is nothing to keep. Trying again begins by removing what an earlier try left. Whose
//! turn it is, [`attempts`] decides.

mod attempts;

use palimpsest_api::broker::TimelineStatus;
use palimpsest_manifest::{
    LayerEntry, ManifestError, SourceCluster, TimelineManifest, TimelineManifests, Versioned,
};
use palimpsest_postgres::{BackupEvent, BackupOptions, Connection, ControlFile};
use palimpsest_types::{ByteCount, ErrorKind, Lsn, SystemIdentifier, WriterEpoch};

use self::attempts::{Attempt, Attempts, BaseBackup, Progress};
use super::{
    backup::BackupLayers,
    error::{IngestError, Remedy, Stop},
    source::{CheckError, SourceReport, connect, inspect},
    timeline::{BackOff, Timeline},
};

pub use attempts::AttemptError;

/// A base backup that was read to its end.
struct Backup {
    start: Lsn,
    end: Lsn,
    layers: Vec<LayerEntry>,
    control: ControlFile,
}

/// Attaches; afterwards there is a manifest. On failure nothing is left, here or at the source,
/// unless another has begun: what there is then is the other's.
pub(super) async fn attach(timeline: &Timeline) -> Result<(), IngestError> {
    let attempts = attempts(timeline);
    let backup = match attempts.newest().await? {
        Some(Versioned {
            state: Progress::Completed(backup),
            ..
        }) => backup,
        before => attempt(timeline, &attempts, before).await?,
    };
    publish(timeline, backup).await
}

/// Whether the timeline's slot, if there is one of its name, was made by an attach.
pub(super) async fn owns_slot(timeline: &Timeline) -> Result<bool, IngestError> {
    let newest = attempts(timeline).newest().await?;
    Ok(match newest.map(|newest| newest.state) {
        Some(Progress::Begun { .. } | Progress::Completed(_)) => true,
        Some(Progress::Undone) => false,
        // Attached by a version that did not note attempts, or not at all.
        None => {
            let stored = timeline.shared.store.list(&timeline.store_path()).await?;
            !stored.is_empty()
        }
    })
}

fn attempts(timeline: &Timeline) -> Attempts {
    Attempts::new(timeline.shared.store.clone(), &timeline.store_path())
}

/// One attempt, of which nothing is left if it fails.
async fn attempt(
    timeline: &Timeline,
    attempts: &Attempts,
    before: Option<Versioned<Progress>>,
) -> Result<BaseBackup, IngestError> {
    let mut connection = connect(&timeline.assignment.source).await?;
    let report = inspect(&mut connection).await?;
    refuse_second_attachment(timeline, report.system_identifier).await?;
    timeline.update(|status| status.warnings.clone_from(&report.warnings));
    let ours = begin(timeline, attempts, before, &mut connection).await?;
    match complete(timeline, attempts, &ours, (connection, report)).await {
        Ok(backup) => Ok(backup),
        Err(error) => Err(give_up(timeline, attempts, &ours, error).await),
    }
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

/// Says that an attempt begins.
async fn begin(
    timeline: &Timeline,
    attempts: &Attempts,
    before: Option<Versioned<Progress>>,
    connection: &mut Connection,
) -> Result<Attempt, IngestError> {
    let interrupted = matches!(&before, Some(before) if before.state != Progress::Undone);
    let slot = timeline.slot.to_string();
    if !interrupted {
        let exists = connection.read_replication_slot(&timeline.slot).await?;
        if exists.is_some() {
            return Err(Stop::ForeignSlot { slot }.into());
        }
    }
    let number = before.map_or(0, |before| before.number);
    let ours = attempts.begin(number, slot).await.map_err(lost_or)?;
    if interrupted {
        tracing::info!(timeline = %timeline.id(), "an earlier attach was interrupted; beginning anew");
    }
    Ok(ours)
}

/// Removes what an earlier attempt left, makes the slot, and takes the backup.
async fn complete(
    timeline: &Timeline,
    attempts: &Attempts,
    ours: &Attempt,
    (mut connection, report): (Connection, SourceReport),
) -> Result<BaseBackup, IngestError> {
    remove_files(timeline).await?;
    let slot = &timeline.slot;
    if connection.read_replication_slot(slot).await?.is_some() {
        connection.drop_slot(slot).await?;
    }
    // It keeps the WAL from before the backup's start on.
    connection.create_physical_slot(slot, true).await?;
    let backup = take_backup(timeline, connection, &report, ours).await?;
    if backup.control.system_identifier != report.system_identifier {
        return Err(IngestError::Backup("it is of another cluster"));
    }
    expect_slot(timeline, backup.start).await?;
    let backup = BaseBackup {
        source: SourceCluster {
            system_identifier: report.system_identifier,
            pg_version: report.pg_version,
            pg_timeline: report.pg_timeline,
            wal_segment_size: ByteCount::new(report.wal_segment_size.bytes()),
            wal_log_hints: report.wal_log_hints,
        },
        start: backup.start,
        end: backup.end,
        layers: backup.layers,
    };
    let completed = attempts.complete(ours, backup.clone()).await;
    completed.map_err(lost_or)?;
    Ok(backup)
}

/// The slot must still keep the WAL from the backup's start on. The source asks nobody whose turn it
/// is, so one who woke up at a bad moment may have dropped it.
async fn expect_slot(timeline: &Timeline, start: Lsn) -> Result<(), IngestError> {
    let mut connection = connect(&timeline.assignment.source).await?;
    let slot = connection.read_replication_slot(&timeline.slot).await?;
    connection.close().await;
    match slot.and_then(|slot| slot.restart_lsn) {
        Some(restart) if restart <= start => Ok(()),
        Some(_) | None => Err(IngestError::Backup("its slot was dropped meanwhile")),
    }
}

/// Another's turn is not an error of the store.
fn lost_or(error: AttemptError) -> IngestError {
    match error.is_lost() {
        true => Stop::Superseded.into(),
        false => error.into(),
    }
}

async fn take_backup(
    timeline: &Timeline,
    connection: Connection,
    report: &SourceReport,
    ours: &Attempt,
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
                let names = (WriterEpoch::FIRST, ours.tag());
                let layers = BackupLayers::new(store, directory, start.lsn, names, blocks);
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

/// Publishes the first manifest of an attempt that was completed. Others may do the same.
async fn publish(timeline: &Timeline, backup: BaseBackup) -> Result<(), IngestError> {
    let BaseBackup {
        source,
        start,
        end,
        layers,
    } = backup;
    let mut manifest = TimelineManifest::new(source, start, end);
    manifest
        .add_layers(layers)
        .map_err(ManifestError::Refused)?;
    let mut back_off = BackOff::default();
    loop {
        let Err(error) = timeline.manifests().publish(0, manifest.clone()).await else {
            return Ok(());
        };
        // Another was quicker, or only an answer was lost.
        if let Ok(Some(_)) = timeline.manifests().newest().await {
            return Ok(());
        }
        let error = IngestError::from(error);
        if error.remedy() != Remedy::Retry {
            return Err(error);
        }
        tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't publish the first manifest; trying again");
        back_off.wait().await;
    }
}

/// Undoes an attempt that failed; says why it did.
async fn give_up(
    timeline: &Timeline,
    attempts: &Attempts,
    ours: &Attempt,
    error: IngestError,
) -> IngestError {
    match undo(timeline, attempts, ours).await {
        Ok(true) => error,
        Ok(false) => Stop::Superseded.into(),
        Err(failure) => {
            tracing::warn!(timeline = %timeline.id(), error = failure.in_words(), "could not undo the attach; deleting the tenant will");
            error
        }
    }
}

/// Removes what an attempt has made. False if it is another's turn: then only files go that nobody
/// else can have made.
async fn undo(
    timeline: &Timeline,
    attempts: &Attempts,
    ours: &Attempt,
) -> Result<bool, IngestError> {
    if !attempts.is_ours(ours).await? {
        remove_own_layers(timeline, ours).await?;
        return Ok(false);
    }
    let mut connection = connect(&timeline.assignment.source).await?;
    match connection.drop_slot(&timeline.slot).await {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    connection.close().await;
    remove_own_layers(timeline, ours).await?;
    timeline.remove_directory().await?;
    attempts.undone(ours).await?;
    Ok(true)
}

/// The layers of one attempt, which its names tell.
async fn remove_own_layers(timeline: &Timeline, ours: &Attempt) -> Result<(), IngestError> {
    let store = &timeline.shared.store;
    for layer in store.list(&timeline.store_path().child("layers")).await? {
        if layer.file_name().is_some_and(|name| ours.made(name)) {
            store.delete(&layer).await?;
        }
    }
    Ok(())
}

/// The layers and lists of them in the store, and the WAL on our disk, of earlier attempts. None of
/// them can be completed any more.
async fn remove_files(timeline: &Timeline) -> Result<(), IngestError> {
    for name in ["layers", "lists"] {
        let path = timeline.store_path().child(name);
        timeline.shared.store.delete_below(&path).await?;
    }
    timeline.remove_directory().await
}
