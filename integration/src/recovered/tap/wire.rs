//! What a PostgreSQL server says: a type byte, a length that counts itself, a body.

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// One message of a server.
#[derive(Debug)]
pub(super) struct Message {
    bytes: BytesMut,
}

const HEADER: usize = 5;
/// No message that a walsender makes is longer.
const LIMIT: usize = 16 << 20;

/// The next message, or `None` at the end.
pub(super) async fn read<R: AsyncRead + Unpin>(from: &mut R) -> Result<Option<Message>> {
    let mut header = [0; HEADER];
    // However it ends, and be it within a message: the one who waits for the rest sees it.
    if from.read_exact(&mut header).await.is_err() {
        return Ok(None);
    }
    let len = usize::try_from((&header[1..]).get_u32())?;
    ensure!((4..LIMIT).contains(&len), "a message of {len} bytes");
    let mut bytes = BytesMut::zeroed(1 + len);
    bytes[..HEADER].copy_from_slice(&header);
    if from.read_exact(&mut bytes[HEADER..]).await.is_err() {
        return Ok(None);
    }
    Ok(Some(Message { bytes }))
}

impl Message {
    /// As it was read, or as it was changed since.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn kind(&self) -> u8 {
        self.bytes[0]
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    pub(super) fn body_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER..]
    }

    /// A walsender copies out base backups only; WAL goes in a copy both ways.
    pub(super) fn begins_copy(&self) -> bool {
        self.kind() == b'H'
    }

    /// The first column of a row, which is text.
    pub(super) fn first_column(&self) -> Result<&str> {
        let short = "a short row";
        let mut body = self.body();
        let columns = body.try_get_u16().context(short)?;
        ensure!(columns > 0, "a row without columns");
        let len = usize::try_from(body.try_get_u32().context(short)?)?;
        Ok(str::from_utf8(body.get(..len).context(short)?)?)
    }
}
