//! The slot at the source, while it is nobody's first concern: whose it is, and that it does not fill the source's disk.

use std::{
    pin::pin,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
};

use palimpsest_manifest::SourceCluster;
use palimpsest_postgres::Tli;

use super::Timeline;
use crate::core::{
    error::IngestError,
    keeper::{self, Duty},
    warnings::Topic,
};

impl Timeline {
    /// The slot at this cluster may be ours from now on.
    pub(in crate::core) fn note_source(&self, source: SourceCluster) {
        *self.lock_source() = Some(source);
    }

    /// No slot is ours there any more.
    pub(in crate::core) fn forget_source(&self) {
        *self.lock_source() = None;
    }

    fn lock_source(&self) -> MutexGuard<'_, Option<SourceCluster>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A primary on a later PostgreSQL timeline than the one that is read was seen.
    pub(in crate::core) fn note_later(&self, found: Tli) {
        self.later.send_replace(Some(found));
    }

    /// What was seen before is not to be waited for: whoever is read from now on was found among all.
    pub(in crate::core) fn forget_later(&self) {
        self.later.send_replace(None);
    }

    /// Waits until a primary on a later PostgreSQL timeline than this one is seen.
    pub(in crate::core) async fn later_than(&self, read_from: Tli) -> Tli {
        let mut seen = self.later.subscribe();
        let is_later = |found: &Option<Tli>| found.is_some_and(|found| found > read_from);
        // It can't fail: the sender is ours.
        let found = seen.wait_for(is_later).await;
        found.map_or(read_from, |found| found.unwrap_or(read_from))
    }

    /// A timeline that has stopped still has a slot, which must not fill the source's disk.
    pub(super) async fn guard_slot(&self, error: &IngestError) {
        let Some(source) = *self.lock_source() else {
            return;
        };
        let mut duty = keeper::duty_after(error);
        while let Some(held) = duty {
            let end = IngestError::from(keeper::run(self, &source, held).await);
            let next = keeper::duty_after(&end);
            if (held, next) == (Duty::Guard, Some(Duty::Guard)) {
                // It is gone, as was said already.
                return;
            }
            self.warn_of_slot(&end);
            duty = next.filter(|next| *next != held);
        }
    }

    /// Waits for something, and looks after the slot meanwhile, if there may be one.
    pub(in crate::core) async fn guarding<T>(&self, waiting: impl Future<Output = T>) -> T {
        // A slot that is there again, or still, may keep too much.
        let duty = match self.is_slotless() {
            true => Duty::Guard,
            false => Duty::Follow,
        };
        self.guarding_as(duty, waiting).await
    }

    pub(super) async fn guarding_as<T>(&self, duty: Duty, waiting: impl Future<Output = T>) -> T {
        let mut waiting = pin!(waiting);
        let source = *self.lock_source();
        if let Some(source) = source {
            // Cancel-safe: `waiting` stays, and the next visit does what this one has not.
            let stop = tokio::select! {
                done = &mut waiting => return done,
                stop = keeper::run(self, &source, duty) => stop,
            };
            if duty == Duty::Follow {
                self.warn_of_slot(&stop.into());
            }
        }
        waiting.await
    }

    /// The slot is not what it was, while something else goes on or has ended.
    fn warn_of_slot(&self, end: &IngestError) {
        let reason = end.in_words();
        tracing::error!(timeline = %self.id(), reason, "the slot");
        self.warn(Topic::Slot, vec![reason]);
    }

    /// Whether the timeline goes on without a slot, which was dropped to save the source's disk.
    pub(in crate::core) fn is_slotless(&self) -> bool {
        self.slotless.load(Ordering::Relaxed)
    }

    pub(in crate::core) fn note_slotless(&self, slotless: bool) {
        self.slotless.store(slotless, Ordering::Relaxed);
    }

    /// Whether this writer ended because another took over.
    pub(in crate::core) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed)
    }
}
