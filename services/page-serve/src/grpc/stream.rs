//! The answers of one GetPages stream, each sent as it is ready.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use palimpsest_proto::page::v1::{GetPagesRequest, GetPagesResponse};
use palimpsest_runtime::{TaskScope, finish};
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

use super::page::PageHandler;
use crate::core::{Lane, Room};

/// Requests of one stream that are read and not answered, at most. Far more than are worked on at
/// once, because the others may wait for their LSN, and a page that is at hand behind them must not.
const READ_AHEAD: usize = 512;
/// A client that takes no answer for so long while there are some is cut off.
pub(super) const STUCK: Duration = Duration::from_secs(60);

/// The answers, in the order in which they become ready.
pub(crate) struct AnswerStream {
    open: Arc<Mutex<Option<Open>>>,
    lane: Arc<Lane>,
}

/// A stream that was not cut off.
struct Open {
    answers: Pin<Box<dyn Stream<Item = Answered> + Send>>,
    /// What the answer takes that was handed out last: it is sent when the next one is asked for.
    sending: Option<Option<Room>>,
}

/// An answer, and what it takes until it is sent. Errors take none.
type Answered = Result<(GetPagesResponse, Option<Room>), Status>;

impl AnswerStream {
    /// Answers `requests`; none is read once the scope's token is cancelled.
    pub(super) fn start(
        handler: PageHandler,
        lane: Lane,
        requests: Streaming<GetPagesRequest>,
        scope: &TaskScope,
    ) -> Self {
        let lane = Arc::new(lane);
        let answering = Arc::clone(&lane);
        let answer = move |message| answer(handler.clone(), Arc::clone(&answering), message);
        let token = scope.token().clone();
        let answers = requests
            .take_until(token.clone().cancelled_owned())
            .map(answer)
            .buffer_unordered(READ_AHEAD);
        let open = Arc::new(Mutex::new(Some(Open {
            answers: Box::pin(answers),
            sending: None,
        })));
        // Weak, both: what the stream takes is free when it ends, not when that is noticed.
        let watching = watch(Arc::downgrade(&open), Arc::downgrade(&lane));
        scope.spawn("stuck client", async move {
            // Cancel-safe: it only looks.
            token.run_until_cancelled(watching).await;
        });
        Self { open, lane }
    }
}

fn answer(
    handler: PageHandler,
    lane: Arc<Lane>,
    message: Result<GetPagesRequest, Status>,
) -> impl Future<Output = Answered> + Send {
    let answering = message.map(|message| {
        finish(async move {
            let answered = handler.answer(message, &lane).await;
            lane.ready(Instant::now());
            answered
        })
    });
    async move {
        let panicked = || Status::internal("the request ended in a panic");
        answering?.await.ok_or_else(panicked)
    }
}

/// Cuts a stream off whose client takes no answers: what they take others can use. Ends with it.
async fn watch(stream: Weak<Mutex<Option<Open>>>, lane: Weak<Lane>) {
    loop {
        sleep(STUCK / 6).await;
        let Some((stream, lane)) = stream.upgrade().zip(lane.upgrade()) else {
            return;
        };
        if lane.stuck_for(Instant::now()) >= STUCK {
            tracing::warn!("a client takes no answers; its stream is cut off");
            // Dropped after the lock is released.
            let open = lock(&stream).take();
            drop(open);
            return;
        }
    }
}

impl Stream for AnswerStream {
    type Item = Result<GetPagesResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut locked = lock(&self.open);
        let Some(open) = &mut *locked else {
            return Poll::Ready(Some(Err(Status::resource_exhausted(
                "no answers were taken for too long; open another stream",
            ))));
        };
        if open.sending.take().is_some() {
            self.lane.sent(Instant::now());
        }
        open.answers.poll_next_unpin(cx).map(|answered| {
            let answered = answered?;
            Some(answered.map(|(answer, room)| {
                open.sending = Some(room);
                answer
            }))
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
