//! The WAL stream: `START_REPLICATION … PHYSICAL` and the two-way copy that follows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use palimpsest_types::Lsn;
use postgres_protocol::message::{
    backend::Message,
    frontend::{self, CopyData},
};

use crate::{
    ClientError, Connection, SlotName, Tli, connection::unexpected, row::Row, transport::Incoming,
};

/// Microseconds since the beginning of 2000 (UTC), PostgreSQL's measure of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(i64);

/// What the server sends while it streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationEvent {
    /// WAL. Pieces follow each other without a gap; records may be cut anywhere.
    XLogData {
        /// Position of the first byte.
        start: Lsn,
        /// How far the server's WAL is flushed, at least the end of this piece.
        wal_end: Lsn,
        /// When the server sent it.
        sent_at: PgTimestamp,
        /// The bytes.
        data: Bytes,
    },
    /// A sign of life.
    KeepAlive {
        /// How far the server has sent its WAL.
        wal_end: Lsn,
        /// When the server sent it.
        sent_at: PgTimestamp,
        /// Whether the server wants a status soon, or else considers us dead.
        reply_requested: bool,
    },
    /// There is no more WAL on this timeline, because the server was promoted. Go on with the next
    /// one from [`ReplicationStream::into_connection`].
    EndOfTimeline {
        /// The timeline to go on with.
        next_timeline: Tli,
        /// The first position that is on it.
        switch_point: Lsn,
    },
}

/// What we tell the server. It recycles WAL before `flush`, so report there only what is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Everything before is received.
    pub write: Lsn,
    /// Everything before is durable and will never be asked for again.
    pub flush: Lsn,
    /// Everything before is applied.
    pub apply: Lsn,
    /// Whether the server should answer with a keep-alive at once.
    pub reply_requested: bool,
}

/// A WAL stream. One task owns it and both receives and sends:
///
/// ```no_run
/// # use palimpsest_postgres::{ClientError, ReplicationStream, StandbyStatus};
/// # async fn follow(mut stream: ReplicationStream, status: StandbyStatus) -> Result<(), ClientError> {
/// let mut interval = tokio::time::interval(std::time::Duration::from_secs(10));
/// loop {
///     tokio::select! {
///         // Cancel-safe: see `next`. So is `tick`.
///         event = stream.next() => match event? {
///             Some(event) => println!("{event:?}"),
///             None => return Ok(()),
///         },
///         _ = interval.tick() => stream.send_status(status).await?,
///     }
/// }
/// # }
/// ```
///
/// It is not split in halves: a status says how far this task has come, and a single owner needs no
/// lock to know that. The server ends a connection without any status for `wal_sender_timeout`
/// (60 s), and on shutdown waits until a status confirms everything sent.
#[derive(Debug)]
pub struct ReplicationStream {
    connection: Connection,
    state: State,
    position: Lsn,
}

#[derive(Debug)]
enum State {
    Streaming,
    /// The copy is over; the result that names the next timeline is being read.
    Ending(Option<(Tli, Lsn)>),
    Ended,
    Failed,
}

/// 2000-01-01 in Unix time.
const PG_EPOCH: u64 = 946_684_800;

impl Connection {
    /// Starts streaming WAL at `start`, and has `slot`, if given, follow our status.
    ///
    /// # Errors
    /// Kind `NotFound` if there is no such slot or its WAL is gone, `Conflict` if another
    /// connection uses the slot. The connection is given up then.
    pub async fn start_physical_replication(
        mut self,
        slot: Option<&SlotName>,
        start: Lsn,
        timeline: Tli,
    ) -> Result<ReplicationStream, ClientError> {
        let slot = slot
            .map(|slot| format!("SLOT \"{slot}\" "))
            .unwrap_or_default();
        self.send(&format!(
            "START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}"
        ))
        .await?;
        let state = match self.reply().await? {
            Incoming::CopyBoth => State::Streaming,
            // `start` is the very end of an old timeline: no stream, only the next one's name.
            Incoming::Other(Message::RowDescription(_)) => State::Ending(None),
            message => return Err(unexpected(&message, "the start of the WAL stream")),
        };
        Ok(ReplicationStream {
            connection: self,
            state,
            position: start,
        })
    }
}

impl ReplicationStream {
    /// Position of the next byte to come.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The next event, or `None` after the end of the timeline.
    ///
    /// Cancel-safe: what has been read of an unfinished message stays in the connection's buffer,
    /// what has to be sent stays queued there, and a finished message is turned into its event
    /// without another await.
    ///
    /// # Errors
    /// [`ClientError::ServerShutdown`] if the server went down in good order, otherwise what the
    /// server reported or how the connection broke. The stream is then at its end; reconnect and
    /// start again at [`ReplicationStream::position`].
    pub async fn next(&mut self) -> Result<Option<ReplicationEvent>, ClientError> {
        loop {
            match self.state {
                State::Ended => return Ok(None),
                State::Failed => return Err(ClientError::OutOfStep),
                State::Streaming | State::Ending(_) => {}
            }
            let event = match self.recv().await {
                Ok(message) => self.apply(message),
                Err(error) => Err(error),
            };
            match event {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
    }

    /// Tells the server how far we are. Cancel-safe: a status that was not sent completely goes out
    /// with the next call of this or of [`ReplicationStream::next`].
    ///
    /// # Errors
    /// If the connection broke; [`ReplicationStream::next`] then says what the server had to say.
    pub async fn send_status(&mut self, status: StandbyStatus) -> Result<(), ClientError> {
        if !matches!(self.state, State::Streaming) {
            // The server no longer reads copy data, and needs no status.
            return Ok(());
        }
        let message = encode_status(status, PgTimestamp::from(SystemTime::now()));
        let transport = self.connection.transport();
        transport.queue(|out| CopyData::new(message).map(|copy| copy.write(out)))?;
        transport.flush().await
    }

    /// The connection, ready for another command.
    ///
    /// # Errors
    /// If the timeline has not come to its end.
    pub fn into_connection(self) -> Result<Connection, ClientError> {
        match self.state {
            State::Ended => Ok(self.connection),
            _ => Err(ClientError::OutOfStep),
        }
    }

    /// Ends the stream in good order; WAL that is still on its way is thrown away. When this
    /// returns the server has taken in every status sent before, and has let go of the slot.
    ///
    /// # Errors
    /// If the connection broke or the server refused.
    pub async fn finish(mut self) -> Result<Connection, ClientError> {
        if matches!(self.state, State::Streaming) {
            self.connection.transport().queue(|out| {
                frontend::copy_done(out);
                Ok(())
            })?;
            loop {
                match self.recv().await? {
                    Incoming::CopyData(_) => {}
                    Incoming::Other(Message::CopyDone) => break,
                    message => return Err(unexpected(&message, "the end of the WAL stream")),
                }
            }
            self.state = State::Ending(None);
        }
        // After our own end there is no next timeline; after the server's, nobody asked for it.
        while self.next().await?.is_some() {}
        self.into_connection()
    }

    /// Leaves the stream and closes the connection. A slot stays as it is.
    pub async fn close(self) {
        self.connection.close().await;
    }

    async fn recv(&mut self) -> Result<Incoming, ClientError> {
        match self.connection.transport().flush().await {
            // It may have said why before it hung up.
            Ok(()) | Err(ClientError::Closed) => self.connection.recv().await,
            Err(error) => Err(error),
        }
    }

    fn apply(&mut self, message: Incoming) -> Result<Option<ReplicationEvent>, ClientError> {
        match (&mut self.state, message) {
            (State::Streaming, Incoming::CopyData(data)) => self.copy_data(data).map(Some),
            (State::Streaming, Incoming::Other(Message::CopyDone)) => {
                self.state = State::Ending(None);
                // Sent by the next call: the server waits for it before it goes on.
                self.connection.transport().queue(|out| {
                    frontend::copy_done(out);
                    Ok(())
                })?;
                Ok(None)
            }
            // The last words of a server that shuts down in good order.
            (State::Streaming, Incoming::Other(Message::CommandComplete(_))) => {
                Err(ClientError::ServerShutdown)
            }
            (State::Ending(next), Incoming::Other(Message::DataRow(body))) => {
                let row = Row::parse(&body)?;
                let timeline = row.value(0, "the next timeline")?;
                *next = Some((timeline, row.value(1, "the switch point")?));
                Ok(None)
            }
            (
                State::Ending(_),
                Incoming::Other(Message::RowDescription(_) | Message::CommandComplete(_)),
            ) => Ok(None),
            (State::Ending(next), Incoming::Other(Message::ReadyForQuery(_))) => {
                let next = next.take();
                self.state = State::Ended;
                Ok(next.map(
                    |(next_timeline, switch_point)| ReplicationEvent::EndOfTimeline {
                        next_timeline,
                        switch_point,
                    },
                ))
            }
            (_, message) => Err(unexpected(&message, "WAL")),
        }
    }

    fn copy_data(&mut self, data: Bytes) -> Result<ReplicationEvent, ClientError> {
        let event = decode(data)?;
        if let ReplicationEvent::XLogData { start, data, .. } = &event {
            let end = u64::try_from(data.len())
                .ok()
                .and_then(|len| start.checked_add(len));
            // A gap would be a hole in the history, found much later or never.
            let (true, Some(end)) = (*start == self.position, end) else {
                return Err(ClientError::protocol(format!(
                    "WAL at {start} where {} was expected",
                    self.position
                )));
            };
            self.position = end;
        }
        Ok(event)
    }
}

impl PgTimestamp {
    /// A time from its number of microseconds.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Its number of microseconds.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The same as a system time, or `None` if it is too far away for one.
    pub fn to_system_time(self) -> Option<SystemTime> {
        let epoch = UNIX_EPOCH + Duration::from_secs(PG_EPOCH);
        let distance = Duration::from_micros(self.0.unsigned_abs());
        if self.0 < 0 {
            epoch.checked_sub(distance)
        } else {
            epoch.checked_add(distance)
        }
    }
}

impl From<SystemTime> for PgTimestamp {
    /// Saturates where a time is too far away.
    fn from(time: SystemTime) -> Self {
        let epoch = UNIX_EPOCH + Duration::from_secs(PG_EPOCH);
        let micros = |distance: Duration| i64::try_from(distance.as_micros()).unwrap_or(i64::MAX);
        Self(match time.duration_since(epoch) {
            Ok(after) => micros(after),
            Err(before) => -micros(before.duration()),
        })
    }
}

fn decode(mut data: Bytes) -> Result<ReplicationEvent, ClientError> {
    let truncated = |_: TryGetError| ClientError::protocol("a truncated message in the WAL stream");
    match data.try_get_u8().map_err(truncated)? {
        b'w' => Ok(ReplicationEvent::XLogData {
            start: Lsn::new(data.try_get_u64().map_err(truncated)?),
            wal_end: Lsn::new(data.try_get_u64().map_err(truncated)?),
            sent_at: PgTimestamp(data.try_get_i64().map_err(truncated)?),
            data,
        }),
        b'k' => Ok(ReplicationEvent::KeepAlive {
            wal_end: Lsn::new(data.try_get_u64().map_err(truncated)?),
            sent_at: PgTimestamp(data.try_get_i64().map_err(truncated)?),
            reply_requested: data.try_get_u8().map_err(truncated)? != 0,
        }),
        other => Err(ClientError::protocol(format!(
            "unknown message '{}' in the WAL stream",
            char::from(other).escape_default()
        ))),
    }
}

fn encode_status(status: StandbyStatus, now: PgTimestamp) -> BytesMut {
    let mut message = BytesMut::with_capacity(34);
    message.put_u8(b'r');
    message.put_u64(status.write.get());
    message.put_u64(status.flush.get());
    message.put_u64(status.apply.get());
    message.put_i64(now.0);
    message.put_u8(u8::from(status.reply_requested));
    message
}

#[cfg(test)]
mod tests;
