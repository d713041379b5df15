//! `BASE_BACKUP` as PostgreSQL 15 speaks it: two small results, one copy stream, one small result.

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::{Buf, Bytes};
use palimpsest_types::{ByteCount, Lsn, Oid};
use postgres_protocol::message::backend::Message;
use tokio::time::{Instant, timeout_at};

use crate::{
    ClientError, Connection, Tli, connection::unexpected, quote, row::Row, transport::Incoming,
};

/// How a base backup is taken. It never contains WAL, nor a manifest: the WAL is streamed beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupOptions {
    /// What `backup_label` and the server's progress view call it.
    pub label: String,
    /// How hard the server works to get to the start.
    pub checkpoint: Checkpoint,
    /// Whether to include `tablespace_map`, which restoring with symbolic links needs.
    pub tablespace_map: bool,
    /// Upper limit of the transfer in KiB/s, 32 to 1048576; `None` is as fast as possible.
    pub max_rate: Option<u32>,
}

/// The checkpoint that a backup begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once, at the price of a burst of writes.
    Fast,
    /// Spread out as configured; the backup begins minutes later.
    Spread,
}

/// What comes out of a base backup, in order: `Start`, then for each tablespace `ArchiveStart` and
/// its `Data`, then `End`. `Progress` may come anywhere between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// The checkpoint is done and the files follow.
    Start(BackupStart),
    /// The tar archive of one tablespace follows; the one before, if any, is complete.
    ArchiveStart {
        /// The server's name of it, such as `base.tar`.
        name: String,
        /// The tablespace; `None` is the data directory itself.
        tablespace_oid: Option<Oid>,
    },
    /// A piece of the current archive.
    Data(Bytes),
    /// How much the server has read so far.
    Progress(ByteCount),
    /// The backup is complete, and consistent once WAL up to this position is applied. Not sent if
    /// the server found anything wrong up to its very end.
    End {
        /// The position.
        lsn: Lsn,
        /// Its timeline.
        timeline: Tli,
    },
}

/// Where a backup begins and what it consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStart {
    /// Where replaying WAL over the files must begin.
    pub lsn: Lsn,
    /// The timeline of that position.
    pub timeline: Tli,
    /// Tablespaces besides `pg_default` and `pg_global`.
    pub tablespaces: Vec<Tablespace>,
    /// The server's estimate of everything to come.
    pub total: Option<ByteCount>,
}

/// A tablespace with a directory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, by which `pg_tblspc` links to it.
    pub oid: Oid,
    /// Its directory at the server.
    pub location: String,
    /// The server's estimate of its size.
    pub size: Option<ByteCount>,
}

/// A base backup being received. Pull events with [`BaseBackup::next`] until `None`.
#[derive(Debug)]
pub struct BaseBackup {
    connection: Connection,
    state: State,
    /// Since when the server is waited for, over calls that were dropped; `None` if it is not.
    waiting_since: Option<Instant>,
    /// Whether the server has said anything yet.
    heard: bool,
}

#[derive(Debug)]
enum State {
    /// In the result that says where the backup begins.
    Position(Option<(Lsn, Tli)>),
    /// In the list of tablespaces.
    Tablespaces(BackupStart),
    /// In the copy stream, before the first archive.
    NoArchive,
    /// In the copy stream, in an archive.
    Archive,
    /// After the copy stream, in the result that says where the backup ends.
    EndPosition(Option<(Lsn, Tli)>),
    Done,
    Failed,
}

/// How long the server may be silent before its first word: the checkpoint that a backup begins with
/// takes long if there is much to write, and then the server adds up the sizes of all files.
const START_LIMIT: Duration = Duration::from_mins(30);
/// How long it may be silent later, when files follow each other.
const SILENCE_LIMIT: Duration = Duration::from_mins(5);
/// More tablespaces than a cluster has that anybody can operate.
const MAX_TABLESPACES: usize = 4096;

impl Connection {
    /// Starts a base backup. The connection comes back from [`BaseBackup::into_connection`].
    ///
    /// # Errors
    /// If an option cannot be sent; what the server thinks of it comes with the first event.
    pub async fn base_backup(mut self, options: &BackupOptions) -> Result<BaseBackup, ClientError> {
        self.send(&command(options)?).await?;
        Ok(BaseBackup {
            connection: self,
            state: State::Position(None),
            waiting_since: None,
            heard: false,
        })
    }
}

impl BackupOptions {
    /// A backup called `label`, begun at once and not slowed down.
    pub fn new(label: impl Into<String>) -> Self {
        let checkpoint = Checkpoint::Fast;
        Self {
            label: label.into(),
            checkpoint,
            tablespace_map: false,
            max_rate: None,
        }
    }
}

impl BaseBackup {
    /// The next event, or `None` after `End`.
    ///
    /// Cancel-safe: an unfinished message stays in the connection's buffer, and a finished one is
    /// turned into its event without another await.
    ///
    /// # Errors
    /// If the server fails, reports an error, or is silent for too long; the backup is then of no
    /// use.
    pub async fn next(&mut self) -> Result<Option<BackupEvent>, ClientError> {
        loop {
            match self.state {
                State::Done => return Ok(None),
                State::Failed => return Err(ClientError::OutOfStep),
                _ => {}
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

    /// The connection, ready for another command.
    ///
    /// # Errors
    /// If the backup has not come to its end.
    pub fn into_connection(self) -> Result<Connection, ClientError> {
        match self.state {
            State::Done => Ok(self.connection),
            _ => Err(ClientError::OutOfStep),
        }
    }

    /// The next message. What the server sent while nobody waited is not silence.
    async fn recv(&mut self) -> Result<Incoming, ClientError> {
        let (limit, during) = match self.heard {
            false => (START_LIMIT, "which should begin a base backup"),
            true => (SILENCE_LIMIT, "which should go on with a base backup"),
        };
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let silent = |_| ClientError::Silent {
            during,
            after: limit,
        };
        let message = timeout_at(since + limit, self.connection.recv()).await;
        self.waiting_since = None;
        let message = message.map_err(silent)??;
        self.heard = true;
        Ok(message)
    }

    fn apply(&mut self, message: Incoming) -> Result<Option<BackupEvent>, ClientError> {
        match (&mut self.state, message) {
            (_, Incoming::Other(Message::RowDescription(_))) => {}
            (State::Position(found), Incoming::Other(Message::DataRow(body))) => {
                *found = Some(position(&Row::parse(&body)?)?);
            }
            (State::Position(found), Incoming::Other(Message::CommandComplete(_))) => {
                let missing = || ClientError::protocol("a base backup without a start position");
                let (lsn, timeline) = found.take().ok_or_else(missing)?;
                let tablespaces = Vec::new();
                self.state = State::Tablespaces(BackupStart {
                    lsn,
                    timeline,
                    tablespaces,
                    total: None,
                });
            }
            (State::Tablespaces(start), Incoming::Other(Message::DataRow(body))) => {
                add_tablespace(start, &Row::parse(&body)?)?;
            }
            (State::Tablespaces(start), Incoming::Other(Message::CopyOutResponse(_))) => {
                let event = BackupEvent::Start(start.clone());
                self.state = State::NoArchive;
                return Ok(Some(event));
            }
            (
                State::Tablespaces(_) | State::EndPosition(_),
                Incoming::Other(Message::CommandComplete(_)),
            ) => {}
            (State::NoArchive | State::Archive, Incoming::CopyData(data)) => {
                return self.copy_data(data).map(Some);
            }
            (State::Archive, Incoming::Other(Message::CopyDone)) => {
                self.state = State::EndPosition(None);
            }
            (State::EndPosition(found), Incoming::Other(Message::DataRow(body))) => {
                *found = Some(position(&Row::parse(&body)?)?);
            }
            (
                State::EndPosition(Some((lsn, timeline))),
                Incoming::Other(Message::ReadyForQuery(_)),
            ) => {
                // Only now is it certain that no error, such as a bad page checksum, ends it.
                let event = BackupEvent::End {
                    lsn: *lsn,
                    timeline: *timeline,
                };
                self.state = State::Done;
                return Ok(Some(event));
            }
            (_, message) => return Err(unexpected(&message, "the next part of a base backup")),
        }
        Ok(None)
    }

    /// A message of the copy stream: a type byte and its content.
    fn copy_data(&mut self, mut data: Bytes) -> Result<BackupEvent, ClientError> {
        let kind = data
            .try_get_u8()
            .map_err(|_| ClientError::protocol("an empty message"))?;
        match (kind, &self.state) {
            (b'd', State::Archive) => Ok(BackupEvent::Data(data)),
            (b'n', _) => {
                self.state = State::Archive;
                archive_start(&data)
            }
            (b'p', _) => {
                let bytes = data.try_get_u64();
                let bytes = bytes.map_err(|_| ClientError::protocol("a short progress report"))?;
                Ok(BackupEvent::Progress(ByteCount::new(bytes)))
            }
            (kind, _) => Err(ClientError::protocol(format!(
                "message '{}' does not belong at this place of a base backup",
                char::from(kind).escape_default()
            ))),
        }
    }
}

fn command(options: &BackupOptions) -> Result<String, ClientError> {
    let label = quote::literal("label", &options.label)?;
    let checkpoint = match options.checkpoint {
        Checkpoint::Fast => "fast",
        Checkpoint::Spread => "spread",
    };
    // Without WAIT false a server with archiving on would wait for its archive at the end.
    let mut command = format!(
        "BASE_BACKUP (LABEL {label}, PROGRESS, CHECKPOINT '{checkpoint}', WAL false, WAIT false, \
         MANIFEST 'no', TABLESPACE_MAP {}",
        options.tablespace_map
    );
    if let Some(rate) = options.max_rate {
        command.push_str(&format!(", MAX_RATE {rate}"));
    }
    command.push(')');
    Ok(command)
}

fn position(row: &Row) -> Result<(Lsn, Tli), ClientError> {
    Ok((
        row.value(0, "the backup's position")?,
        row.value(1, "the backup's timeline")?,
    ))
}

/// A row of OID, location and size in KiB; the data directory itself has neither of the first two.
fn add_tablespace(start: &mut BackupStart, row: &Row) -> Result<(), ClientError> {
    let kib: Option<u64> = row.optional_value(2, "the tablespace's size")?;
    let size = kib.map(|kib| kib.saturating_mul(1024));
    if let Some(size) = size {
        let total = start.total.map_or(0, ByteCount::get).saturating_add(size);
        start.total = Some(ByteCount::new(total));
    }
    if let Some(oid) = row.optional_value(0, "the tablespace's OID")? {
        if start.tablespaces.len() == MAX_TABLESPACES {
            return Err(ClientError::protocol(
                "a base backup of more than 4096 tablespaces",
            ));
        }
        let location = row.text(1, "the tablespace's location")?.to_owned();
        start.tablespaces.push(Tablespace {
            oid,
            location,
            size: size.map(ByteCount::new),
        });
    }
    Ok(())
}

/// Two strings that end in NUL: the archive's name and the tablespace's directory, which is empty
/// for the data directory.
fn archive_start(data: &[u8]) -> Result<BackupEvent, ClientError> {
    let bad = || ClientError::protocol("the header of an archive is not a name and a directory");
    let parts: Vec<&[u8]> = data.splitn(3, |byte| *byte == 0).collect();
    let [name, directory, []] = parts[..] else {
        return Err(bad());
    };
    let name = str::from_utf8(name).map_err(|_| bad())?;
    let tablespace_oid = match directory {
        [] => None,
        _ => Some(
            name.strip_suffix(".tar")
                .and_then(|n| n.parse().ok())
                .ok_or_else(bad)?,
        ),
    };
    Ok(BackupEvent::ArchiveStart {
        name: name.to_owned(),
        tablespace_oid,
    })
}
