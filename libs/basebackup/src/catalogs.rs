//! What catalogs say of a cluster: which tablespaces there are, as nothing else says so of one that is empty; and
//! who its superuser is.

use std::ops::Range;

use bytes::Bytes;
use palimpsest_catalog::{CatalogSource, superuser, tablespaces};
use palimpsest_read::{ReadError, TimelineReader};
use palimpsest_redo::Engine;
use palimpsest_types::{BlockNumber, Lsn, Oid, RelTag, SlruKind};

use crate::error::BackupError;

/// A timeline at an LSN.
struct At<'a, E> {
    reader: &'a TimelineReader<E>,
    lsn: Lsn,
}

/// Each is a directory.
const MOST: usize = 100_000;

/// The tablespaces at an LSN, without the two that every cluster has.
pub(crate) async fn tablespaces_at<E: Engine>(
    reader: &TimelineReader<E>,
    lsn: Lsn,
) -> Result<Vec<Oid>, BackupError> {
    let found = tablespaces(&At { reader, lsn }, MOST + 1).await;
    let found = found.map_err(BackupError::Catalog)?;
    match found.len() > MOST {
        true => Err(BackupError::TooManyTablespaces(MOST)),
        false => Ok(found),
    }
}

/// A superuser who may log in at an LSN.
pub(crate) async fn superuser_at<E: Engine>(
    reader: &TimelineReader<E>,
    lsn: Lsn,
) -> Result<Option<String>, BackupError> {
    let found = superuser(&At { reader, lsn }).await;
    found.map_err(BackupError::Catalog)
}

impl<E: Engine> CatalogSource for At<'_, E> {
    type Error = ReadError;

    async fn blocks(&self, rel: RelTag) -> Result<Option<BlockNumber>, ReadError> {
        self.reader.relation_size(rel, self.lsn).await
    }

    async fn pages(&self, rel: RelTag, blocks: Range<u32>) -> Result<Vec<Bytes>, ReadError> {
        let blocks: Vec<_> = blocks.map(BlockNumber::new).collect();
        self.reader.pages(rel, &blocks, self.lsn).await
    }

    async fn relation_map(&self, spc: Oid, db: Oid) -> Result<Option<Bytes>, ReadError> {
        match self.reader.relation_map(spc, db, self.lsn).await {
            Err(ReadError::NoRelationMap { .. }) => Ok(None),
            map => map.map(Some),
        }
    }

    async fn slru_page(&self, kind: SlruKind, page: u32) -> Result<Option<Bytes>, ReadError> {
        self.reader.slru_page(kind, page, self.lsn).await
    }
}
