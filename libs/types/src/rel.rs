use std::{fmt, str::FromStr};

/// A PostgreSQL object id.
pub type Oid = u32;

/// Number of a page within a relation fork.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockNumber(u32);

/// One of the files that make up a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Fork {
    /// The data itself.
    Main = 0,
    /// Free space map; not WAL-logged by PostgreSQL.
    FreeSpaceMap = 1,
    /// Visibility map.
    VisibilityMap = 2,
    /// What an unlogged relation is reset to after a crash.
    Init = 3,
}

/// No fork has this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a fork number; forks are 0 to 3")]
pub struct InvalidForkError(pub u32);

/// A relation fork: tablespace, database, relfilenode, fork (`RelFileNode` and `ForkNumber`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelTag {
    /// Tablespace; 1663 is `pg_default`, 1664 is `pg_global`.
    pub spc: Oid,
    /// Database; 0 for shared relations.
    pub db: Oid,
    /// File number of the relation, which is not its catalog OID after a rewrite.
    pub rel: Oid,
    /// Which of its files.
    pub fork: Fork,
}

/// The text is not `SPC/DB/REL[:fork]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a relation; write SPC/DB/REL[:fork], for example 1663/5/16384:main")]
pub struct ParseRelTagError(String);

impl RelTag {
    /// No fork is behind it.
    pub const LAST: Self = Self {
        spc: Oid::MAX,
        db: Oid::MAX,
        rel: Oid::MAX,
        fork: Fork::Init,
    };

    /// The fork after this one, of the same relation or the next.
    pub fn next(self) -> Option<Self> {
        let Self { spc, db, rel, fork } = self;
        if let Ok(fork) = Fork::try_from(u32::from(fork.number()) + 1) {
            return Some(Self { fork, ..self });
        }
        let (spc, db, rel) = match (rel.checked_add(1), db.checked_add(1)) {
            (Some(next), _) => (spc, db, next),
            (None, Some(next)) => (spc, next, 0),
            (None, None) => (spc.checked_add(1)?, 0, 0),
        };
        let fork = Fork::Main;
        Some(Self { spc, db, rel, fork })
    }

    /// The fork before this one, of the same relation or the one before.
    pub fn previous(self) -> Option<Self> {
        let Self { spc, db, rel, fork } = self;
        let before = u32::from(fork.number()).checked_sub(1);
        if let Some(fork) = before.and_then(|number| Fork::try_from(number).ok()) {
            return Some(Self { fork, ..self });
        }
        let (spc, db, rel) = match (rel.checked_sub(1), db.checked_sub(1)) {
            (Some(before), _) => (spc, db, before),
            (None, Some(before)) => (spc, before, Oid::MAX),
            (None, None) => (spc.checked_sub(1)?, Oid::MAX, Oid::MAX),
        };
        let fork = Fork::Init;
        Some(Self { spc, db, rel, fork })
    }
}

impl BlockNumber {
    /// The first block.
    pub const ZERO: Self = Self(0);

    /// A block from its number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The block after this one, or `None` at the end of the number space.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for BlockNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for BlockNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Fork {
    /// All forks, in number order.
    pub const ALL: [Self; 4] = [
        Self::Main,
        Self::FreeSpaceMap,
        Self::VisibilityMap,
        Self::Init,
    ];

    /// PostgreSQL's number of the fork.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// PostgreSQL's name of the fork, as in file name suffixes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::FreeSpaceMap => "fsm",
            Self::VisibilityMap => "vm",
            Self::Init => "init",
        }
    }

    /// The fork called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fork| fork.name() == name)
    }
}

impl TryFrom<u32> for Fork {
    type Error = InvalidForkError;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        let fork = usize::try_from(number)
            .ok()
            .and_then(|index| Self::ALL.get(index));
        fork.copied().ok_or(InvalidForkError(number))
    }
}

impl RelTag {
    /// The same relation's other fork.
    pub const fn with_fork(self, fork: Fork) -> Self {
        Self { fork, ..self }
    }
}

impl fmt::Display for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.spc, self.db, self.rel)?;
        match self.fork {
            Fork::Main => Ok(()),
            fork => write!(f, ":{}", fork.name()),
        }
    }
}

impl FromStr for RelTag {
    type Err = ParseRelTagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (path, fork) = match text.split_once(':') {
                Some((path, fork)) => (path, Fork::from_name(fork)?),
                None => (text, Fork::Main),
            };
            let mut parts = path.split('/').map(|part| part.parse::<Oid>().ok());
            let tag = Self {
                spc: parts.next()??,
                db: parts.next()??,
                rel: parts.next()??,
                fork,
            };
            parts.next().is_none().then_some(tag)
        };
        parse().ok_or_else(|| ParseRelTagError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_text_round_trips_with_and_without_fork() {
        for text in ["1663/5/16384", "1664/0/1262:vm", "1663/5/16384:init"] {
            assert_eq!(text.parse::<RelTag>().unwrap().to_string(), text);
        }
        assert_eq!("1/2/3:main".parse::<RelTag>().unwrap().to_string(), "1/2/3");
        for text in ["", "1/2", "1/2/3/4", "1/2/x", "1/2/3:heap", "-1/2/3"] {
            assert!(text.parse::<RelTag>().is_err(), "{text}");
        }
    }
}
