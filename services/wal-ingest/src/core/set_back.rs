//! A source that was set back, as from a snapshot, on the same PostgreSQL timeline.
//!
//! What it writes then is another history with the same LSNs, and once it has passed the end of what is here nothing shows
//! that any more. So an object says it, to who reads a base backup over what is here: that a page has an LSN of ours does
//! not mean that it is our page.

use bytes::Bytes;
use palimpsest_store::StorePath;
use palimpsest_types::ErrorKind;
use palimpsest_wal::WalError;

use super::{
    back_off::BackOff,
    error::{IngestError, Stop},
    timeline::Timeline,
};

/// Whether an error means that the source was set back.
pub(super) fn tells(error: &IngestError) -> bool {
    matches!(
        error,
        IngestError::Stop(Stop::SetBack { .. }) | IngestError::Wal(WalError::Previous { .. })
    )
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
