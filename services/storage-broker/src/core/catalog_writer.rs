//! The task that changes the catalog: one change at a time, none forgotten half way.

use palimpsest_api::TimelineRef;
use palimpsest_runtime::CancellationToken;
use palimpsest_types::{ErrorKind, Fault, Lsn, Reason};
use tokio::sync::{mpsc, oneshot};

use super::{
    broker::Event,
    catalog::{Catalog, Change},
    catalog_store::{CatalogStore, CatalogStoreError},
};

/// A change that someone asked for.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) change: Change,
    /// Who waits for the outcome; nobody for changes of our own.
    pub(super) answer: Option<oneshot::Sender<Result<TimelineRef, CatalogStoreError>>>,
}

/// The catalog was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It was refused, or the store failed.
    #[error(transparent)]
    Catalog(#[from] CatalogStoreError),
    /// Somebody works on it.
    #[error(
        "a PostgreSQL is running on branch {branch} ({source_of}); `pal stop {branch}` ends it"
    )]
    Running {
        /// The branch.
        branch: String,
        /// How that is reached, without its password.
        source_of: String,
    },
    /// What was written there before would not be history any more.
    #[error(
        "the branch has come to {end}; a PostgreSQL that goes on with it can't begin at {begin}"
    )]
    BeforeEnd {
        /// Where the other's WAL begins.
        begin: Lsn,
        /// Where the branch ends.
        end: Lsn,
    },
    /// The broker ends.
    #[error("the storage-broker is shutting down; try again")]
    Stopped,
}

impl ChangeError {
    /// Whether the catalog does not allow the change, so that it was not made.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Catalog(CatalogStoreError::Refused(_)))
    }

    /// What the caller may do and, where that is known, what is so.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Catalog(error) => error.fault(),
            Self::Running { .. } => Fault::new(self.kind(), Reason::InUse),
            Self::BeforeEnd { .. } => Fault::new(self.kind(), Reason::WrongEnd),
            Self::Stopped => self.kind().into(),
        }
    }

    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Catalog(error) => error.kind(),
            Self::Running { .. } | Self::BeforeEnd { .. } => ErrorKind::Conflict,
            Self::Stopped => ErrorKind::NotReady,
        }
    }
}

/// Makes changes until told to stop. The broker has seen a change before whoever asked for it is
/// answered.
pub(super) async fn write_catalog(
    store: CatalogStore,
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    token: CancellationToken,
) {
    // Only waiting for a command is cut short; a change that has begun is finished.
    while let Some(Some(Command { change, answer })) =
        token.run_until_cancelled(commands.recv()).await
    {
        let outcome = match store.change(&change).await {
            Ok((catalog, timeline)) => {
                announce(&events, catalog.state).await;
                Ok(timeline)
            }
            Err(error) => Err(error),
        };
        match (answer, outcome) {
            (Some(answer), outcome) => {
                // A caller that has gone away learns of it from the picture.
                let _ = answer.send(outcome);
            }
            (None, Ok(timeline)) => tracing::info!(%timeline, "a deleted timeline is forgotten"),
            (None, Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the catalog could not be changed; trying again");
            }
        }
    }
}

async fn announce(events: &mpsc::Sender<Event>, catalog: Catalog) {
    let (applied, seen) = oneshot::channel();
    if events
        .send(Event::Catalog { catalog, applied })
        .await
        .is_ok()
    {
        // Dropped unanswered only when the broker has stopped.
        let _ = seen.await;
    }
}
