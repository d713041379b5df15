//! Going on where WAL was lost: from another base backup of the source.
//!
//! All that was read before stays. What the backup has instead goes into delta layers between the end of that and the
//! backup's start, and what it has not is dropped there; [`TimelineManifest::go_on_from`] puts them in, in one step with the
//! hole in the history, so whoever takes over meanwhile begins anew. It takes a new slot, like an attach, and unlike one
//! it undoes nothing when it fails: the timeline is somebody's, and it is tried again.

use std::collections::BTreeSet;

use palimpsest_api::broker::{Promotion, TimelineState};
use palimpsest_manifest::{
    InvalidManifestError, LsnSpan, ManifestError, PgTimelineBegin, Reread, SourceCluster,
    TimelineManifest, UpdateError, Versioned,
};
use palimpsest_postgres::{BackupStart, Connection};
use palimpsest_read::{ReadError, TimelineReader, Versions as _, relations_at};
use palimpsest_redo::NoEngine;
use palimpsest_types::{ByteCount, Key, KeyRange, Lsn};
use palimpsest_wal::{CommitTime, Interpreter, Value};

use super::{
    attach::cluster,
    backup::{self, Backup, Before, Changes, Shelf},
    error::{IngestError, Stop},
    keeper::{self, Duty},
    set_back, slotless,
    source::{CheckError, connect_to, expect_free_senders, inspect},
    stream::{PATIENCE, expect_history},
    succession::since,
    timeline::Timeline,
    warnings::Topic,
};

/// Changes that are looked at together, to see which pages are as they were.
const CHANGES: ByteCount = ByteCount::mib(64);

/// Where the timeline goes on, before anything of it is read.
struct Source {
    connection: Connection,
    cluster: SourceCluster,
    relation_segment_blocks: u32,
    /// PostgreSQL timelines that were begun since.
    begun: Vec<PgTimelineBegin>,
}

/// Reads a base backup over what the timeline has, all of which is in the object store. Afterwards the manifest goes on
/// from it.
pub(super) async fn reattach(
    timeline: &Timeline,
    newest: Versioned<TimelineManifest>,
) -> Result<(), IngestError> {
    // Any slot there may be is not to be moved meanwhile.
    timeline.note_slotless(true);
    let Source {
        mut connection,
        cluster,
        relation_segment_blocks,
        begun,
    } = reach(timeline, &newest.state).await?;
    // Whoever was its writer can't publish any more, and what we make is ours alone.
    let mut taken = timeline.manifests().take_over(newest).await?;
    if !timeline.is_to_reattach(&taken.state) {
        // Ours was published before, and its answer lost.
        return Ok(());
    }
    let (epoch, end) = (taken.state.writer_epoch, taken.state.lsn);
    timeline.close();
    timeline.update(|status| {
        status.state = TimelineState::Attaching;
        status.reason =
            format!("WAL after {end} was lost at the source; going on from a new base backup");
        status.epoch = epoch;
        status.last_record = end;
        status.remote_consistent = end;
        status.backup_done = ByteCount::ZERO;
        status.backup_total = ByteCount::ZERO;
    });
    tracing::info!(timeline = %timeline.id(), %epoch, %end, "going on from a new base backup");
    remove_leftovers(timeline, &taken.state).await?;
    timeline.remove_directory().await?;
    let before = before(timeline, &taken.state).await?;
    timeline.note_source(cluster);
    make_slot(timeline, &mut connection).await?;
    let layers = timeline.store_path().child("layers");
    let shelf = Shelf::new(
        timeline.shared.store.clone(),
        layers,
        (epoch, rand::random()),
    );
    let form = |start: &BackupStart| {
        if start.timeline != cluster.pg_timeline {
            let (found, expected) = (start.timeline, cluster.pg_timeline);
            return Err(IngestError::Switched { found, expected });
        }
        if start.lsn <= end {
            let start = start.lsn;
            return Err(IngestError::TooSoon { end, start });
        }
        let lsns = LsnSpan {
            after: end,
            up_to: start.lsn,
        };
        Ok(Changes::new(shelf, lsns, before))
    };
    // However long it takes, it may not cost the source its disk. Cancel-safe: it is begun anew.
    let backup = tokio::select! {
        backup = backup::read(timeline, connection, relation_segment_blocks, form) => backup?,
        stop = keeper::run(timeline, &cluster, Duty::Guard) => return Err(stop.into()),
    };
    let Backup {
        start,
        end: whole_from,
        layers,
        control,
    } = backup;
    if control.system_identifier != cluster.system_identifier {
        return Err(IngestError::Backup("it is of another cluster"));
    }
    slotless::expect_kept(timeline, &cluster, start).await?;
    let reread = Reread {
        start,
        end: whole_from,
        source: cluster,
        begun,
        layers,
    };
    publish(timeline, &mut taken, &reread).await?;
    // If it stays, the next base backup is larger than it need be.
    if let Err(error) = set_back::forget(timeline).await {
        tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't forget that the source was set back");
    }
    timeline.update(|status| status.reason.clear());
    tracing::info!(timeline = %timeline.id(), lost_after = %end, %start, readable_from = %whole_from, layers = reread.layers.len(), "going on from a base backup");
    Ok(())
}

/// A source that has gone on with the history that we have.
async fn reach(timeline: &Timeline, manifest: &TimelineManifest) -> Result<Source, IngestError> {
    let conninfo = &timeline.assignment.source;
    let known = &manifest.source;
    let (mut connection, identity) =
        connect_to(conninfo, timeline.slot.as_str(), known, PATIENCE).await?;
    let report = inspect(&mut connection).await?;
    timeline.warn(Topic::Settings, report.warnings.clone());
    let found = cluster(&report);
    if found.system_identifier != known.system_identifier {
        let (found, expected) = (found.system_identifier.get(), known.system_identifier.get());
        return Err(Stop::OtherCluster { found, expected }.into());
    }
    // Redo depends on both, of what is here as well.
    let fixed = (known.wal_log_hints, known.wal_segment_size);
    if (found.wal_log_hints, found.wal_segment_size) != fixed {
        return Err(Stop::OtherSettings.into());
    }
    let (found_timeline, expected) = (identity.timeline, known.pg_timeline);
    let begun = match expect_history(&mut connection, found_timeline, manifest).await? {
        None => Vec::new(),
        Some(history) => since(&history, expected, found_timeline).ok_or(Stop::OtherTimeline {
            found: found_timeline,
            expected,
        })?,
    };
    if let Some(first) = begun.first().filter(|first| first.begin < manifest.lsn) {
        // The promoted server never had the end of what is here, so it is followed as one that is promoted.
        return Err(Stop::Left(Promotion {
            at: first.begin,
            pg_timeline: first.pg_timeline,
            end: manifest.lsn,
        })
        .into());
    }
    if begun.is_empty() {
        set_back::expect_whole(timeline, (manifest.lsn, identity.xlogpos)).await?;
    }
    expect_free_senders(conninfo)
        .await
        .map_err(|error| match error {
            // One may be free soon.
            IngestError::Check(CheckError::NoFreeSender(error)) => IngestError::Source(*error),
            error => error,
        })?;
    Ok(Source {
        connection,
        cluster: found,
        relation_segment_blocks: report.relation_segment_blocks,
        begun,
    })
}

/// Makes the slot, in place of one that keeps what is of no use any more.
async fn make_slot(timeline: &Timeline, connection: &mut Connection) -> Result<(), IngestError> {
    // The source can't be asked whose turn it is, so this is looked up right before each step.
    let slot = &timeline.slot;
    slotless::expect_ours(timeline).await?;
    if connection.read_replication_slot(slot).await?.is_some() {
        connection.drop_slot(slot).await?;
        slotless::expect_ours(timeline).await?;
    }
    // It keeps the WAL from before the backup's start on.
    connection.create_physical_slot(slot, true).await?;
    Ok(())
}

/// What there is at the end of the timeline.
async fn before(timeline: &Timeline, manifest: &TimelineManifest) -> Result<Before, IngestError> {
    let (reader, lsn) = (timeline.stored(manifest).await?, manifest.lsn);
    let mut keys: BTreeSet<Key> = relations_at(&reader, lsn)
        .await?
        .into_keys()
        .map(Key::RelSize)
        .collect();
    let maps = reader.relation_maps(lsn).await?;
    keys.extend(maps.into_iter().map(|(spc, db, _)| Key::RelMap { spc, db }));
    for range in [prepared_and_segments(), Interpreter::origins()] {
        let listing = reader.newest_in(range, lsn).await?;
        let there = |(_, (_, value)): &(Key, (Lsn, Value))| *value != Value::Dropped;
        let there = listing.versions.into_iter().filter(there);
        keys.extend(there.map(|(key, _)| key));
    }
    Ok(Before {
        keys,
        latest: latest_end(&reader, lsn).await?,
        trusts_lsns: !set_back::is_known(timeline).await?,
        reader: reader.with_changes_of(CHANGES),
    })
}

async fn latest_end(
    reader: &TimelineReader<NoEngine>,
    lsn: Lsn,
) -> Result<Option<CommitTime>, ReadError> {
    let key = Key::CommitTime;
    match reader.newest(key, Lsn::ZERO..=lsn).await? {
        None => Ok(None),
        Some((_, Value::File(content))) => {
            let end = CommitTime::decode(&content);
            end.map(Some).map_err(|_| ReadError::WrongValue(key))
        }
        Some(_) => Err(ReadError::WrongValue(key)),
    }
}

/// Files of prepared transactions, and segments of SLRU areas.
fn prepared_and_segments() -> KeyRange {
    Key::TwoPhase(0)..Key::Parameters
}

/// Removes layers of those who tried before and did not come to an end.
async fn remove_leftovers(
    timeline: &Timeline,
    manifest: &TimelineManifest,
) -> Result<(), IngestError> {
    let store = &timeline.shared.store;
    for layer in store.list(&timeline.store_path().child("layers")).await? {
        let is_left = |name: &str| backup::is_leftover(name, manifest.lsn, manifest.writer_epoch);
        if layer.file_name().is_some_and(is_left) {
            store.delete(&layer).await?;
        }
    }
    Ok(())
}

/// Publishes the manifest that goes on from the backup, unless somebody took over meanwhile.
async fn publish(
    timeline: &Timeline,
    taken: &mut Versioned<TimelineManifest>,
    reread: &Reread,
) -> Result<(), IngestError> {
    let epoch = taken.state.writer_epoch;
    let edit = |manifest: &mut TimelineManifest| {
        // It is there if only an answer was lost.
        if manifest.lsn >= reread.start {
            return Ok(false);
        }
        manifest.go_on_from(reread.clone())?;
        Ok::<_, InvalidManifestError>(true)
    };
    match timeline.manifests().update(epoch, taken, edit).await {
        Ok(_) => Ok(()),
        Err(UpdateError::Manifest(ManifestError::Superseded { .. })) => {
            Err(Stop::Superseded.into())
        }
        Err(UpdateError::Manifest(error)) => Err(error.into()),
        Err(UpdateError::Edit(refused)) => Err(ManifestError::Refused(refused).into()),
    }
}
