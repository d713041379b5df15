//! Reading WAL as the source writes it, for as long as it can be done.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use palimpsest_api::broker::TimelineState;
use palimpsest_manifest::TimelineManifest;
use palimpsest_postgres::{ClientError, ReplicationEvent, ReplicationStream, StandbyStatus};
use palimpsest_types::{ErrorKind, Lsn};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::{
    decoder::Decoder,
    error::{IngestError, Remedy, Stop},
    source::connect_as,
    timeline::{BackOff, Resumed, Timeline},
    wal_files::WalFiles,
};

/// How often the source hears from us, if there is no WAL that makes it hear sooner.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);
/// A source that says nothing for so long is gone, whatever TCP thinks.
const SILENCE: Duration = Duration::from_secs(60);
/// WAL that is written and fsynced together, at most.
const MAX_BATCH: usize = 4 << 20;
/// How often to look for room while paused.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// Why a stream ended.
#[derive(Debug)]
pub(super) enum End {
    /// It can't go on.
    Stop(IngestError),
    /// The local files failed: the timeline is to be taken over anew from what is on disk.
    Reopen(IngestError),
}

/// Streams until the timeline can't go on as it is. Connections that break are made again, and
/// closed while there is no room.
pub(super) async fn run(timeline: &Timeline, resumed: Resumed) -> End {
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
        let Some((_, decoder)) = &work else {
            // A write or the decoder failed half-way: what is in memory is not to be trusted.
            return match error.remedy() {
                Remedy::Retry | Remedy::Pause => End::Reopen(error),
                Remedy::GiveUp => End::Stop(error),
            };
        };
        match error.remedy() {
            Remedy::GiveUp => return End::Stop(error),
            Remedy::Pause => {
                pause(timeline, decoder, &error).await;
                continue;
            }
            Remedy::Retry => {}
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
    let from = match work {
        Some((files, decoder)) => {
            decoder.room()?;
            files.end()
        }
        None => return Err(IngestError::Backup("the WAL files are not open")),
    };
    let mut stream = open(timeline, manifest, from).await?;
    timeline.update(|status| {
        status.state = TimelineState::Streaming;
        status.reason.clear();
    });
    tracing::info!(timeline = %timeline.id(), %from, "reading WAL");
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
            Some(ReplicationEvent::XLogData { start, data, .. }) => {
                let batch = gather(&mut stream, start, data).await?;
                timeline.update(|status| status.received = batch.end());
                ingest(timeline, work, batch).await?;
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
    // By this name the source's synchronous_standby_names may know us.
    let mut connection = connect_as(&timeline.assignment.source, timeline.slot.as_str()).await?;
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
    // Without the slot: see the keeper.
    let stream = connection.start_physical_replication(None, from, source.pg_timeline);
    stream
        .await
        .map_err(|error| wal_gone_or(timeline, from, error))
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
    if batch.start != files.end() {
        let (expected, found) = (files.end(), batch.start);
        return Err(IngestError::WalGap { expected, found });
    }
    let written = tokio::task::spawn_blocking(move || {
        if let Err(error) = files.append(&batch.chunks) {
            // None of it counts: it is asked for again.
            return Ok((files, decoder, Err(error)));
        }
        decoder.note_wal(files.size());
        let flushed = files.end();
        let mut at = batch.start;
        for chunk in batch.chunks {
            let len = chunk.len() as u64;
            decoder.decode(at, chunk)?;
            at = Lsn::new(at.get() + len);
        }
        Ok::<_, IngestError>((files, decoder, Ok(flushed)))
    });
    let written = written.await.map_err(|error| timeline.wal_failed(error))?;
    let (files, decoder, appended) = written?;
    let flushed = match appended {
        Ok(flushed) => flushed,
        Err(error) => {
            decoder.freeze();
            *work = Some((files, decoder));
            return Err(error);
        }
    };
    timeline.update(|status| {
        status.flushed = flushed;
        status.last_record = decoder.last_record();
    });
    let room = decoder.room();
    *work = Some((files, decoder));
    Ok(room?)
}

/// What the source is told: commits that wait for us wait until their WAL is fsynced here.
fn positions(timeline: &Timeline, reply_requested: bool) -> StandbyStatus {
    let status = timeline.status();
    StandbyStatus {
        write: status.received,
        flush: status.flushed,
        apply: status.remote_consistent,
        reply_requested,
    }
}

/// Waits without a connection until there is room. Connected, a receiver that takes nothing would
/// keep the source from shutting down.
async fn pause(timeline: &Timeline, decoder: &Decoder, error: &IngestError) {
    let reason = error.in_words();
    tracing::error!(timeline = %timeline.id(), reason, "timeline paused; the connection is closed");
    timeline.update(|status| {
        status.state = TimelineState::Paused;
        status.reason = reason;
    });
    decoder.freeze();
    while decoder.room().is_err() {
        tokio::time::sleep(ROOM_INTERVAL).await;
    }
    tracing::info!(timeline = %timeline.id(), "timeline goes on");
}
