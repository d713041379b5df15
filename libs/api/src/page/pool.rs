//! Pages from any of the page-serves that are alive.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use palimpsest_types::ErrorKind;
use tokio::{sync::watch, time::timeout};

use super::{PageClient, Pages, PagesRequest, limits::limited};
use crate::{
    broker::{ClusterView, Role},
    channel::connect_watched,
    status::RemoteError,
};

/// All page-serves of a cluster, of which the one that answered last is asked first. A request that
/// it can't answer goes to the next: each of them can answer all.
#[derive(Debug)]
pub struct PagePool {
    cluster: watch::Receiver<ClusterView>,
    known: Mutex<Known>,
    /// How often a page-serve is asked whether it is there; and how long it may take to say so.
    ping: Duration,
}

#[derive(Debug, Default)]
struct Known {
    clients: HashMap<String, Arc<PageClient>>,
    /// The one that answered last.
    favourite: Option<String>,
}

/// How often all of them are asked before a request fails.
const ROUNDS: u32 = 3;
/// A page-serve that stands still is noticed within twice this, whatever it was asked for.
const PING: Duration = Duration::from_secs(5);
/// Between two rounds: one that died may be started again.
const PAUSE: Duration = Duration::from_secs(1);

impl PagePool {
    /// The page-serves that `cluster` shows, now and later.
    pub fn new(cluster: watch::Receiver<ClusterView>) -> Self {
        Self {
            cluster,
            known: Mutex::default(),
            ping: PING,
        }
    }

    /// Pages at an LSN. Each page-serve that is asked waits for it as long as the request says, or
    /// [`LSN_PATIENCE`](super::LSN_PATIENCE), however it is set.
    ///
    /// # Errors
    /// What a page-serve says; not ready if none of them answers.
    pub async fn pages(&self, request: PagesRequest) -> Result<Pages, RemoteError> {
        let mut failure = none_alive();
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            for address in self.addresses() {
                match self.ask(&address, request.clone()).await {
                    Err(error) if is_local(&error) => failure = error,
                    answer => {
                        self.lock().favourite = Some(address);
                        return answer;
                    }
                }
            }
        }
        Err(failure)
    }

    async fn ask(&self, address: &str, request: PagesRequest) -> Result<Pages, RemoteError> {
        let (request, deadline) = limited(request);
        let asked = async { self.client(address).await?.pages(request).await };
        // Cancel-safe: nobody waits for an answer that comes after this.
        let answer = timeout(deadline, asked).await;
        answer.unwrap_or_else(|_| Err(stuck(address, deadline)))
    }

    /// Those that are alive, the favourite first. Who left is forgotten.
    fn addresses(&self) -> Vec<String> {
        let mut alive = self.cluster.borrow().addresses(Role::PageServe);
        let mut known = self.lock();
        known.clients.retain(|address, _| alive.contains(address));
        // Stable, so that all who have none yet begin with the same.
        alive.sort_by_key(|address| known.favourite.as_ref() != Some(address));
        alive
    }

    async fn client(&self, address: &str) -> Result<Arc<PageClient>, RemoteError> {
        if let Some(client) = self.lock().clients.get(address) {
            return Ok(Arc::clone(client));
        }
        // Two at once may both connect; the later stays.
        let client = Arc::new(PageClient::connect(connect_watched(address, self.ping)?).await?);
        let mut known = self.lock();
        known
            .clients
            .insert(address.to_owned(), Arc::clone(&client));
        Ok(client)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether another page-serve may do better: this one went away, is behind, or has too much to do.
fn is_local(error: &RemoteError) -> bool {
    matches!(error.kind, ErrorKind::NotReady | ErrorKind::Throttled)
}

fn stuck(address: &str, deadline: Duration) -> RemoteError {
    RemoteError::unreachable(format!(
        "the page-serve at {address} did not answer within {deadline:?}"
    ))
}

fn none_alive() -> RemoteError {
    RemoteError::unreachable("no page-serve is alive; start one and try again")
}
