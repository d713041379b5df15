//! Going on by itself where WAL was lost because we let the source remove it.

use std::{future::pending, time::Duration};

use palimpsest_types::{ErrorKind, Reason, RequestId};
use tokio::time::sleep;

use super::Timeline;
use crate::core::{back_off::BackOff, error::Stop};

/// How often to look whether there is room, or whether it is wanted now.
const LOOK: Duration = Duration::from_secs(1);

impl Timeline {
    /// Whether a timeline has stopped because its slot was dropped to save the source's disk, and nobody else is to blame.
    pub(super) fn is_lost_with_slot(&self, stop: &Stop) -> bool {
        match stop {
            Stop::SlotDropped { .. } => true,
            Stop::WalGone { .. } => self.is_slotless(),
            _ => false,
        }
    }

    /// Asks for what `pal reattach` does, as soon as there is room. Whoever is assigned then does it; never returns. It can't go round quickly:
    /// before the next slot is dropped, too, the source has written more than that may keep.
    pub(super) async fn reattach_by_itself(&self) {
        // All that is here is in the object store, and makes room.
        self.close();
        let id = RequestId::from_bytes(rand::random());
        let mut back_off = BackOff::default();
        loop {
            if !self.limits().reattach_after_drop || !self.has_room() {
                sleep(LOOK).await;
                continue;
            }
            let error = match self.shared.broker.reattach(self.id(), id).await {
                Ok(after) => {
                    tracing::warn!(timeline = %self.id(), %after, "the slot was dropped; the timeline goes on from a new base backup, and what was lost stays lost");
                    return pending().await;
                }
                Err(error) => error,
            };
            // The storage-broker has not heard that it has stopped, or is not there.
            let is_early = error.reason == Some(Reason::NotStopped);
            if !is_early && matches!(error.kind, ErrorKind::Invalid | ErrorKind::NotFound) {
                // A branch that a PostgreSQL of its own writes.
                tracing::error!(timeline = %self.id(), %error, "the timeline can't go on by itself");
                return pending().await;
            }
            tracing::info!(timeline = %self.id(), %error, "can't have the timeline go on from a base backup yet");
            back_off.wait().await;
        }
    }

    /// Whether other timelines leave some.
    fn has_room(&self) -> bool {
        let share = self.shared.budget.share(self.id().tenant);
        share.room().is_ok()
    }
}
