use palimpsest_layer::{
    LogRecord, OpenLayer,
    delta_file::{write_delta_entries, write_delta_layer},
    image::ImageLayerWriter,
};
use palimpsest_manifest::{
    KeySpan, LayerEntry, LayerKind, LsnSpan, SourceCluster, TimelineManifest,
};
use palimpsest_redo::{ApplyRequest, EngineError};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_telemetry::{registry, render};
use palimpsest_types::{ByteCount, Fork, PAGE_SIZE, SystemIdentifier, WriterEpoch};
use palimpsest_wal::{Change, RawRecord};

use super::*;
use crate::{blocks::BlockCache, layers::LayerFiles};

mod batches;
mod bounds;
mod branches;
mod databases;
mod holes;
mod images;
mod manifests;
mod outside_relations;
mod same;

const REL: RelTag = RelTag {
    spc: 1663,
    db: 5,
    rel: 16384,
    fork: Fork::Main,
};

/// "Replays" a record by adding its first byte to every byte of the page.
#[derive(Debug, Default)]
struct AddingEngine;

impl Engine for AddingEngine {
    async fn apply(&self, request: ApplyRequest) -> Result<Bytes, EngineError> {
        let mut page = request.base.map_or(vec![0; PAGE_SIZE], Vec::from);
        for record in request.records {
            page.iter_mut()
                .for_each(|byte| *byte = byte.wrapping_add(record.bytes[0]));
        }
        Ok(page.into())
    }
}

fn record(lsn: u64, block: u32, amount: u8) -> LogRecord {
    let bytes = Bytes::from(vec![amount]);
    let record = RawRecord {
        start_lsn: Lsn::new(lsn - 8),
        end_lsn: Lsn::new(lsn),
        bytes,
    };
    let value = Value::Record {
        will_init: false,
        record,
    };
    let key = Key::RelBlock(REL, BlockNumber::new(block));
    LogRecord {
        lsn: Lsn::new(lsn),
        changes: vec![Change { key, value }],
    }
}

fn resize(lsn: u64, value: Value) -> LogRecord {
    let changes = vec![Change {
        key: Key::RelSize(REL),
        value,
    }];
    LogRecord {
        lsn: Lsn::new(lsn),
        changes,
    }
}

/// Everything that happens: changes at 110 and 120 on block 1, a drop at 130.
fn history() -> Vec<LogRecord> {
    vec![
        record(110, 1, 1),
        record(120, 1, 2),
        resize(130, Value::Dropped),
    ]
}

/// An empty store for layers.
async fn place() -> (tempfile::TempDir, LayerFiles) {
    let directory = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(directory.path()).await.unwrap();
    let cache = Arc::new(BlockCache::new(ByteCount::mib(4)));
    (
        directory,
        LayerFiles::new(store, StorePath::catalog(), cache),
    )
}

/// A store, the manifest of what was put into it, and the tail after that.
struct Fixture {
    _directory: tempfile::TempDir,
    files: LayerFiles,
    manifest: TimelineManifest,
    tail: Arc<Tail>,
}

impl Fixture {
    /// A base at 100 with two blocks of 10s, readable from 105; nothing else has happened.
    async fn new() -> Self {
        Self::with_base(2, |_| [10; PAGE_SIZE]).await
    }

    /// The same with these blocks.
    async fn with_base(blocks: u32, page: impl Fn(u32) -> [u8; PAGE_SIZE]) -> Self {
        let (directory, files) = place().await;
        let source = SourceCluster {
            system_identifier: SystemIdentifier::new(1),
            pg_version: 15,
            pg_timeline: 1,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        };
        let lsn = Lsn::new(100);
        let mut fixture = Self {
            _directory: directory,
            files,
            manifest: TimelineManifest::new(source, lsn, Lsn::new(105)),
            tail: Arc::new(Tail::new(WriterEpoch::FIRST, lsn)),
        };
        let mut layer = ImageLayerWriter::new(lsn);
        for block in 0..blocks {
            let key = Key::RelBlock(REL, BlockNumber::new(block));
            layer.page(key, &page(block));
        }
        layer.rel_size(Key::RelSize(REL), BlockNumber::new(blocks));
        let (bytes, keys) = layer.finish().unwrap();
        fixture
            .store(LayerKind::Base(lsn), keys.first..keys.last, bytes)
            .await;
        fixture
    }

    async fn store(&mut self, kind: LayerKind, keys: KeyRange, bytes: Bytes) {
        let name = format!("layer-{}", self.manifest.layers().len());
        let size = ByteCount::new(bytes.len() as u64);
        let path = self.files.directory.child(&name);
        self.files.store.create(&path, bytes).await.unwrap();
        let keys = KeySpan {
            first: keys.start,
            last: keys.end,
        };
        let entry = LayerEntry {
            name,
            kind,
            keys,
            size,
            entries: 1,
            level: 0,
            epoch: WriterEpoch::FIRST,
        };
        self.manifest.add_layers(vec![entry]).unwrap();
    }

    /// Puts what the tail has frozen into a layer.
    async fn flush(&mut self) {
        let frozen: Arc<OpenLayer> = self.tail.freeze().unwrap();
        let mut bytes = Vec::new();
        let keys = write_delta_layer(&frozen, &mut bytes)
            .unwrap()
            .keys
            .unwrap();
        let span = LsnSpan {
            after: frozen.start(),
            up_to: frozen.last(),
        };
        self.manifest.lsn = span.up_to;
        self.store(LayerKind::Delta(span), keys.first..keys.last, bytes.into())
            .await;
    }

    /// Adds an image of these keys at the manifest's LSN, as a compactor would make it.
    async fn image<E: Engine>(&mut self, keys: KeySpan, engine: E) {
        let reader = self.reader_with(engine).await;
        self.image_by(&reader, keys).await;
    }

    /// The same, of what this reader reads.
    async fn image_by<E: Engine>(&mut self, reader: &TimelineReader<E>, keys: KeySpan) {
        let lsn = self.manifest.lsn;
        let inventory = reader.inventory(lsn).await.unwrap();
        let mut entries = Vec::new();
        for part in inventory.parts(keys, ByteCount::kib(20)) {
            for batch in inventory.batches(part.keys, 2) {
                let image = reader.image(batch, lsn).await.unwrap();
                entries.extend(image.into_iter().map(|(key, value)| (key, lsn, value)));
            }
        }
        let span = LsnSpan::only(lsn);
        let mut bytes = Vec::new();
        let lsns = span.after..span.up_to;
        let entries = entries.into_iter();
        write_delta_entries(WriterEpoch::FIRST, lsns, entries, &mut bytes).unwrap();
        let kind = LayerKind::Image(lsn);
        self.store(kind, keys.first..keys.last, bytes.into()).await;
    }

    /// How often parts of objects were asked for.
    fn reads(&self) -> u64 {
        let mut registry = registry("test");
        self.files.store.metrics().register(&mut registry);
        let metrics = render(&registry);
        let is_asked =
            |line: &&str| line.contains("store_operations") && line.contains("get-range");
        let line = metrics.lines().find(is_asked).unwrap();
        let count = line.split_whitespace().last().unwrap();
        count.parse::<f64>().unwrap() as u64
    }

    /// Lets a record be the next, and a layer by itself.
    async fn layer_of(&mut self, record: LogRecord) {
        let lsn = record.lsn;
        let tail = &self.tail;
        tail.extend(vec![record], lsn, ByteCount::mib(64)).unwrap();
        self.flush().await;
        self.tail.drop_until(lsn);
    }

    async fn reader(&self) -> TimelineReader<AddingEngine> {
        self.reader_with(AddingEngine).await
    }

    async fn reader_with<E: Engine>(&self, engine: E) -> TimelineReader<E> {
        let layers = Layers::open(self.files.clone(), &self.manifest, None).await;
        let cache = Arc::new(PageCache::new(ByteCount::mib(16)));
        let timeline = TimelineId::from_bytes([7; 16]);
        let tail = Arc::clone(&self.tail);
        TimelineReader::new(timeline, layers.unwrap(), tail, (cache, engine))
    }
}

/// The whole history, of which the first `flushed` records are in layers of their own and the others
/// in the tail, which may still hold the first ones, too.
async fn reader(flushed: usize, dropped: bool) -> (Fixture, TimelineReader<AddingEngine>) {
    let mut fixture = Fixture::new().await;
    for (at, record) in history().into_iter().enumerate() {
        let lsn = record.lsn;
        let tail = &fixture.tail;
        tail.extend(vec![record], lsn, ByteCount::mib(1)).unwrap();
        if at < flushed {
            fixture.flush().await;
        }
    }
    let end = Lsn::new(140);
    fixture
        .tail
        .extend(Vec::new(), end, ByteCount::mib(1))
        .unwrap();
    let reader = fixture.reader().await;
    if dropped {
        fixture.tail.drop_until(fixture.manifest.lsn);
    }
    (fixture, reader)
}

/// However it is spread, the history is the same.
const SPREADS: [(usize, bool); 6] = [
    (0, false),
    (1, true),
    (2, false),
    (2, true),
    (3, false),
    (3, true),
];

async fn first_byte(reader: &TimelineReader<AddingEngine>, block: u32, lsn: u64) -> u8 {
    reader
        .page(REL, BlockNumber::new(block), Lsn::new(lsn))
        .await
        .unwrap()[0]
}

#[tokio::test]
async fn a_page_is_as_of_its_lsn_whatever_was_read_before() {
    for (flushed, dropped) in SPREADS {
        let (_fixture, reader) = reader(flushed, dropped).await;
        for lsn in [120, 109, 129, 110, 119, 105] {
            let expected = 10 + u8::from(lsn >= 110) + 2 * u8::from(lsn >= 120);
            assert_eq!(first_byte(&reader, 1, lsn).await, expected, "{lsn}");
            assert_eq!(first_byte(&reader, 0, lsn).await, 10, "{lsn}");
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_an_error_with_a_name() {
    for (flushed, dropped) in SPREADS {
        let (_fixture, reader) = reader(flushed, dropped).await;
        let page = async |block, lsn| {
            reader
                .page(REL, BlockNumber::new(block), Lsn::new(lsn))
                .await
        };
        assert!(matches!(
            page(2, 120).await,
            Err(ReadError::BeyondEnd { .. })
        ));
        assert!(matches!(
            page(0, 130).await,
            Err(ReadError::NoRelation { .. })
        ));
        assert!(matches!(page(0, 141).await, Err(ReadError::NotYet { .. })));
        assert_eq!(
            reader.relations(Lsn::new(129)).await.unwrap(),
            [(REL, BlockNumber::new(2))]
        );
        assert_eq!(reader.relations(Lsn::new(130)).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_gap_between_layers_and_tail_is_never_read_over() {
    let mut fixture = Fixture::new().await;
    let old = fixture.reader().await;
    for record in history() {
        let lsn = record.lsn;
        fixture
            .tail
            .extend(vec![record], lsn, ByteCount::mib(1))
            .unwrap();
    }
    fixture.flush().await;
    fixture.tail.drop_until(fixture.manifest.lsn);
    let behind = old.page(REL, BlockNumber::new(1), Lsn::new(130)).await;
    assert!(matches!(behind, Err(ReadError::Behind { .. })));
    let before = old.layers();
    let layers = Layers::open(fixture.files.clone(), &fixture.manifest, Some(&before));
    old.advance(layers.await.unwrap());
    assert_eq!(first_byte(&old, 1, 129).await, 13);
}

#[tokio::test(start_paused = true)]
async fn reads_wait_for_their_lsn_and_not_for_ever() {
    let (_fixture, reader) = reader(1, true).await;
    let patience = Duration::from_secs(1);
    let settle = async |lsn: Option<u64>, since: Option<u64>| {
        reader
            .settle(lsn.map(Lsn::new), since.map(Lsn::new), patience)
            .await
    };
    assert_eq!(settle(None, None).await.unwrap(), Lsn::new(140));
    assert_eq!(settle(Some(120), None).await.unwrap(), Lsn::new(120));
    assert!(matches!(
        settle(Some(150), None).await,
        Err(ReadError::NotYet { .. })
    ));
    assert!(matches!(
        settle(Some(104), None).await,
        Err(ReadError::BelowHorizon { .. })
    ));
    // Nothing changed after 135, so what is here is what will be at 150.
    assert_eq!(settle(Some(150), Some(135)).await.unwrap(), Lsn::new(140));
    let (waiting, ()) = tokio::join!(settle(Some(150), None), async {
        reader
            .tail
            .extend(Vec::new(), Lsn::new(160), ByteCount::mib(1))
            .unwrap();
    });
    assert_eq!(waiting.unwrap(), Lsn::new(150));
}
