use std::time::Duration;

use palimpsest_runtime::{CancellationToken, DropGuard, TaskScope};
use palimpsest_types::{ErrorKind, LeaseId, Lsn};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{Lease, LeaseClient};
use crate::{TimelineRef, status::RemoteError};

/// A lease that is extended as long as this is kept, and ends soon after it is dropped.
#[derive(Debug)]
pub struct HeldLease {
    lost: CancellationToken,
    _end: DropGuard,
}

/// Extends one lease until it is to end.
struct Keeper {
    client: LeaseClient,
    timeline: TimelineRef,
    id: LeaseId,
    lsn: Lsn,
    /// Whoever holds it wants it no more.
    unwanted: CancellationToken,
    /// It can't be extended.
    lost: CancellationToken,
}

/// A process that dies keeps something for so long.
const LENGTH: Duration = Duration::from_secs(5 * 60);
/// There are several tries before it is over.
const EXTENDED: Duration = Duration::from_secs(60);
/// How often it is tried to end one; then it ends by itself.
const ENDINGS: u32 = 3;
/// A process that ends waits for that no longer.
const LAST_ENDING: Duration = Duration::from_secs(2);

impl HeldLease {
    /// Takes one for what is to be read at an LSN. It ends also if this future is dropped.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn take(
        client: &LeaseClient,
        timeline: TimelineRef,
        lsn: Lsn,
        scope: &TaskScope,
    ) -> Result<Self, RemoteError> {
        let unwanted = CancellationToken::new();
        let lost = CancellationToken::new();
        let held = Self {
            lost: lost.clone(),
            _end: unwanted.clone().drop_guard(),
        };
        let keeper = Keeper {
            client: client.clone(),
            timeline,
            id: LeaseId::from_bytes(rand::random()),
            lsn,
            unwanted,
            lost,
        };
        let (told, taken) = oneshot::channel();
        let ending = scope.token().clone();
        scope.spawn("lease", async move { keeper.keep(told, &ending).await });
        match taken.await {
            Ok(outcome) => outcome.map(|_| held),
            Err(_) => Err(RemoteError::new(ErrorKind::NotReady, "this process ends")),
        }
    }

    /// Waits until what it keeps may go nevertheless: it could not be extended in time. As a rule for ever.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Keeper {
    async fn keep(
        mut self,
        told: oneshot::Sender<Result<Lease, RemoteError>>,
        ending: &CancellationToken,
    ) {
        // To its end, whatever becomes of who waits: only then is it known what there is to end.
        let taken = self.extend().await;
        let is_there = taken.as_ref().map_or_else(may_be_done, |_| true);
        let goes_on = taken.is_ok();
        let _ = told.send(taken);
        if goes_on {
            self.extend_on(ending).await;
        }
        if is_there {
            self.end(ending).await;
        }
    }

    async fn extend_on(&mut self, ending: &CancellationToken) {
        let mut extended = Instant::now();
        loop {
            // Cancel-safe: nothing is under way.
            tokio::select! {
                () = self.unwanted.cancelled() => return,
                () = ending.cancelled() => return,
                () = sleep(EXTENDED) => {}
            }
            let asked = Instant::now();
            match self.extend().await {
                Ok(_) => extended = asked,
                Err(error) => {
                    let (timeline, lease, lsn) = (self.timeline, self.id, self.lsn);
                    tracing::warn!(%timeline, %lease, %lsn, error = &error as &dyn std::error::Error, "can't extend a lease");
                    if !may_be_done(&error) || extended.elapsed() + EXTENDED > LENGTH {
                        self.lost.cancel();
                        return;
                    }
                }
            }
        }
    }

    async fn extend(&mut self) -> Result<Lease, RemoteError> {
        let taken = self
            .client
            .take(self.timeline, self.id, Some(self.lsn), Some(LENGTH));
        let lease = taken.await?;
        // There it is, whatever becomes of the branch that was read.
        (self.timeline, self.lsn) = (lease.timeline, lease.lsn);
        Ok(lease)
    }

    async fn end(&self, ending: &CancellationToken) {
        for _ in 0..ENDINGS {
            let dropped = self.client.drop_lease(self.timeline, self.id);
            let dropped = match ending.is_cancelled() {
                true => timeout(LAST_ENDING, dropped).await,
                false => Ok(dropped.await),
            };
            match dropped {
                Ok(Ok(_)) => return,
                Ok(Err(error)) if !ending.is_cancelled() && may_be_done(&error) => {
                    sleep(Duration::from_secs(1)).await;
                }
                Ok(Err(_)) | Err(_) => break,
            }
        }
        tracing::info!(timeline = %self.timeline, lease = %self.id, "a lease is left to end by itself");
    }
}

/// Whether what was answered with an error may have happened, or happen at another time.
fn may_be_done(error: &RemoteError) -> bool {
    matches!(error.kind, ErrorKind::NotReady | ErrorKind::Throttled)
}
