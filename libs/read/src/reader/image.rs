//! What is to stand in an image.

use bytes::Bytes;
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
        let (mut made, mut rest) = (Vec::new(), vec![batch]);
        while let Some(batch) = rest.pop() {
            match self.image_of(&batch, lsn).await {
                Ok(versions) => made.extend(versions),
                Err(ReadError::TooManyChanges { .. }) => {
                    let [first, second] = batch.halves();
                    rest.extend([second, first]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(made)
    }

    async fn image_of(&self, batch: &Batch, lsn: Lsn) -> Result<Vec<(Key, Value)>, ReadError> {
        match batch {
            Batch::Value(key, value) => Ok(vec![(*key, value.clone())]),
            Batch::Blocks(rel, blocks) => {
                let pages = self.pages(*rel, blocks, lsn).await?;
                let keys = blocks.iter().map(|block| Key::RelBlock(*rel, *block));
                Ok(keys.zip(pages.into_iter().map(page)).collect())
            }
            Batch::SlruPages(kind, numbers) => {
                let pages = self.existing_slru_pages(*kind, numbers, lsn).await?;
                let keys = numbers.iter().map(|page| Key::SlruBlock(*kind, *page));
                Ok(keys.zip(pages.into_iter().map(page)).collect())
            }
        }
    }
}

/// A page as it is stored.
fn page(content: Bytes) -> Value {
    match content[..] == [0; PAGE_SIZE] {
        true => Value::ZeroPage,
        false => Value::Image(content),
    }
}
