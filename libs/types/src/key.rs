use std::{fmt, ops::Range};

use crate::{BlockNumber, Fork, Oid, RelTag};

/// What a value in the store is a version of. Ordered as its encoded bytes are.
///
/// Encoded length is [`Key::LEN`]; the layout is in `docs/formats/key.md`. Kind numbers are stored
/// in files and never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Number of blocks of a relation fork; a tombstone when the fork does not exist.
    RelSize(RelTag),
    /// One page of a relation fork.
    RelBlock(RelTag, BlockNumber),
    /// One page of a simple-LRU area such as `pg_xact`.
    SlruBlock(SlruKind, u32),
    /// The relation map file (`pg_filenode.map`) of a database; database 0 is the shared one.
    RelMap {
        /// Tablespace that holds the database.
        spc: Oid,
        /// The database.
        db: Oid,
    },
    /// What is kept of a prepared transaction: the file of `pg_twophase` that has this number.
    TwoPhase(u32),
    /// Number of pages of a segment of a simple-LRU area; a tombstone when it does not exist.
    SlruSegment(SlruKind, u32),
    /// Settings of the source that its log depends on.
    Parameters,
    /// All that a database has in a tablespace, as one: that it is gone, or a copy of another's.
    Database {
        /// The tablespace.
        spc: Oid,
        /// The database.
        db: Oid,
    },
    /// The control file (`pg_control`) that the base backup came with; it has a later version where a timeline goes on from
    /// another one.
    ControlFile,
    /// What a control file must say of the cluster as a whole, as far as the log changes it.
    ControlData,
    /// The next multixact and where its members begin, which change more often than the rest.
    NextMultiXact,
    /// The latest time at which a transaction has ended so far.
    CommitTime,
    /// How far a replication origin has been replayed; a tombstone when it is dropped.
    Origin(u16),
}

/// A kind of simple-LRU storage. Numbers are stored in files and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SlruKind {
    /// `pg_xact`: two bits of commit status for each transaction.
    Clog = 0,
    /// `pg_multixact/offsets`.
    MultiXactOffsets = 1,
    /// `pg_multixact/members`.
    MultiXactMembers = 2,
    /// `pg_commit_ts`.
    CommitTs = 3,
}

/// A half-open range of keys.
pub type KeyRange = Range<Key>;

/// These bytes are not an encoded key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key: kind {kind}, fork {fork}")]
pub struct InvalidKeyError {
    kind: u8,
    fork: u8,
}

const KIND_REL_SIZE: u8 = 1;
const KIND_REL_BLOCK: u8 = 2;
const KIND_SLRU_BLOCK: u8 = 3;
const KIND_REL_MAP: u8 = 4;
const KIND_TWO_PHASE: u8 = 5;
const KIND_SLRU_SEGMENT: u8 = 6;
const KIND_PARAMETERS: u8 = 7;
const KIND_DATABASE: u8 = 8;
const KIND_CONTROL_FILE: u8 = 9;
const KIND_CONTROL_DATA: u8 = 10;
const KIND_NEXT_MULTIXACT: u8 = 11;
const KIND_COMMIT_TIME: u8 = 12;
const KIND_ORIGIN: u8 = 13;

impl Key {
    /// Length of an encoded key in bytes.
    pub const LEN: usize = 18;

    /// The key after this one. There is none between them.
    pub fn next(self) -> Option<Self> {
        let next = self.next_of_kind();
        next.or_else(|| Self::first_of(self.to_bytes()[0].checked_add(1)?))
    }

    /// The key before this one. There is none between them.
    pub fn previous(self) -> Option<Self> {
        let previous = self.previous_of_kind();
        previous.or_else(|| Self::last_of(self.to_bytes()[0].checked_sub(1)?))
    }

    fn first_of(kind: u8) -> Option<Self> {
        let mut bytes = [0; Self::LEN];
        bytes[0] = kind;
        Self::from_bytes(&bytes).ok()
    }

    fn last_of(kind: u8) -> Option<Self> {
        let (spc, db) = (Oid::MAX, Oid::MAX);
        let slru = SlruKind::CommitTs;
        match kind {
            KIND_REL_SIZE => Some(Self::RelSize(RelTag::LAST)),
            KIND_REL_BLOCK => Some(Self::RelBlock(RelTag::LAST, BlockNumber::new(u32::MAX))),
            KIND_SLRU_BLOCK => Some(Self::SlruBlock(slru, u32::MAX)),
            KIND_REL_MAP => Some(Self::RelMap { spc, db }),
            KIND_TWO_PHASE => Some(Self::TwoPhase(u32::MAX)),
            KIND_SLRU_SEGMENT => Some(Self::SlruSegment(slru, u32::MAX)),
            KIND_DATABASE => Some(Self::Database { spc, db }),
            KIND_ORIGIN => Some(Self::Origin(u16::MAX)),
            // Of the others there is one.
            other => Self::first_of(other),
        }
    }

    fn previous_of_kind(self) -> Option<Self> {
        match self {
            Self::RelSize(rel) => rel.previous().map(Self::RelSize),
            Self::RelBlock(rel, block) => match block.get().checked_sub(1) {
                Some(before) => Some(Self::RelBlock(rel, BlockNumber::new(before))),
                None => Some(Self::RelBlock(rel.previous()?, BlockNumber::new(u32::MAX))),
            },
            Self::SlruBlock(kind, page) => {
                let (kind, page) = kind.previous_number(page)?;
                Some(Self::SlruBlock(kind, page))
            }
            Self::SlruSegment(kind, segment) => {
                let (kind, segment) = kind.previous_number(segment)?;
                Some(Self::SlruSegment(kind, segment))
            }
            Self::RelMap { spc, db } => {
                let (spc, db) = previous_pair(spc, db)?;
                Some(Self::RelMap { spc, db })
            }
            Self::Database { spc, db } => {
                let (spc, db) = previous_pair(spc, db)?;
                Some(Self::Database { spc, db })
            }
            Self::TwoPhase(xid) => xid.checked_sub(1).map(Self::TwoPhase),
            Self::Origin(id) => id.checked_sub(1).map(Self::Origin),
            Self::Parameters
            | Self::ControlFile
            | Self::ControlData
            | Self::NextMultiXact
            | Self::CommitTime => None,
        }
    }

    fn next_of_kind(self) -> Option<Self> {
        match self {
            Self::RelSize(rel) => rel.next().map(Self::RelSize),
            Self::RelBlock(rel, block) => match block.next() {
                Some(next) => Some(Self::RelBlock(rel, next)),
                None => Some(Self::RelBlock(rel.next()?, BlockNumber::ZERO)),
            },
            Self::SlruBlock(kind, page) => {
                let (kind, page) = kind.next_number(page)?;
                Some(Self::SlruBlock(kind, page))
            }
            Self::SlruSegment(kind, segment) => {
                let (kind, segment) = kind.next_number(segment)?;
                Some(Self::SlruSegment(kind, segment))
            }
            Self::RelMap { spc, db } => {
                let (spc, db) = next_pair(spc, db)?;
                Some(Self::RelMap { spc, db })
            }
            Self::Database { spc, db } => {
                let (spc, db) = next_pair(spc, db)?;
                Some(Self::Database { spc, db })
            }
            Self::TwoPhase(xid) => xid.checked_add(1).map(Self::TwoPhase),
            Self::Origin(id) => id.checked_add(1).map(Self::Origin),
            Self::Parameters
            | Self::ControlFile
            | Self::ControlData
            | Self::NextMultiXact
            | Self::CommitTime => None,
        }
    }

    /// The encoded key: kind u8, then four big-endian fields, so that bytes sort as keys do.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let (kind, a, b, c, fork, d) = match self {
            Self::RelSize(rel) => (
                KIND_REL_SIZE,
                rel.spc,
                rel.db,
                rel.rel,
                rel.fork.number(),
                0,
            ),
            Self::RelBlock(rel, block) => (
                KIND_REL_BLOCK,
                rel.spc,
                rel.db,
                rel.rel,
                rel.fork.number(),
                block.get(),
            ),
            Self::SlruBlock(kind, page) => (KIND_SLRU_BLOCK, kind as u32, page, 0, 0, 0),
            Self::RelMap { spc, db } => (KIND_REL_MAP, spc, db, 0, 0, 0),
            Self::TwoPhase(xid) => (KIND_TWO_PHASE, xid, 0, 0, 0, 0),
            Self::SlruSegment(kind, number) => (KIND_SLRU_SEGMENT, kind as u32, number, 0, 0, 0),
            Self::Parameters => (KIND_PARAMETERS, 0, 0, 0, 0, 0),
            Self::Database { spc, db } => (KIND_DATABASE, spc, db, 0, 0, 0),
            Self::ControlFile => (KIND_CONTROL_FILE, 0, 0, 0, 0, 0),
            Self::ControlData => (KIND_CONTROL_DATA, 0, 0, 0, 0, 0),
            Self::NextMultiXact => (KIND_NEXT_MULTIXACT, 0, 0, 0, 0, 0),
            Self::CommitTime => (KIND_COMMIT_TIME, 0, 0, 0, 0, 0),
            Self::Origin(id) => (KIND_ORIGIN, u32::from(id), 0, 0, 0, 0),
        };
        let mut bytes = [0; Self::LEN];
        bytes[0] = kind;
        bytes[1..5].copy_from_slice(&a.to_be_bytes());
        bytes[5..9].copy_from_slice(&b.to_be_bytes());
        bytes[9..13].copy_from_slice(&c.to_be_bytes());
        bytes[13] = fork;
        bytes[14..18].copy_from_slice(&d.to_be_bytes());
        bytes
    }

    /// The key that [`Key::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the kind, fork or SLRU number is unknown, or there is no such replication origin.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, InvalidKeyError> {
        let [
            kind,
            a0,
            a1,
            a2,
            a3,
            b0,
            b1,
            b2,
            b3,
            c0,
            c1,
            c2,
            c3,
            fork,
            d0,
            d1,
            d2,
            d3,
        ] = *bytes;
        let invalid = InvalidKeyError { kind, fork };
        let a = u32::from_be_bytes([a0, a1, a2, a3]);
        let b = u32::from_be_bytes([b0, b1, b2, b3]);
        let c = u32::from_be_bytes([c0, c1, c2, c3]);
        let d = u32::from_be_bytes([d0, d1, d2, d3]);
        let rel = || -> Result<RelTag, InvalidKeyError> {
            let fork = Fork::try_from(u32::from(fork)).map_err(|_| invalid)?;
            Ok(RelTag {
                spc: a,
                db: b,
                rel: c,
                fork,
            })
        };
        let slru = || SlruKind::from_number(a).ok_or(invalid);
        match kind {
            KIND_REL_SIZE => Ok(Self::RelSize(rel()?)),
            KIND_REL_BLOCK => Ok(Self::RelBlock(rel()?, BlockNumber::new(d))),
            KIND_SLRU_BLOCK => Ok(Self::SlruBlock(slru()?, b)),
            KIND_REL_MAP => Ok(Self::RelMap { spc: a, db: b }),
            KIND_TWO_PHASE => Ok(Self::TwoPhase(a)),
            KIND_SLRU_SEGMENT => Ok(Self::SlruSegment(slru()?, b)),
            KIND_PARAMETERS => Ok(Self::Parameters),
            KIND_DATABASE => Ok(Self::Database { spc: a, db: b }),
            KIND_CONTROL_FILE => Ok(Self::ControlFile),
            KIND_CONTROL_DATA => Ok(Self::ControlData),
            KIND_NEXT_MULTIXACT => Ok(Self::NextMultiXact),
            KIND_COMMIT_TIME => Ok(Self::CommitTime),
            KIND_ORIGIN => u16::try_from(a).map(Self::Origin).map_err(|_| invalid),
            _ => Err(invalid),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RelSize(rel) => write!(f, "size of {rel}"),
            Self::RelBlock(rel, block) => write!(f, "{rel} block {block}"),
            Self::SlruBlock(kind, page) => write!(f, "{} page {page}", kind.directory()),
            Self::RelMap { spc, db } => write!(f, "relation map of {spc}/{db}"),
            Self::TwoPhase(xid) => write!(f, "prepared transaction {xid}"),
            Self::SlruSegment(kind, number) => {
                write!(f, "size of {} segment {number:04X}", kind.directory())
            }
            Self::Parameters => write!(f, "settings of the source"),
            Self::Database { spc, db } => write!(f, "files of database {spc}/{db}"),
            Self::ControlFile => write!(f, "control file of the base"),
            Self::ControlData => write!(f, "control data"),
            Self::NextMultiXact => write!(f, "next multixact"),
            Self::CommitTime => write!(f, "latest commit time"),
            Self::Origin(id) => write!(f, "progress of replication origin {id}"),
        }
    }
}

impl SlruKind {
    /// All kinds, in number order.
    pub const ALL: [Self; 4] = [
        Self::Clog,
        Self::MultiXactOffsets,
        Self::MultiXactMembers,
        Self::CommitTs,
    ];

    /// Pages in a segment file (`SLRU_PAGES_PER_SEGMENT`).
    pub const PAGES_PER_SEGMENT: u32 = 32;

    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    /// The page or segment after one of this kind, which may be the first of the next kind.
    fn next_number(self, number: u32) -> Option<(Self, u32)> {
        match number.checked_add(1) {
            Some(next) => Some((self, next)),
            None => Some((Self::from_number(self as u32 + 1)?, 0)),
        }
    }

    /// The page or segment before one of this kind, which may be the last of the kind before.
    fn previous_number(self, number: u32) -> Option<(Self, u32)> {
        match number.checked_sub(1) {
            Some(before) => Some((self, before)),
            None => Some((Self::from_number((self as u32).checked_sub(1)?)?, u32::MAX)),
        }
    }

    /// Its directory below the data directory.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Clog => "pg_xact",
            Self::MultiXactOffsets => "pg_multixact/offsets",
            Self::MultiXactMembers => "pg_multixact/members",
            Self::CommitTs => "pg_commit_ts",
        }
    }
}

/// The pair after this one, of which the second part counts up first.
fn next_pair(spc: Oid, db: Oid) -> Option<(Oid, Oid)> {
    match db.checked_add(1) {
        Some(next) => Some((spc, next)),
        None => Some((spc.checked_add(1)?, 0)),
    }
}

/// The pair before this one, likewise.
fn previous_pair(spc: Oid, db: Oid) -> Option<(Oid, Oid)> {
    match db.checked_sub(1) {
        Some(before) => Some((spc, before)),
        None => Some((spc.checked_sub(1)?, Oid::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_rel() -> impl Strategy<Value = RelTag> {
        (any::<u32>(), any::<u32>(), any::<u32>(), 0u32..4).prop_map(|(spc, db, rel, fork)| {
            RelTag {
                spc,
                db,
                rel,
                fork: Fork::try_from(fork).unwrap(),
            }
        })
    }

    fn any_key() -> impl Strategy<Value = Key> {
        prop_oneof![
            any_rel().prop_map(Key::RelSize),
            (any_rel(), any::<u32>()).prop_map(|(r, b)| Key::RelBlock(r, BlockNumber::new(b))),
            (0u32..4, any::<u32>())
                .prop_map(|(k, p)| Key::SlruBlock(SlruKind::from_number(k).unwrap(), p)),
            (any::<u32>(), any::<u32>()).prop_map(|(spc, db)| Key::RelMap { spc, db }),
            any::<u32>().prop_map(Key::TwoPhase),
            (0u32..4, any::<u32>())
                .prop_map(|(k, s)| Key::SlruSegment(SlruKind::from_number(k).unwrap(), s)),
            Just(Key::Parameters),
            (any::<u32>(), any::<u32>()).prop_map(|(spc, db)| Key::Database { spc, db }),
            Just(Key::ControlFile),
            Just(Key::ControlData),
            Just(Key::NextMultiXact),
            Just(Key::CommitTime),
            any::<u16>().prop_map(Key::Origin),
        ]
    }

    /// A key with numbers from the ends of what there is.
    fn edge_key() -> impl Strategy<Value = Key> {
        let number = || prop_oneof![0..3u32, u32::MAX - 2..=u32::MAX];
        let numbers = [(); 4].map(|()| number());
        (any_key(), numbers).prop_map(|(key, [a, b, c, d])| {
            let mut bytes = key.to_bytes();
            // Areas and replication origins have small numbers, single keys none.
            let is_of = |kinds: &[u8]| kinds.contains(&bytes[0]);
            let has_rel = is_of(&[KIND_REL_SIZE, KIND_REL_BLOCK]);
            let has_pair = has_rel || is_of(&[KIND_REL_MAP, KIND_DATABASE]);
            let has_number = is_of(&[KIND_SLRU_BLOCK, KIND_SLRU_SEGMENT]);
            let parts = [
                (1, a, has_pair || is_of(&[KIND_TWO_PHASE])),
                (5, b, has_pair || has_number),
                (9, c, has_rel),
                (14, d, is_of(&[KIND_REL_BLOCK])),
            ];
            for (at, number, _) in parts.into_iter().filter(|(.., is_used)| *is_used) {
                bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
            }
            Key::from_bytes(&bytes).unwrap()
        })
    }

    proptest! {
        #[test]
        fn encoding_round_trips(key in any_key()) {
            prop_assert_eq!(Key::from_bytes(&key.to_bytes()).unwrap(), key);
        }

        #[test]
        fn bytes_sort_as_keys_do(a in any_key(), b in any_key()) {
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        }

        #[test]
        fn nothing_is_between_a_key_and_the_next(a in edge_key(), b in edge_key()) {
            match a.next() {
                Some(next) => {
                    prop_assert!(a < next && (b <= a || next <= b));
                    prop_assert_eq!(next.previous(), Some(a));
                }
                None => prop_assert_eq!(a, Key::Origin(u16::MAX)),
            }
            match a.previous() {
                Some(before) => prop_assert_eq!(before.next(), Some(a)),
                None => prop_assert_eq!(Some(a), Key::first_of(KIND_REL_SIZE)),
            }
        }

        #[test]
        fn any_bytes_are_a_key_or_an_error(bytes: [u8; Key::LEN]) {
            if let Ok(key) = Key::from_bytes(&bytes) {
                prop_assert_eq!(Key::from_bytes(&key.to_bytes()).unwrap(), key);
            }
        }
    }
}
