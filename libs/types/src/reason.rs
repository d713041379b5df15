use std::fmt;

use crate::ErrorKind;

/// What is so that an operation failed. An [`ErrorKind`] says what the caller may do; two errors
/// of one kind can still mean different things to it, as a relation that was dropped and a read past
/// the end of one do to PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request breaks the rules of its message.
    Malformed,
    /// There is no such timeline: it never was, or its tenant was deleted.
    UnknownTimeline,
    /// The relation fork does not exist at that LSN.
    MissingRelation,
    /// The relation fork exists at that LSN and is shorter.
    BeyondEnd,
    /// The LSN is older than what can be read.
    BelowHorizon,
    /// The LSN has not arrived in time.
    NotArrived,
    /// The timeline can't be read here yet, whatever the LSN.
    NotOpen,
    /// The SLRU segment does not exist at that LSN.
    MissingSegment,
    /// The database has no relation map at that LSN.
    MissingMap,
    /// There is more to do than is taken on at once.
    Overloaded,
    /// Nobody answered: the connection, or the service behind it, is gone or stuck.
    Unreachable,
    /// No redo-worker could be given the work.
    NoWorker,
    /// What is stored can't be reached.
    StoreAway,
    /// Processes that replayed the page's records died or were killed over it.
    RedoDied,
    /// The page's records killed processes a moment ago, and are not tried for a while.
    Quarantined,
    /// Stored bytes are damaged, or records do not fit the page they are for.
    Damaged,
    /// It is a case that is not supported.
    Unsupported,
    /// A defect.
    Defect,
    /// Changes before the LSN were lost at the source, and it comes before the base backup that is read on from.
    Lost,
    /// There is no such tenant.
    UnknownTenant,
    /// Another has that name.
    NameTaken,
    /// The cluster, or the slot there, is another tenant's.
    SourceTaken,
    /// It is being deleted.
    BeingDeleted,
    /// Other timelines begin on it.
    Needed,
    /// Somebody has said that it is to stay.
    Protected,
    /// A PostgreSQL writes it.
    InUse,
    /// It is what its tenant's source is read to, or, where that is asked for, it is not.
    NotABranch,
    /// It goes on, and only what has stopped can be asked for this.
    NotStopped,
    /// It does not end where the new writer's WAL begins.
    WrongEnd,
    /// There are as many as there may be.
    LimitReached,
}

/// A failure in a form for programs: what the caller may do and, where that is known, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault {
    /// What the caller may do.
    pub kind: ErrorKind,
    /// What is so. `None`: the kind says all that there is to say.
    pub reason: Option<Reason>,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 30] = [
        Self::Malformed,
        Self::UnknownTimeline,
        Self::MissingRelation,
        Self::BeyondEnd,
        Self::BelowHorizon,
        Self::NotArrived,
        Self::NotOpen,
        Self::MissingSegment,
        Self::MissingMap,
        Self::Overloaded,
        Self::Unreachable,
        Self::NoWorker,
        Self::StoreAway,
        Self::RedoDied,
        Self::Quarantined,
        Self::Damaged,
        Self::Unsupported,
        Self::Defect,
        Self::Lost,
        Self::UnknownTenant,
        Self::NameTaken,
        Self::SourceTaken,
        Self::BeingDeleted,
        Self::Needed,
        Self::Protected,
        Self::InUse,
        Self::NotABranch,
        Self::NotStopped,
        Self::WrongEnd,
        Self::LimitReached,
    ];

    /// A stable lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownTimeline => "unknown-timeline",
            Self::MissingRelation => "missing-relation",
            Self::BeyondEnd => "beyond-end",
            Self::BelowHorizon => "below-horizon",
            Self::NotArrived => "not-arrived",
            Self::NotOpen => "not-open",
            Self::MissingSegment => "missing-segment",
            Self::MissingMap => "missing-map",
            Self::Overloaded => "overloaded",
            Self::Unreachable => "unreachable",
            Self::NoWorker => "no-worker",
            Self::StoreAway => "store-away",
            Self::RedoDied => "redo-died",
            Self::Quarantined => "quarantined",
            Self::Damaged => "damaged",
            Self::Unsupported => "unsupported",
            Self::Defect => "defect",
            Self::Lost => "lost",
            Self::UnknownTenant => "unknown-tenant",
            Self::NameTaken => "name-taken",
            Self::SourceTaken => "source-taken",
            Self::BeingDeleted => "being-deleted",
            Self::Needed => "needed",
            Self::Protected => "protected",
            Self::InUse => "in-use",
            Self::NotABranch => "not-a-branch",
            Self::NotStopped => "not-stopped",
            Self::WrongEnd => "wrong-end",
            Self::LimitReached => "limit-reached",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Fault {
    /// A failure of which more is known than what to do about it.
    pub const fn new(kind: ErrorKind, reason: Reason) -> Self {
        Self {
            kind,
            reason: Some(reason),
        }
    }
}

impl From<ErrorKind> for Fault {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, reason: None }
    }
}
