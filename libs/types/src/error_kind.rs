use std::fmt;

/// What the *caller* of a failed operation should do about it. Every error of ours maps to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong: correct it; the same request will always fail.
    Invalid,
    /// The thing named does not exist: create it, or name another.
    NotFound,
    /// The thing named exists already, and differs from what was asked for.
    AlreadyExists,
    /// The state does not allow it now: look at the state, change it, then ask again.
    Conflict,
    /// A newer writer has taken over: stop; do not retry.
    Fenced,
    /// Not yet, or not here at the moment: retry with back-off, perhaps elsewhere.
    NotReady,
    /// Too much at once: retry later and slower.
    Throttled,
    /// Stored or received bytes are damaged: do not retry; look at the named object.
    Corrupt,
    /// A defect or a failure below us: report it; a retry may help.
    Internal,
}

impl ErrorKind {
    /// A stable lower-case name, for wire details and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced",
            Self::NotReady => "not-ready",
            Self::Throttled => "throttled",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
