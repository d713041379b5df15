use bytes::Bytes;
use palimpsest_wal::{Value, set_transaction_end};

use crate::chain::zero_page;

/// A change in a chain is not a version of a page of `pg_xact`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version of a pg_xact page is of a wrong kind")]
pub struct InvalidClogChainError;

/// The page of `pg_xact` that `changes`, oldest first, make of `base`; it begins as zeros.
///
/// No PostgreSQL code is needed, and a chain is short enough to be done at once: every transaction
/// of a page ends once.
///
/// # Errors
/// If a change is none of such a page.
pub fn clog_page(base: Option<Bytes>, changes: &[Value]) -> Result<Bytes, InvalidClogChainError> {
    let mut page = Vec::from(base.unwrap_or_else(zero_page));
    for change in changes {
        match change {
            Value::Image(image) => page = Vec::from(image.clone()),
            Value::ZeroPage => page.fill(0),
            Value::TransactionsEnded { end, xids } => set_transaction_end(&mut page, xids, *end),
            Value::Record { .. }
            | Value::TruncateVisibilityMap { .. }
            | Value::RelSize(_)
            | Value::File(_)
            | Value::Dropped => return Err(InvalidClogChainError),
        }
    }
    Ok(page.into())
}

#[cfg(test)]
mod tests {
    use palimpsest_types::PAGE_SIZE;
    use palimpsest_wal::{TransactionEnd, transaction_end};

    use super::*;

    fn ended(xid: u32, end: TransactionEnd) -> Value {
        let xids = [xid].into();
        Value::TransactionsEnded { end, xids }
    }

    #[test]
    fn begins_as_zeros_and_ends_as_the_log_says() {
        let changes = [
            ended(5, TransactionEnd::Committed),
            ended(6, TransactionEnd::Aborted),
        ];
        let page = clog_page(None, &changes).unwrap();
        assert_eq!(page.len(), PAGE_SIZE);
        assert_eq!(transaction_end(&page, 5), Some(TransactionEnd::Committed));
        assert_eq!(transaction_end(&page, 6), Some(TransactionEnd::Aborted));
        assert_eq!(transaction_end(&page, 7), None);

        let again = [Value::ZeroPage, ended(7, TransactionEnd::Committed)];
        let page = clog_page(Some(page), &again).unwrap();
        assert_eq!(transaction_end(&page, 5), None);
        assert_eq!(transaction_end(&page, 7), Some(TransactionEnd::Committed));
        assert!(clog_page(None, &[Value::Dropped]).is_err());
    }
}
