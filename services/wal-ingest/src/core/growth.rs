//! A timeline's changes in memory, and how they leave it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use palimpsest_layer::{LogRecord, OpenLayer};
use palimpsest_read::Tail;
use palimpsest_types::{ByteCount, Lsn, TenantId};
use tokio::sync::mpsc;

use super::{
    budget::{Pressure, Share},
    error::IngestError,
    freeze::Growing,
    node::Limits,
    subscribers::Subscribers,
};

/// The tail of a timeline that is written here. What is frozen goes to the flush, in LSN order.
#[derive(Debug)]
pub(super) struct Growth {
    tail: Arc<Tail>,
    share: Share,
    /// In bytes. It may change while the timeline is written.
    layer_size: AtomicU64,
    subscribers: Subscribers,
    /// Held while freezing, so that pieces are sent in the order in which they were frozen.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the growing piece got its first change.
    since: Option<Instant>,
    /// Everything up to here was handed to the flush.
    frozen: Lsn,
    /// Local layer files have everything up to here.
    on_disk: Lsn,
    flush: mpsc::UnboundedSender<Arc<OpenLayer>>,
}

/// Changes are never refused here: the room for more is asked for between portions of WAL, and a
/// portion that was decoded is never half taken.
const NO_LIMIT: ByteCount = ByteCount::new(u64::MAX);

impl Growth {
    /// Bounded by [`Share::room`], which is asked before more WAL is read: so is the channel.
    pub(super) fn new(
        tail: Arc<Tail>,
        share: Share,
        limits: &Limits,
    ) -> (Self, mpsc::UnboundedReceiver<Arc<OpenLayer>>) {
        let (flush, frozen) = mpsc::unbounded_channel();
        let state = State {
            since: None,
            frozen: tail.newest(),
            on_disk: tail.newest(),
            flush,
        };
        let growth = Self {
            tail,
            share,
            layer_size: AtomicU64::default(),
            subscribers: Subscribers::default(),
            state: Mutex::new(state),
        };
        growth.set_limits(limits);
        (growth, frozen)
    }

    pub(super) fn tail(&self) -> &Arc<Tail> {
        &self.tail
    }

    /// Those who follow the feed.
    pub(super) fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    pub(super) fn share(&self) -> &Share {
        &self.share
    }

    /// These hold from now on.
    pub(super) fn set_limits(&self, limits: &Limits) {
        let size = limits.layer_size.get();
        self.layer_size.store(size, Ordering::Relaxed);
        self.share.set_tenant_limit(limits.tenant_memory());
    }

    /// Adds records, makes everything up to `up_to` readable, and freezes what has grown enough.
    pub(super) fn extend(&self, records: Vec<LogRecord>, up_to: Lsn) -> Result<(), IngestError> {
        self.tail.extend(records, up_to, NO_LIMIT)?;
        let open = {
            let pieces = self.tail.read();
            self.share.set_memory(pieces.size());
            pieces.open_size()
        };
        self.state().since.get_or_insert_with(Instant::now);
        if open.get() >= self.layer_size.load(Ordering::Relaxed) {
            self.freeze();
        }
        Ok(())
    }

    /// Hands the growing piece to the flush, if it has anything.
    pub(super) fn freeze(&self) {
        let mut state = self.state();
        state.since = None;
        // What comes meanwhile is not in it.
        state.frozen = self.tail.newest();
        if let Some(frozen) = self.tail.freeze() {
            // Without a receiver the timeline is ending, and the WAL has it all.
            let _ = state.flush.send(frozen);
        }
    }

    /// Does that if anything up to `lsn` was not handed over yet.
    pub(super) fn freeze_up_to(&self, lsn: Lsn) {
        if self.state().frozen < lsn {
            self.freeze();
        }
    }

    /// The growing piece; `None` if nothing came since the last was frozen.
    pub(super) fn growing(&self, tenant: TenantId, limits: &Limits) -> Option<Growing> {
        let age = self.state().since?.elapsed();
        Some(Growing {
            size: self.tail.read().open_size(),
            is_old: age >= limits.layer_age,
            tenant,
            tenant_memory: limits.tenant_memory(),
        })
    }

    /// Local layer files have everything up to `lsn`.
    pub(super) fn note_on_disk(&self, lsn: Lsn) {
        self.state().on_disk = lsn;
    }

    /// Lets go of what local files have, though the object store does not yet, as memory is short.
    pub(super) fn relieve(&self) {
        let (on_disk, pressure) = (self.state().on_disk, self.share.pressure());
        if let Some(up_to) = superfluous(pressure, on_disk, self.subscribers.slowest()) {
            self.let_go(up_to);
        }
    }

    /// The object store has everything up to `lsn`: memory need not have it.
    pub(super) fn let_go(&self, lsn: Lsn) {
        self.tail.drop_until(lsn);
        self.share.set_memory(self.tail.read().size());
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Up to where memory can do without what local files have. At first only as far as every subscriber
/// has it: one that is behind would have to decode WAL again. But no subscriber is worth that ingest
/// stops.
fn superfluous(pressure: Pressure, on_disk: Lsn, slowest: Option<Lsn>) -> Option<Lsn> {
    match pressure {
        Pressure::None => None,
        Pressure::Some => Some(slowest.map_or(on_disk, |slowest| slowest.min(on_disk))),
        Pressure::High => Some(on_disk),
    }
}

/// How often a node looks for pieces that are old or in the way.
pub(super) const FREEZE_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_subscriber_keeps_memory_only_while_there_is_enough() {
        let (behind, on_disk, ahead) = (Lsn::new(10), Lsn::new(20), Lsn::new(30));
        let known = |pressure, slowest| superfluous(pressure, on_disk, slowest);
        assert_eq!(known(Pressure::None, None), None);
        assert_eq!(known(Pressure::Some, None), Some(on_disk));
        assert_eq!(known(Pressure::Some, Some(behind)), Some(behind));
        assert_eq!(known(Pressure::Some, Some(ahead)), Some(on_disk));
        assert_eq!(known(Pressure::High, Some(behind)), Some(on_disk));
    }
}
