//! Going on by itself where WAL was lost because we let the source remove it.

use std::{future::pending, sync::atomic::Ordering, time::Duration};

use palimpsest_types::{ErrorKind, Reason, RequestId};
use tokio::time::sleep;

use super::Timeline;
use crate::core::{back_off::BackOff, error::Stop};

/// How often to look whether it is wanted now.
const LOOK: Duration = Duration::from_secs(1);

impl Timeline {
    /// We drop the slot, or are about to, to save the source's disk; or there is one again.
    pub(in crate::core) fn note_dropped(&self, dropped: bool) {
        self.dropped.store(dropped, Ordering::Relaxed);
    }

    /// Whether a timeline has stopped because its slot was dropped to save the source's disk, and nobody else is to blame.
    pub(super) fn is_lost_with_slot(&self, stop: &Stop) -> bool {
        match stop {
            Stop::SlotDropped { .. } => true,
            // The answer to our own drop was lost, or what came of it.
            Stop::WalGone { .. } | Stop::SlotLost { .. } => self.dropped.load(Ordering::Relaxed),
            _ => false,
        }
    }

    /// Asks for what `pal reattach` does. Whoever is assigned then does it; never returns. Of a timeline that lost its slot while it was at
    /// that already it is not asked for again: the next base backup would end like this one.
    pub(super) async fn reattach_by_itself(&self) {
        let id = RequestId::from_bytes(rand::random());
        let mut back_off = BackOff::default();
        loop {
            if !self.limits().reattach_after_drop {
                sleep(LOOK).await;
                continue;
            }
            match self.manifests().newest().await {
                Ok(Some(newest)) if !self.is_to_reattach(&newest.state) => {}
                Ok(Some(_)) => {
                    return self
                        .can_not("the source writes more than slot-retention-limit while a base backup is read; raise that, then `pal reattach`")
                        .await;
                }
                Ok(None) => return pending().await,
                Err(error) => {
                    tracing::warn!(timeline = %self.id(), %error, "can't look whether the timeline can go on by itself; trying again");
                    back_off.wait().await;
                    continue;
                }
            }
            let error = match self.shared.broker.reattach(self.id(), id).await {
                Ok(after) => {
                    tracing::warn!(timeline = %self.id(), %after, "the slot was dropped; the timeline goes on from a new base backup, and what was lost stays lost");
                    return pending().await;
                }
                Err(error) => error,
            };
            let is_final = matches!(error.kind, ErrorKind::Invalid | ErrorKind::NotFound)
                || error.reason == Some(Reason::NotOpen);
            if is_final {
                return self.can_not(&error.message).await;
            }
            // The storage-broker has not heard that it has stopped, or is not there.
            tracing::info!(timeline = %self.id(), %error, "can't have the timeline go on from a base backup yet");
            back_off.wait().await;
        }
    }

    async fn can_not(&self, why: &str) {
        tracing::error!(timeline = %self.id(), why, "the timeline can't go on by itself");
        self.update(|status| {
            status.reason = format!("{}; by itself it can't: {why}", status.reason)
        });
        pending().await
    }
}
