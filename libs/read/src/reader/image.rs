//! What is to stand in an image.

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use palimpsest_redo::Engine;
use palimpsest_types::{BlockNumber, Key, Lsn, PAGE_SIZE, SlruKind};
use palimpsest_wal::Value;

use super::TimelineReader;
use crate::{
    error::ReadError,
    inventory::{Batch, Inventory, Run},
    listing::{maps_at, relations_at},
};

impl<E: Engine> TimelineReader<E> {
    /// All keys of which there are images and that exist at an LSN.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn inventory(&self, lsn: Lsn) -> Result<Inventory, ReadError> {
        let mut runs = Vec::new();
        for (rel, blocks) in relations_at(self, lsn).await? {
            runs.push(Run::Value(Key::RelSize(rel), Value::RelSize(blocks)));
            runs.push(Run::Blocks(rel, blocks.get()));
        }
        for (key, map) in maps_at(self, lsn).await? {
            runs.push(Run::Value(key, map));
        }
        for kind in SlruKind::ALL {
            for (segment, pages) in self.slru_segments(kind, lsn).await? {
                let key = Key::SlruSegment(kind, segment);
                runs.push(Run::Value(key, Value::RelSize(BlockNumber::new(pages))));
                let first = segment.saturating_mul(SlruKind::PAGES_PER_SEGMENT);
                let pages = pages.min(SlruKind::PAGES_PER_SEGMENT);
                let end = first.saturating_add(pages);
                runs.push(Run::SlruPages(kind, first..end));
            }
        }
        Ok(Inventory::new(lsn, runs))
    }

    /// The versions of keys that exist at an LSN, in order. None needs what is older. Pages that have changed
    /// very often are made by halves: see [`TimelineReader::with_changes_of`].
    ///
    /// # Errors
    /// If one can't be built.
    pub async fn image(&self, batch: Batch, lsn: Lsn) -> Result<Vec<(Key, Value)>, ReadError> {
        match batch {
            Batch::Value(key, value) => Ok(vec![(key, value)]),
            Batch::Blocks(rel, blocks) => {
                let make = |some| self.pages(rel, some, lsn).boxed();
                let pages = by_halves(&blocks, make).await?;
                let keys = blocks.into_iter().map(|block| Key::RelBlock(rel, block));
                Ok(keys.zip(pages.into_iter().map(page)).collect())
            }
            Batch::SlruPages(kind, numbers) => {
                let make = |some| self.existing_slru_pages(kind, some, lsn).boxed();
                let pages = by_halves(&numbers, make).await?;
                let keys = numbers.into_iter().map(|page| Key::SlruBlock(kind, page));
                Ok(keys.zip(pages.into_iter().map(page)).collect())
            }
        }
    }
}

/// Pages in order, made all at once, or if they have changed too often for that, half of them after the other.
async fn by_halves<'a, T>(
    all: &'a [T],
    make: impl Fn(&'a [T]) -> BoxFuture<'a, Result<Vec<Bytes>, ReadError>>,
) -> Result<Vec<Bytes>, ReadError> {
    let (mut pages, mut rest) = (Vec::with_capacity(all.len()), vec![all]);
    while let Some(some) = rest.pop() {
        match make(some).await {
            Err(ReadError::TooManyChanges { .. }) => {
                let (first, second) = some.split_at(some.len() / 2);
                rest.extend([second, first]);
            }
            made => pages.extend(made?),
        }
    }
    Ok(pages)
}

/// A page as it is stored.
fn page(content: Bytes) -> Value {
    match content[..] == [0; PAGE_SIZE] {
        true => Value::ZeroPage,
        false => Value::Image(content),
    }
}
