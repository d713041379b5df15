//! After WAL was lost.

use palimpsest_manifest::{Ancestor, Reread};

use super::*;

/// A change at 110; then what comes until 200 is lost, and a base backup is read that ends at 230, in which block 1 is
/// all 50s, and the changes after that.
async fn reread(later: &[LogRecord]) -> Fixture {
    let mut fixture = Fixture::new().await;
    fixture.layer_of(record(110, 1, 1)).await;
    let (after, up_to) = (Lsn::new(110), Lsn::new(200));
    let key = Key::RelBlock(REL, BlockNumber::new(1));
    let page = Value::Image(vec![50; PAGE_SIZE].into());
    let mut bytes = Vec::new();
    let entries = std::iter::once((key, up_to, page));
    let written = write_delta_entries(WriterEpoch::FIRST, after..up_to, entries, &mut bytes);
    let entry = LayerEntry {
        name: "again".to_owned(),
        kind: LayerKind::Delta(LsnSpan { after, up_to }),
        keys: KeySpan {
            first: key,
            last: key,
        },
        size: written.unwrap().size,
        entries: 1,
        level: 0,
        epoch: WriterEpoch::FIRST,
    };
    let path = fixture.files.directory.child(&entry.name);
    let store = &fixture.files.store;
    store.create(&path, Bytes::from(bytes)).await.unwrap();
    let reread = Reread {
        start: up_to,
        end: Lsn::new(230),
        source: fixture.manifest.source,
        begun: vec![],
        layers: vec![entry],
    };
    fixture.manifest.go_on_from(reread).unwrap();
    fixture.tail = Arc::new(Tail::new(WriterEpoch::FIRST, up_to));
    for record in later {
        let (lsn, room) = (record.lsn, ByteCount::mib(1));
        fixture
            .tail
            .extend(vec![record.clone()], lsn, room)
            .unwrap();
    }
    fixture
}

#[tokio::test(start_paused = true)]
async fn p1_nothing_is_read_between_the_end_and_the_end_of_the_backup() {
    let later = [record(210, 0, 3), record(230, 1, 4)];
    let fixture = reread(&later).await;
    let reader = fixture.reader().await;
    let patience = Duration::from_secs(1);
    let settle = async |lsn| reader.settle(Some(Lsn::new(lsn)), None, patience).await;
    for lost in [111, 200, 229] {
        let refused = settle(lost).await;
        assert!(
            matches!(refused, Err(ReadError::InHole { .. })),
            "{refused:?}"
        );
    }
    for there in [105, 110, 230] {
        assert_eq!(settle(there).await.unwrap(), Lsn::new(there));
    }
    assert_eq!(first_byte(&reader, 1, 110).await, 11);
    assert_eq!(first_byte(&reader, 0, 110).await, 10);
    assert_eq!(first_byte(&reader, 1, 230).await, 54);
    assert_eq!(first_byte(&reader, 0, 230).await, 13);
}

#[tokio::test(start_paused = true)]
async fn p1_the_newest_is_waited_for_until_the_backup_s_end() {
    let fixture = reread(&[record(210, 0, 3)]).await;
    let reader = fixture.reader().await;
    let patience = Duration::from_secs(1);
    let settle = async |lsn: Option<u64>, since: Option<u64>| {
        let (lsn, since) = (lsn.map(Lsn::new), since.map(Lsn::new));
        reader.settle(lsn, since, patience).await
    };
    // Also for who knows that nothing of interest has changed for long.
    for (lsn, since) in [(None, None), (Some(300), Some(110))] {
        let early = settle(lsn, since).await;
        assert!(matches!(early, Err(ReadError::NotYet { .. })), "{early:?}");
    }
    assert_eq!(settle(Some(110), None).await.unwrap(), Lsn::new(110));
    let (newest, ()) = tokio::join!(settle(None, None), async {
        let last = record(232, 1, 4);
        let (lsn, room) = (last.lsn, ByteCount::mib(1));
        reader.tail.extend(vec![last], lsn, room).unwrap();
    });
    assert_eq!(newest.unwrap(), Lsn::new(232));
}

#[tokio::test(start_paused = true)]
async fn p1_a_branch_that_begins_where_changes_were_lost_since_is_not_read() {
    let fixture = reread(&[record(210, 0, 3), record(240, 1, 4)]).await;
    let parent = Arc::new(fixture.reader().await);
    let patience = Duration::from_secs(1);
    for (at, is_lost) in [
        (110, false),
        (118, true),
        (200, true),
        (229, true),
        (230, false),
    ] {
        let at = Lsn::new(at);
        let mut manifest = TimelineManifest::new(fixture.manifest.source, at, at);
        let timeline = TimelineId::from_bytes([7; 16]);
        manifest.ancestor = Some(Ancestor { timeline, lsn: at });
        let layers = Layers::open(fixture.files.clone(), &manifest, None).await;
        let tail = Arc::new(Tail::new(WriterEpoch::FIRST, at));
        let room = ByteCount::mib(1);
        tail.extend(Vec::new(), Lsn::new(300), room).unwrap();
        let shared = (Arc::new(PageCache::new(room)), AddingEngine);
        let timeline = TimelineId::from_bytes([8; 16]);
        let branch = TimelineReader::new(timeline, layers.unwrap(), tail, shared);
        let branch = branch.with_ancestor(Arc::clone(&parent), at);
        for lsn in [Some(at), Some(Lsn::new(300)), None] {
            let settled = branch.settle(lsn, None, patience).await;
            let is_refused = matches!(settled, Err(ReadError::InHole { .. }));
            assert_eq!(is_refused, is_lost, "{at}, read at {lsn:?}: {settled:?}");
        }
    }
}
