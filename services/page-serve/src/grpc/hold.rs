//! Answers to calls keep their room until they are sent.
//!
//! A handler returns before its answer is sent, so the room goes with the response ([`holding`]), and
//! from there into its body ([`Holding`]).

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{TryFutureExt as _, future::MapOk};
use http_body::Frame;
use palimpsest_runtime::TaskScope;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tonic::{
    Response, Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

use super::stream::STUCK;
use crate::core::Room;

/// A service whose answers hold the room that their handlers took for them.
#[derive(Debug, Clone)]
pub(crate) struct Holding<S> {
    service: S,
    scope: TaskScope,
}

/// The body of an answer, with its room. Both are given up if nobody takes any of it for too long.
struct HeldBody {
    open: Arc<Mutex<Option<Open>>>,
    /// Ends the watch.
    _watched: oneshot::Sender<()>,
}

struct Open {
    body: Body,
    /// What of a frame is not sent.
    rest: Bytes,
    /// When some of it was taken last.
    taken: Instant,
    /// The client has taken all that there is, and waits for us.
    is_awaited: bool,
    _room: Arc<Room>,
}

/// A response for which `room` was taken.
pub(super) fn holding<T>(room: Room, message: T) -> Response<T> {
    let mut response = Response::new(message);
    response.extensions_mut().insert(Arc::new(room));
    response
}

/// Bytes that are handed to the connection at once. It asks for more when it has sent some of them, so
/// that no more than this is held there of an answer that its client does not read.
const PIECE: usize = 16 << 10;

impl<S> Holding<S> {
    pub(crate) fn new(service: S, scope: TaskScope) -> Self {
        Self { service, scope }
    }
}

impl<S: NamedService> NamedService for Holding<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = http::Response<Body>;
type Hold = Box<dyn FnOnce(Answer) -> Answer + Send>;

impl<S> Service<http::Request<Body>> for Holding<S>
where
    S: Service<http::Request<Body>, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = MapOk<S::Future, Hold>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let scope = self.scope.clone();
        let hold: Hold = Box::new(move |answer| hold(answer, &scope));
        self.service.call(request).map_ok(hold)
    }
}

fn hold(mut answer: Answer, scope: &TaskScope) -> Answer {
    match answer.extensions_mut().remove::<Arc<Room>>() {
        Some(room) => answer.map(|body| Body::new(HeldBody::new(body, room, scope))),
        None => answer,
    }
}

impl HeldBody {
    fn new(body: Body, room: Arc<Room>, scope: &TaskScope) -> Self {
        let open = Arc::new(Mutex::new(Some(Open {
            body,
            rest: Bytes::new(),
            taken: Instant::now(),
            is_awaited: false,
            _room: room,
        })));
        let (watched, ended) = oneshot::channel();
        let watching = watch(Arc::downgrade(&open));
        scope.spawn("unread answer", async move {
            // Cancel-safe: both only look.
            tokio::select! {
                () = watching => {}
                _ = ended => {}
            }
        });
        Self {
            open,
            _watched: watched,
        }
    }
}

/// Gives up what nobody takes.
async fn watch(open: Weak<Mutex<Option<Open>>>) {
    loop {
        let Some(taken) = taken(&open) else { return };
        let until = taken + STUCK;
        if Instant::now() >= until {
            tracing::warn!("a client takes no answer to a call; it is given up");
            let given_up = open.upgrade().and_then(|open| lock(&open).take());
            // After the lock is released.
            drop(given_up);
            return;
        }
        sleep_until(until).await;
    }
}

fn taken(open: &Weak<Mutex<Option<Open>>>) -> Option<Instant> {
    let open = open.upgrade()?;
    lock(&open).as_ref().map(|open| match open.is_awaited {
        true => Instant::now(),
        false => open.taken,
    })
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut locked = lock(&self.open);
        let Some(open) = &mut *locked else {
            let message = "the answer was not taken for too long; ask again";
            return Poll::Ready(Some(Err(Status::resource_exhausted(message))));
        };
        open.taken = Instant::now();
        if open.rest.is_empty() {
            let frame = Pin::new(&mut open.body).poll_frame(cx);
            open.is_awaited = frame.is_pending();
            let frame = match frame {
                Poll::Ready(Some(Ok(frame))) => frame,
                ended => return ended,
            };
            match frame.into_data() {
                Ok(data) => open.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(piece_of(&mut open.rest)))))
    }
}

/// Takes the first piece off. A copy: the connection would keep all of the frame otherwise.
fn piece_of(rest: &mut Bytes) -> Bytes {
    if rest.len() <= PIECE {
        return std::mem::take(rest);
    }
    Bytes::copy_from_slice(&rest.split_to(PIECE))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::stream;
    use http_body_util::BodyExt as _;
    use palimpsest_proto::redo::v1::{
        ApplyRequest, ApplyResponse,
        apply_response::Result as JobResult,
        redo_service_server::{RedoService, RedoServiceServer},
    };
    use tonic::{Request, Streaming};

    use super::*;
    use crate::core::{Admission, AnswerMemory, Call};

    const SECOND: Duration = Duration::from_secs(1);
    const LONG: usize = 40 << 10;

    /// Any generated service will do, and this one has a single call. It answers with one long message,
    /// for which it took room.
    struct Answers(Arc<Admission>);

    #[tonic::async_trait]
    impl RedoService for Answers {
        type ApplyStream = stream::Iter<std::array::IntoIter<Result<ApplyResponse, Status>, 1>>;

        async fn apply(
            &self,
            _: Request<Streaming<ApplyRequest>>,
        ) -> Result<Response<Self::ApplyStream>, Status> {
            let room = self.0.call(Call::SlruSegment).await.unwrap();
            let result = JobResult {
                page: vec![7; LONG].into(),
                ..JobResult::default()
            };
            let results = vec![result];
            Ok(holding(room, stream::iter([Ok(ApplyResponse { results })])))
        }
    }

    async fn ask(admission: &Arc<Admission>) -> Body {
        let service = RedoServiceServer::new(Answers(Arc::clone(admission)));
        let mut service = Holding::new(service, TaskScope::default());
        let request = http::Request::post("/palimpsest.redo.v1.RedoService/Apply");
        let answer = service.call(request.body(Body::empty()).unwrap()).await;
        answer.unwrap().into_body()
    }

    fn is_free(admission: &Admission) -> bool {
        admission.in_use().0.get() == 0
    }

    #[tokio::test(start_paused = true)]
    async fn p7_an_answer_keeps_its_room_until_the_last_of_it_is_taken() {
        let admission = Arc::new(Admission::new(AnswerMemory::LEAST));
        let mut body = ask(&admission).await;
        let (mut pieces, mut trailers) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            assert!(!is_free(&admission));
            match frame.unwrap().into_data() {
                Ok(data) => pieces.push(data.len()),
                Err(_) => trailers += 1,
            }
            // A slow reader is none that does not read.
            tokio::time::sleep(STUCK - SECOND).await;
        }
        let rest = pieces.pop().unwrap();
        assert_eq!((pieces, trailers), (vec![PIECE, PIECE], 1));
        assert!((LONG - 2 * PIECE..LONG - PIECE).contains(&rest), "{rest}");
        drop(body);
        assert!(is_free(&admission));
    }

    #[tokio::test(start_paused = true)]
    async fn p7_an_answer_that_is_dropped_or_not_read_gives_its_room_back() {
        let admission = Arc::new(Admission::new(AnswerMemory::LEAST));
        let body = ask(&admission).await;
        assert!(!is_free(&admission));
        drop(body);
        assert!(is_free(&admission));
        let mut body = ask(&admission).await;
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(STUCK + SECOND).await;
        assert!(is_free(&admission));
        let status = body.frame().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }
}
