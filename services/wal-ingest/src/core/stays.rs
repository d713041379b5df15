//! What a timeline leaves on the local disk when its node leaves.

use palimpsest_api::broker::{TimelineState, TimelineStatus};
use palimpsest_types::ByteCount;

use super::timeline::Timeline;

impl Timeline {
    /// Says what the object store does not have, now that nothing of the timeline runs.
    pub(super) fn tell_what_stays(&self) {
        let status = self.status();
        if self.is_superseded() {
            return;
        }
        if let Some(bytes) = stays(&status) {
            let from = status.remote_consistent;
            tracing::warn!(timeline = %self.id(), %from, %bytes, "this WAL stays on the local disk and is not in the object store yet; nothing is lost, and the next start here goes on with it");
        }
    }
}

/// WAL that the object store lacks. What follows the newest whole record does not count.
fn stays(status: &TimelineStatus) -> Option<ByteCount> {
    let remote = status.remote_consistent;
    // Before the end of the local WAL nobody knows how many records there are.
    let undecoded = status.state == TimelineState::Resuming && remote < status.flushed;
    (remote < status.last_record || undecoded)
        .then(|| ByteCount::new(status.flushed.saturating_sub(remote)))
}

#[cfg(test)]
mod tests {
    use palimpsest_types::Lsn;

    use super::*;

    fn status(remote: u64, last_record: u64, flushed: u64) -> TimelineStatus {
        TimelineStatus {
            state: TimelineState::Streaming,
            remote_consistent: Lsn::new(remote),
            last_record: Lsn::new(last_record),
            flushed: Lsn::new(flushed),
            ..TimelineStatus::default()
        }
    }

    #[test]
    fn only_whole_records_stay() {
        assert_eq!(stays(&status(100, 150, 160)), Some(ByteCount::new(60)));
        assert_eq!(stays(&status(150, 150, 160)), None);
        assert_eq!(stays(&TimelineStatus::default()), None);
    }

    #[test]
    fn wal_that_was_not_decoded_again_stays() {
        let resuming = TimelineStatus {
            state: TimelineState::Resuming,
            ..status(100, 100, 160)
        };
        assert_eq!(stays(&resuming), Some(ByteCount::new(60)));
    }
}
