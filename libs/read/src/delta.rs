use std::sync::Arc;

use bytes::Bytes;
use palimpsest_layer::{
    Visit,
    delta_file::{
        BlockNo, DeltaLayerError, DeltaLayerIndex, EntryBlock, Footer, RecordBlock, Stored,
    },
};
use palimpsest_manifest::LayerEntry;
use palimpsest_store::StorePath;
use palimpsest_types::{Key, KeyRange, Lsn, WriterEpoch};
use palimpsest_wal::Value;

use crate::{
    blocks::{Block, BlockId},
    error::ReadError,
    layers::LayerFiles,
    listing::all_databases,
};

/// A delta layer file of the object store, of which the index is in memory.
#[derive(Debug)]
pub(crate) struct DeltaFile {
    number: u64,
    path: StorePath,
    index: DeltaLayerIndex,
    /// What happened to databases as a whole, sorted by key, then LSN: every read asks for it, and
    /// mostly there is none.
    databases: Vec<(Key, Lsn, Value)>,
}

impl DeltaFile {
    pub(crate) async fn open(files: &LayerFiles, entry: &LayerEntry) -> Result<Self, ReadError> {
        let path = files.directory.child(&entry.name);
        let size = entry.size.get();
        let from = size.saturating_sub(Footer::LEN as u64);
        let footer = files.read(&path, from..size).await?;
        let footer = Footer::decode(&footer, size).map_err(|source| damaged(&path, source))?;
        let index = footer.index_offset..footer.index_offset + footer.index_len;
        let index = files.read(&path, index).await?;
        let index =
            DeltaLayerIndex::decode(&footer, &index).map_err(|source| damaged(&path, source))?;
        let mut file = Self {
            number: files.blocks.number_file(),
            path,
            index,
            databases: Vec::new(),
        };
        let mut databases = Vec::new();
        let mut visit = |key, lsn, value: &Value| databases.push((key, lsn, value.clone()));
        file.range(files, all_databases(), Lsn::MAX, &mut visit)
            .await?;
        file.databases = databases;
        Ok(file)
    }

    /// Changes after here are in it.
    pub(crate) fn start(&self) -> Lsn {
        self.index.lsns().start
    }

    /// Changes up to here are in it.
    pub(crate) fn last(&self) -> Lsn {
        self.index.lsns().end
    }

    /// Generation of the writer that made it.
    pub(crate) fn epoch(&self) -> WriterEpoch {
        self.index.epoch()
    }

    /// Shows the versions of a key at or before `up_to`, newest first, until told to stop.
    pub(crate) async fn versions(
        &self,
        files: &LayerFiles,
        key: Key,
        up_to: Lsn,
        visit: &mut (dyn FnMut(Lsn, &Value) -> Visit + Send),
    ) -> Result<Visit, ReadError> {
        if matches!(key, Key::Database { .. }) {
            return Ok(self.versions_of_database(key, up_to, visit));
        }
        for no in self.index.blocks_of(key, up_to) {
            let block = self.entries(files, no).await?;
            for (lsn, stored) in block.versions(key, up_to) {
                let value = self.value(files, stored).await?;
                if visit(lsn, &value) == Visit::Stop {
                    return Ok(Visit::Stop);
                }
            }
        }
        Ok(Visit::Continue)
    }

    fn versions_of_database(
        &self,
        key: Key,
        up_to: Lsn,
        visit: &mut (dyn FnMut(Lsn, &Value) -> Visit + Send),
    ) -> Visit {
        let end = self
            .databases
            .partition_point(|(of, at, _)| (*of, *at) <= (key, up_to));
        let older = self.databases.get(..end).unwrap_or_default().iter().rev();
        for (_, at, value) in older.take_while(|(of, ..)| *of == key) {
            if visit(*at, value) == Visit::Stop {
                return Visit::Stop;
            }
        }
        Visit::Continue
    }

    /// Shows for each key of a range its versions at or before `up_to`, oldest first.
    pub(crate) async fn range(
        &self,
        files: &LayerFiles,
        keys: KeyRange,
        up_to: Lsn,
        visit: &mut (dyn FnMut(Key, Lsn, &Value) + Send),
    ) -> Result<(), ReadError> {
        for no in self.index.blocks_in(keys.clone()) {
            let block = self.entries(files, no).await?;
            for (key, lsn, stored) in block.range(keys.clone()) {
                if lsn <= up_to {
                    visit(key, lsn, &self.value(files, stored).await?);
                }
            }
        }
        Ok(())
    }

    async fn value(&self, files: &LayerFiles, stored: Stored) -> Result<Value, ReadError> {
        match stored {
            // What is kept as a page must not keep its whole block.
            Stored::Value(Value::Image(page)) => Ok(Value::Image(Bytes::copy_from_slice(&page))),
            Stored::Value(value) => Ok(value),
            Stored::Shared { at, will_init } => {
                let block = self.records(files, at.block).await?;
                let record = block
                    .record(at)
                    .map_err(|source| damaged(&self.path, source))?;
                Ok(Value::Record { record, will_init })
            }
        }
    }

    async fn entries(&self, files: &LayerFiles, no: BlockNo) -> Result<Arc<EntryBlock>, ReadError> {
        let read = async {
            let stored = self.stored(files, no).await?;
            let block = EntryBlock::decode(&self.index, no, stored);
            let block = block.map_err(|source| damaged(&self.path, source))?;
            Ok(Block::Entries(Arc::new(block)))
        };
        match files.blocks.get_or_read(self.id(no), read).await? {
            Block::Entries(block) => Ok(block),
            Block::Records(_) => Err(self.confused(no)),
        }
    }

    async fn records(
        &self,
        files: &LayerFiles,
        no: BlockNo,
    ) -> Result<Arc<RecordBlock>, ReadError> {
        let read = async {
            let stored = self.stored(files, no).await?;
            let block = RecordBlock::decode(&self.index, no, stored);
            let block = block.map_err(|source| damaged(&self.path, source))?;
            Ok(Block::Records(Arc::new(block)))
        };
        match files.blocks.get_or_read(self.id(no), read).await? {
            Block::Records(block) => Ok(block),
            Block::Entries(_) => Err(self.confused(no)),
        }
    }

    async fn stored(&self, files: &LayerFiles, no: BlockNo) -> Result<Bytes, ReadError> {
        let place = self
            .index
            .place(no)
            .map_err(|source| damaged(&self.path, source))?;
        let range = place.offset..place.offset + u64::from(place.stored_len);
        files.read(&self.path, range).await
    }

    fn id(&self, no: BlockNo) -> BlockId {
        BlockId {
            file: self.number,
            block: no.get(),
        }
    }

    /// A block of one kind is asked for as the other.
    fn confused(&self, no: BlockNo) -> ReadError {
        damaged(&self.path, DeltaLayerError::NoBlock(no))
    }
}

fn damaged(path: &StorePath, source: DeltaLayerError) -> ReadError {
    ReadError::DeltaLayer {
        layer: path.to_string(),
        source,
    }
}
