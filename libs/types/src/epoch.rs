use std::fmt;

use serde::{Deserialize, Serialize};

/// The generation of a timeline's writer. A higher epoch supersedes every lower one (fencing).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct WriterEpoch(u64);

impl WriterEpoch {
    /// The first writer of a timeline.
    pub const FIRST: Self = Self(1);

    /// An epoch from its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch that supersedes this one.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for WriterEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
