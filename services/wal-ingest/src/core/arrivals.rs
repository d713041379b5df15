//! WAL as it arrives: what came together is written together, and the next is received meanwhile.

use std::pin::pin;

use bytes::Bytes;
use futures::FutureExt as _;
use palimpsest_postgres::{ClientError, ReplicationEvent, ReplicationStream, StandbyStatus};
use palimpsest_types::Lsn;

/// A stream whose WAL is gathered into batches.
#[derive(Debug)]
pub(super) struct Arrivals {
    stream: ReplicationStream,
    batch: Option<Batch>,
    /// Where the source was, and whether it wants to hear from us, as it said last.
    keep_alive: Option<(Lsn, bool)>,
    /// What comes after the batch and is no WAL; nothing is received after it.
    last: Option<Result<Option<ReplicationEvent>, ClientError>>,
}

/// What has arrived.
#[derive(Debug)]
pub(super) enum Arrival {
    /// WAL to be written.
    Wal(Batch),
    /// The source is this far.
    KeepAlive { source: Lsn, reply_requested: bool },
    /// Something that ends the stream.
    Last(Option<ReplicationEvent>),
}

/// WAL that came together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) start: Lsn,
    pub(super) chunks: Vec<Bytes>,
    pub(super) len: usize,
    /// Where the source was when it sent the newest of it.
    pub(super) source: Lsn,
}

/// WAL that is written and fsynced together, at most, but for one message. As much again may be
/// received meanwhile, and as much decoded: three times this is what a stream takes beside its changes.
pub(super) const MAX_BATCH: usize = 8 << 20;
/// What a piece takes beside its bytes, about: a source may send them one by one.
const PIECE: usize = 64;

impl Batch {
    /// Where the WAL after it begins.
    pub(super) fn end(&self) -> Lsn {
        Lsn::new(self.start.get() + self.len as u64)
    }

    /// Memory that it takes, about.
    fn size(&self) -> usize {
        self.len + self.chunks.len() * PIECE
    }
}

impl Arrivals {
    pub(super) fn new(stream: ReplicationStream) -> Self {
        Self {
            stream,
            batch: None,
            keep_alive: None,
            last: None,
        }
    }

    /// Everything before has arrived, written or not.
    pub(super) fn position(&self) -> Lsn {
        self.stream.position()
    }

    /// Tells the source how far we are. Cancel-safe: see [`ReplicationStream::send_status`].
    pub(super) async fn send_status(&mut self, status: StandbyStatus) -> Result<(), ClientError> {
        self.stream.send_status(status).await
    }

    /// What arrives next, with all that has arrived already. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Arrival, ClientError> {
        loop {
            if let Some(batch) = self.arrived() {
                return Ok(Arrival::Wal(batch));
            }
            if let Some((source, reply_requested)) = self.keep_alive.take() {
                return Ok(Arrival::KeepAlive {
                    source,
                    reply_requested,
                });
            }
            if let Some(last) = self.last.take() {
                return last.map(Arrival::Last);
            }
            let event = self.stream.next().await;
            self.take(event);
        }
    }

    /// The WAL that has arrived already: all of it, so that one fsync serves it.
    pub(super) fn arrived(&mut self) -> Option<Batch> {
        while self.takes_more() {
            match self.stream.next().now_or_never() {
                Some(event) => self.take(event),
                None => break,
            }
        }
        self.batch.take()
    }

    /// Does something, and receives meanwhile: the source need not wait for our disk.
    pub(super) async fn during<T>(&mut self, doing: impl Future<Output = T>) -> T {
        let mut doing = pin!(doing);
        loop {
            // Cancel-safe: `doing` stays, and see `ReplicationStream::next`.
            tokio::select! {
                biased;
                done = &mut doing => return done,
                event = self.stream.next(), if self.takes_more() => self.take(event),
            }
        }
    }

    fn takes_more(&self) -> bool {
        let gathered = self.batch.as_ref().map_or(0, Batch::size);
        self.last.is_none() && gathered < MAX_BATCH
    }

    fn take(&mut self, event: Result<Option<ReplicationEvent>, ClientError>) {
        match event {
            Ok(Some(ReplicationEvent::XLogData {
                start,
                wal_end,
                data,
                ..
            })) => {
                // What follows what: the stream has made sure of it.
                let batch = self.batch.get_or_insert(Batch {
                    start,
                    chunks: Vec::new(),
                    len: 0,
                    source: wal_end,
                });
                batch.len += data.len();
                batch.source = wal_end;
                batch.chunks.push(data);
            }
            Ok(Some(ReplicationEvent::KeepAlive {
                wal_end,
                reply_requested,
                ..
            })) => {
                let asked_before = self.keep_alive.is_some_and(|(_, asked)| asked);
                self.keep_alive = Some((wal_end, asked_before || reply_requested));
            }
            last => self.last = Some(last),
        }
    }
}
