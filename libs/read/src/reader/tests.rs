use palimpsest_layer::{LogRecord, image::ImageLayerWriter};
use palimpsest_manifest::LayerEntry;
use palimpsest_redo::{ApplyRequest, EngineError};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ByteCount, PAGE_SIZE, WriterEpoch};
use palimpsest_wal::{Change, RawRecord};

use super::*;

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
            page.iter_mut().for_each(|byte| *byte += record.bytes[0]);
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

/// A base at 100 with two blocks of 10s; changes at 110 and 120 on block 1; readable from 105.
async fn reader() -> (tempfile::TempDir, TimelineReader<AddingEngine>) {
    let directory = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(directory.path()).await.unwrap();
    let mut layer = ImageLayerWriter::new(Lsn::new(100));
    for block in 0..2 {
        layer.page(
            Key::RelBlock(REL, BlockNumber::new(block)),
            &[10; PAGE_SIZE],
        );
    }
    layer.rel_size(Key::RelSize(REL), BlockNumber::new(2));
    let (bytes, _) = layer.finish().unwrap();
    let size = ByteCount::new(bytes.len() as u64);
    let path = StorePath::catalog();
    store.create(&path.child("layer"), bytes).await.unwrap();
    let entry = LayerEntry {
        name: "layer".into(),
        lsn: Lsn::new(100),
        size,
    };
    let base = BaseLayers::open(store, &path, Lsn::new(100), &[entry])
        .await
        .unwrap();
    let tail = Arc::new(Tail::new(WriterEpoch::FIRST, Lsn::new(100)));
    let records = vec![
        record(110, 1, 1),
        record(120, 1, 2),
        resize(130, Value::Dropped),
    ];
    tail.extend(records, Lsn::new(140), ByteCount::mib(1))
        .unwrap();
    let cache = Arc::new(PageCache::new(ByteCount::mib(1)));
    let timeline = TimelineId::from_bytes([7; 16]);
    let reader = TimelineReader::new(timeline, Lsn::new(105), base, tail, (cache, AddingEngine));
    (directory, reader)
}

async fn first_byte(reader: &TimelineReader<AddingEngine>, block: u32, lsn: u64) -> u8 {
    reader
        .page(REL, BlockNumber::new(block), Lsn::new(lsn))
        .await
        .unwrap()[0]
}

#[tokio::test]
async fn a_page_is_as_of_its_lsn_whatever_was_read_before() {
    let (_directory, reader) = reader().await;
    for lsn in [120, 109, 129, 110, 119, 105] {
        let expected = 10 + u8::from(lsn >= 110) + 2 * u8::from(lsn >= 120);
        assert_eq!(first_byte(&reader, 1, lsn).await, expected, "{lsn}");
        assert_eq!(first_byte(&reader, 0, lsn).await, 10, "{lsn}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_an_error_with_a_name() {
    let (_directory, reader) = reader().await;
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
    assert_eq!(
        reader.relations(Lsn::new(129)).await.unwrap(),
        [(REL, BlockNumber::new(2))]
    );
    assert_eq!(reader.relations(Lsn::new(130)).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn reads_wait_for_their_lsn_and_not_for_ever() {
    let (_directory, reader) = reader().await;
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
