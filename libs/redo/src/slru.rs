use bytes::Bytes;
use palimpsest_wal::{Value, change_slru_page};

use crate::chain::zero_page;

/// A chain that does not lead to a page of an SLRU area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSlruChainError {
    /// Neither a base nor a first change that stands alone.
    #[error("no version of the page is old enough to begin with")]
    NoBase,
    /// A change in the chain is not a version of such a page.
    #[error(transparent)]
    NotAPage(#[from] palimpsest_wal::NotAnSlruChangeError),
}

/// The page of an SLRU area that `changes`, oldest first, make of `base`.
///
/// No PostgreSQL code is needed, and a chain is short enough to be done at once: every transaction
/// of a page ends once, every multixact on it is made once.
///
/// # Errors
/// If there is nothing to begin with, or a change is none of such a page.
pub fn slru_page(base: Option<Bytes>, changes: &[Value]) -> Result<Bytes, InvalidSlruChainError> {
    let begins_alone = changes.first().is_some_and(Value::stands_alone);
    let base = match base {
        Some(base) => base,
        None if begins_alone => zero_page(),
        None => return Err(InvalidSlruChainError::NoBase),
    };
    let mut page = Vec::from(base);
    for change in changes {
        change_slru_page(&mut page, change)?;
    }
    Ok(page.into())
}

#[cfg(test)]
mod tests {
    use palimpsest_types::PAGE_SIZE;
    use palimpsest_wal::{PagePatches, TransactionEnd, transaction_end};

    use super::*;

    fn ended(xid: u32, end: TransactionEnd) -> Value {
        let xids = [xid].into();
        Value::TransactionsEnded { end, xids }
    }

    #[test]
    fn ends_as_the_log_says() {
        let changes = [
            Value::ZeroPage,
            ended(5, TransactionEnd::Committed),
            ended(6, TransactionEnd::Aborted),
        ];
        let page = slru_page(None, &changes).unwrap();
        assert_eq!(page.len(), PAGE_SIZE);
        assert_eq!(transaction_end(&page, 5), Some(TransactionEnd::Committed));
        assert_eq!(transaction_end(&page, 6), Some(TransactionEnd::Aborted));
        assert_eq!(transaction_end(&page, 7), None);

        let again = [Value::ZeroPage, ended(7, TransactionEnd::Committed)];
        let page = slru_page(Some(page), &again).unwrap();
        assert_eq!(transaction_end(&page, 5), None);
        assert_eq!(transaction_end(&page, 7), Some(TransactionEnd::Committed));
        assert!(slru_page(None, &[Value::Dropped]).is_err());
    }

    #[test]
    fn patches_are_written_over_what_was_there() {
        let base = Bytes::from(vec![9; PAGE_SIZE]);
        let patch = PagePatches::decode(Bytes::from_static(&[2, 0, 1, 0, 5])).unwrap();
        let changes = [Value::Patched(patch)];
        let page = slru_page(Some(base), &changes).unwrap();
        assert_eq!(page[..4], [9, 9, 5, 9]);
        assert_eq!(
            slru_page(None, &changes),
            Err(InvalidSlruChainError::NoBase),
            "and never over zeros that nobody wrote"
        );
    }
}
