use std::{collections::HashMap, error::Error};

use bytes::Bytes;
use palimpsest_types::{BlockNumber, Oid, RelTag, SlruKind};
use palimpsest_wal::{clog_page_of, transaction_end};

use crate::{
    error::{Damage, ResolveError},
    heap::{Tuple, TupleHeader, tuples, u32_at},
    relation_map,
    source::CatalogSource,
    v15::{Catalog, NAME, NAME_LEN, OID},
    visibility::{Untold, deleted_by, deleting_multixact, is_visible, undecided},
};

/// The catalogs of a cluster at one LSN, with what is known of the transactions they are judged by.
pub(crate) struct Catalogs<'a, S> {
    source: &'a S,
    /// Pages of SLRU areas that were asked for before.
    slru: HashMap<(SlruKind, u32), Option<Bytes>>,
}

/// A row of a catalog, of at least the length that its [`Catalog`] tells.
#[derive(Debug, Clone)]
pub(crate) struct Row(Bytes);

/// Pages asked for at once.
const PAGES: u32 = 64;

impl<'a, S: CatalogSource> Catalogs<'a, S> {
    pub(crate) fn new(source: &'a S) -> Self {
        Self {
            source,
            slru: HashMap::new(),
        }
    }

    /// The file of a mapped relation.
    pub(crate) async fn mapped(
        &self,
        (spc, db): (Oid, Oid),
        oid: Oid,
    ) -> Result<Option<Oid>, ResolveError<S::Error>> {
        let map = self.source.relation_map(spc, db).await;
        let Some(map) = map.map_err(ResolveError::Source)? else {
            return Ok(None);
        };
        let found = relation_map::file_of(&map, oid);
        Ok(found.map_err(|what| Damage::RelationMap { spc, db, what })?)
    }

    /// The first row that is seen and `wanted`.
    pub(crate) async fn find(
        &mut self,
        catalog: Catalog,
        rel: RelTag,
        wanted: impl Fn(&Row) -> bool,
    ) -> Result<Option<Row>, ResolveError<S::Error>> {
        Ok(self.seen(catalog, rel, wanted, 1).await?.pop())
    }

    /// The first rows that are seen and `wanted`, so many at most. Reads the catalog from its beginning: an
    /// index would be quicker, but what it points to has to be judged just the same.
    pub(crate) async fn seen(
        &mut self,
        catalog: Catalog,
        rel: RelTag,
        wanted: impl Fn(&Row) -> bool,
        most: usize,
    ) -> Result<Vec<Row>, ResolveError<S::Error>> {
        let mut seen = Vec::new();
        let blocks = self.source.blocks(rel).await;
        let blocks = blocks.map_err(ResolveError::Source)?;
        let missing = || Damage::NoCatalog {
            catalog: catalog.name,
            rel,
        };
        let blocks = blocks.ok_or_else(missing)?.get();
        let mut from = 0;
        while from < blocks {
            let to = from.saturating_add(PAGES).min(blocks);
            let pages = self.source.pages(rel, from..to).await;
            for (block, page) in (from..to).zip(pages.map_err(ResolveError::Source)?) {
                let malformed = |what| Damage::Page {
                    catalog: catalog.name,
                    rel,
                    block: BlockNumber::new(block),
                    what,
                };
                for Tuple { header, data } in tuples(&page).map_err(malformed)? {
                    if data.len() < catalog.row_len {
                        return Err(malformed("a row is too short").into());
                    }
                    let row = Row(data);
                    if wanted(&row) && self.sees(catalog, &header).await? {
                        seen.push(row);
                        if seen.len() == most {
                            return Ok(seen);
                        }
                    }
                }
            }
            from = to;
        }
        Ok(seen)
    }

    async fn sees(
        &mut self,
        catalog: Catalog,
        header: &TupleHeader,
    ) -> Result<bool, ResolveError<S::Error>> {
        let header = self.with_own_deleter(*header).await?;
        for xid in undecided(&header) {
            self.slru_page(SlruKind::Clog, clog_page_of(xid)).await?;
        }
        let status = |xid| {
            let page = self.slru.get(&(SlruKind::Clog, clog_page_of(xid)))?;
            Some(transaction_end(page.as_ref()?, xid))
        };
        is_visible(&header, status).map_err(|untold| untold_row(catalog, untold))
    }

    /// Of a row that a multixact holds, who of its members deleted it; as it is, if that is not kept.
    async fn with_own_deleter(
        &mut self,
        header: TupleHeader,
    ) -> Result<TupleHeader, ResolveError<S::Error>> {
        let Some(multixact) = deleting_multixact(&header) else {
            return Ok(header);
        };
        let updater = self.updater(multixact).await?;
        Ok(updater.map_or(header, |xid| deleted_by(header, xid)))
    }

    /// A page of an SLRU area, read once.
    pub(crate) async fn slru_page(
        &mut self,
        kind: SlruKind,
        page: u32,
    ) -> Result<Option<Bytes>, ResolveError<S::Error>> {
        if let Some(known) = self.slru.get(&(kind, page)) {
            return Ok(known.clone());
        }
        let read = self.source.slru_page(kind, page).await;
        let read = read.map_err(ResolveError::Source)?;
        self.slru.insert((kind, page), read.clone());
        Ok(read)
    }
}

fn untold_row<E: Error + 'static>(catalog: Catalog, untold: Untold) -> ResolveError<E> {
    let catalog = catalog.name;
    let damage = match untold {
        Untold::MultiXact(multixact) => Damage::MultiXact { catalog, multixact },
        Untold::Moved => Damage::Moved { catalog },
        Untold::NoStatus(xid) => Damage::NoStatus(xid),
    };
    damage.into()
}

impl Row {
    pub(crate) fn oid(&self) -> Oid {
        self.number(OID)
    }

    /// Whether its name, which is padded with zeros, is this one.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        let column = self.0.get(NAME..NAME + NAME_LEN).unwrap_or_default();
        let len = column.iter().position(|byte| *byte == 0);
        column.get(..len.unwrap_or(NAME_LEN)) == Some(name.as_bytes())
    }

    /// Its name, if that is one that a program can say.
    pub(crate) fn name(&self) -> Option<&str> {
        let column = self.0.get(NAME..NAME + NAME_LEN)?;
        let len = column.iter().position(|byte| *byte == 0);
        std::str::from_utf8(column.get(..len.unwrap_or(NAME_LEN))?).ok()
    }

    /// The number at an offset within the length that the catalog tells.
    pub(crate) fn number(&self, at: usize) -> Oid {
        u32_at(&self.0, at).unwrap_or_default()
    }

    /// The byte at an offset within the length that the catalog tells.
    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or_default()
    }
}
