//! Images, beyond which no read goes.

use super::*;
use crate::inventory::Batch;

/// Twelve layers of a change each, from 110 to 220, in turn of blocks 0 and 1.
async fn many_layers() -> Fixture {
    let mut fixture = Fixture::new().await;
    for at in 0..12 {
        let change = record(110 + 10 * at, at as u32 % 2, 1);
        fixture.layer_of(change).await;
    }
    fixture
}

/// How many layers a page was looked for in.
async fn visits(fixture: &Fixture, block: u32, lsn: u64) -> f64 {
    let reader = fixture.reader().await;
    first_byte(&reader, block, lsn).await;
    let mut registry = registry("test");
    registry.register("visits", "Layers", reader.times.layers.clone());
    let metrics = render(&registry);
    let sum = metrics.lines().find(|line| line.contains("visits_sum"));
    let sum = sum.and_then(|line| line.split_whitespace().last());
    sum.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_read_ends_at_the_newest_image_below_it() {
    let mut fixture = many_layers().await;
    assert!(visits(&fixture, 1, 220).await >= 6.0);
    fixture.image(KeySpan::IMAGED[0], AddingEngine).await;
    fixture.layer_of(record(230, 1, 5)).await;
    assert_eq!(visits(&fixture, 1, 220).await, 1.0);
    assert_eq!(visits(&fixture, 1, 230).await, 2.0);
    // An image is not of what was before.
    assert!(visits(&fixture, 1, 219).await >= 5.0);
    let reader = fixture.reader().await;
    for (lsn, expected) in [(220, 16), (229, 16), (230, 21), (215, 15)] {
        assert_eq!(first_byte(&reader, 1, lsn).await, expected, "{lsn}");
    }
}

#[tokio::test]
async fn of_a_layer_that_reaches_below_an_image_only_the_rest_is_read() {
    let mut fixture = Fixture::new().await;
    let all: Vec<_> = (0..12).map(|at| record(110 + 10 * at, 1, 1)).collect();
    for change in all.iter().take(6).cloned() {
        fixture.layer_of(change).await;
    }
    fixture.image(KeySpan::IMAGED[0], AddingEngine).await;
    let image = fixture.manifest.layers().last().cloned().unwrap();
    // As if the layers on both sides of the image had been put together.
    let mut fixture = Fixture {
        manifest: TimelineManifest::new(fixture.manifest.source, Lsn::new(100), Lsn::new(105)),
        ..fixture
    };
    let mut merged = OpenLayer::new(WriterEpoch::FIRST, Lsn::new(100));
    for change in all {
        merged.append(change).unwrap();
    }
    let mut bytes = Vec::new();
    let keys = write_delta_layer(&merged, &mut bytes)
        .unwrap()
        .keys
        .unwrap();
    let path = fixture.files.directory.child("merged");
    let size = ByteCount::new(bytes.len() as u64);
    let store = &fixture.files.store;
    store.create(&path, bytes).await.unwrap();
    let span = LsnSpan {
        after: merged.start(),
        up_to: merged.last(),
    };
    let keys = KeySpan {
        first: keys.first,
        last: keys.last,
    };
    let merged = LayerEntry {
        name: "merged".to_owned(),
        kind: LayerKind::Delta(span),
        keys,
        size,
        ..image.clone()
    };
    fixture.manifest.lsn = span.up_to;
    let layers = vec![image, merged];
    fixture.manifest.add_layers(layers).unwrap();
    fixture.tail = Arc::new(Tail::new(WriterEpoch::FIRST, span.up_to));
    let reader = fixture.reader().await;
    // Block 1 was 16 in the image; without it there is no base here to begin with.
    for lsn in (160..=220).step_by(10) {
        let expected = 16 + ((lsn - 160) / 10) as u8;
        assert_eq!(first_byte(&reader, 1, lsn).await, expected, "{lsn}");
    }
}

#[tokio::test]
async fn what_an_image_has_not_does_not_exist() {
    let mut fixture = many_layers().await;
    // As no compactor makes it: the base has a relation.
    let lsn = fixture.manifest.lsn;
    let span = LsnSpan::only(lsn);
    let mut bytes = Vec::new();
    let lsns = span.after..span.up_to;
    let nothing: [(Key, Lsn, Value); 0] = [];
    write_delta_entries(WriterEpoch::FIRST, lsns, nothing.into_iter(), &mut bytes).unwrap();
    let keys = KeySpan::IMAGED[0];
    let keys = keys.first..keys.last;
    fixture
        .store(LayerKind::Image(lsn), keys, bytes.into())
        .await;
    let reader = fixture.reader().await;
    let before = Lsn::new(lsn.get() - 1);
    let size = async |lsn| reader.relation_size(REL, lsn).await.unwrap();
    assert_eq!(size(lsn).await, None);
    assert_eq!(size(before).await, Some(BlockNumber::new(2)));
    let listed = async |lsn| reader.relations(lsn).await.unwrap().len();
    assert_eq!(listed(lsn).await, 0);
    assert_eq!(listed(before).await, 1);
    let key = Key::RelBlock(REL, BlockNumber::new(1));
    let found = reader.find(&[key], &(Lsn::ZERO..=lsn)).await.unwrap();
    assert!(found[0].changes.is_empty() && found[0].is_complete());
}

#[tokio::test]
async fn pages_that_changed_often_are_imaged_one_by_one() {
    let fixture = many_layers().await;
    let lsn = fixture.manifest.lsn;
    let blocks: Vec<_> = (0..2).map(BlockNumber::new).collect();
    let batch = || Batch::Blocks(REL, blocks.clone());
    let usual = fixture.reader().await;
    let pages = usual.image(batch(), lsn).await.unwrap();
    let little = fixture.reader().await.with_changes_of(ByteCount::new(100));
    let at_once = little.pages(REL, &blocks, lsn).await;
    assert!(matches!(
        at_once,
        Err(ReadError::TooManyChanges { pages: 2, .. })
    ));
    assert_eq!(little.image(batch(), lsn).await.unwrap(), pages);
}

#[tokio::test]
async fn a_listing_reads_nothing_that_is_older_than_its_images() {
    let mut fixture = Fixture::new().await;
    for at in 0..4 {
        let size = Value::RelSize(BlockNumber::new(3 + at as u32));
        fixture.layer_of(resize(110 + 10 * at, size)).await;
    }
    let sizes = KeySpan {
        last: Key::RelSize(REL),
        ..KeySpan::IMAGED[0]
    };
    fixture.image(sizes, AddingEngine).await;
    let lsn = fixture.manifest.lsn;
    let size = Value::RelSize(BlockNumber::new(9));
    fixture.layer_of(resize(lsn.get() + 10, size)).await;
    let layers = fixture.manifest.layers().iter();
    let older = layers.filter(|layer| matches!(layer.kind, LayerKind::Delta(_)));
    for layer in older.filter(|layer| layer.up_to() <= lsn) {
        let path = fixture.files.directory.child(&layer.name);
        fixture.files.store.delete(&path).await.unwrap();
    }
    let reader = fixture.reader().await;
    let listed = async |lsn| reader.relations(Lsn::new(lsn)).await;
    let of = |blocks| vec![(REL, BlockNumber::new(blocks))];
    assert_eq!(listed(lsn.get()).await.unwrap(), of(6));
    assert_eq!(listed(lsn.get() + 10).await.unwrap(), of(9));
    assert!(listed(lsn.get() - 1).await.is_err(), "there it is needed");
}

#[tokio::test]
async fn an_image_that_needs_what_is_older_is_refused() {
    let mut fixture = many_layers().await;
    let lsn = fixture.manifest.lsn;
    let LogRecord { changes, .. } = record(lsn.get(), 1, 1);
    let entries = changes.into_iter();
    let entries = entries.map(|change| (change.key, lsn, change.value));
    let span = LsnSpan::only(lsn);
    let mut bytes = Vec::new();
    let lsns = span.after..span.up_to;
    write_delta_entries(WriterEpoch::FIRST, lsns, entries, &mut bytes).unwrap();
    let keys = KeySpan::IMAGED[0];
    let keys = keys.first..keys.last;
    let kind = LayerKind::Image(lsn);
    fixture.store(kind, keys, bytes.into()).await;
    // The size is not in it either, so it is read below.
    let reader = fixture.reader().await;
    let key = Key::RelBlock(REL, BlockNumber::new(1));
    let found = reader.find(&[key], &(Lsn::ZERO..=lsn)).await;
    let error = found
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(error.contains("it is an image"), "{error}");
}
