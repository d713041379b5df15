//! Pages of SLRU areas and prepared transactions.

use palimpsest_types::SlruKind;
use palimpsest_wal::{PagePatches, TransactionEnd};

use super::*;

const KIND: SlruKind = SlruKind::MultiXactOffsets;
const SEGMENT: Key = Key::SlruSegment(KIND, 1);

fn page_key(page: u32) -> Key {
    Key::SlruBlock(KIND, page)
}

/// Byte 0 becomes this one.
fn patch(byte: u8) -> Value {
    let encoded = Bytes::copy_from_slice(&[0, 0, 1, 0, byte]);
    Value::Patched(PagePatches::decode(encoded).unwrap())
}

fn pages(pages: u32) -> Value {
    Value::RelSize(BlockNumber::new(pages))
}

fn at(lsn: u64, changes: Vec<(Key, Value)>) -> LogRecord {
    let change = |(key, value)| Change { key, value };
    LogRecord {
        lsn: Lsn::new(lsn),
        changes: changes.into_iter().map(change).collect(),
    }
}

/// A segment with one page, which grows, is dropped, and begins anew; a transaction is prepared
/// meanwhile, and ends.
fn history() -> Vec<LogRecord> {
    let prepared = Value::File(Bytes::from_static(b"state"));
    vec![
        at(
            110,
            vec![(page_key(32), Value::ZeroPage), (SEGMENT, pages(1))],
        ),
        at(120, vec![(page_key(32), patch(2))]),
        at(
            130,
            vec![(page_key(33), Value::ZeroPage), (SEGMENT, pages(2))],
        ),
        at(140, vec![(Key::TwoPhase(700), prepared)]),
        at(150, vec![(SEGMENT, Value::Dropped)]),
        at(160, vec![(Key::TwoPhase(700), Value::Dropped)]),
        at(
            170,
            vec![(page_key(32), Value::ZeroPage), (SEGMENT, pages(1))],
        ),
        at(180, vec![(page_key(32), patch(3))]),
        // What no chain may begin with.
        at(190, vec![(page_key(33), patch(4)), (SEGMENT, pages(3))]),
    ]
}

/// The whole history, of which the first records are in layers of their own.
async fn reader_of(flushed: usize) -> (Fixture, TimelineReader<AddingEngine>) {
    let mut fixture = Fixture::new().await;
    for (index, record) in history().into_iter().enumerate() {
        let lsn = record.lsn;
        let limit = ByteCount::mib(1);
        fixture.tail.extend(vec![record], lsn, limit).unwrap();
        if index < flushed {
            fixture.flush().await;
        }
    }
    fixture.tail.drop_until(fixture.manifest.lsn);
    let reader = fixture.reader().await;
    (fixture, reader)
}

#[tokio::test]
async fn a_page_exists_while_its_segment_does() {
    for flushed in [0, 4, 9] {
        let (_fixture, reader) = reader_of(flushed).await;
        let first_byte = async |page, lsn| {
            let page = reader.slru_page(KIND, page, Lsn::new(lsn)).await.unwrap();
            page.map(|page| page[0])
        };
        for (lsn, expected) in [
            (105, [None, None]),
            (110, [Some(0), None]),
            (125, [Some(2), None]),
            (130, [Some(2), Some(0)]),
            (150, [None, None]),
            (170, [Some(0), None]),
            (180, [Some(3), None]),
        ] {
            let found = [first_byte(32, lsn).await, first_byte(33, lsn).await];
            assert_eq!(found, expected, "{lsn}, {flushed} flushed");
        }
        let segments = async |lsn| reader.slru_segments(KIND, Lsn::new(lsn)).await.unwrap();
        assert_eq!(segments(140).await, [(1, 2)]);
        assert_eq!(segments(160).await, []);
        let gone = reader.slru_segment(KIND, 1, Lsn::new(155)).await;
        assert!(matches!(gone, Err(ReadError::NoSlruSegment { .. })));
        let both = reader.slru_segment(KIND, 1, Lsn::new(135)).await.unwrap();
        assert_eq!(both.iter().map(|it| it.0).collect::<Vec<_>>(), [32, 33]);
    }
}

#[tokio::test]
async fn a_page_that_should_be_there_and_has_no_beginning_is_an_error() {
    let (_fixture, reader) = reader_of(9).await;
    let never_written = reader.slru_page(KIND, 34, Lsn::new(190)).await;
    assert!(matches!(never_written, Err(ReadError::Slru { .. })));
}

#[tokio::test]
async fn prepared_transactions_are_listed_until_they_end() {
    for flushed in [0, 4, 9] {
        let (_fixture, reader) = reader_of(flushed).await;
        let prepared = async |lsn| {
            let found = reader.prepared_transactions(Lsn::new(lsn)).await;
            found.unwrap()
        };
        assert_eq!(prepared(139).await, []);
        let state = (700, Bytes::from_static(b"state"));
        assert_eq!(prepared(159).await, [state]);
        assert_eq!(prepared(160).await, []);
    }
}

#[tokio::test]
async fn a_transaction_with_a_status_is_not_prepared_any_more() {
    let fixture = Fixture::new().await;
    let clog = Key::SlruBlock(SlruKind::Clog, 0);
    let ended = Value::TransactionsEnded {
        end: TransactionEnd::Aborted,
        xids: [700].into(),
    };
    let prepared = |xid| {
        (
            Key::TwoPhase(xid),
            Value::File(Bytes::from_static(b"state")),
        )
    };
    let one_page = (Key::SlruSegment(SlruKind::Clog, 0), pages(1));
    let history = [
        at(110, vec![(clog, Value::ZeroPage), one_page]),
        at(120, vec![(clog, ended)]),
        at(130, vec![prepared(700), prepared(701)]),
    ];
    for record in history {
        let lsn = record.lsn;
        let limit = ByteCount::mib(1);
        fixture.tail.extend(vec![record], lsn, limit).unwrap();
    }
    let found = fixture
        .reader()
        .await
        .prepared_transactions(Lsn::new(130))
        .await;
    let found: Vec<_> = found.unwrap().into_iter().map(|(xid, _)| xid).collect();
    assert_eq!(found, [701]);
}
