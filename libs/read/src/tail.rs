use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use palimpsest_layer::{LogRecord, OpenLayer, OutOfOrderError};
use palimpsest_types::{ByteCount, Lsn, WriterEpoch};
use tokio::sync::watch;

/// The changes since the base, growing, with readers that wait for an LSN.
#[derive(Debug)]
pub struct Tail {
    layer: RwLock<OpenLayer>,
    newest: watch::Sender<Lsn>,
}

/// Changes could not be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// They do not follow.
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrderError),
    /// There is no room for them.
    #[error("the changes held in memory reach {size}, the limit is {limit}")]
    Full {
        /// Bytes held.
        size: ByteCount,
        /// Bytes allowed.
        limit: ByteCount,
    },
}

impl Tail {
    /// An empty tail after `start`.
    pub fn new(epoch: WriterEpoch, start: Lsn) -> Self {
        let (newest, _) = watch::channel(start);
        Self {
            layer: RwLock::new(OpenLayer::new(epoch, start)),
            newest,
        }
    }

    /// The layer, for a moment: never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, OpenLayer> {
        self.layer.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest LSN that can be read.
    pub fn newest(&self) -> Lsn {
        *self.newest.borrow()
    }

    /// Tells when there is more to read.
    pub fn watch(&self) -> watch::Receiver<Lsn> {
        self.newest.subscribe()
    }

    /// Adds records and makes everything up to `up_to` readable, unless the tail would then hold
    /// more than `limit`.
    ///
    /// # Errors
    /// If the records do not follow or there is no room; those before the error are added.
    pub fn extend(
        &self,
        records: Vec<LogRecord>,
        up_to: Lsn,
        limit: ByteCount,
    ) -> Result<(), TailError> {
        let mut layer = self.layer.write().unwrap_or_else(PoisonError::into_inner);
        let size = layer.size();
        if size >= limit && !records.is_empty() {
            return Err(TailError::Full { size, limit });
        }
        for record in records {
            layer.append(record)?;
        }
        layer.advance(up_to);
        let newest = layer.last();
        drop(layer);
        self.newest
            .send_if_modified(|lsn| std::mem::replace(lsn, newest) != newest);
        Ok(())
    }
}
