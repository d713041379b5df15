use std::io;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::{
    backend::{self, Message},
    frontend,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{ClientError, ServerError};

/// A byte stream to a server: TCP, a unix socket, or TLS over TCP.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Largest message accepted that carries copy data. The server sends WAL in pieces of 128 KiB and
/// base backups in pieces of 32 KiB.
const MAX_COPY_DATA: usize = 16 << 20;
/// Largest message accepted of any other kind; a row of a timeline history is the largest real one.
const MAX_MESSAGE: usize = 1 << 20;
/// How much is read at once.
const READ_SIZE: usize = 64 << 10;
/// Tag byte and length.
const HEADER: usize = 5;
/// `CopyBothResponse`, which only replication connections see.
const COPY_BOTH_RESPONSE: u8 = b'W';

/// A message of the server that commands look at.
pub(crate) enum Incoming {
    /// The WAL stream begins.
    CopyBoth,
    /// A piece of a copy stream.
    CopyData(Bytes),
    /// Anything else but errors and notices.
    Other(Message),
}

/// Message framing over a socket, with one buffer each way.
///
/// Both directions keep what they have done in `self`, never in a future: dropping [`recv`] or
/// [`flush`] half-way loses nothing, and the next call goes on.
///
/// [`recv`]: Transport::recv
/// [`flush`]: Transport::flush
pub(crate) struct Transport {
    socket: Box<dyn Socket>,
    inbound: BytesMut,
    outbound: BytesMut,
    /// Whether something queued may not have reached the socket. Not the same as `outbound` having
    /// bytes: TLS has a buffer of its own.
    unflushed: bool,
}

impl Transport {
    pub(crate) fn new(socket: impl Socket + 'static) -> Self {
        Self {
            socket: Box::new(socket),
            inbound: BytesMut::new(),
            outbound: BytesMut::new(),
            unflushed: false,
        }
    }

    /// Adds a message to what the next [`Transport::flush`] sends.
    pub(crate) fn queue(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let before = self.outbound.len();
        self.unflushed = true;
        encode(&mut self.outbound).map_err(|source| {
            // The encoder may have written a part; half a message would put the server out of step.
            self.outbound.truncate(before);
            ClientError::Malformed(source)
        })
    }

    /// Sends what is queued. Cancel-safe: what is not sent stays queued.
    pub(crate) async fn flush(&mut self) -> Result<(), ClientError> {
        if !self.unflushed {
            return Ok(());
        }
        while self.outbound.has_remaining() {
            if self
                .socket
                .write_buf(&mut self.outbound)
                .await
                .map_err(broken)?
                == 0
            {
                return Err(ClientError::Closed);
            }
        }
        self.socket.flush().await.map_err(broken)?;
        self.unflushed = false;
        Ok(())
    }

    /// The next message, notices logged and left out, an `ErrorResponse` turned into `Err`.
    /// Cancel-safe: bytes of an unfinished message stay in the buffer.
    pub(crate) async fn recv(&mut self) -> Result<Incoming, ClientError> {
        loop {
            match parse(&mut self.inbound)? {
                Some(Incoming::Other(Message::ErrorResponse(body))) => {
                    return Err(ServerError::from_fields(body.fields()).into());
                }
                Some(Incoming::Other(Message::NoticeResponse(body))) => {
                    log_notice(&ServerError::from_fields(body.fields()));
                }
                // Asynchronous and of no use to a replication client.
                Some(Incoming::Other(Message::NotificationResponse(_))) => {}
                Some(message) => return Ok(message),
                None => self.fill().await?,
            }
        }
    }

    /// Tells the server that we are leaving; failure does not matter any more.
    pub(crate) async fn terminate(mut self) {
        frontend::terminate(&mut self.outbound);
        self.unflushed = true;
        if self.flush().await.is_ok() {
            let _ = self.socket.shutdown().await;
        }
    }

    async fn fill(&mut self) -> Result<(), ClientError> {
        if self.inbound.capacity() - self.inbound.len() < READ_SIZE {
            self.inbound.reserve(READ_SIZE);
        }
        match self
            .socket
            .read_buf(&mut self.inbound)
            .await
            .map_err(broken)?
        {
            0 => Err(ClientError::Closed),
            _ => Ok(()),
        }
    }
}

/// A peer that goes away does so in several ways; they are one error to the caller.
fn broken(error: io::Error) -> ClientError {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => ClientError::Closed,
        _ => ClientError::Io(error),
    }
}

/// Takes one whole message off the front of `buffer`. The length is judged before anything waits
/// or allocates for it.
fn parse(buffer: &mut BytesMut) -> Result<Option<Incoming>, ClientError> {
    let Some(header) = backend::Header::parse(buffer).map_err(ClientError::Malformed)? else {
        return Ok(None);
    };
    let tag = header.tag();
    let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
    let limit = if tag == backend::COPY_DATA_TAG {
        MAX_COPY_DATA
    } else {
        MAX_MESSAGE
    };
    if length > limit {
        let tag = char::from(tag).escape_default();
        return Err(ClientError::protocol(format!(
            "message '{tag}' claims {length} bytes; the limit is {limit}"
        )));
    }
    if buffer.len() < length + 1 {
        return Ok(None);
    }
    if tag == backend::COPY_DATA_TAG || tag == COPY_BOTH_RESPONSE {
        let mut message = buffer.split_to(length + 1).freeze();
        message.advance(HEADER);
        let copy_both = tag == COPY_BOTH_RESPONSE;
        return Ok(Some(if copy_both {
            Incoming::CopyBoth
        } else {
            Incoming::CopyData(message)
        }));
    }
    Ok(Message::parse(buffer)
        .map_err(ClientError::Malformed)?
        .map(Incoming::Other))
}

fn log_notice(notice: &ServerError) {
    let (code, message) = (notice.code(), notice.message());
    if notice.severity() == "WARNING" {
        tracing::warn!(code, message, "warning of the server");
    } else {
        tracing::debug!(code, message, "notice of the server");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_huge_claim_is_refused_before_its_bytes_arrive() {
        for (tag, claim) in [
            (b'D', MAX_MESSAGE + 1),
            (b'd', MAX_COPY_DATA + 1),
            (b'W', 1 << 30),
        ] {
            let mut buffer = BytesMut::from(&[tag][..]);
            buffer.extend_from_slice(&u32::try_from(claim).unwrap().to_be_bytes());
            let Err(error) = parse(&mut buffer) else {
                panic!("accepted")
            };
            assert!(error.to_string().contains("claims"), "{error}");
            assert!(buffer.capacity() < 1024);
        }
    }

    #[tokio::test]
    async fn a_message_cut_anywhere_waits_for_its_rest() {
        let (client, mut server) = tokio::io::duplex(4096);
        let mut transport = Transport::new(client);
        for byte in b"d\0\0\0\x09hello" {
            server.write_all(&[*byte]).await.unwrap();
            // Dropping the future after each byte must lose none of them.
            let poll = tokio::time::timeout(std::time::Duration::from_millis(1), transport.recv());
            match poll.await {
                Ok(Ok(Incoming::CopyData(data))) => assert_eq!(&data[..], b"hello"),
                Ok(_) => panic!("not the message that was sent"),
                Err(_) => assert_ne!(*byte, b'o'),
            }
        }
        drop(server);
        assert!(matches!(transport.recv().await, Err(ClientError::Closed)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_an_error(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = parse(&mut buffer) {}
        }
    }
}
