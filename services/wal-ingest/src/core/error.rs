use std::path::PathBuf;

use palimpsest_api::{RemoteError, broker::Promotion};
use palimpsest_disk::is_full;
use palimpsest_manifest::ManifestError;
use palimpsest_postgres::{
    ClientError, ConnInfoError, ControlFileError, ReplicationOriginsError, TarError,
};
use palimpsest_read::{ReadError, StoredError, TailError};
use palimpsest_store::StoreError;
use palimpsest_types::{ErrorKind, Lsn};
use palimpsest_wal::{InterpretError, WalError};

use super::{attach::AttemptError, budget::NoRoom, source::CheckError};

/// Something failed while a timeline was attached, resumed, streamed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The connection string is wrong.
    #[error("the connection string can't be used")]
    ConnInfo(#[from] ConnInfoError),
    /// The source, or the way to it.
    #[error(transparent)]
    Source(#[from] ClientError),
    /// The source can't be attached as it is.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The base backup is not an archive.
    #[error("the base backup can't be read")]
    Tar(#[from] TarError),
    /// The source's control file can't be read.
    #[error("the base backup's control file can't be read")]
    ControlFile(#[from] ControlFileError),
    /// The source's progress as a subscriber can't be read.
    #[error("the base backup's pg_logical/replorigin_checkpoint can't be read")]
    Origins(#[from] ReplicationOriginsError),
    /// The base backup lacks something.
    #[error("the base backup is incomplete: {0}")]
    Backup(&'static str),
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The state of the attach.
    #[error(transparent)]
    Attempt(#[from] AttemptError),
    /// The layers that the manifest lists.
    #[error(transparent)]
    Layers(#[from] ReadError),
    /// What a timeline has, and what it begins on.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// A local WAL file.
    #[error("WAL file {path} failed")]
    WalFile {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A local layer file.
    #[error("layer file {path} failed")]
    LayerFile {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A base backup begins too soon after the end of what it goes on from.
    #[error(
        "a base backup from {start} on begins too soon after {end} to go on from it; there must be more WAL between"
    )]
    TooSoon {
        /// The end of what is here.
        end: Lsn,
        /// Where the backup begins.
        start: Lsn,
    },
    /// WAL came that does not follow.
    #[error("WAL came from {found} on, {expected} was expected")]
    WalGap {
        /// The end of what is here.
        expected: Lsn,
        /// What came.
        found: Lsn,
    },
    /// The archive gave something else than a WAL file, or nothing.
    #[error("WAL file {file} can't be restored from the archive: {problem}")]
    Archive {
        /// Its name.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// None of several hosts is a primary that can be read.
    #[error("none of the hosts is a primary that can be read: {0}")]
    Hosts(String),
    /// The server was promoted or recovered, or is one that was not; the stream finds out which.
    #[error("the server is on PostgreSQL timeline {found}, and {expected} is read")]
    Switched {
        /// What it is on.
        found: u32,
        /// What is read.
        expected: u32,
    },
    /// There is no room for more WAL.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The WAL can't be taken apart.
    #[error("the WAL can't be decoded")]
    Wal(#[from] WalError),
    /// A record can't be applied.
    #[error(transparent)]
    Interpret(#[from] InterpretError),
    /// The changes can't be added.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// The storage-broker.
    #[error(transparent)]
    Broker(#[from] RemoteError),
    /// It can't go on.
    #[error(transparent)]
    Stop(#[from] Stop),
}

/// A timeline can't go on, and a retry would not help.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The source removed WAL before we had it.
    #[error(
        "the source no longer has the WAL from {from} on (slot {slot:?} did not keep it); `pal reattach` goes on from a new base backup (or, for a branch of a compute's, `pal start --discard`)"
    )]
    WalGone {
        /// The slot.
        slot: String,
        /// Where we would have gone on.
        from: Lsn,
    },
    /// The server at that address is another cluster.
    #[error(
        "the server is another cluster now: system identifier {found}, expected {expected}; point the connection string at the right one or attach it under a new name"
    )]
    OtherCluster {
        /// What it says.
        found: u64,
        /// What it was.
        expected: u64,
    },
    /// The source is on a PostgreSQL timeline that does not come from ours.
    #[error(
        "the source is on PostgreSQL timeline {found}, which does not come from {expected}, whose WAL is here; point the connection string at a server of that history, or delete the tenant and attach again (or, for a branch, `pal start --discard`)"
    )]
    OtherTimeline {
        /// What it is on.
        found: u32,
        /// What it was on.
        expected: u32,
    },
    /// The source was promoted, or recovered, from before the end of what is here.
    #[error(
        "the source was promoted at {}, and what is here goes on to {}, which the promoted server never had; all of it stays readable under a name with the LSN in it, and what the source has since is read under this one", .0.at, .0.end
    )]
    Left(Promotion),
    /// The source's last PostgreSQL timeline ended in the middle of a record, which PostgreSQL does not do.
    #[error(
        "PostgreSQL timeline {found} of the source begins at {at}, and the last record before it that can be read ends at {end}; delete the tenant and attach again (or, for a branch, `pal start --discard`)"
    )]
    Unfinished {
        /// What comes next.
        found: u32,
        /// Where it begins.
        at: Lsn,
        /// The end of the last record that is here.
        end: Lsn,
    },
    /// A branch is to be written on from elsewhere than its end.
    #[error(
        "the branch ends at {end}, and the PostgreSQL that is to write it begins at {begin}; start one from the end of the branch"
    )]
    NotTheEnd {
        /// Where the branch ends.
        end: Lsn,
        /// Where the other's WAL begins.
        begin: Lsn,
    },
    /// The slot is gone, or no longer keeps anything.
    #[error(
        "replication slot {slot:?} was dropped, invalidated or made anew at the source, which may remove the WAL after {from} any time; `pal reattach` goes on from a new base backup (or, for a branch of a compute's, `pal start --discard`)"
    )]
    SlotLost {
        /// The slot.
        slot: String,
        /// What the object store has ends here.
        from: Lsn,
    },
    /// The source has less than is here, on the same PostgreSQL timeline.
    #[error(
        "the source's WAL ends at {found}, and what was read of it goes on to {end}: it was set back, as from a snapshot, and what it writes now is another history. Recover it to a PostgreSQL timeline of its own (recovery.signal), or wait until it has written more than that; then `pal reattach`"
    )]
    SetBack {
        /// Where its WAL ends, or a base backup of it begins.
        found: Lsn,
        /// The end of what is here.
        end: Lsn,
    },
    /// What redo depends on has changed.
    #[error(
        "the source has other settings than what is here was written with: wal_log_hints (or data checksums) or the size of WAL segments; set them back, or delete the tenant and attach again"
    )]
    OtherSettings,
    /// Someone else publishes this timeline's manifest.
    #[error("another wal-ingest has taken over this timeline")]
    Superseded,
    /// The slot is not ours.
    #[error(
        "the source already has a replication slot {slot:?} that this attachment did not make; drop it there or choose another with --slot"
    )]
    ForeignSlot {
        /// The slot.
        slot: String,
    },
    /// The slot held back more WAL than allowed, and was dropped to save the source's disk.
    #[error(
        "slot {slot:?} kept {retained} of WAL on the source, more than slot-retention-limit ({limit}), and was dropped to save its disk; it goes on from a new base backup, by itself unless reattach-after-drop is false, or by `pal reattach` (or, for a branch of a compute's, by `pal start --discard`)"
    )]
    SlotDropped {
        /// The slot.
        slot: String,
        /// What it kept.
        retained: palimpsest_types::ByteCount,
        /// What is allowed.
        limit: palimpsest_types::ByteCount,
    },
}

/// What to do about an error of a running timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Connect again after a while.
    Retry,
    /// Wait without a connection until there is room for more.
    Pause,
    /// Nothing: a person must act.
    GiveUp,
}

impl IngestError {
    /// What can be done about it.
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::NoRoom(_) => Remedy::Pause,
            Self::WalFile { .. } | Self::LayerFile { .. } if self.is_full_disk() => Remedy::Pause,
            // Who was let in before: a password or pg_hba.conf has changed, and may change again. An
            // attach does not ask.
            Self::Check(CheckError::Refused(_)) => Remedy::Retry,
            Self::Stop(_)
            | Self::Wal(_)
            | Self::Interpret(_)
            | Self::Tail(TailError::OutOfOrder(_) | TailError::Full { .. })
            | Self::ConnInfo(_)
            | Self::Check(_) => Remedy::GiveUp,
            // What was refused once contradicts itself the next time as well.
            Self::Manifest(ManifestError::Superseded { .. } | ManifestError::Refused(_)) => {
                Remedy::GiveUp
            }
            Self::Attempt(error) if error.kind() == ErrorKind::Corrupt => Remedy::GiveUp,
            Self::Broker(error) if is_final(error.kind) => Remedy::GiveUp,
            Self::Layers(error) if error.kind() == ErrorKind::Corrupt => Remedy::GiveUp,
            Self::Stored(StoredError::Lost { .. }) => Remedy::GiveUp,
            Self::Stored(error) if error.kind() == ErrorKind::Corrupt => Remedy::GiveUp,
            Self::Source(_)
            | Self::Tar(_)
            | Self::ControlFile(_)
            | Self::Origins(_)
            | Self::Backup(_)
            | Self::Store(_)
            | Self::Manifest(_)
            | Self::Attempt(_)
            | Self::Layers(_)
            | Self::Stored(_)
            | Self::WalFile { .. }
            | Self::LayerFile { .. }
            | Self::WalGap { .. }
            // An archive is mended, or comes back.
            | Self::Archive { .. }
            | Self::TooSoon { .. }
            | Self::Switched { .. }
            | Self::Hosts(_)
            | Self::Broker(_) => Remedy::Retry,
        }
    }

    /// Whether it is the object store, what lies there, or the storage-broker that failed: nothing
    /// that the source can do anything about.
    pub(super) fn is_of_ours(&self) -> bool {
        matches!(
            self,
            Self::Store(_)
                | Self::Manifest(_)
                | Self::Attempt(_)
                | Self::Layers(_)
                | Self::Stored(_)
                | Self::Broker(_)
        )
    }

    /// Whether nothing more fits on the local disk, whatever we are allowed to hold there.
    pub(super) fn is_full_disk(&self) -> bool {
        match self {
            Self::WalFile { source, .. } | Self::LayerFile { source, .. } => is_full(source),
            _ => false,
        }
    }

    /// The error with its causes, as one line.
    pub(super) fn in_words(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.ends_with(&next) {
                text = format!("{text}: {next}");
            }
            cause = error.source();
        }
        text
    }
}

/// Whether the storage-broker has said no for good. Trouble of its own passes.
fn is_final(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::AlreadyExists
    )
}
