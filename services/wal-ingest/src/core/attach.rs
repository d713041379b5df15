//! Attaching: from a running PostgreSQL to a manifest with its base backup.
//!
//! The order makes every interruption harmless. That an attempt begins is durable before the slot
//! exists, so a slot found later is known to be ours; that it is completed comes last, so without
//! that there is nothing to keep. Trying again begins by removing what an earlier try left. Whose
//! turn it is, [`attempts`] decides.
//!
//! From the moment at which the slot may exist somebody looks after it: the backup is taken, the
//! store waited for, and what was done undone, only with an eye on the source's disk. After a start
//! that begins when the store or the source was reached once: only they know whose slot it is.

mod attempts;
#[cfg(test)]
mod tests;
mod undo;

use palimpsest_manifest::{
    ManifestError, SourceCluster, TimelineManifest, TimelineManifests, Versioned,
};
use palimpsest_postgres::{BackupStart, Connection};
use palimpsest_store::StorePath;
use palimpsest_types::{ByteCount, SystemIdentifier, WriterEpoch};

use self::{
    attempts::{Attempt, Attempts, BaseBackup, Progress},
    undo::give_up,
};
use super::{
    back_off::BackOff,
    backup::{self, Backup, Base, Shelf},
    error::{IngestError, Remedy, Stop},
    keeper::{self, Duty},
    slotless,
    source::{CheckError, SourceReport, connect_to_attach, expect_free_senders, inspect},
    timeline::Timeline,
    warnings::Topic,
};

pub use attempts::AttemptError;

/// What there is to do.
enum Turn {
    /// To publish what was completed.
    Publish(BaseBackup),
    /// An attempt that has begun.
    Attempt(Begun),
}

/// An attempt of which only the beginning is done.
struct Begun {
    ours: Attempt,
    /// Objects of those before, none of which can be completed any more.
    stale: Vec<StorePath>,
    /// The source, if it was looked at already.
    source: Option<Source>,
}

type Source = (Connection, SourceReport);

/// Attaches; afterwards there is a manifest. On failure nothing is left, here or at the source,
/// unless another has begun: what there is then is the other's.
pub(super) async fn attach(timeline: &Timeline) -> Result<(), IngestError> {
    let attempts = attempts(timeline);
    let backup = match take_turn(timeline, &attempts).await? {
        Turn::Publish(backup) => backup,
        Turn::Attempt(begun) => attempt(timeline, &attempts, begun).await?,
    };
    timeline.note_source(backup.source);
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
    begun: Begun,
) -> Result<BaseBackup, IngestError> {
    let Begun {
        ours,
        stale,
        source,
    } = begun;
    match complete(timeline, attempts, &ours, (stale, source)).await {
        Ok(backup) => Ok(backup),
        Err(error) => give_up(timeline, attempts, &ours, error).await,
    }
}

/// Finds out what there is to do, as soon as the store and the storage-broker are there. An earlier
/// attempt may have left a slot, so that they are away is no reason to stop.
async fn take_turn(timeline: &Timeline, attempts: &Attempts) -> Result<Turn, IngestError> {
    let mut back_off = BackOff::default();
    loop {
        match try_turn(timeline, attempts).await {
            Err(error) if error.is_of_ours() && error.remedy() == Remedy::Retry => {
                tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't begin to attach; trying again");
            }
            outcome => return outcome,
        }
        timeline.guarding(back_off.wait()).await;
    }
}

/// Says that an attempt begins, unless one was completed.
async fn try_turn(timeline: &Timeline, attempts: &Attempts) -> Result<Turn, IngestError> {
    let (number, interrupted) = match attempts.newest().await? {
        Some(Versioned { number, state }) => match state {
            Progress::Completed(backup) => return Ok(Turn::Publish(backup)),
            Progress::Begun { .. } => (number, true),
            Progress::Undone => (number, false),
        },
        None => (0, false),
    };
    // What an earlier attempt has left is removed even if the source can't be attached any more. So
    // then ours begins before the source is looked at.
    let source = match interrupted {
        true => None,
        false => Some(reach_unattached(timeline).await?),
    };
    // Before ours begins. Afterwards another may, and what it stores is not to be seen here.
    let stale = stored_files(timeline).await?;
    let slot = timeline.slot.to_string();
    let ours = attempts.begin(number, slot).await.map_err(lost_or)?;
    if interrupted {
        tracing::info!(timeline = %timeline.id(), "an earlier attach was interrupted; beginning anew");
    }
    Ok(Turn::Attempt(Begun {
        ours,
        stale,
        source,
    }))
}

/// A source that can be attached, and on which nothing is ours yet.
async fn reach_unattached(timeline: &Timeline) -> Result<Source, IngestError> {
    let (mut connection, report) = reach(timeline).await?;
    refuse_second_attachment(timeline, report.system_identifier).await?;
    expect_free_senders(&timeline.assignment.source).await?;
    let exists = connection.read_replication_slot(&timeline.slot).await?;
    if exists.is_some() {
        let slot = timeline.slot.to_string();
        return Err(Stop::ForeignSlot { slot }.into());
    }
    claim(timeline, report.system_identifier).await?;
    Ok((connection, report))
}

/// A source that is as an attach needs it.
async fn reach(timeline: &Timeline) -> Result<Source, IngestError> {
    let mut connection = connect_to_attach(&timeline.assignment.source).await?;
    let report = inspect(&mut connection).await?;
    timeline.warn(Topic::Settings, report.warnings.clone());
    Ok((connection, report))
}

/// A source on which an earlier attempt may have left a slot: it is waited for.
async fn reach_again(timeline: &Timeline) -> Result<Source, IngestError> {
    let mut back_off = BackOff::default();
    loop {
        let reached = async {
            let (connection, report) = reach(timeline).await?;
            timeline.note_source(cluster(&report));
            refuse_second_attachment(timeline, report.system_identifier).await?;
            claim(timeline, report.system_identifier).await?;
            Ok::<_, IngestError>((connection, report))
        };
        let error = match reached.await {
            Err(error) if error.remedy() == Remedy::Retry => error.in_words(),
            outcome => {
                timeline.update(|status| status.reason.clear());
                return outcome;
            }
        };
        tracing::warn!(timeline = %timeline.id(), error, "can't go on with an interrupted attach; trying again");
        timeline.update(|status| status.reason = error);
        timeline.guarding(back_off.wait()).await;
    }
}

/// One cluster is one tenant: two slots would hold back its WAL twice for the same pages. Of two
/// that are attached at the same time, the catalog decides.
async fn claim(timeline: &Timeline, id: SystemIdentifier) -> Result<(), IngestError> {
    match timeline.shared.broker.claim(timeline.id(), id).await? {
        Some(name) => Err(CheckError::AttachedAlready { id, name }.into()),
        None => Ok(()),
    }
}

/// Tenants that were attached before clusters were claimed have manifests only.
async fn refuse_second_attachment(
    timeline: &Timeline,
    id: SystemIdentifier,
) -> Result<(), IngestError> {
    for (other, name) in timeline.shared.broker.other_timelines(timeline.id()) {
        let store = timeline.shared.store.clone();
        let manifests = TimelineManifests::new(store, other.tenant, other.timeline);
        let newest = manifests.newest().await?;
        if newest.is_some_and(|newest| newest.state.source.system_identifier == id) {
            return Err(CheckError::AttachedAlready { id, name }.into());
        }
    }
    Ok(())
}

/// Removes what earlier attempts left, makes the slot, and takes the backup.
async fn complete(
    timeline: &Timeline,
    attempts: &Attempts,
    ours: &Attempt,
    (stale, source): (Vec<StorePath>, Option<Source>),
) -> Result<BaseBackup, IngestError> {
    let (mut connection, report) = match source {
        Some(source) => source,
        None => reach_again(timeline).await?,
    };
    let source = cluster(&report);
    timeline.note_source(source);
    remove_files(timeline, &stale).await?;
    make_slot(timeline, attempts, ours, &mut connection).await?;
    // However long it takes, it may not cost the source its disk. Cancel-safe: what is left of it is
    // undone.
    let backup = tokio::select! {
        backup = take_backup(timeline, connection, &report, ours) => backup?,
        stop = keeper::run(timeline, &source, Duty::Follow) => return Err(stop.into()),
    };
    if backup.control.system_identifier != report.system_identifier {
        return Err(IngestError::Backup("it is of another cluster"));
    }
    slotless::expect_kept(timeline, &source, backup.start).await?;
    let backup = BaseBackup {
        source,
        start: backup.start,
        end: backup.end,
        layers: backup.layers,
    };
    let completed = attempts.complete(ours, backup.clone()).await;
    completed.map_err(lost_or)?;
    Ok(backup)
}

/// What is fixed about a source.
pub(super) fn cluster(report: &SourceReport) -> SourceCluster {
    SourceCluster {
        system_identifier: report.system_identifier,
        pg_version: report.pg_version,
        pg_timeline: report.pg_timeline,
        wal_segment_size: ByteCount::new(report.wal_segment_size.bytes()),
        wal_log_hints: report.wal_log_hints,
    }
}

/// Makes the slot, in place of one that an earlier attempt left.
///
/// The source can't be asked whose turn it is. So this is looked up right before each step, and who
/// sleeps just there is found out by others: by [`slotless::expect_kept`], and later by the keeper.
async fn make_slot(
    timeline: &Timeline,
    attempts: &Attempts,
    ours: &Attempt,
    connection: &mut Connection,
) -> Result<(), IngestError> {
    let slot = &timeline.slot;
    if connection.read_replication_slot(slot).await?.is_some() {
        expect_turn(attempts, ours).await?;
        connection.drop_slot(slot).await?;
    }
    expect_turn(attempts, ours).await?;
    // It keeps the WAL from before the backup's start on.
    connection.create_physical_slot(slot, true).await?;
    Ok(())
}

/// Nobody has begun another attempt.
async fn expect_turn(attempts: &Attempts, ours: &Attempt) -> Result<(), IngestError> {
    match attempts.is_ours(ours).await? {
        true => Ok(()),
        false => Err(Stop::Superseded.into()),
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
    let store = timeline.shared.store.clone();
    let directory = timeline.store_path().child("layers");
    let shelf = Shelf::new(store, directory, (WriterEpoch::FIRST, ours.tag()));
    let form = |start: &BackupStart| Ok(Base::new(shelf, start.lsn));
    backup::read(timeline, connection, report.relation_segment_blocks, form).await
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
        timeline.guarding(back_off.wait()).await;
    }
}

/// The layers in the store, and the lists of them.
async fn stored_files(timeline: &Timeline) -> Result<Vec<StorePath>, IngestError> {
    let mut files = Vec::new();
    for name in ["layers", "lists"] {
        let path = timeline.store_path().child(name);
        files.extend(timeline.shared.store.list(&path).await?);
    }
    Ok(files)
}

/// Removes what earlier attempts left: those objects, and the WAL on our disk.
async fn remove_files(timeline: &Timeline, stale: &[StorePath]) -> Result<(), IngestError> {
    for object in stale {
        timeline.shared.store.delete(object).await?;
    }
    timeline.remove_directory().await
}
