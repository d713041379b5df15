use std::ops::Range;

use bytes::Bytes;
use palimpsest_catalog::CatalogSource;
use palimpsest_types::{BlockNumber, ErrorKind, Lsn, Oid, RelTag, SlruKind};

use super::{MAX_BLOCKS, PageClient, PagesRequest, ReadAt};
use crate::{convert::TimelineRef, status::RemoteError};

/// A timeline at one LSN, read through a page-serve: where names are looked up.
#[derive(Debug, Clone, Copy)]
pub struct TimelineAt<'a> {
    client: &'a PageClient,
    timeline: TimelineRef,
    lsn: Lsn,
}

impl<'a> TimelineAt<'a> {
    /// What `client` reads of a timeline at `lsn`.
    pub fn new(client: &'a PageClient, timeline: TimelineRef, lsn: Lsn) -> Self {
        Self {
            client,
            timeline,
            lsn,
        }
    }

    fn at(&self) -> ReadAt {
        ReadAt {
            lsn: Some(self.lsn),
            ..ReadAt::default()
        }
    }
}

impl CatalogSource for TimelineAt<'_> {
    type Error = RemoteError;

    async fn blocks(&self, rel: RelTag) -> Result<Option<BlockNumber>, RemoteError> {
        let size = self.client.relation_size(self.timeline, self.at(), rel);
        Ok(size.await?.blocks)
    }

    async fn pages(&self, rel: RelTag, blocks: Range<u32>) -> Result<Vec<Bytes>, RemoteError> {
        let wanted: Vec<_> = blocks.map(BlockNumber::new).collect();
        let mut pages = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(MAX_BLOCKS) {
            let request = PagesRequest {
                timeline: self.timeline,
                at: self.at(),
                rel,
                blocks: some.to_vec(),
            };
            pages.extend(self.client.pages(request).await?.pages);
        }
        Ok(pages)
    }

    async fn relation_map(&self, spc: Oid, db: Oid) -> Result<Option<Bytes>, RemoteError> {
        let map = self.client.relation_map(self.timeline, self.at(), spc, db);
        Ok(found(map.await)?.map(|map| map.content))
    }

    async fn slru_page(&self, kind: SlruKind, page: u32) -> Result<Option<Bytes>, RemoteError> {
        let segment = page / SlruKind::PAGES_PER_SEGMENT;
        let segment = self
            .client
            .slru_segment(self.timeline, self.at(), kind, segment);
        let pages = found(segment.await)?.map(|segment| segment.pages);
        let mut pages = pages.into_iter().flatten();
        Ok(pages.find_map(|(number, data)| (number == page).then_some(data)))
    }
}

fn found<T>(answer: Result<T, RemoteError>) -> Result<Option<T>, RemoteError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
