//! What a server says over the replication protocol.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use palimpsest_postgres::{
    BackupOptions, Connection, ReplicationEvent, SlotName, fuzz::connection_over,
};
use palimpsest_types::Lsn;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A server that has all its words ready, says them in pieces, and hears nothing.
struct Monologue {
    words: Bytes,
    piece: usize,
}

/// `ReadyForQuery`, with which every login ends.
const READY: &[u8] = b"Z\0\0\0\x05I";
/// `CopyBothResponse`, with which every stream of WAL begins.
const COPY_BOTH: &[u8] = b"W\0\0\0\x07\0\0\0";
/// Where streams begin.
const START: Lsn = Lsn::new(0x0100_0000);

/// A base backup: the first byte says how long the pieces are.
pub fn base_backup(data: &[u8]) {
    converse(&[], data, async |connection| {
        let options = BackupOptions::new("fuzz");
        let mut backup = connection.base_backup(&options).await?;
        while backup.next().await?.is_some() {}
        backup.into_connection()
    });
}

/// A stream of WAL, likewise.
pub fn replication(data: &[u8]) {
    converse(COPY_BOTH, data, async |connection| {
        let mut stream = connection
            .start_physical_replication(None, START, 1)
            .await?;
        let mut position = START;
        while let Some(event) = stream.next().await? {
            if let ReplicationEvent::XLogData { start, data, .. } = event {
                assert_eq!(start, position, "a gap");
                position = Lsn::new(position.get() + data.len() as u64);
            }
        }
        stream.into_connection()
    });
}

/// Answers to single commands, likewise.
pub fn commands(data: &[u8]) {
    converse(&[], data, async |mut connection| {
        let slot = "palimpsest"
            .parse::<SlotName>()
            .expect("it is a slot's name");
        let _ = connection.identify_system().await;
        let _ = connection.show("wal_segment_size").await;
        let _ = connection.read_replication_slot(&slot).await;
        let _ = connection.timeline_history(2).await;
        Ok(connection)
    });
}

fn converse<F>(first: &[u8], data: &[u8], client: impl FnOnce(Connection) -> F)
where
    F: Future<Output = Result<Connection, palimpsest_postgres::ClientError>>,
{
    let Some((piece, words)) = data.split_first() else {
        return;
    };
    let server = Monologue {
        words: [READY, first, words].concat().into(),
        piece: usize::from(*piece).max(1),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without threads and I/O needs nothing");
    let outcome = runtime.block_on(async {
        match connection_over(server).await {
            Ok(connection) => client(connection).await.map(drop),
            Err(error) => Err(error),
        }
    });
    if let Err(error) = outcome {
        let _ = (error.kind(), error.to_string());
    }
}

impl AsyncRead for Monologue {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let len = self.piece.min(self.words.len()).min(buffer.remaining());
        buffer.put_slice(&self.words.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Monologue {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
