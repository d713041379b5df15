//! Undoing an attempt to attach that failed.

use palimpsest_api::broker::TimelineState;
use palimpsest_types::ErrorKind;

use super::attempts::{Attempt, Attempts, BaseBackup, Fate};
use crate::core::{
    back_off::BackOff,
    error::{IngestError, Stop},
    source::connect,
    timeline::Timeline,
};

/// Undoes an attempt that failed with `error`, however long that takes: its slot would keep the
/// source's WAL. The backup, if the attempt was completed in spite of the error.
pub(super) async fn give_up(
    timeline: &Timeline,
    attempts: &Attempts,
    ours: &Attempt,
    error: IngestError,
) -> Result<BaseBackup, IngestError> {
    let mut back_off = BackOff::default();
    loop {
        let failure = match undo(timeline, attempts, ours).await {
            Ok(Fate::Completed(backup)) => return Ok(backup),
            Ok(Fate::Abandoned(_) | Fate::Undone) => {
                timeline.forget_source();
                return Err(error);
            }
            Ok(Fate::Lost) => return Err(Stop::Superseded.into()),
            Err(failure) => failure.in_words(),
        };
        tracing::warn!(timeline = %timeline.id(), failure, "can't undo the attach; trying again");
        timeline.update(|status| {
            status.state = TimelineState::Stopped;
            let error = error.in_words();
            status.reason =
                format!("{error}; undoing what was done fails, too: {failure}; trying again");
        });
        timeline.guarding(back_off.wait()).await;
    }
}

/// Removes what an attempt has made, unless it was completed after all. If it is another's turn,
/// only files go that nobody else can have made.
async fn undo(
    timeline: &Timeline,
    attempts: &Attempts,
    ours: &Attempt,
) -> Result<Fate, IngestError> {
    let fate = attempts.abandon(ours).await?;
    match &fate {
        Fate::Completed(_) | Fate::Undone => {}
        Fate::Lost => remove_own_layers(timeline, ours).await?,
        Fate::Abandoned(abandoned) => {
            drop_slot(timeline).await?;
            remove_own_layers(timeline, ours).await?;
            timeline.remove_directory().await?;
            attempts.undone(abandoned).await?;
        }
    }
    Ok(fate)
}

async fn drop_slot(timeline: &Timeline) -> Result<(), IngestError> {
    let mut connection = connect(&timeline.assignment.source).await?;
    match connection.drop_slot(&timeline.slot).await {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    connection.close().await;
    Ok(())
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
