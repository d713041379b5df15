use std::str::FromStr;

use palimpsest_api::page::MAX_BLOCKS;
use palimpsest_types::{ByteCount, PAGE_SIZE, ParseByteCountError};
use serde::{Deserialize, Serialize};

/// What all answers may take: enough for each share of it to have room for the largest request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ByteCount", try_from = "ByteCount")]
pub struct AnswerMemory(ByteCount);

/// It is no such size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAnswerMemoryError {
    /// It is none at all.
    #[error(transparent)]
    NoSize(#[from] ParseByteCountError),
    /// The largest request would take less than its answer does.
    #[error(
        "{} is too little; answer-memory has to be {} at least, so that a stream's share, an \
         eighth, has room for the {MAX_BLOCKS} pages of the largest request",
        String::from(*.0),
        String::from(AnswerMemory::LEAST.get())
    )]
    TooLittle(ByteCount),
}

impl AnswerMemory {
    /// Streams that can have all of it between them: a client that does not read takes no more than
    /// its stream's share.
    pub(super) const SHARES: u32 = 8;
    /// The least that is enough.
    pub const LEAST: Self = Self(ByteCount::new(
        MAX_BLOCKS as u64 * PAGE_SIZE as u64 * Self::SHARES as u64,
    ));

    /// What is enough for most.
    pub const DEFAULT: Self = Self(ByteCount::mib(256));

    /// The size.
    pub const fn get(self) -> ByteCount {
        self.0
    }

    /// Whole pages in it.
    pub(super) const fn pages(self) -> u64 {
        self.0.get() / PAGE_SIZE as u64
    }
}

impl TryFrom<ByteCount> for AnswerMemory {
    type Error = InvalidAnswerMemoryError;

    fn try_from(size: ByteCount) -> Result<Self, Self::Error> {
        if size < Self::LEAST.0 {
            return Err(InvalidAnswerMemoryError::TooLittle(size));
        }
        Ok(Self(size))
    }
}

impl FromStr for AnswerMemory {
    type Err = InvalidAnswerMemoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<ByteCount>()?.try_into()
    }
}

impl From<AnswerMemory> for ByteCount {
    fn from(memory: AnswerMemory) -> Self {
        memory.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_room_for_the_largest_request_or_the_setting_is_refused() {
        let least = AnswerMemory::LEAST;
        let share = least.pages() / u64::from(AnswerMemory::SHARES);
        assert_eq!(share, MAX_BLOCKS as u64);
        assert_eq!("16MiB".parse(), Ok(least));
        let error = "16777215".parse::<AnswerMemory>().unwrap_err().to_string();
        assert!(
            error.starts_with("16777215B is too little; answer-memory has to be 16MiB at least")
        );
        let error = "much".parse::<AnswerMemory>().unwrap_err();
        assert!(matches!(error, InvalidAnswerMemoryError::NoSize(_)));
    }
}
