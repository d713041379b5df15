//! The way between the services and a PostgreSQL, on which a base backup is copied as it passes.
//!
//! A reference that begins with a backup of its own would begin with other pages than the services
//! did. This one begins with the very bytes that an attach consumed. Whoever holds the tap may also
//! halt the stream, to change the cluster in the midst of its backup, and tear pages in it.

mod copy;
mod wire;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::{
    io::{AsyncWriteExt as _, BufReader, copy},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

use super::{
    BaseBackup, Tears,
    backup::{directory_for_server, extract},
};
use copy::{Copied, Copying};

/// Passes connections on to a server's Unix socket and copies the newest base backup.
#[derive(Debug)]
pub struct BackupTap {
    near: TempDir,
    port: u16,
    /// Where the copy goes, until it is taken. Of the server's user, because the copy becomes a
    /// data directory.
    directory: Mutex<Option<TempDir>>,
    tapped: Arc<Tapped>,
    listening: JoinHandle<()>,
}

/// What all connections share.
struct Tapped {
    directory: PathBuf,
    far: PathBuf,
    gate: watch::Sender<Gate>,
    tears: Mutex<Tears>,
    copied: watch::Sender<Option<Copied>>,
}

/// Whether files of a backup may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// The next backup is to be halted before its first file.
    Closed,
    /// One is halted.
    Waiting,
}

impl BackupTap {
    /// A tap before the server with that socket directory and port.
    ///
    /// # Errors
    /// If there can be no socket, or no directory for the copy.
    pub fn to(directory: &Path, port: u16) -> Result<Self> {
        let near = tempfile::Builder::new().prefix("pal-").tempdir_in("/tmp")?;
        let name = format!(".s.PGSQL.{port}");
        let listener = UnixListener::bind(near.path().join(&name))?;
        let copy = directory_for_server()?;
        let tapped = Arc::new(Tapped {
            directory: copy.path().to_owned(),
            far: directory.join(name),
            gate: watch::Sender::new(Gate::Open),
            tears: Mutex::new(Tears::default()),
            copied: watch::Sender::new(None),
        });
        let shared = tapped.clone();
        let listening = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(near, shared.clone()));
            }
        });
        Ok(Self {
            near,
            port,
            directory: Mutex::new(Some(copy)),
            tapped,
            listening,
        })
    }

    /// How the server is reached through it.
    pub fn conninfo(&self, user: &str) -> String {
        let Self { near, port, .. } = self;
        format!("host={} port={port} user={user}", near.path().display())
    }

    /// The directory of its socket.
    pub fn socket_dir(&self) -> &Path {
        self.near.path()
    }

    /// Halts the next backup before its first file.
    pub fn halt(&self) {
        self.tapped.gate.send_replace(Gate::Closed);
    }

    /// Waits until a backup is halted.
    ///
    /// # Errors
    /// Never, while the tap exists.
    pub async fn halted(&self) -> Result<()> {
        let mut gate = self.tapped.gate.subscribe();
        gate.wait_for(|gate| *gate == Gate::Waiting).await?;
        Ok(())
    }

    /// Lets the files pass, these pages torn.
    pub fn go_on(&self, tears: Tears) {
        *self.tapped.tears() = tears;
        self.tapped.gate.send_replace(Gate::Open);
    }

    /// The backup that has passed, extracted. The tap goes on as a way to the server.
    ///
    /// # Errors
    /// If none has passed to its end, or it was taken before.
    pub fn take_backup(&self) -> Result<BaseBackup> {
        let copied = self.tapped.copied.send_replace(None);
        let copied = copied.context("no base backup has passed")?;
        let mut directory = self
            .directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let directory = directory.take().context("the backup was taken before")?;
        for archive in &copied.archives {
            let file = copied.path_of(archive);
            extract(&file, &archive.extracted_to(directory.path()))?;
            fs::remove_file(file)?;
        }
        let outside = copied.archives.into_iter();
        let outside = outside.filter_map(|archive| archive.tablespace).collect();
        BaseBackup::received(directory, copied.end, outside)
    }
}

impl Drop for BackupTap {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Tapped {
    fn tears(&self) -> std::sync::MutexGuard<'_, Tears> {
        self.tears.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_at_gate(&self) {
        self.gate.send_if_modified(|gate| match gate {
            Gate::Closed => {
                *gate = Gate::Waiting;
                true
            }
            Gate::Open | Gate::Waiting => false,
        });
        let mut gate = self.gate.subscribe();
        // It lives as long as this.
        let _ = gate.wait_for(|gate| *gate == Gate::Open).await;
    }
}

impl fmt::Debug for Tapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tapped").finish_non_exhaustive()
    }
}

/// One connection, until either end closes it.
async fn pass(near: UnixStream, tapped: Arc<Tapped>) {
    let Ok(far) = UnixStream::connect(&tapped.far).await else {
        return;
    };
    let (mut from_near, to_near) = near.into_split();
    let (from_far, mut to_far) = far.into_split();
    tokio::select! {
        _ = copy(&mut from_near, &mut to_far) => {}
        outcome = forward(from_far, to_near, &tapped) => {
            if let Err(error) = outcome {
                eprintln!("the tap of the backup broke: {error:#}");
            }
        }
    }
}

/// What the server says, message by message.
async fn forward(from: OwnedReadHalf, mut to: OwnedWriteHalf, tapped: &Tapped) -> Result<()> {
    let mut from = BufReader::new(from);
    let mut backup: Option<Copying> = None;
    while let Some(mut message) = wire::read(&mut from).await? {
        if message.begins_copy() {
            backup = Some(Copying::begin(&tapped.directory));
        }
        if let Some(copying) = &mut backup {
            if copying.is_before_files(&message) {
                tapped.wait_at_gate().await;
            }
            let done = copying.take(&mut message, &tapped.tears())?;
            if let Some(copied) = done {
                tapped.copied.send_replace(Some(copied));
                backup = None;
            }
        }
        if to.write_all(message.bytes()).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
