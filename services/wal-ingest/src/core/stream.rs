//! Reading WAL as the source writes it, for as long as it can be done.

use std::{
    cmp::Ordering,
    pin::pin,
    time::{Duration, SystemTime},
};

use palimpsest_api::broker::{Promotion, TimelineState, WalReceiver};
use palimpsest_manifest::TimelineManifest;
use palimpsest_postgres::{
    ClientError, Connection, ReplicationEvent, ReplicationStream, StandbyStatus, TimelineHistory,
    Tli,
};
use palimpsest_types::{ErrorKind, Lsn, unix_ms};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::{
    archive::{self, Extent, Restored},
    arrivals::{Arrival, Arrivals, Batch},
    back_off::BackOff,
    decoder::Decoder,
    error::{IngestError, Remedy, Stop},
    intake::{self, Intake},
    set_back, slotless,
    source::connect_to,
    succession::{Succession, Switch, is_of, succession},
    timeline::{Resumed, Timeline},
    wal_files::WalTrim,
};

/// How often the source hears from us, if there is no WAL that makes it hear sooner.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);
/// A source that says nothing for so long is gone, whatever TCP thinks.
const SILENCE: Duration = Duration::from_secs(60);
/// For each of several hosts. With one it is what the connection string says.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// When a source was heard is told as exactly as this, in milliseconds.
const HEARD_MS: u64 = 60_000;
/// How often to look for room while paused.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// Why a stream ended.
#[derive(Debug)]
pub(super) enum End {
    /// It can't go on.
    Stop(IngestError),
    /// The local files failed: the timeline is to be taken over anew from what is on disk.
    Reopen(IngestError),
    /// Something else goes on where the WAL that was read ends: the source's next PostgreSQL timeline, if this says so, or
    /// another cluster, or a base backup.
    Renewed(Option<Switch>),
    /// The node leaves.
    Left,
}

/// Why a connection was given up, when nothing failed.
enum Given {
    /// The node leaves.
    Left,
    /// All of the PostgreSQL timeline was received.
    Switched(Switch),
    /// What the source has no more has come from the archive.
    Restored,
}

/// Streams until the timeline can't go on as it is, or the node leaves. Connections that break are made again, and
/// closed while there is no room.
pub(super) async fn run(timeline: &Timeline, resumed: Resumed) -> End {
    let Resumed {
        manifest,
        files,
        decoder,
    } = resumed;
    let leaving = &timeline.shared.leaving;
    let mut intake = Some(Intake::new(files, decoder));
    let mut back_off = BackOff::default();
    loop {
        let connected = Instant::now();
        let ended = stream(timeline, &manifest, &mut intake).await;
        note_disconnected(timeline);
        let decoded = intake::decode_rest(timeline, &mut intake).await;
        let error = match (ended, decoded) {
            (Ok(_), Err(error)) if error.remedy() == Remedy::GiveUp => return End::Stop(error),
            (Ok(Given::Left), _) => return End::Left,
            (Ok(Given::Switched(_) | Given::Restored), Err(error)) => error,
            (Ok(Given::Restored), Ok(())) => {
                back_off = BackOff::default();
                continue;
            }
            (Ok(Given::Switched(switch)), Ok(())) => match switched(timeline, switch) {
                Ok(()) => return End::Renewed(Some(switch)),
                Err(error) => error.into(),
            },
            (Err(error), decoded) => worse(error, decoded),
        };
        let Some(intake) = &intake else {
            // A write or the decoder failed half-way: what is in memory is not to be trusted.
            return match error.remedy() {
                Remedy::Retry | Remedy::Pause => End::Reopen(error),
                Remedy::GiveUp => End::Stop(error),
            };
        };
        match error.remedy() {
            Remedy::GiveUp => return End::Stop(error),
            Remedy::Pause => {
                let disk = error.is_full_disk().then(|| intake.trim());
                let decoder = intake.decoder();
                let pausing = async {
                    let full = disk.is_some();
                    pause(timeline, decoder, &error, disk).await;
                    if full {
                        // The system may say that there is room where a quota leaves none.
                        back_off.wait().await;
                    }
                };
                if leaving.run_until_cancelled(pausing).await.is_none() {
                    return End::Left;
                }
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
        if leaving.run_until_cancelled(back_off.wait()).await.is_none() {
            return End::Left;
        }
    }
}

/// One connection, until it ends or the node leaves.
async fn stream(
    timeline: &Timeline,
    manifest: &TimelineManifest,
    intake: &mut Option<Intake>,
) -> Result<Given, IngestError> {
    let from = match intake {
        Some(intake) => {
            intake.decoder().room()?;
            intake.end()
        }
        None => return Err(IngestError::Backup("the WAL files are not open")),
    };
    let leaving = &timeline.shared.leaving;
    // Cancel-safe: nothing was received.
    let opening = leaving.run_until_cancelled(open(timeline, manifest, from));
    let Some(opened) = opening.await else {
        return Ok(Given::Left);
    };
    let (mut arrivals, read_from, extent) = match opened? {
        Opened::Stream(stream, read_from, extent) => (Arrivals::new(stream), read_from, extent),
        Opened::AtEnd(switch) => return Ok(Given::Switched(switch)),
    };
    timeline.update(|status| {
        status.state = TimelineState::Streaming;
        status.reason.clear();
        // What came over an earlier connection and was not written must come again.
        status.received = from;
        let now = unix_ms(SystemTime::now());
        status.receiver = Some(WalReceiver {
            connected_unix_ms: Some(now),
            heard_unix_ms: now,
            source_end: from,
            pg_timeline: manifest.source.pg_timeline,
        });
    });
    tracing::info!(timeline = %timeline.id(), %from, "reading WAL");
    let mut ticks = interval(STATUS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    // Who streams may not know, and of several hosts another is the primary now.
    let mut later = pin!(timeline.later_than(read_from));
    // Between steps only: one that has begun is finished.
    while !leaving.is_cancelled() {
        if intake.as_ref().is_some_and(Intake::is_behind) {
            let arrived = arrivals.arrived();
            advance(timeline, intake, &mut arrivals, arrived).await?;
            heard = Instant::now();
            continue;
        }
        // Cancel-safe: `next` and `tick` lose nothing when dropped, and `later` stays.
        let arrival = tokio::select! {
            () = leaving.cancelled() => break,
            found = &mut later => {
                return Err(IngestError::Switched { found, expected: read_from });
            }
            arrival = timeout_at(heard + SILENCE, arrivals.next()) => arrival,
            _ = ticks.tick() => {
                arrivals.send_status(positions(timeline, false)).await?;
                intake::note_size(timeline, intake).await?;
                continue;
            }
        };
        heard = Instant::now();
        let silent = std::io::Error::new(std::io::ErrorKind::TimedOut, "the source fell silent");
        let arrival = arrival.map_err(|_| ClientError::Io(silent))?;
        let arrival = arrival.map_err(|error| wal_gone_or(timeline, arrivals.position(), error));
        // The source begins a stream before it looks for the file.
        if let Err(IngestError::Stop(Stop::WalGone { .. })) = &arrival
            && timeline.has_archive()
        {
            drop(arrivals);
            note_disconnected(timeline);
            let restored = archive::restore(timeline, &manifest.source, intake, extent);
            return Ok(match restored.await? {
                Restored::AsFar => Given::Restored,
                Restored::Left => Given::Left,
            });
        }
        match arrival? {
            Arrival::Wal(batch) => {
                advance(timeline, intake, &mut arrivals, Some(batch)).await?;
            }
            Arrival::KeepAlive {
                source,
                reply_requested,
            } => {
                note_heard(timeline, source);
                if reply_requested {
                    arrivals.send_status(positions(timeline, false)).await?;
                }
            }
            Arrival::Last(Some(ReplicationEvent::EndOfTimeline {
                next_timeline,
                switch_point,
            })) => {
                return Ok(Given::Switched(Switch {
                    at: switch_point,
                    next: next_timeline,
                }));
            }
            Arrival::Last(_) => {
                return Err(IngestError::Backup("the WAL stream ended without a reason"));
            }
        }
    }
    Ok(Given::Left)
}

/// Whether what we have ends with the PostgreSQL timeline that was left, all of which has come and is decoded. The
/// server may have been promoted while we read from it, and then nobody has compared the two before.
fn switched(timeline: &Timeline, switch: Switch) -> Result<(), Stop> {
    let (end, Switch { at, next }) = (timeline.status().last_record, switch);
    match end.cmp(&at) {
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(left(switch, end)),
        // The last record before a promotion ends where the next timeline begins.
        Ordering::Less => Err(Stop::Unfinished {
            found: next,
            at,
            end,
        }),
    }
}

fn left(switch: Switch, end: Lsn) -> Stop {
    let Switch { at, next } = switch;
    Stop::Left(Promotion {
        at,
        pg_timeline: next,
        end,
    })
}

/// Does the next step with what has arrived, and receives more meanwhile. The source hears of what is
/// fsynced.
async fn advance(
    timeline: &Timeline,
    intake: &mut Option<Intake>,
    arrivals: &mut Arrivals,
    arrived: Option<Batch>,
) -> Result<(), IngestError> {
    let end = arrived.as_ref().map(Batch::end);
    if let Some(batch) = &arrived {
        note_heard(timeline, batch.source.max(batch.end()));
        timeline.update(|status| status.received = batch.end());
    }
    let step = intake::step(timeline, intake, arrived);
    arrivals.during(step).await?;
    if let Some(end) = end {
        note_source(timeline, end);
        arrivals.send_status(positions(timeline, false)).await?;
    }
    Ok(())
}

/// Of the error that ended a stream and what became of the WAL that came before it, what matters
/// more: after a decoder's error nothing in memory is to be trusted.
fn worse(ended: IngestError, decoded: Result<(), IngestError>) -> IngestError {
    match decoded {
        Err(error) if error.remedy() != Remedy::Pause => error,
        Ok(()) | Err(_) => ended,
    }
}

fn note_disconnected(timeline: &Timeline) {
    timeline.update(|status| {
        if let Some(receiver) = &mut status.receiver {
            receiver.connected_unix_ms = None;
        }
    });
}

/// Something came from the source, which had WAL up to `end` then. Everybody hears of a status that has changed, so of a source that says
/// nothing new only now and then.
fn note_heard(timeline: &Timeline, end: Lsn) {
    let now = unix_ms(SystemTime::now());
    timeline.update(|status| {
        let news = |receiver: &&mut WalReceiver| {
            receiver.source_end < end || now.saturating_sub(receiver.heard_unix_ms) > HEARD_MS
        };
        if let Some(receiver) = status.receiver.as_mut().filter(news) {
            receiver.heard_unix_ms = now;
            receiver.source_end = receiver.source_end.max(end);
        }
    });
    note_source(timeline, end);
}

fn note_source(timeline: &Timeline, end: Lsn) {
    let here = timeline.status().flushed;
    timeline
        .shared
        .metrics
        .note_source(timeline.id(), end, here);
}

/// What there is to read.
enum Opened {
    /// From a server that is on this PostgreSQL timeline; and what it has of the one that we read.
    Stream(ReplicationStream, Tli, Extent),
    /// Nothing more of the PostgreSQL timeline that we read.
    AtEnd(Switch),
}

/// Connects, makes sure that it is the same cluster, and starts the stream.
async fn open(
    timeline: &Timeline,
    manifest: &TimelineManifest,
    from: Lsn,
) -> Result<Opened, IngestError> {
    // By this name the source's synchronous_standby_names may know us.
    let (conninfo, source) = (&timeline.assignment.source, &manifest.source);
    timeline.forget_later();
    let connected = connect_to(conninfo, timeline.slot.as_str(), source, PATIENCE).await;
    let (mut connection, identity) = connected?;
    if identity.system_id != source.system_identifier {
        let (found, expected) = (identity.system_id.get(), source.system_identifier.get());
        return Err(Stop::OtherCluster { found, expected }.into());
    }
    let switch = end_of(timeline, &mut connection, identity.timeline, manifest).await?;
    if let Some(switch) = switch
        && switch.at <= from
    {
        // What we have behind it, if anything, is the beginning of a record that the server never had.
        connection.close().await;
        return Ok(Opened::AtEnd(switch));
    }
    let end = timeline.status().last_record;
    if identity.timeline == source.pg_timeline {
        set_back::expect_whole(timeline, (end, identity.xlogpos)).await?;
    }
    // Without the slot: see the keeper.
    let stream = connection.start_physical_replication(None, from, source.pg_timeline);
    // What an archive has behind that is of another history.
    let extent = Extent {
        up_to: switch.map_or(identity.xlogpos, |switch| switch.at),
        next: switch.map(|switch| switch.next),
    };
    stream
        .await
        .map(|stream| Opened::Stream(stream, identity.timeline, extent))
        .map_err(|error| wal_gone_or(timeline, from, error))
}

/// Where the PostgreSQL timeline that we read ends, if the server is on another.
async fn end_of(
    timeline: &Timeline,
    connection: &mut Connection,
    found: Tli,
    manifest: &TimelineManifest,
) -> Result<Option<Switch>, IngestError> {
    let expected = manifest.source.pg_timeline;
    let Some(history) = expect_history(connection, found, manifest).await? else {
        return Ok(None);
    };
    let end = timeline.status().last_record;
    match succession(&history, (expected, end), found) {
        Succession::Follows(switch) => {
            slotless::make_early(timeline, connection).await;
            tracing::info!(timeline = %timeline.id(), from = expected, to = switch.next, at = %switch.at, "the source was promoted");
            Ok(Some(switch))
        }
        Succession::Leaves(switch) => {
            slotless::make_early(timeline, connection).await;
            Err(left(switch, end).into())
        }
        Succession::Foreign => Err(Stop::OtherTimeline { found, expected }.into()),
    }
}

/// The history of a server that has what the manifest knows of the PostgreSQL timelines before; none if it is on the newest
/// of those.
pub(super) async fn expect_history(
    connection: &mut Connection,
    found: Tli,
    manifest: &TimelineManifest,
) -> Result<Option<TimelineHistory>, IngestError> {
    let expected = manifest.source.pg_timeline;
    if found < expected {
        // The primary of before a promotion that was followed: the right one may be there again any time.
        return Err(IngestError::Switched { found, expected });
    }
    let begun = &manifest.pg_timeline_history;
    if found == expected && begun.len() < 2 {
        return Ok(None);
    }
    let history = connection.timeline_history(found).await?;
    match is_of(&history, begun) {
        false => Err(Stop::OtherTimeline { found, expected }.into()),
        true => Ok((found != expected).then_some(history)),
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
///
/// `disk` is looked at as well if it was full before our own allowance was used up.
async fn pause(timeline: &Timeline, decoder: &Decoder, error: &IngestError, disk: Option<WalTrim>) {
    let mut reason = error.in_words();
    if disk.is_some() {
        reason.push_str(
            "; going on when there is room, which layers make as they reach the object store",
        );
    }
    timeline.shared.metrics.pauses.inc();
    tracing::error!(timeline = %timeline.id(), reason, "timeline paused; the connection is closed");
    timeline.update(|status| {
        status.state = TimelineState::Paused;
        status.reason = reason;
    });
    decoder.freeze();
    while decoder.room().is_err() || !has_room(timeline, disk.clone()).await {
        tokio::time::sleep(ROOM_INTERVAL).await;
    }
    tracing::info!(timeline = %timeline.id(), "timeline goes on");
}

async fn has_room(timeline: &Timeline, disk: Option<WalTrim>) -> bool {
    let Some(disk) = disk else { return true };
    let looked = timeline.spawn_blocking(move || disk.has_room());
    looked.await.unwrap_or(true)
}
