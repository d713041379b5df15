//! Removing a timeline: the slot at the source first, then everything stored.

use std::{io, sync::Arc, time::Duration};

use palimpsest_api::broker::TimelineState;
use palimpsest_store::StorePath;
use palimpsest_types::ErrorKind;

use super::{
    attach::owns_slot,
    back_off::BackOff,
    error::IngestError,
    source::{connect, connect_to},
    stream::PATIENCE,
    timeline::Timeline,
};

/// How often, and after which pause, dropping a slot that is still in use is tried again.
const SLOT_ATTEMPTS: u32 = 20;
const SLOT_PAUSE: Duration = Duration::from_millis(100);

/// What becomes of what the object store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// It is not for us to remove.
    Stays,
    /// All that is stored of the tenant goes.
    OfTenant,
}

impl Timeline {
    /// Removes slot and files, trying again until it is done, or the node ends; what the state is then.
    pub(super) async fn remove(&self, stored: Stored, forget_slot: bool, end: TimelineState) {
        let removing = self.remove_all(stored, forget_slot, end);
        self.shared.leaving.run_until_cancelled(removing).await;
    }

    async fn remove_all(&self, stored: Stored, forget_slot: bool, end: TimelineState) {
        self.update(|status| status.state = TimelineState::Deleting);
        let mut back_off = BackOff::default();
        while let Err(error) = self.try_remove(stored, forget_slot).await {
            let reason = format!(
                "{}; trying again (--forget-slot goes on without it)",
                error.in_words()
            );
            tracing::warn!(timeline = %self.id(), reason, "can't remove the timeline");
            self.update(|status| status.reason = reason);
            back_off.wait().await;
        }
        tracing::info!(timeline = %self.id(), ?stored, "timeline removed");
        self.update(|status| {
            status.state = end;
            status.reason.clear();
        });
    }

    async fn try_remove(&self, stored: Stored, forget_slot: bool) -> Result<(), IngestError> {
        if stored == Stored::Stays {
            if !forget_slot {
                self.drop_slot().await?;
            }
            return self.remove_directory().await;
        }
        match self.drop_slot().await {
            Err(error) if forget_slot => {
                tracing::warn!(timeline = %self.id(), error = error.in_words(), "leaving the slot behind, as asked");
            }
            outcome => outcome?,
        }
        self.shared
            .store
            .delete_below(&StorePath::tenant(self.id().tenant))
            .await?;
        self.remove_directory().await
    }

    /// A slot that is gone already is dropped already. Only a slot of a timeline that got as far
    /// as making one is ours to drop.
    async fn drop_slot(&self) -> Result<(), IngestError> {
        let is_branch = self.assignment.writer.is_some();
        if !is_branch && !owns_slot(self).await? {
            return Ok(());
        }
        let conninfo = &self.assignment.source;
        let mut connection = match self.manifests().newest().await? {
            None => connect(conninfo).await?,
            Some(newest) => {
                let mut source = newest.state.source;
                // It may not have begun yet.
                if let Some(writer) = self.assignment.writer
                    && writer.system_identifier == source.system_identifier
                {
                    source.pg_timeline = source.pg_timeline.max(writer.pg_timeline);
                }
                let (connection, identity) =
                    connect_to(conninfo, "palimpsest", &source, PATIENCE).await?;
                if identity.timeline < source.pg_timeline {
                    // Who was left behind by a promotion: the slot is at another server.
                    let (found, expected) = (identity.timeline, source.pg_timeline);
                    return Err(IngestError::Switched { found, expected });
                }
                connection
            }
        };
        let mut attempts = 0;
        loop {
            match connection.drop_slot(&self.slot).await {
                // The source notices only after a moment that our own connection has gone.
                Err(error) if error.kind() == ErrorKind::Conflict && attempts < SLOT_ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(SLOT_PAUSE).await;
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => break,
            }
        }
        connection.close().await;
        Ok(())
    }

    /// Removes everything local of this timeline.
    pub(super) async fn remove_directory(&self) -> Result<(), IngestError> {
        let (disk, path) = (Arc::clone(&self.shared.disk), self.directory());
        let removed = path.clone();
        let removing = self.spawn_blocking(move || disk.remove_dir_all(&removed));
        let removed = removing
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        removed.map_err(|source| IngestError::WalFile { path, source })
    }
}
