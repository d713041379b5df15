use palimpsest_layer::{delta_file::DeltaLayerError, image::ImageLayerError};
use palimpsest_manifest::LsnSpan;
use palimpsest_redo::{InvalidSlruChainError, ReconstructError};
use palimpsest_store::StoreError;
use palimpsest_types::{
    BlockNumber, ByteCount, ErrorKind, Key, Lsn, Oid, Reason, RelTag, SlruKind,
};

/// A read could not be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The LSN is before what can be read.
    #[error("{lsn} is below {oldest}, the oldest LSN that can be read")]
    BelowHorizon {
        /// What was asked for.
        lsn: Lsn,
        /// The oldest readable LSN.
        oldest: Lsn,
    },
    /// Changes before the LSN were lost.
    #[error("the changes of {hole} were lost at the source, so nothing can be read at {lsn}; read at {} or before, or from {} on", .hole.after, .hole.up_to)]
    InHole {
        /// What was asked for.
        lsn: Lsn,
        /// What was lost.
        hole: LsnSpan,
    },
    /// The LSN has not arrived within the deadline.
    #[error("{lsn} has not arrived yet, {newest} is the newest here; try again")]
    NotYet {
        /// What was asked for.
        lsn: Lsn,
        /// The newest LSN here.
        newest: Lsn,
    },
    /// The fork does not exist at that LSN.
    #[error("relation {rel} does not exist at {lsn}")]
    NoRelation {
        /// The fork.
        rel: RelTag,
        /// The LSN.
        lsn: Lsn,
    },
    /// The fork is shorter.
    #[error("relation {rel} has {blocks} blocks at {lsn}, there is no block {block}")]
    BeyondEnd {
        /// The fork.
        rel: RelTag,
        /// The LSN.
        lsn: Lsn,
        /// What was asked for.
        block: BlockNumber,
        /// Its length.
        blocks: BlockNumber,
    },
    /// No page of an SLRU segment exists at that LSN.
    #[error("{} has no segment {segment:04X} at {lsn}", kind.directory())]
    NoSlruSegment {
        /// The area.
        kind: SlruKind,
        /// The segment.
        segment: u32,
        /// The LSN.
        lsn: Lsn,
    },
    /// There is no relation map of the database at that LSN.
    #[error("tablespace {spc} has no relation map of database {db} at {lsn}")]
    NoRelationMap {
        /// The tablespace.
        spc: Oid,
        /// The database.
        db: Oid,
        /// The LSN.
        lsn: Lsn,
    },
    /// A layer file can't be read.
    #[error("layer {layer} can't be read: {message}")]
    Store {
        /// Its name.
        layer: String,
        /// What the caller may do.
        kind: ErrorKind,
        /// What the store said.
        message: String,
    },
    /// A layer file is damaged.
    #[error("layer {layer} is damaged")]
    Layer {
        /// Its name.
        layer: String,
        /// What is wrong.
        #[source]
        source: ImageLayerError,
    },
    /// A delta layer file is damaged.
    #[error("layer {layer} is damaged")]
    DeltaLayer {
        /// Its name.
        layer: String,
        /// What is wrong.
        #[source]
        source: DeltaLayerError,
    },
    /// A layer file is whole, but not the one that the manifest lists.
    #[error(
        "layer {layer} is not what the manifest says: {problem}; restore the file that had this name"
    )]
    NotAsListed {
        /// Its name.
        layer: String,
        /// What is different.
        problem: &'static str,
    },
    /// Layers and newer changes do not meet yet: a new manifest has to be read first.
    #[error("changes from {layers} to {tail} are not at hand yet")]
    Behind {
        /// The layers end here.
        layers: Lsn,
        /// Newer changes begin here.
        tail: Lsn,
    },
    /// The page could not be built.
    #[error("page can't be built: {message}")]
    Reconstruct {
        /// What the caller may do.
        kind: ErrorKind,
        /// What is so.
        reason: Reason,
        /// Why.
        message: String,
    },
    /// A page of an SLRU area could not be built.
    #[error("{key} can't be built")]
    Slru {
        /// The page.
        key: Key,
        /// Why.
        #[source]
        source: InvalidSlruChainError,
    },
    /// The files of a database are a copy of a copy of a copy, and so on.
    #[error(
        "database {db} in tablespace {spc} comes from more than {limit} copies of copies; make a new one with STRATEGY wal_log and read that"
    )]
    CopiedTooOften {
        /// The tablespace.
        spc: Oid,
        /// The database.
        db: Oid,
        /// How many are followed.
        limit: usize,
    },
    /// Pages have changed so often that the changes of several of them take too much memory at once.
    #[error("the changes of {pages} pages take more than {most} of memory; ask for fewer at once")]
    TooManyChanges {
        /// How many were asked for.
        pages: usize,
        /// What they may take.
        most: ByteCount,
    },
    /// A timeline begins without what every base backup has.
    #[error("the base backup has no {0}; delete the tenant and attach again")]
    NotInBackup(Key),
    /// A key has a version of a wrong kind.
    #[error("the version of {0} is of a wrong kind")]
    WrongValue(Key),
}

impl ReadError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BelowHorizon { .. }
            | Self::InHole { .. }
            | Self::CopiedTooOften { .. }
            | Self::TooManyChanges { .. } => ErrorKind::Invalid,
            Self::NotYet { .. } | Self::Behind { .. } => ErrorKind::NotReady,
            Self::NoRelation { .. }
            | Self::BeyondEnd { .. }
            | Self::NoSlruSegment { .. }
            | Self::NoRelationMap { .. } => ErrorKind::NotFound,
            Self::Store { kind, .. } | Self::Reconstruct { kind, .. } => *kind,
            Self::Layer { .. }
            | Self::DeltaLayer { .. }
            | Self::NotAsListed { .. }
            | Self::Slru { .. }
            | Self::NotInBackup(_)
            | Self::WrongValue(_) => ErrorKind::Corrupt,
        }
    }

    /// What is so.
    pub fn reason(&self) -> Reason {
        match self {
            Self::BelowHorizon { .. } => Reason::BelowHorizon,
            Self::InHole { .. } => Reason::Lost,
            Self::NotYet { .. } | Self::Behind { .. } => Reason::NotArrived,
            Self::NoRelation { .. } => Reason::MissingRelation,
            Self::BeyondEnd { .. } => Reason::BeyondEnd,
            Self::NoSlruSegment { .. } => Reason::MissingSegment,
            Self::NoRelationMap { .. } => Reason::MissingMap,
            Self::Store { kind, .. } if *kind == ErrorKind::Corrupt => Reason::Damaged,
            Self::Store { .. } => Reason::StoreAway,
            Self::Reconstruct { reason, .. } => *reason,
            Self::Layer { .. }
            | Self::DeltaLayer { .. }
            | Self::NotAsListed { .. }
            | Self::Slru { .. }
            | Self::NotInBackup(_)
            | Self::WrongValue(_) => Reason::Damaged,
            Self::CopiedTooOften { .. } | Self::TooManyChanges { .. } => Reason::Unsupported,
        }
    }

    pub(crate) fn store(layer: &str, error: &StoreError) -> Self {
        // A layer that the manifest lists and the store lacks is damage, not a wrong request.
        let kind = match error.kind() {
            ErrorKind::NotFound => ErrorKind::Corrupt,
            kind => kind,
        };
        Self::Store {
            layer: layer.to_owned(),
            kind,
            message: error.to_string(),
        }
    }
}

impl From<ReconstructError> for ReadError {
    fn from(error: ReconstructError) -> Self {
        Self::Reconstruct {
            kind: error.kind(),
            reason: error.reason(),
            message: error.to_string(),
        }
    }
}
