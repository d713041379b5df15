//! The long-lived stream over which pages are asked for, and its successors.

#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use palimpsest_proto::page::v1 as wire;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use wire::page_service_client::PageServiceClient;

use super::{Pages, PagesRequest, pages_from_wire, pages_request_to_wire};
use crate::{channel::Channel, status::RemoteError};

/// The stream that is open now. A call that finds it ended opens the next one.
#[derive(Debug)]
pub(super) struct PageStreams {
    client: PageServiceClient<Channel>,
    current: Mutex<Arc<PageStream>>,
    /// Attempts to open a stream that have begun.
    attempts: AtomicU64,
    /// Held during an attempt; what the last one failed with.
    reopening: tokio::sync::Mutex<Option<RemoteError>>,
}

/// One stream, from its opening to its end.
#[derive(Debug)]
pub(super) struct PageStream {
    requests: mpsc::Sender<wire::GetPagesRequest>,
    waiting: Waiting,
    next_id: AtomicU64,
    reader: JoinHandle<()>,
}

type Answer = Result<Pages, RemoteError>;
/// Where answers go, by request.
type Calls = HashMap<u64, oneshot::Sender<Answer>>;

/// Calls that wait for their answers. `None` once the stream has ended: what would be added then,
/// nobody would ever answer.
#[derive(Debug, Clone)]
struct Waiting(Arc<Mutex<Option<Calls>>>);

/// A call that waits; it does no longer when this is dropped.
#[derive(Debug)]
struct Entry<'a> {
    waiting: &'a Waiting,
    id: u64,
}

/// Requests on their way, at most; more wait.
const REQUESTS: usize = 64;
/// A page-serve that does not open a stream within this is as good as down.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

impl PageStreams {
    pub(super) async fn open(client: PageServiceClient<Channel>) -> Result<Self, RemoteError> {
        let stream = PageStream::open(client.clone()).await?;
        Ok(Self {
            client,
            current: Mutex::new(Arc::new(stream)),
            attempts: AtomicU64::new(0),
            reopening: tokio::sync::Mutex::default(),
        })
    }

    /// A stream that has not ended, opened if need be. Calls that come during an attempt share the
    /// next one, so that none of them waits for more than two.
    pub(super) async fn stream(&self) -> Result<Arc<PageStream>, RemoteError> {
        let known = self.attempts.load(Ordering::Acquire);
        if let Some(stream) = self.alive() {
            return Ok(stream);
        }
        // Held while the stream is opened: one attempt serves all calls that wait here.
        let mut failure = self.reopening.lock().await;
        if let Some(stream) = self.alive() {
            return Ok(stream);
        }
        if self.attempts.load(Ordering::Acquire) > known
            && let Some(failure) = &*failure
        {
            return Err(failure.clone());
        }
        self.attempts.fetch_add(1, Ordering::AcqRel);
        // An attempt whose caller goes away has no outcome.
        *failure = None;
        match PageStream::open(self.client.clone()).await {
            Ok(stream) => {
                let stream = Arc::new(stream);
                *unpoisoned(&self.current) = Arc::clone(&stream);
                Ok(stream)
            }
            Err(error) => {
                *failure = Some(error.clone());
                Err(error)
            }
        }
    }

    fn alive(&self) -> Option<Arc<PageStream>> {
        let current = unpoisoned(&self.current);
        current.is_open().then(|| Arc::clone(&current))
    }
}

impl PageStream {
    async fn open(mut client: PageServiceClient<Channel>) -> Result<Self, RemoteError> {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let opened = timeout(OPEN_LIMIT, client.get_pages(ReceiverStream::new(outgoing))).await;
        let answers = opened.map_err(|_| unopened())??.into_inner();
        let waiting = Waiting::new();
        let reader = tokio::spawn(read_answers(answers, waiting.clone()));
        Ok(Self {
            requests,
            waiting,
            next_id: AtomicU64::new(1),
            reader,
        })
    }

    fn is_open(&self) -> bool {
        !self.requests.is_closed() && self.waiting.lock().is_some()
    }

    pub(super) async fn pages(&self, request: PagesRequest) -> Answer {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, mut answered) = oneshot::channel();
        let _entry = self.waiting.enter(id, answer).ok_or_else(ended)?;
        // Cancel-safe: of the two, only an answer is taken out, and then the call is over.
        tokio::select! {
            sent = self.requests.send(pages_request_to_wire(id, request)) => {
                sent.map_err(|_| ended())?;
            }
            // The stream ended while the request waited to be sent.
            answer = &mut answered => return answer.unwrap_or_else(|_| Err(ended())),
        }
        answered.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for PageStream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Waiting {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(HashMap::new()))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Calls>> {
        unpoisoned(&self.0)
    }

    /// Adds a call; `None` if the stream has ended.
    fn enter(&self, id: u64, answer: oneshot::Sender<Answer>) -> Option<Entry<'_>> {
        self.lock().as_mut()?.insert(id, answer);
        Some(Entry { waiting: self, id })
    }

    fn leave(&self, id: u64) -> Option<oneshot::Sender<Answer>> {
        self.lock().as_mut()?.remove(&id)
    }

    /// Gives everybody the same answer, and lets nobody in any more.
    fn end(&self, error: &RemoteError) {
        let waiting = self.lock().take().unwrap_or_default();
        for answer in waiting.into_values() {
            // A caller that has gone away does not want its answer.
            let _ = answer.send(Err(error.clone()));
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.waiting.leave(self.id);
    }
}

async fn read_answers(mut stream: Streaming<wire::GetPagesResponse>, waiting: Waiting) {
    let error = loop {
        match stream.message().await {
            Ok(Some(message)) => {
                if let Some(answer) = waiting.leave(message.request_id) {
                    // A caller that has gone away does not want its answer.
                    let _ = answer.send(pages_from_wire(message));
                }
            }
            Ok(None) => break ended(),
            Err(status) => break status.into(),
        }
    };
    waiting.end(&error);
}

fn ended() -> RemoteError {
    RemoteError::unreachable("the stream to page-serve ended; ask again")
}

fn unopened() -> RemoteError {
    let limit = OPEN_LIMIT;
    RemoteError::unreachable(format!(
        "page-serve did not open a stream within {limit:?}; ask again"
    ))
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
