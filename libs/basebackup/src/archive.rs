//! The directory as a tar archive (ustar), as a stream of chunks.

use bytes::{BufMut as _, Bytes, BytesMut};
use palimpsest_codec::crc32c_append;
use tar::{EntryType, Header};
use tokio::sync::mpsc;

use crate::error::BackupError;

/// Writes an archive.
#[derive(Debug)]
pub(crate) struct Archive {
    out: mpsc::Sender<Bytes>,
    buffer: BytesMut,
    /// Of all files, in seconds of Unix time.
    time: u64,
    file: Option<File>,
}

/// The file that is being written.
#[derive(Debug)]
struct File {
    path: String,
    len: u64,
    written: u64,
    crc: u32,
}

const BLOCK: u64 = 512;
/// Small files are put together until there is so much.
const CHUNK: usize = 256 << 10;

impl Archive {
    pub(crate) fn new(out: mpsc::Sender<Bytes>, time: i64) -> Self {
        Self {
            out,
            buffer: BytesMut::new(),
            time: u64::try_from(time).unwrap_or_default(),
            file: None,
        }
    }

    pub(crate) async fn directory(&mut self, path: &str) -> Result<(), BackupError> {
        let path = format!("{path}/");
        self.header(&path, 0, EntryType::Directory, 0o700)?;
        self.flush_beyond(CHUNK).await
    }

    /// Begins a file; as many bytes must follow.
    pub(crate) async fn begin(&mut self, path: String, len: u64) -> Result<(), BackupError> {
        self.header(&path, len, EntryType::Regular, 0o600)?;
        self.file = Some(File {
            path,
            len,
            written: 0,
            crc: 0,
        });
        self.flush_beyond(CHUNK).await
    }

    pub(crate) async fn data(&mut self, bytes: Bytes) -> Result<(), BackupError> {
        if let Some(file) = &mut self.file {
            file.written = file.written.saturating_add(bytes.len() as u64);
            file.crc = crc32c_append(file.crc, &bytes);
        }
        if bytes.len() < CHUNK {
            self.buffer.put_slice(&bytes);
            return self.flush_beyond(CHUNK).await;
        }
        self.flush_beyond(0).await?;
        self.send(bytes).await
    }

    /// Ends the file that was begun, and gives its CRC-32C.
    pub(crate) async fn end(&mut self) -> Result<u32, BackupError> {
        let Some(file) = self.file.take() else {
            return Ok(0);
        };
        if file.written != file.len {
            return Err(BackupError::WrongLength {
                path: file.path,
                expected: file.len,
                found: file.written,
            });
        }
        let padding = file.len.next_multiple_of(BLOCK) - file.len;
        self.buffer
            .put_bytes(0, usize::try_from(padding).unwrap_or_default());
        self.flush_beyond(CHUNK).await?;
        Ok(file.crc)
    }

    /// Ends the archive.
    pub(crate) async fn finish(mut self) -> Result<(), BackupError> {
        self.buffer
            .put_bytes(0, usize::try_from(2 * BLOCK).unwrap_or_default());
        self.flush_beyond(0).await
    }

    fn header(
        &mut self,
        path: &str,
        len: u64,
        entry: EntryType,
        mode: u32,
    ) -> Result<(), BackupError> {
        let mut header = Header::new_ustar();
        let named = header.set_path(path);
        named.map_err(|_| BackupError::LongPath(path.to_owned()))?;
        header.set_entry_type(entry);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        header.set_size(len);
        header.set_cksum();
        self.buffer.put_slice(header.as_bytes());
        Ok(())
    }

    async fn flush_beyond(&mut self, len: usize) -> Result<(), BackupError> {
        if self.buffer.len() <= len {
            return Ok(());
        }
        let chunk = self.buffer.split().freeze();
        self.send(chunk).await
    }

    async fn send(&mut self, chunk: Bytes) -> Result<(), BackupError> {
        let sent = self.out.send(chunk).await;
        sent.map_err(|_| BackupError::Abandoned)
    }
}
