//! From one manifest to the next.

use super::*;

async fn open(fixture: &Fixture, before: Option<&Layers>) -> Result<Layers, ReadError> {
    Layers::open(fixture.files.clone(), &fixture.manifest, before).await
}

/// Twelve layers of a change each, in turn of blocks 0 and 1.
async fn many_layers() -> Fixture {
    let mut fixture = Fixture::new().await;
    for at in 0..12 {
        fixture
            .layer_of(record(110 + 10 * at, at as u32 % 2, 1))
            .await;
    }
    fixture
}

/// All changes of [`many_layers`] in one layer, as a compaction would make it.
async fn add_compacted(fixture: &mut Fixture) {
    let mut all = OpenLayer::new(WriterEpoch::FIRST, Lsn::new(100));
    for at in 0..12 {
        all.append(record(110 + 10 * at, at as u32 % 2, 1)).unwrap();
    }
    let mut bytes = Vec::new();
    let keys = write_delta_layer(&all, &mut bytes).unwrap().keys.unwrap();
    let span = LsnSpan {
        after: all.start(),
        up_to: all.last(),
    };
    let kind = LayerKind::Delta(span);
    fixture
        .store(kind, keys.first..keys.last, bytes.into())
        .await;
}

async fn check_pages(reader: &TimelineReader<AddingEngine>) {
    for lsn in (105..=220).step_by(5) {
        for block in [0, 1] {
            let changes = (110..=lsn)
                .step_by(10)
                .filter(|at| (at / 10 + 1) % 2 == block);
            let expected = 10 + changes.count() as u8;
            assert_eq!(
                first_byte(reader, block as u32, lsn).await,
                expected,
                "{block} at {lsn}"
            );
        }
    }
}

#[tokio::test]
async fn a_newer_manifest_costs_what_is_new() {
    let mut fixture = many_layers().await;
    let layers = open(&fixture, None).await.unwrap();
    fixture.layer_of(record(230, 0, 1)).await;
    let drop = Value::Dropped;
    let database = Key::Database { spc: 1663, db: 5 };
    let dropped = LogRecord {
        lsn: Lsn::new(240),
        changes: vec![Change {
            key: database,
            value: drop.clone(),
        }],
    };
    fixture.layer_of(dropped).await;
    let before = fixture.reads();
    let newer = open(&fixture, Some(&layers)).await.unwrap();
    // The end of the layer that says something of a database; of the other nothing.
    assert_eq!(fixture.reads() - before, 1);
    assert_eq!((layers.deltas(), newer.deltas()), (12, 14));
    let all = Lsn::ZERO..=Lsn::new(240);
    let known = layers.newest(database, all.clone()).await.unwrap();
    assert_eq!(known, None, "who has the older one reads that");
    let known = newer.newest(database, all).await.unwrap();
    assert_eq!(known, Some((Lsn::new(240), drop)));
    assert_eq!(fixture.reads() - before, 1);
}

#[tokio::test]
async fn layers_replaced_by_one_are_read_as_before() {
    let mut fixture = many_layers().await;
    let reader = fixture.reader().await;
    check_pages(&reader).await;
    let small = fixture.manifest.layers().iter().skip(1);
    let small: Vec<_> = small.map(|entry| entry.name.clone()).collect();
    assert_eq!(small.len(), 12);
    // First beside them, which nobody needs but nothing forbids; then in their place.
    add_compacted(&mut fixture).await;
    for deltas in [13, 1] {
        let layers = open(&fixture, Some(&reader.layers())).await.unwrap();
        assert_eq!(layers.deltas(), deltas);
        reader.advance(layers);
        check_pages(&reader).await;
        // With nothing cached, and opened from this manifest alone.
        check_pages(&fixture.reader().await).await;
        if deltas == 13 {
            fixture.manifest.remove_layers(&small).unwrap();
        }
    }
}

#[tokio::test]
async fn layers_are_superseded_by_newer_ones_and_by_others_of_the_same_lsn() {
    let mut fixture = many_layers().await;
    let layers = open(&fixture, None).await.unwrap();
    let same = fixture.manifest.clone();
    assert!(!layers.are_superseded_by(&same));
    fixture.layer_of(record(230, 0, 1)).await;
    let newer = fixture.manifest.clone();
    assert!(layers.are_superseded_by(&newer));
    let reached = open(&fixture, None).await.unwrap();
    assert!(!reached.are_superseded_by(&same), "it is older");
    assert!(!reached.are_superseded_by(&newer));
    // Some fewer layers, then others: of changes, and of the base.
    let name = |at: usize| newer.layers()[at].name.clone();
    for at in [0, 5, newer.layers().len() - 1] {
        let mut fewer = newer.clone();
        fewer.remove_layers(&[name(at)]).unwrap();
        assert_eq!(fewer.lsn, newer.lsn);
        assert!(reached.are_superseded_by(&fewer), "without {}", name(at));
    }
    fixture.manifest = newer;
    add_compacted(&mut fixture).await;
    assert_eq!(fixture.manifest.lsn, reached.lsn());
    assert!(reached.are_superseded_by(&fixture.manifest));
}

#[tokio::test]
async fn a_layer_that_is_not_as_listed_is_not_read() {
    let fixture = many_layers().await;
    let wrong = |change: fn(&mut LayerEntry)| {
        let mut manifest = fixture.manifest.clone();
        let mut entry = manifest.layers().last().cloned().unwrap();
        manifest.remove_layers(&[&entry.name]).unwrap();
        change(&mut entry);
        manifest.add_layers(vec![entry]).unwrap();
        manifest
    };
    // The last layer is of block 1.
    let other_lsns = wrong(|entry| {
        entry.kind = LayerKind::Delta(LsnSpan {
            after: Lsn::new(215),
            up_to: Lsn::new(220),
        });
    });
    let other_keys = wrong(|entry| {
        let key = Key::RelBlock(REL, BlockNumber::new(0));
        (entry.keys.first, entry.keys.last) = (key, key);
    });
    for (manifest, block) in [(other_lsns, 1), (other_keys, 0)] {
        let layers = Layers::open(fixture.files.clone(), &manifest, None)
            .await
            .unwrap();
        let key = Key::RelBlock(REL, BlockNumber::new(block));
        let read = layers.newest(key, Lsn::ZERO..=Lsn::new(220)).await;
        assert!(
            matches!(read, Err(ReadError::NotAsListed { .. })),
            "{read:?}"
        );
    }
}
