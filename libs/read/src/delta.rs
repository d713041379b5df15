//! Delta layer files of the object store.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use futures::future::{self, try_join_all};
use palimpsest_layer::{
    Visit,
    delta_file::{
        BlockNo, DeltaLayerError, DeltaLayerIndex, EntryBlock, Footer, RecordBlock, Stored,
    },
};
use palimpsest_manifest::{LayerEntry, LayerKind, LsnSpan};
use palimpsest_store::StorePath;
use palimpsest_types::{Key, KeyRange, Lsn, WriterEpoch};
use palimpsest_wal::{RawRecord, Value};

use crate::{
    blocks::{Block, BlockId, FilePart},
    error::ReadError,
    layer_map::Place,
    layers::LayerFiles,
    parts::{Part, parts},
    room::{Room, USUAL, needed, portions},
};

/// A delta layer file as the manifest lists it. Nothing of it is in memory but what the cache has.
#[derive(Debug)]
pub(crate) struct DeltaFile {
    name: String,
    path: StorePath,
    size: u64,
    place: Place,
    is_image: bool,
}

/// A delta layer file with its index, and with the blocks that some keys are looked for in first.
#[derive(Debug)]
pub(crate) struct OpenDelta {
    file: Arc<DeltaFile>,
    index: Arc<DeltaLayerIndex>,
    blocks: BTreeMap<BlockNo, Arc<EntryBlock>>,
}

/// The last bytes of a file.
struct End {
    from: u64,
    bytes: Bytes,
}

/// The newest version of each of some keys.
pub(crate) type Newest = BTreeMap<Key, (Lsn, Value)>;

/// So much is read of the end of a file in the hope that the index is in it, as it is of files up
/// to some tens of megabytes.
const END: u64 = 64 << 10;
/// Blocks of a file that are in memory for one reader of many keys, and bytes that they take.
const PORTION: (usize, u64) = (32, 1 << 20);

impl DeltaFile {
    /// The layer of a manifest's entry.
    pub(crate) fn listed(files: &LayerFiles, entry: &LayerEntry, lsns: LsnSpan) -> Self {
        let place = Place {
            keys: entry.keys,
            lsns,
            number: files.blocks.number_file(),
        };
        Self {
            name: entry.name.clone(),
            path: files.directory.child(&entry.name),
            size: entry.size.get(),
            place,
            is_image: matches!(entry.kind, LayerKind::Image(_)),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &StorePath {
        &self.path
    }

    /// Whether a key that it has not does not exist at its LSN.
    pub(crate) fn is_image(&self) -> bool {
        self.is_image
    }

    /// Which versions it may have.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Opens it to look for versions of these keys, each at or before an LSN. Blocks that are larger
    /// than usual are left to be read by who comes to them.
    pub(crate) async fn open(
        self: Arc<Self>,
        files: &LayerFiles,
        keys: impl Iterator<Item = (Key, Lsn)>,
    ) -> Result<OpenDelta, ReadError> {
        let index = self.index(files).await?;
        let newest = keys.filter_map(|(key, up_to)| index.blocks_of(key, up_to).next());
        let is_usual = |no: &BlockNo| {
            let place = index.place(*no);
            place.is_ok_and(|place| u64::from(place.raw_len) <= USUAL)
        };
        let mut numbers: Vec<_> = newest.filter(is_usual).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let blocks = self.some_entries(files, &index, &numbers).await?;
        Ok(OpenDelta {
            file: self,
            index,
            blocks: numbers.into_iter().zip(blocks).collect(),
        })
    }

    /// Shows for each key of a range its versions at or before `up_to`, oldest first.
    pub(crate) async fn range(
        &self,
        files: &LayerFiles,
        room: &Room,
        keys: KeyRange,
        up_to: Lsn,
        visit: &mut (dyn FnMut(Key, Lsn, Value) + Send),
    ) -> Result<(), ReadError> {
        let index = self.index(files).await?;
        let blocks = index.blocks_in(keys.clone());
        let blocks = blocks.map(|no| Ok((no, needed(&index, no)?)));
        let blocks = blocks.collect::<Result<Vec<_>, _>>();
        let blocks = blocks.map_err(|source| self.damaged(source))?;
        for portion in portions(&blocks, PORTION) {
            let _room = room
                .take(portion.iter().map(|(_, bytes)| bytes).sum())
                .await;
            let numbers: Vec<_> = portion.iter().map(|(no, _)| *no).collect();
            for block in self.some_entries(files, &index, &numbers).await? {
                for (key, lsn, stored) in block.range(keys.clone()) {
                    if lsn <= up_to {
                        visit(key, lsn, self.value(files, &index, stored).await?);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether there is any version of these keys at these LSNs. Reads as little as tells.
    pub(crate) async fn has_any(
        &self,
        files: &LayerFiles,
        room: &Room,
        keys: KeyRange,
        lsns: LsnSpan,
    ) -> Result<bool, ReadError> {
        let index = self.index(files).await?;
        let wanted =
            |key: Key, lsn: Lsn| keys.contains(&key) && lsns.after < lsn && lsn <= lsns.up_to;
        for no in index.blocks_in(keys.clone()) {
            let mut ends = index.ends_of(no).into_iter().flatten();
            if ends.any(|(key, lsn)| wanted(key, lsn)) {
                return Ok(true);
            }
            let needed = needed(&index, no).map_err(|source| self.damaged(source))?;
            let _room = room.take(needed).await;
            let block = self.entries(files, &index, no, None).await?;
            if block
                .range(keys.clone())
                .any(|(key, lsn, _)| wanted(key, lsn))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// For each key of a range that has one, the newest version at or before `up_to`.
    pub(crate) async fn newest_in(
        self: Arc<Self>,
        files: &LayerFiles,
        room: &Room,
        keys: KeyRange,
        up_to: Lsn,
    ) -> Result<Newest, ReadError> {
        let mut newest = Newest::new();
        let mut insert = |key, at, value| drop(newest.insert(key, (at, value)));
        self.range(files, room, keys, up_to, &mut insert).await?;
        Ok(newest)
    }

    async fn index(&self, files: &LayerFiles) -> Result<Arc<DeltaLayerIndex>, ReadError> {
        let read = || async { Ok(Block::Index(Arc::new(self.read_index(files).await?))) };
        match files
            .blocks
            .get_or_read(self.id(FilePart::Index), read)
            .await?
        {
            Block::Index(index) => Ok(index),
            _ => Err(self.not_as_listed("its index is another's")),
        }
    }

    /// As [`DeltaFile::range`] of a file that was never opened, for the last of its keys: mostly
    /// they stand so near its end that they come with the index.
    pub(crate) async fn first_range(
        &self,
        files: &LayerFiles,
        room: &Room,
        keys: KeyRange,
        visit: &mut (dyn FnMut(Key, Lsn, Value) + Send),
    ) -> Result<(), ReadError> {
        let end = self.read_end(files).await?;
        let index = Arc::new(self.decode_index(files, &end).await?);
        let read = || future::ready(Ok(Block::Index(Arc::clone(&index))));
        files
            .blocks
            .get_or_read(self.id(FilePart::Index), read)
            .await?;
        for no in index.blocks_in(keys.clone()) {
            let place = self.place_of(&index, no)?;
            let needed = needed(&index, no).map_err(|source| self.damaged(source))?;
            let _room = room.take(needed).await;
            let part = end.get(&place).map(Part::known);
            let block = self.entries(files, &index, no, part).await?;
            for (key, lsn, stored) in block.range(keys.clone()) {
                visit(key, lsn, self.value(files, &index, stored).await?);
            }
        }
        Ok(())
    }

    pub(crate) async fn read_index(
        &self,
        files: &LayerFiles,
    ) -> Result<DeltaLayerIndex, ReadError> {
        let end = self.read_end(files).await?;
        self.decode_index(files, &end).await
    }

    async fn read_end(&self, files: &LayerFiles) -> Result<End, ReadError> {
        let from = self.size.saturating_sub(END);
        let bytes = files.read(&self.path, from..self.size).await?;
        Ok(End { from, bytes })
    }

    /// The index, of which what the end of the file does not have is read.
    async fn decode_index(
        &self,
        files: &LayerFiles,
        end: &End,
    ) -> Result<DeltaLayerIndex, ReadError> {
        let footer = end.bytes.len().saturating_sub(Footer::LEN);
        let footer = Footer::decode(&end.bytes.slice(footer..), self.size);
        let footer = footer.map_err(|source| self.damaged(source))?;
        let place = footer.index_offset..footer.index_offset + footer.index_len;
        let bytes = match end.get(&place) {
            Some(bytes) => Bytes::copy_from_slice(bytes),
            None => files.read(&self.path, place).await?,
        };
        let index = DeltaLayerIndex::decode(&footer, &bytes);
        let index = index.map_err(|source| self.damaged(source))?;
        self.check(&index)?;
        Ok(index)
    }

    /// Layers are passed over by what the manifest says of them, so that must be true.
    fn check(&self, index: &DeltaLayerIndex) -> Result<(), ReadError> {
        let Place { keys, lsns, .. } = self.place;
        if index.lsns() != (lsns.after..lsns.up_to) {
            return Err(self.not_as_listed("it has other LSNs"));
        }
        let listed = |of| keys.contains(of);
        if index
            .keys()
            .is_none_or(|it| listed(it.first) && listed(it.last))
        {
            Ok(())
        } else {
            Err(self.not_as_listed("it has other keys"))
        }
    }

    async fn value(
        &self,
        files: &LayerFiles,
        index: &DeltaLayerIndex,
        stored: Stored,
    ) -> Result<Value, ReadError> {
        match stored {
            // What is kept must not keep its whole block: pages that lie together have records in
            // blocks from everywhere, most of them hundreds of times as long.
            Stored::Value(Value::Image(page)) => Ok(Value::Image(Bytes::copy_from_slice(&page))),
            Stored::Value(Value::Record { record, will_init }) => Ok(Value::Record {
                record: apart(record),
                will_init,
            }),
            Stored::Value(value) => Ok(value),
            Stored::Shared { at, will_init } => {
                let block = self.records(files, index, at.block).await?;
                let record = block.record(at).map_err(|source| self.damaged(source))?;
                let record = apart(record);
                Ok(Value::Record { record, will_init })
            }
        }
    }

    /// Entry blocks, in order; those that the cache lacks are read together where they lie
    /// together.
    async fn some_entries(
        &self,
        files: &LayerFiles,
        index: &DeltaLayerIndex,
        numbers: &[BlockNo],
    ) -> Result<Vec<Arc<EntryBlock>>, ReadError> {
        let is_missing = |no: &&BlockNo| !files.blocks.has(self.id(FilePart::Block(no.get())));
        let missing: Vec<_> = numbers.iter().filter(is_missing).copied().collect();
        let places = missing.iter().map(|no| self.place_of(index, *no));
        let places = places.collect::<Result<Vec<_>, _>>()?;
        let parts = parts(files, &self.path, &places);
        let mut missing: BTreeMap<_, _> = missing.into_iter().zip(parts).collect();
        let read = numbers.iter().map(|no| {
            let part = missing.remove(no);
            self.entries(files, index, *no, part)
        });
        try_join_all(read).await
    }

    async fn entries(
        &self,
        files: &LayerFiles,
        index: &DeltaLayerIndex,
        no: BlockNo,
        part: Option<Part>,
    ) -> Result<Arc<EntryBlock>, ReadError> {
        let read = || async {
            let stored = match part {
                Some(part) => part.bytes().await?,
                None => files.read(&self.path, self.place_of(index, no)?).await?,
            };
            let block = EntryBlock::decode(index, no, stored);
            let block = block.map_err(|source| self.damaged(source))?;
            Ok(Block::Entries(Arc::new(block)))
        };
        match files
            .blocks
            .get_or_read(self.id(FilePart::Block(no.get())), read)
            .await?
        {
            Block::Entries(block) => Ok(block),
            _ => Err(self.confused(no)),
        }
    }

    async fn records(
        &self,
        files: &LayerFiles,
        index: &DeltaLayerIndex,
        no: BlockNo,
    ) -> Result<Arc<RecordBlock>, ReadError> {
        let read = || async {
            let stored = files.read(&self.path, self.place_of(index, no)?).await?;
            let block = RecordBlock::decode(index, no, stored);
            let block = block.map_err(|source| self.damaged(source))?;
            Ok(Block::Records(Arc::new(block)))
        };
        match files
            .blocks
            .get_or_read(self.id(FilePart::Block(no.get())), read)
            .await?
        {
            Block::Records(block) => Ok(block),
            _ => Err(self.confused(no)),
        }
    }

    pub(crate) fn place_of(
        &self,
        index: &DeltaLayerIndex,
        no: BlockNo,
    ) -> Result<Range<u64>, ReadError> {
        let place = index.place(no).map_err(|source| self.damaged(source))?;
        Ok(place.offset..place.offset + u64::from(place.stored_len))
    }

    fn id(&self, part: FilePart) -> BlockId {
        BlockId {
            file: self.place.number,
            part,
        }
    }

    /// A block of one kind is asked for as the other.
    fn confused(&self, no: BlockNo) -> ReadError {
        self.damaged(DeltaLayerError::NoBlock(no))
    }

    pub(crate) fn damaged(&self, source: DeltaLayerError) -> ReadError {
        ReadError::DeltaLayer {
            layer: self.path.to_string(),
            source,
        }
    }

    pub(crate) fn not_as_listed(&self, problem: &'static str) -> ReadError {
        ReadError::NotAsListed {
            layer: self.path.to_string(),
            problem,
        }
    }
}

impl End {
    /// What stands at a place of the file, if all of that is here.
    fn get(&self, place: &Range<u64>) -> Option<&[u8]> {
        let at = |offset: u64| Some(offset.checked_sub(self.from)? as usize);
        self.bytes.get(at(place.start)?..at(place.end)?)
    }
}

impl OpenDelta {
    pub(crate) fn file(&self) -> &DeltaFile {
        &self.file
    }

    /// The generation of who wrote it.
    pub(crate) fn epoch(&self) -> WriterEpoch {
        self.index.epoch()
    }

    /// Shows the versions of a key at these LSNs, newest first, until told to stop.
    pub(crate) async fn versions(
        &self,
        files: &LayerFiles,
        room: &Room,
        (key, lsns): (Key, LsnSpan),
        visit: &mut (dyn FnMut(WriterEpoch, Lsn, &Value) -> Visit + Send),
    ) -> Result<Visit, ReadError> {
        let epoch = self.index.epoch();
        for no in self.index.blocks_of(key, lsns.up_to) {
            let needed = needed(&self.index, no).map_err(|source| self.file.damaged(source))?;
            let _room = room.take(needed).await;
            let block = match self.blocks.get(&no) {
                Some(block) => Arc::clone(block),
                None => self.file.entries(files, &self.index, no, None).await?,
            };
            for (lsn, stored) in block.versions(key, lsns.up_to) {
                if lsn <= lsns.after {
                    return Ok(Visit::Continue);
                }
                let value = self.file.value(files, &self.index, stored).await?;
                if visit(epoch, lsn, &value) == Visit::Stop {
                    return Ok(Visit::Stop);
                }
            }
        }
        Ok(Visit::Continue)
    }
}

/// A record with bytes of its own.
fn apart(record: RawRecord) -> RawRecord {
    let bytes = Bytes::copy_from_slice(&record.bytes);
    RawRecord { bytes, ..record }
}

/// Adds versions; of two of one key the newer stays.
pub(crate) fn merge(into: &mut Newest, found: Newest) {
    for (key, version) in found {
        match into.entry(key) {
            Entry::Vacant(vacant) => drop(vacant.insert(version)),
            Entry::Occupied(mut known) if known.get().0 <= version.0 => {
                known.insert(version);
            }
            Entry::Occupied(_) => {}
        }
    }
}
