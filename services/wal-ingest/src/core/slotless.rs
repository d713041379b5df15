//! Going on without a slot.
//!
//! A slot that keeps more WAL than it may is dropped: the source's disk matters more than our history.
//! That need not end the timeline. While the stream goes on, what comes is fsynced here, and only the
//! loss of this disk would lose it. A file beside the WAL says that it is so, to whoever starts after
//! a crash. When the object store has caught up, a slot is made again; when it has reached what that
//! slot keeps, all is as before.

use std::{io, path::PathBuf, time::Duration};

use bytes::Bytes;
use palimpsest_api::broker::TimelineState;
use palimpsest_manifest::SourceCluster;
use palimpsest_postgres::{Connection, SlotState};
use palimpsest_store::StorePath;
use palimpsest_types::{ByteCount, ErrorKind, Lsn};
use tokio::time::{sleep, timeout};

use super::{
    error::{IngestError, Stop},
    keeper::{self, Duty, INTERVAL, VISIT},
    source::connect_to,
    stream::PATIENCE,
    timeline::Timeline,
    warnings::Topic,
};

/// What a look at the source asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The object store is too far behind for a slot, or has not reached what the new one keeps.
    Wait,
    /// There is none, and it would be a small one.
    Make,
    /// It keeps too much again, or nothing.
    Drop,
    /// It keeps all that the object store does not have.
    Done,
}

/// The file that says that a slot was dropped.
const MARKER: &str = "slot-dropped";
/// Longer the source's disk does not wait for ours.
const REMEMBERING: Duration = Duration::from_secs(2);

/// Looks after the slot, or its absence, until the timeline can't go on; says why.
pub(super) async fn follow(timeline: &Timeline, source: &SourceCluster) -> Stop {
    loop {
        if timeline.is_slotless()
            && let Err(stop) = regain(timeline, source).await
        {
            return stop;
        }
        match keeper::run(timeline, source, Duty::Follow).await {
            // Lost, if the answer to our own drop was.
            stop @ (Stop::SlotDropped { .. } | Stop::SlotLost { .. })
                if timeline.is_slotless() || can_do_without(timeline).await =>
            {
                tracing::error!(timeline = %timeline.id(), %stop, "going on without a slot");
            }
            stop => return stop,
        }
    }
}

/// Whether what a slot that is gone no longer keeps may be had from an archive; that there is none is remembered then.
async fn can_do_without(timeline: &Timeline) -> bool {
    timeline.has_archive() && go_without(timeline).await
}

/// The slot is about to be dropped. If the stream goes on nevertheless, that is remembered first; a
/// disk that can't remember it does not keep the slot, only then the timeline stops.
pub(super) async fn before_drop(timeline: &Timeline) {
    match timeline.status().state {
        TimelineState::Streaming | TimelineState::Disconnected | TimelineState::Resuming => {}
        // What the source removes now is in the archive.
        _ if timeline.has_archive() => {}
        // Nothing comes, so the source will have removed what we need.
        _ => return,
    }
    go_without(timeline).await;
}

/// Remembers that there is no slot; whether that could be done.
async fn go_without(timeline: &Timeline) -> bool {
    match timeout(REMEMBERING, set(timeline, true)).await {
        Ok(Ok(())) => {
            timeline.note_slotless(true);
            return true;
        }
        Ok(Err(error)) => {
            tracing::error!(timeline = %timeline.id(), error = error.in_words(), "can't remember that the slot is dropped");
        }
        Err(_) => {
            tracing::error!(timeline = %timeline.id(), "the disk does not remember in time that the slot is dropped");
        }
    }
    false
}

/// Another server was promoted, which has no slot of ours, or none that anybody moved.
pub(super) async fn after_promotion(timeline: &Timeline) -> Result<(), IngestError> {
    let (disk, directory) = (timeline.shared.disk.clone(), timeline.directory());
    let path = directory.clone();
    let making = timeline.spawn_blocking(move || disk.create_dir_all(&directory));
    let made = making.await.map_err(|error| timeline.wal_failed(error))?;
    made.map_err(|source| IngestError::WalFile { path, source })?;
    // Also for who takes over without this disk.
    let told = Bytes::from_static(b"the server that was promoted may have no slot\n");
    timeline
        .shared
        .store
        .put_once(&awaited(timeline), told)
        .await?;
    set(timeline, true).await?;
    timeline.note_slotless(true);
    Ok(())
}

/// A server was promoted, and what it has is to be read when all is stored that came before. Its WAL has to be there then.
/// If there can be no slot yet, one is made later; whether it came too late is seen when the WAL is asked for.
pub(super) async fn make_early(timeline: &Timeline, connection: &mut Connection) {
    let slot = &timeline.slot;
    if let Err(IngestError::Stop(_)) = expect_ours(timeline).await {
        return;
    }
    match connection.create_physical_slot(slot, true).await {
        Ok(_) => {
            tracing::info!(timeline = %timeline.id(), %slot, "slot made at the promoted server")
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => {
            let error = IngestError::from(error).in_words();
            tracing::warn!(timeline = %timeline.id(), %slot, error, "can't make the slot at the promoted server yet");
        }
    }
}

/// There is a slot that keeps all that the object store does not have.
pub(super) async fn over(timeline: &Timeline) {
    // A marker that stays is harmless: whoever starts with it finds the slot, and is here again.
    timeline.note_slotless(false);
    timeline.note_dropped(false);
    let forgotten = async {
        // Who was superseded knows nothing of the slot that the other waits for.
        expect_ours(timeline).await?;
        timeline.shared.store.delete(&awaited(timeline)).await?;
        Ok::<_, IngestError>(())
    };
    if let Err(error) = forgotten.await {
        tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't forget that the slot was to be made");
    }
    if let Err(error) = set(timeline, false).await {
        tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't forget that there was no slot");
    }
    timeline.warn(Topic::Slot, Vec::new());
    timeline.warn(Topic::Keeper, Vec::new());
}

/// Whether the slot was dropped before a crash, or is to be made after a promotion, as the files say.
pub(super) async fn remember(timeline: &Timeline) -> Result<(), IngestError> {
    let (disk, path) = (timeline.shared.disk.clone(), marker(timeline));
    let looking = timeline.spawn_blocking(move || match disk.len(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(IngestError::WalFile { path, source }),
    });
    let found = looking
        .await
        .map_err(|error| timeline.wal_failed(error))??;
    let is_awaited = match timeline.shared.store.get(&awaited(timeline)).await {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error.into()),
    };
    timeline.note_slotless(found || is_awaited);
    Ok(())
}

async fn regain(timeline: &Timeline, source: &SourceCluster) -> Result<(), Stop> {
    loop {
        let trouble = match timeout(VISIT, Box::pin(look(timeline, source))).await {
            Ok(Ok(Step::Done)) => {
                over(timeline).await;
                tracing::info!(timeline = %timeline.id(), "there is a slot again, and the object store has all before it");
                return Ok(());
            }
            Ok(Ok(_)) => None,
            Ok(Err(IngestError::Stop(stop))) => return Err(stop),
            Ok(Err(error)) => Some(error.in_words()),
            Err(_) => Some(format!("no answer within {} s", VISIT.as_secs())),
        };
        let (slot, remote) = (&timeline.slot, timeline.status().remote_consistent);
        let without = format!(
            "slot {slot} does not keep all that the object store lacks: it was lost, or dropped because it kept more \
             than slot-retention-limit, or another server was promoted; until the object store has caught up, \
             only the disk of this wal-ingest has the WAL after {remote}"
        );
        timeline.warn(Topic::Slot, vec![without]);
        let trouble = trouble.map(|trouble| format!("can't look after slot {slot}: {trouble}"));
        timeline.warn(Topic::Keeper, trouble.into_iter().collect());
        sleep(INTERVAL.mul_f64(rand::random_range(0.75..1.25))).await;
    }
}

/// One look, and what follows from it.
async fn look(timeline: &Timeline, source: &SourceCluster) -> Result<Step, IngestError> {
    let slot = &timeline.slot;
    let (mut connection, identity) = keeper::connect(timeline, source, Duty::Follow).await?;
    let state = connection.read_replication_slot(slot).await?;
    let (remote, limit) = (
        timeline.status().remote_consistent,
        timeline.limits().slot_retention,
    );
    let step = step(state, identity.xlogpos, remote, limit);
    match step {
        Step::Make => {
            expect_ours(timeline).await?;
            connection.create_physical_slot(slot, true).await?;
            if let Err(error) = expect_ours(timeline).await {
                connection.drop_slot(slot).await?;
                return Err(error);
            }
            tracing::info!(timeline = %timeline.id(), %slot, "slot made again");
            // Until the object store has reached it nobody else could go on here.
            if let Some(growth) = timeline.growth() {
                growth.freeze();
            }
        }
        Step::Drop => {
            expect_ours(timeline).await?;
            connection.drop_slot(slot).await?;
        }
        Step::Wait | Step::Done => {}
    }
    let state = connection.read_replication_slot(slot).await?;
    let restart = state.and_then(|state| state.restart_lsn);
    let kept = restart.map_or(0, |restart| identity.xlogpos.saturating_sub(restart));
    timeline.update(|status| status.slot_retained = ByteCount::new(kept));
    connection.close().await;
    Ok(step)
}

/// The slot must still keep the WAL from a base backup's start on. The source asks nobody whose turn it
/// is, so one who woke up at a bad moment may have dropped it.
pub(super) async fn expect_kept(
    timeline: &Timeline,
    source: &SourceCluster,
    start: Lsn,
) -> Result<(), IngestError> {
    let conninfo = &timeline.assignment.source;
    let (mut connection, _) = connect_to(conninfo, "palimpsest", source, PATIENCE).await?;
    let slot = connection.read_replication_slot(&timeline.slot).await?;
    connection.close().await;
    match slot.and_then(|slot| slot.restart_lsn) {
        Some(restart) if restart <= start => Ok(()),
        Some(_) | None => Err(IngestError::Backup("its slot was dropped meanwhile")),
    }
}

/// Whoever took the timeline over, or deleted it, has looked after the slot: it is not ours to make.
pub(super) async fn expect_ours(timeline: &Timeline) -> Result<(), IngestError> {
    let newest = timeline.manifests().newest().await?;
    let epoch = newest.map(|newest| newest.state.writer_epoch);
    match epoch == Some(timeline.status().epoch) {
        true => Ok(()),
        false => Err(Stop::Superseded.into()),
    }
}

fn step(slot: Option<SlotState>, end: Lsn, remote: Lsn, limit: ByteCount) -> Step {
    let behind = |from: Lsn| end.saturating_sub(from);
    match slot.map(|slot| slot.restart_lsn) {
        // Half, so that it is not dropped again at once.
        None if behind(remote) <= limit.get() / 2 => Step::Make,
        None => Step::Wait,
        Some(Some(restart)) if restart <= remote => Step::Done,
        Some(Some(restart)) if behind(restart) <= limit.get() => Step::Wait,
        Some(Some(_) | None) => Step::Drop,
    }
}

/// Makes or removes the file, durably.
async fn set(timeline: &Timeline, slotless: bool) -> Result<(), IngestError> {
    let (disk, marker) = (timeline.shared.disk.clone(), marker(timeline));
    let directory = timeline.directory();
    let path = marker.clone();
    let setting = timeline.spawn_blocking(move || {
        match slotless {
            true => disk.create(&marker)?.sync()?,
            false => match disk.remove_file(&marker) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            },
        }
        disk.sync_directory(&directory)
    });
    let set = setting.await.map_err(|error| timeline.wal_failed(error))?;
    set.map_err(|source| IngestError::WalFile { path, source })
}

/// The object that says that a slot is to be made, after a promotion.
fn awaited(timeline: &Timeline) -> StorePath {
    timeline.store_path().child("slot-awaited")
}

fn marker(timeline: &Timeline) -> PathBuf {
    timeline.directory().join(MARKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: ByteCount = ByteCount::new(1000);

    fn with(slot: Option<Option<u64>>, end: u64, remote: u64) -> Step {
        let slot = slot.map(|restart| SlotState {
            restart_lsn: restart.map(Lsn::new),
            restart_tli: None,
        });
        step(slot, Lsn::new(end), Lsn::new(remote), LIMIT)
    }

    #[test]
    fn p9_a_slot_is_made_again_when_the_object_store_has_caught_up() {
        assert_eq!(with(None, 5000, 4000), Step::Wait);
        assert_eq!(with(None, 5000, 4500), Step::Make);
        assert_eq!(with(Some(Some(4700)), 5000, 4500), Step::Wait);
        assert_eq!(with(Some(Some(4700)), 5000, 4700), Step::Done);
    }

    #[test]
    fn p9_a_new_slot_that_keeps_too_much_is_dropped_again() {
        assert_eq!(with(Some(Some(4700)), 5701, 4500), Step::Drop);
        assert_eq!(with(Some(None), 5000, 4500), Step::Drop);
    }
}
