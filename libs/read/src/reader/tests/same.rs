//! Pages that somebody else has.

use super::*;

/// A page with this LSN and these flags, and 10s behind them.
fn page(lsn: u64, flags: u16) -> [u8; PAGE_SIZE] {
    let mut page = [10; PAGE_SIZE];
    page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
    page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
    page[10..12].copy_from_slice(&flags.to_le_bytes());
    page
}

async fn same(
    reader: &TimelineReader<AddingEngine>,
    pages: &[(u32, [u8; PAGE_SIZE])],
    trusts_lsns: bool,
) -> Vec<bool> {
    let pages = pages.iter();
    let pages: Vec<_> = pages
        .map(|(block, page)| (BlockNumber::new(*block), page.to_vec().into()))
        .collect();
    let lsn = Lsn::new(125);
    reader
        .same_pages(REL, &pages, lsn, trusts_lsns)
        .await
        .unwrap()
}

#[tokio::test]
async fn p1_a_page_is_the_same_if_the_last_change_left_its_lsn() {
    let mut fixture = Fixture::with_base(3, |_| page(90, 0)).await;
    fixture.layer_of(record(110, 1, 1)).await;
    fixture.layer_of(record(120, 1, 2)).await;
    // Nobody knows of it yet.
    fixture.layer_of(record(130, 2, 1)).await;
    let reader = fixture.reader().await;
    let pages = [
        (0, page(90, 0)),
        (0, page(90, 4)),
        (1, page(120, 0)),
        (1, page(110, 0)),
        (1, page(0, 0)),
        (2, page(90, 0)),
        (2, page(130, 0)),
        (7, page(120, 0)),
    ];
    let expected = [true, false, true, false, false, true, false, false];
    for (number, (one, expected)) in pages.into_iter().zip(expected).enumerate() {
        assert_eq!(same(&reader, &[one], true).await, [expected], "{number}");
    }
    let all = [(0, page(90, 0)), (1, page(120, 0)), (2, page(91, 0))];
    assert_eq!(same(&reader, &all, true).await, [true, true, false]);
    // Of another history with the same LSNs.
    assert_eq!(same(&reader, &all, false).await, [true, false, false]);
}

#[tokio::test]
async fn p1_an_all_visible_page_has_perhaps_changed_without_its_lsn() {
    let mut fixture = Fixture::with_base(2, |_| page(90, 4)).await;
    fixture.layer_of(record(120, 1, 2)).await;
    fixture.layer_of(record(130, 1, 1)).await;
    let reader = fixture.reader().await;
    let pages = [(0, page(90, 4)), (1, page(120, 4))];
    assert_eq!(same(&reader, &pages, true).await, [true, false]);
}
