//! What services, and redo processes, send each other.

use palimpsest_api::{
    feed::FeedBatch,
    page::{MAX_BLOCKS, PagesRequest},
};
use palimpsest_proto::{ingest::v1 as ingest, page::v1 as page};
use palimpsest_redo_postgres::fuzz::read_answers;
use palimpsest_types::PAGE_SIZE;
use palimpsest_wal::Value;
use prost::Message as _;

/// A request for pages.
pub fn get_pages(data: &[u8]) {
    let Ok(message) = page::GetPagesRequest::decode(data) else {
        return;
    };
    if let Ok(request) = PagesRequest::try_from(message) {
        assert!((1..=MAX_BLOCKS).contains(&request.blocks.len()));
    }
}

/// A batch of the change feed.
pub fn feed(data: &[u8]) {
    let Ok(message) = ingest::SubscribeResponse::decode(data) else {
        return;
    };
    let Ok(batch) = FeedBatch::try_from(message) else {
        return;
    };
    let changes = batch.records.iter().flat_map(|record| &record.changes);
    for change in changes {
        if let Value::Image(page) = &change.value {
            assert_eq!(page.len(), PAGE_SIZE, "{:?}", change.key);
        }
    }
    let again = ingest::SubscribeResponse::from(batch.clone());
    assert_eq!(FeedBatch::try_from(again), Ok(batch));
}

/// What comes out of a redo process.
pub fn redo_answers(data: &[u8]) {
    read_answers(data);
}
