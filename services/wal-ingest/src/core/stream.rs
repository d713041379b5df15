//! Reading WAL as the source writes it, for as long as it can be done.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use palimpsest_api::broker::TimelineState;
use palimpsest_manifest::TimelineManifest;
use palimpsest_postgres::{ClientError, ReplicationEvent, ReplicationStream, StandbyStatus};
use palimpsest_types::{ByteCount, ErrorKind, Lsn};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::{
    decoder::Decoder,
    error::{IngestError, Remedy, Stop},
    source::{connect, retained},
    timeline::{BackOff, Resumed, Timeline},
    wal_files::WalFiles,
};

/// How often the source hears from us, if there is no WAL that makes it hear sooner.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);
/// A source that says nothing for so long is gone, whatever TCP thinks.
const SILENCE: Duration = Duration::from_secs(60);
/// WAL that is written and fsynced together, at most.
const MAX_BATCH: usize = 4 << 20;
/// How often the slot is looked at while no WAL is read.
const GUARD_INTERVAL: Duration = Duration::from_secs(5);

/// Streams until the timeline has to stop. Connections that break are made again.
pub(super) async fn run(timeline: &Timeline, resumed: Resumed) {
    let Resumed {
        manifest,
        files,
        decoder,
    } = resumed;
    let mut work = Some((files, decoder));
    let mut back_off = BackOff::default();
    loop {
        let connected = Instant::now();
        let error = match stream(timeline, &manifest, &mut work).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        match error.remedy() {
            Remedy::GiveUp => return timeline.stop(&error),
            Remedy::Pause => return pause(timeline, &error).await,
            Remedy::Retry => {}
        }
        if work.is_none() {
            // A write or the decoder failed half-way: what is in memory is not to be trusted.
            return timeline.stop(&error);
        }
        let reason = error.in_words();
        tracing::warn!(timeline = %timeline.id(), reason, "the WAL stream ended; connecting again");
        timeline.update(|status| {
            status.state = TimelineState::Disconnected;
            status.reason = reason;
        });
        if connected.elapsed() > SILENCE {
            back_off = BackOff::default();
        }
        back_off.wait().await;
    }
}

/// One connection, until it ends.
async fn stream(
    timeline: &Timeline,
    manifest: &TimelineManifest,
    work: &mut Option<(WalFiles, Decoder)>,
) -> Result<std::convert::Infallible, IngestError> {
    let Some((files, decoder)) = work.as_ref() else {
        return Err(IngestError::Backup("the WAL files are not open"));
    };
    if !decoder.has_room() {
        return Err(decoder.full());
    }
    let mut stream = open(timeline, manifest, files.end()).await?;
    timeline.update(|status| {
        status.state = TimelineState::Streaming;
        status.reason.clear();
    });
    tracing::info!(timeline = %timeline.id(), from = %files.end(), "reading WAL");
    let mut ticks = interval(STATUS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        // Cancel-safe: `next` and `tick` lose nothing when dropped.
        let event = tokio::select! {
            event = timeout_at(heard + SILENCE, stream.next()) => event,
            _ = ticks.tick() => {
                stream.send_status(positions(timeline, false)).await?;
                continue;
            }
        };
        heard = Instant::now();
        let silent = std::io::Error::new(std::io::ErrorKind::TimedOut, "the source fell silent");
        let event = event.map_err(|_| ClientError::Io(silent))?;
        let event = event.map_err(|error| wal_gone_or(timeline, stream.position(), error))?;
        match event {
            Some(ReplicationEvent::XLogData {
                start,
                wal_end,
                data,
                ..
            }) => {
                let batch = gather(&mut stream, start, data).await?;
                timeline.update(|status| status.received = batch.end());
                ingest(timeline, work, batch).await?;
                timeline.update(|status| {
                    let kept = wal_end.saturating_sub(status.flushed);
                    status.slot_retained = ByteCount::new(kept);
                });
                stream.send_status(positions(timeline, false)).await?;
            }
            Some(ReplicationEvent::KeepAlive {
                reply_requested, ..
            }) => {
                if reply_requested {
                    stream.send_status(positions(timeline, false)).await?;
                }
            }
            Some(ReplicationEvent::EndOfTimeline { next_timeline, .. }) => {
                let expected = manifest.source.pg_timeline;
                return Err(Stop::OtherTimeline {
                    found: next_timeline,
                    expected,
                }
                .into());
            }
            None => return Err(IngestError::Backup("the WAL stream ended without a reason")),
        }
    }
}

/// Connects, makes sure that it is the same cluster, and starts the stream.
async fn open(
    timeline: &Timeline,
    manifest: &TimelineManifest,
    from: Lsn,
) -> Result<ReplicationStream, IngestError> {
    let mut connection = connect(&timeline.assignment.source).await?;
    let identity = connection.identify_system().await?;
    let source = &manifest.source;
    if identity.system_id != source.system_identifier {
        let (found, expected) = (identity.system_id.get(), source.system_identifier.get());
        return Err(Stop::OtherCluster { found, expected }.into());
    }
    if identity.timeline != source.pg_timeline {
        let (found, expected) = (identity.timeline, source.pg_timeline);
        return Err(Stop::OtherTimeline { found, expected }.into());
    }
    let slot = Some(&timeline.slot);
    match connection
        .start_physical_replication(slot, from, source.pg_timeline)
        .await
    {
        Ok(stream) => Ok(stream),
        Err(error) => Err(wal_gone_or(timeline, from, error)),
    }
}

/// Tells an end that waiting does not mend: the slot does not exist, was invalidated, or the
/// segment was removed (SQLSTATE 42704, 55000, 58P01).
fn wal_gone_or(timeline: &Timeline, from: Lsn, error: ClientError) -> IngestError {
    let code = error.server_error().map(|error| error.code());
    let gone = error.kind() == ErrorKind::NotFound || matches!(code, Some("55000" | "58P01"));
    match gone {
        true => Stop::WalGone {
            slot: timeline.slot.to_string(),
            from,
        }
        .into(),
        false => error.into(),
    }
}

/// WAL that came together.
struct Batch {
    start: Lsn,
    chunks: Vec<Bytes>,
    len: usize,
}

impl Batch {
    fn end(&self) -> Lsn {
        Lsn::new(self.start.get() + self.len as u64)
    }
}

/// Takes what has arrived already, so that one fsync serves all of it.
async fn gather(
    stream: &mut ReplicationStream,
    start: Lsn,
    data: Bytes,
) -> Result<Batch, IngestError> {
    let mut batch = Batch {
        start,
        len: data.len(),
        chunks: vec![data],
    };
    while batch.len < MAX_BATCH {
        // Cancel-safe: see `ReplicationStream::next`.
        match stream.next().now_or_never() {
            Some(Ok(Some(ReplicationEvent::XLogData { data, .. }))) => {
                batch.len += data.len();
                batch.chunks.push(data);
            }
            Some(Ok(Some(ReplicationEvent::KeepAlive { .. }))) => {}
            // An end or an error comes again when the stream is asked next.
            Some(Ok(_) | Err(_)) | None => break,
        }
    }
    Ok(batch)
}

/// Writes and fsyncs the WAL, then decodes it.
async fn ingest(
    timeline: &Timeline,
    work: &mut Option<(WalFiles, Decoder)>,
    batch: Batch,
) -> Result<(), IngestError> {
    let Some((mut files, mut decoder)) = work.take() else {
        return Err(IngestError::Backup("the WAL files are not open"));
    };
    let written = tokio::task::spawn_blocking(move || {
        files.append(&batch.chunks)?;
        let flushed = files.end();
        let mut at = batch.start;
        for chunk in batch.chunks {
            let len = chunk.len() as u64;
            decoder.decode(at, chunk)?;
            at = Lsn::new(at.get() + len);
        }
        Ok::<_, IngestError>((files, decoder, flushed))
    });
    let (files, decoder, flushed) = written.await.map_err(|error| IngestError::WalFile {
        path: timeline.wal_directory(),
        source: std::io::Error::other(error),
    })??;
    timeline.update(|status| {
        status.flushed = flushed;
        status.last_record = decoder.last_record();
    });
    let full = (!decoder.has_room()).then(|| decoder.full());
    *work = Some((files, decoder));
    full.map_or(Ok(()), Err)
}

/// What the source is told. The slot follows `flush`, which is what is fsynced here: in this
/// version our disk is where the WAL is kept.
fn positions(timeline: &Timeline, reply_requested: bool) -> StandbyStatus {
    let status = timeline.status();
    StandbyStatus {
        write: status.received,
        flush: status.flushed,
        apply: status.remote_consistent,
        reply_requested,
    }
}

/// Waits without a connection and guards the source's disk: a slot that holds back more WAL than
/// allowed is dropped, because the user's database matters more than our history.
async fn pause(timeline: &Timeline, error: &IngestError) {
    let reason = error.in_words();
    tracing::error!(timeline = %timeline.id(), reason, "timeline paused; the connection is closed");
    timeline.update(|status| {
        status.state = TimelineState::Paused;
        status.reason = reason;
    });
    loop {
        match guard(timeline).await {
            Ok(Some(dropped)) => return timeline.stop(&dropped.into()),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't look at the slot");
            }
        }
        tokio::time::sleep(GUARD_INTERVAL).await;
    }
}

async fn guard(timeline: &Timeline) -> Result<Option<Stop>, IngestError> {
    let mut connection = connect(&timeline.assignment.source).await?;
    let kept = retained(&mut connection, &timeline.slot)
        .await?
        .unwrap_or_default();
    timeline.update(|status| status.slot_retained = kept);
    let limit = timeline.shared.limits.slot_retention;
    let dropped = if kept > limit {
        connection.drop_slot(&timeline.slot).await?;
        Some(Stop::SlotDropped {
            slot: timeline.slot.to_string(),
            retained: kept,
            limit,
        })
    } else {
        None
    };
    connection.close().await;
    Ok(dropped)
}
