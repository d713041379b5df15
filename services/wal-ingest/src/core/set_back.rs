//! A source that was set back, as from a snapshot, on the same PostgreSQL timeline.
//!
//! What it writes then is another history with the same LSNs, and once it has passed the end of what is here nothing shows
//! that any more. So an object says it, to who reads a base backup over what is here: that a page has an LSN of ours does
//! not mean that it is our page.

use bytes::Bytes;
use palimpsest_store::StorePath;
use palimpsest_types::{ErrorKind, Lsn};

use super::{
    back_off::BackOff,
    error::{IngestError, Stop},
    source::expect_all_answer,
    stream::PATIENCE,
    timeline::Timeline,
};

/// Whether an error may mean that the source was set back. WAL that does not follow is another's, wherever its records begin.
/// If it was only damaged, the next base backup is larger than it need be.
pub(super) fn tells(error: &IngestError) -> bool {
    matches!(
        error,
        IngestError::Stop(Stop::SetBack { .. }) | IngestError::Wal(_)
    )
}

/// The source must have all that is here, unless it is on another PostgreSQL timeline. Of several hosts all must have answered:
/// one may be a copy that was left behind.
pub(super) async fn expect_whole(
    timeline: &Timeline,
    (end, found): (Lsn, Lsn),
) -> Result<(), IngestError> {
    if end <= found {
        return Ok(());
    }
    expect_all_answer(&timeline.assignment.source, PATIENCE).await?;
    Err(Stop::SetBack { found, end }.into())
}

/// Remembers it, however long that takes: before anybody hears that the timeline has stopped.
pub(super) async fn remember(timeline: &Timeline) {
    let mut back_off = BackOff::default();
    let told = Bytes::from_static(b"the source was set back\n");
    let object = object(timeline);
    while let Err(error) = timeline.shared.store.put_once(&object, told.clone()).await {
        let error = IngestError::from(error).in_words();
        tracing::warn!(timeline = %timeline.id(), error, "can't remember that the source was set back; trying again");
        back_off.wait().await;
    }
}

/// Whether it is remembered.
pub(super) async fn is_known(timeline: &Timeline) -> Result<bool, IngestError> {
    match timeline.shared.store.get(&object(timeline)).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What is here is of the source as it is now.
pub(super) async fn forget(timeline: &Timeline) -> Result<(), IngestError> {
    Ok(timeline.shared.store.delete(&object(timeline)).await?)
}

fn object(timeline: &Timeline) -> StorePath {
    timeline.store_path().child("set-back")
}
