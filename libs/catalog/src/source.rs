use std::{error::Error, ops::Range};

use bytes::Bytes;
use palimpsest_types::{BlockNumber, Oid, RelTag, SlruKind};

/// A cluster as it was at one LSN.
pub trait CatalogSource: Sync {
    /// Why something can't be read.
    type Error: Error + Send + Sync + 'static;

    /// The length of a relation fork; `None` if it does not exist.
    fn blocks(
        &self,
        rel: RelTag,
    ) -> impl Future<Output = Result<Option<BlockNumber>, Self::Error>> + Send;

    /// Some pages of a relation fork, in order; they exist.
    fn pages(
        &self,
        rel: RelTag,
        blocks: Range<u32>,
    ) -> impl Future<Output = Result<Vec<Bytes>, Self::Error>> + Send;

    /// The relation map file of a database, database 0 of tablespace 1664 for the shared one;
    /// `None` if it does not exist.
    fn relation_map(
        &self,
        spc: Oid,
        db: Oid,
    ) -> impl Future<Output = Result<Option<Bytes>, Self::Error>> + Send;

    /// A page of an SLRU area, of which status and multixacts of transactions are asked for; `None`
    /// if it does not exist.
    fn slru_page(
        &self,
        kind: SlruKind,
        page: u32,
    ) -> impl Future<Output = Result<Option<Bytes>, Self::Error>> + Send;
}
