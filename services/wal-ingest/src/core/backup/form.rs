//! What a base backup becomes: layers of bounded size, which are stored as they are full.

use std::time::Duration;

use bytes::Bytes;
use palimpsest_layer::image::ImageLayerWriter;
use palimpsest_manifest::{KeySpan, LayerEntry, LayerKind};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{BlockNumber, ByteCount, ErrorKind, Key, Lsn, PAGE_SIZE, WriterEpoch};
use tokio::time::Instant;

use crate::core::{back_off::BackOff, error::IngestError};

/// A layer is stored when it has this size: as much as is held in memory.
pub(super) const LAYER_SIZE: usize = 32 << 20;
/// So long an object store may be away before the backup is given up.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is made of a backup's keys, which come in any order, each once.
pub(in crate::core) trait Form: Send {
    /// A page.
    fn page(
        &mut self,
        key: Key,
        page: &[u8; PAGE_SIZE],
    ) -> impl Future<Output = Result<(), IngestError>> + Send;
    /// The size of a fork, or of a segment of an SLRU area.
    fn size(&mut self, key: Key, blocks: BlockNumber);
    /// A file's content.
    fn file(&mut self, key: Key, content: &[u8]);
    /// Where the backup begins by the source's clock, in seconds since 1970.
    fn begun_at(&mut self, unix_seconds: u64);
    /// Stores what there is, if it is a whole layer.
    fn store_full(&mut self) -> impl Future<Output = Result<(), IngestError>> + Send;
    /// Stores the rest; all layers.
    fn finish(self) -> impl Future<Output = Result<Vec<LayerEntry>, IngestError>> + Send;
}

/// Where the layers of one backup go.
#[derive(Debug)]
pub(in crate::core) struct Shelf {
    store: ObjectStore,
    /// Of the layers.
    directory: StorePath,
    /// Of all layers.
    epoch: WriterEpoch,
    /// In the names of all layers, and of nobody else's.
    tag: u64,
    stored: Vec<LayerEntry>,
}

/// A layer that is to be stored.
pub(super) struct Layer {
    pub(super) bytes: Bytes,
    pub(super) kind: LayerKind,
    pub(super) keys: KeySpan,
    pub(super) entries: u64,
}

/// The backup that a timeline begins with: all of it, as it was at one LSN.
pub(in crate::core) struct Base {
    shelf: Shelf,
    lsn: Lsn,
    open: ImageLayerWriter,
}

impl Shelf {
    /// A place for layers below `directory`, whose names the epoch and a tag that nobody else has make their own.
    pub(in crate::core) fn new(
        store: ObjectStore,
        directory: StorePath,
        (epoch, tag): (WriterEpoch, u64),
    ) -> Self {
        Self {
            store,
            directory,
            epoch,
            tag,
            stored: Vec::new(),
        }
    }

    pub(super) const fn epoch(&self) -> WriterEpoch {
        self.epoch
    }

    /// How many layers are stored.
    pub(super) fn count(&self) -> usize {
        self.stored.len()
    }

    /// Stores a layer, whose name begins with `what`.
    pub(super) async fn add(&mut self, what: &str, layer: Layer) -> Result<(), IngestError> {
        let Layer {
            bytes,
            kind,
            keys,
            entries,
        } = layer;
        let lsn = match kind {
            LayerKind::Base(lsn) | LayerKind::Image(lsn) => lsn,
            LayerKind::Delta(span) => span.up_to,
        };
        let (epoch, tag, number) = (self.epoch, self.tag, self.count());
        let name = format!("{what}-{:016X}-{epoch}-{tag:016x}-{number}", lsn.get());
        let size = ByteCount::new(bytes.len() as u64);
        self.put(&self.directory.child(&name), bytes).await?;
        self.stored.push(LayerEntry {
            name,
            kind,
            keys,
            size,
            entries,
            level: 0,
            epoch,
        });
        Ok(())
    }

    /// All layers.
    pub(super) fn into_stored(self) -> Vec<LayerEntry> {
        self.stored
    }

    /// Puts a layer into the object store. A backup of hours does not begin anew because of minutes.
    async fn put(&self, path: &StorePath, layer: Bytes) -> Result<(), IngestError> {
        let mut back_off = BackOff::default();
        let begun = Instant::now();
        loop {
            // Nobody else's name: the tag is in it.
            let put = self.store.put_once(path, layer.clone()).await;
            match put {
                Err(error) if error.kind() == ErrorKind::NotReady && begun.elapsed() < PATIENCE => {
                    let error = IngestError::from(error).in_words();
                    tracing::warn!(%path, error, "a layer of the base backup can't be stored; trying again");
                    back_off.wait().await;
                }
                outcome => return Ok(outcome?),
            }
        }
    }
}

impl Base {
    /// Layers of versions at `lsn`.
    pub(in crate::core) fn new(shelf: Shelf, lsn: Lsn) -> Self {
        Self {
            shelf,
            lsn,
            open: ImageLayerWriter::new(lsn),
        }
    }

    async fn upload(&mut self) -> Result<(), IngestError> {
        let full = std::mem::replace(&mut self.open, ImageLayerWriter::new(self.lsn));
        let entries = full.entries();
        let Some((bytes, keys)) = full.finish() else {
            return Ok(());
        };
        let layer = Layer {
            bytes,
            kind: LayerKind::Base(self.lsn),
            keys: KeySpan {
                first: keys.first,
                last: keys.last,
            },
            entries,
        };
        self.shelf.add("image", layer).await
    }
}

impl Form for Base {
    async fn page(&mut self, key: Key, page: &[u8; PAGE_SIZE]) -> Result<(), IngestError> {
        self.open.page(key, page);
        Ok(())
    }

    fn size(&mut self, key: Key, blocks: BlockNumber) {
        self.open.rel_size(key, blocks);
    }

    fn file(&mut self, key: Key, content: &[u8]) {
        self.open.file(key, content);
    }

    /// Nothing was before it.
    fn begun_at(&mut self, _: u64) {}

    async fn store_full(&mut self) -> Result<(), IngestError> {
        match self.open.len() >= LAYER_SIZE {
            true => self.upload().await,
            false => Ok(()),
        }
    }

    async fn finish(mut self) -> Result<Vec<LayerEntry>, IngestError> {
        self.upload().await?;
        Ok(self.shelf.into_stored())
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_store::faulty::FaultyStore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_object_store_that_is_away_for_a_while_does_not_end_a_backup() {
        let (faulty, store) = FaultyStore::in_memory().await.unwrap();
        let shelf = Shelf::new(store, StorePath::catalog(), (WriterEpoch::FIRST, 7));
        let mut base = Base::new(shelf, Lsn::new(1 << 20));
        base.file(Key::ControlData, b"some");
        faulty.refuse_puts(3);
        faulty.lose_answers(1);
        assert_eq!(base.finish().await.unwrap().len(), 1);
    }
}
