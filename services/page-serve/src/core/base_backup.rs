//! A base backup, made while it is taken.

use std::sync::Arc;

use bytes::Bytes;
use futures::{
    TryFutureExt as _,
    future::{join, try_join},
};
use palimpsest_api::{RemoteError, lease::HeldLease, redo::TenantRedo};
use palimpsest_basebackup::{
    BackupError, BackupFacts, BaseBackup, Form, Identity, fresh_timeline, zstd_frame,
};
use palimpsest_read::TimelineReader;
use palimpsest_runtime::TaskScope;
use palimpsest_types::{BlockNumber, ErrorKind, Fault, Lsn, Reason, RelTag, SystemIdentifier};
use tokio::sync::{mpsc, oneshot};

/// What base backup is wanted, beside where and when.
#[derive(Debug, Clone, Copy)]
pub struct WantedBackup {
    /// Another cluster than the one whose history is read.
    pub system_identifier: Option<SystemIdentifier>,
    /// PostgreSQL's timeline of it; a fresh one if it is `None`.
    pub timeline: Option<u32>,
    /// As one zstd frame.
    pub is_packed: bool,
    /// All of it, or without what relations hold.
    pub form: Form,
}

/// A base backup that is being made.
#[derive(Debug)]
pub struct RunningBackup {
    /// What it is.
    pub facts: BackupFacts,
    /// Forks that are left out of it.
    pub left_out: Vec<(RelTag, BlockNumber)>,
    /// The archive. When the last was taken, `outcome` tells whether it is complete.
    pub chunks: mpsc::Receiver<Bytes>,
    /// How it ended; nothing if this page-serve is shutting down.
    pub outcome: oneshot::Receiver<Option<Result<(), NoBackupError>>>,
}

/// There is no base backup, or only a part of one.
#[derive(Debug, thiserror::Error)]
pub enum NoBackupError {
    /// It can't be made.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// What it is made of might be removed before it is complete.
    #[error("what is there at {lsn} can't be kept until the base backup is taken")]
    Unkept {
        /// Where it is read.
        lsn: Lsn,
        /// What the storage-broker says, or that it says nothing.
        source: RemoteError,
    },
    /// It took longer than what it is made of was kept.
    #[error(
        "what is there at {lsn} could not be kept until the base backup was complete; take another"
    )]
    Lost {
        /// Where it was read.
        lsn: Lsn,
    },
}

/// Chunks that are ready and not sent; each has about half a MiB at most.
const AHEAD: usize = 4;

impl RunningBackup {
    /// Begins one, for which the lease is held. It ends soon after its chunks are dropped, or the scope's token is
    /// cancelled.
    ///
    /// # Errors
    /// If there can be none at that LSN, or there is no lease.
    pub async fn start(
        reader: Arc<TimelineReader<TenantRedo>>,
        lsn: Lsn,
        wanted: WantedBackup,
        lease: impl Future<Output = Result<HeldLease, RemoteError>>,
        scope: &TaskScope,
    ) -> Result<Self, NoBackupError> {
        let identity = |parent| {
            let fresh = || fresh_timeline(parent, rand::random());
            Some(Identity {
                system_identifier: wanted.system_identifier,
                timeline: wanted.timeline.or_else(fresh)?,
            })
        };
        let plan = BaseBackup::plan(&reader, lsn, identity, wanted.form).err_into();
        let lease = lease.map_err(|source| NoBackupError::Unkept { lsn, source });
        let (backup, lease) = try_join(plan, lease).await?;
        let facts = backup.facts();
        let left_out = backup.left_out().to_vec();
        let (out, chunks) = mpsc::channel(AHEAD);
        let (told, outcome) = oneshot::channel();
        let token = scope.token().clone();
        scope.spawn("base backup", async move {
            let making = async {
                // Cancel-safe: half a base backup is none.
                tokio::select! {
                    made = make(&backup, reader, wanted.is_packed, out) => Ok(made?),
                    () = lease.lost() => Err(NoBackupError::Lost { lsn }),
                }
            };
            // Cancel-safe: what was not taken is made again for who asks again.
            let made = token.run_until_cancelled(making).await;
            // Who does not take the chunks does not want to know.
            let _ = told.send(made);
        });
        Ok(Self {
            facts,
            left_out,
            chunks,
            outcome,
        })
    }
}

impl NoBackupError {
    /// What the caller may do, and what is so.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Backup(error) => error.fault(),
            Self::Lost { .. } => Fault::new(ErrorKind::NotReady, Reason::BelowHorizon),
            Self::Unkept { source, .. } => Fault {
                kind: source.kind,
                reason: source.reason,
            },
        }
    }
}

async fn make(
    backup: &BaseBackup,
    reader: Arc<TimelineReader<TenantRedo>>,
    is_packed: bool,
    out: mpsc::Sender<Bytes>,
) -> Result<(), BackupError> {
    if !is_packed {
        return backup.write(reader, out).await;
    }
    let (archive, from) = mpsc::channel(1);
    let both = join(backup.write(reader, archive), zstd_frame(from, out));
    match both.await {
        // Then the other says why.
        (Err(BackupError::Abandoned) | Ok(()), packed) => packed,
        (written, _) => written,
    }
}
