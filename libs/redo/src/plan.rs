use bytes::Bytes;
use palimpsest_types::{BlockNumber, ByteCount, PAGE_SIZE};
use palimpsest_wal::{RawRecord, Value};

use crate::chain::{Chain, InvalidChainError, zero_page};

/// One step from page to page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Begin with this page.
    Start(Bytes),
    /// Replay these records in the engine. As the first step, on nothing.
    Replay(Vec<RawRecord>),
    /// Clear a visibility map page's bits of heap blocks from here on.
    TruncateVisibilityMap(BlockNumber),
}

/// How much goes to the engine at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records in a piece, at most.
    pub records: usize,
    /// Bytes of records in a piece, at most; a single larger record is a piece of its own.
    pub bytes: ByteCount,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records: 1000,
            bytes: ByteCount::mib(4),
        }
    }
}

/// The steps that build the page of a chain.
///
/// # Errors
/// If the chain does not lead to a page.
pub fn plan(chain: Chain, limits: Limits) -> Result<Vec<Step>, InvalidChainError> {
    let chain = chain.shortened();
    let mut steps: Vec<Step> = chain.base.iter().cloned().map(Step::Start).collect();
    let mut piece_bytes = 0;
    for change in &chain.changes {
        if steps.is_empty() && !change.stands_alone() {
            return Err(chain.no_base());
        }
        match change {
            Value::Image(page) if page.len() != PAGE_SIZE => return Err(chain.not_a_page()),
            Value::Image(page) => steps.push(Step::Start(page.clone())),
            Value::ZeroPage => steps.push(Step::Start(zero_page())),
            Value::TruncateVisibilityMap { heap_blocks } => {
                steps.push(Step::TruncateVisibilityMap(*heap_blocks));
            }
            Value::Record { record, .. } => {
                let len = record.bytes.len();
                match steps.last_mut() {
                    Some(Step::Replay(piece))
                        if piece.len() < limits.records
                            && piece_bytes + len <= limits.bytes.as_len() =>
                    {
                        piece.push(record.clone());
                        piece_bytes += len;
                    }
                    _ => {
                        steps.push(Step::Replay(vec![record.clone()]));
                        piece_bytes = len;
                    }
                }
            }
            Value::TransactionsEnded { .. }
            | Value::Patched(_)
            | Value::RelSize(_)
            | Value::File(_)
            | Value::CopyOf { .. }
            | Value::Dropped => return Err(chain.not_a_page()),
        }
    }
    if steps.is_empty() {
        Err(chain.no_base())
    } else {
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{Fork, Lsn, RelTag};

    use super::*;

    const REL: RelTag = RelTag {
        spc: 1,
        db: 2,
        rel: 3,
        fork: Fork::Main,
    };

    fn record(will_init: bool, len: usize) -> Value {
        let bytes = vec![0; len].into();
        let record = RawRecord {
            start_lsn: Lsn::ZERO,
            end_lsn: Lsn::ZERO,
            bytes,
        };
        Value::Record { will_init, record }
    }

    fn steps(base: Option<Bytes>, changes: Vec<Value>) -> Result<Vec<usize>, InvalidChainError> {
        let limits = Limits {
            records: 3,
            bytes: ByteCount::new(100),
        };
        let chain = Chain {
            rel: REL,
            block: BlockNumber::ZERO,
            base,
            changes,
        };
        let shape = |step: Step| match step {
            Step::Start(_) => 0,
            Step::Replay(records) => records.len(),
            Step::TruncateVisibilityMap(_) => 99,
        };
        Ok(plan(chain, limits)?.into_iter().map(shape).collect())
    }

    #[test]
    fn begins_at_the_newest_version_that_stands_alone() {
        let old = Some(zero_page());
        let changes = vec![
            record(false, 1),
            Value::ZeroPage,
            record(false, 1),
            record(true, 1),
        ];
        assert_eq!(steps(old.clone(), changes), Ok(vec![1]));
        assert_eq!(
            steps(old, vec![Value::ZeroPage, record(false, 1)]),
            Ok(vec![0, 1])
        );
    }

    #[test]
    fn an_image_of_another_length_is_no_page() {
        for len in [0, PAGE_SIZE - 1, PAGE_SIZE + 1] {
            let image = Value::Image(vec![0; len].into());
            let refused = steps(None, vec![image, record(false, 1)]);
            assert!(matches!(refused, Err(InvalidChainError::NotAPage { .. })));
        }
    }

    #[test]
    fn long_chains_go_in_pieces() {
        let changes = vec![record(false, 1); 7];
        assert_eq!(steps(Some(zero_page()), changes), Ok(vec![0, 3, 3, 1]));
        let changes = vec![record(false, 60), record(false, 60), record(false, 500)];
        assert_eq!(steps(Some(zero_page()), changes), Ok(vec![0, 1, 1, 1]));
    }

    #[test]
    fn native_steps_stand_between_replays() {
        let truncate = Value::TruncateVisibilityMap {
            heap_blocks: BlockNumber::ZERO,
        };
        let changes = vec![record(true, 1), truncate, record(false, 1)];
        assert_eq!(steps(None, changes), Ok(vec![1, 99, 1]));
    }

    #[test]
    fn a_chain_without_a_beginning_is_an_error_and_not_a_zero_page() {
        assert!(matches!(
            steps(None, vec![record(false, 1)]),
            Err(InvalidChainError::NoBase { .. })
        ));
        assert!(matches!(
            steps(None, vec![]),
            Err(InvalidChainError::NoBase { .. })
        ));
        let size = Value::RelSize(BlockNumber::ZERO);
        assert!(matches!(
            steps(None, vec![size]),
            Err(InvalidChainError::NotAPage { .. })
        ));
    }
}
