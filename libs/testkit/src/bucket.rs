//! A bucket behind the protocol of Amazon S3, on a free port of this machine.
//!
//! It knows what an object store needs: put (also only if there is none), get and parts of it, head,
//! list in portions, delete. It checks every signature and every digest, from the provider's
//! description and not from any client's code. And it can have whims, as real ones have.

mod objects;
mod signature;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinHandle,
};

use self::{
    objects::{Objects, delete, listing, query},
    signature::{Signed, is_signed},
};

/// A bucket and the server that has it. Both end when it is dropped.
#[derive(Debug)]
pub struct BucketServer {
    bucket: &'static str,
    address: SocketAddr,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

/// What happens to requests instead of what they ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whim {
    /// Nothing.
    #[default]
    None,
    /// They are told to slow down.
    SlowDown,
    /// They are done, and the connection breaks before the answer.
    LoseAnswer,
    /// They are answered a second later.
    Slow,
    /// They are never answered.
    Silent,
    /// They are done as if they had no condition.
    Unconditional,
    /// They are refused if they have a condition.
    NoConditions,
    /// They are told that a condition could not be looked at, because of others.
    Conflict,
}

#[derive(Debug, Default)]
struct State {
    objects: Mutex<Objects>,
    whim: Mutex<(Whim, u64)>,
    requests: AtomicU64,
}

/// Who may do everything.
const KEY_ID: &str = "testkit";
const SECRET: &str = "testkit-secret";
const REGION: &str = "testkit-1";
const SLOW: Duration = Duration::from_secs(1);
/// A time is part of many answers, and nobody looks at it.
const MODIFIED: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

type Answer = Response<Full<Bytes>>;

/// The connection breaks.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer is lost")
    }
}

impl std::error::Error for Broken {}

impl BucketServer {
    /// Starts to serve an empty bucket.
    ///
    /// # Errors
    /// If it can't listen.
    pub async fn start(bucket: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let serving = tokio::spawn(serve(listener, bucket, Arc::clone(&state)));
        Ok(Self {
            bucket,
            address,
            state,
            serving,
        })
    }

    /// The URL of what is below a prefix in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", self.bucket)
    }

    /// The variables that a program needs in its environment to use the bucket.
    pub fn variables(&self) -> [(&'static str, String); 6] {
        [
            ("NO_PROXY", self.address.ip().to_string()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
        ]
    }

    /// From now on one of so many requests meets this whim.
    pub async fn set(&self, whim: Whim, one_of: u64) {
        *self.state.whim.lock().await = (whim, one_of.max(1));
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// The names of all objects.
    pub async fn names(&self) -> Vec<String> {
        self.state.objects.lock().await.keys().cloned().collect()
    }
}

impl Drop for BucketServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, bucket: &'static str, state: Arc<State>) {
    // All connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_one(stream, bucket, Arc::clone(&state)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_one(stream: TcpStream, bucket: &'static str, state: Arc<State>) {
    let service = service_fn(|request| respond(request, bucket, &state));
    // A client that goes away is no failure of ours.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(
    request: Request<Incoming>,
    bucket: &str,
    state: &State,
) -> Result<Answer, Broken> {
    let whim = state.next_whim().await;
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let conditional = head.headers.contains_key(header::IF_NONE_MATCH);
    match whim {
        Whim::SlowDown => return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Whim::NoConditions if conditional => {
            return Ok(refusal(StatusCode::NOT_IMPLEMENTED, "NotImplemented"));
        }
        Whim::Conflict if conditional => {
            return Ok(refusal(StatusCode::CONFLICT, "ConditionalRequestConflict"));
        }
        Whim::Slow => tokio::time::sleep(SLOW).await,
        Whim::Silent => std::future::pending::<()>().await,
        _ => {}
    }
    let request = Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        range: text_of(&head.headers, header::RANGE),
        only_new: conditional && whim != Whim::Unconditional,
        body,
    };
    let signed = Signed {
        method: request.method.as_str(),
        path: &request.path,
        query: &request.query,
        headers: &head.headers,
        body: &request.body,
    };
    if !is_signed(&signed, KEY_ID, SECRET, REGION) {
        return Ok(refusal(StatusCode::FORBIDDEN, "SignatureDoesNotMatch"));
    }
    let answer = request.answer(bucket, &mut *state.objects.lock().await);
    match whim {
        Whim::LoseAnswer => Err(Broken),
        _ => Ok(answer),
    }
}

impl State {
    /// What happens to the next request.
    async fn next_whim(&self) -> Whim {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let (whim, one_of) = *self.whim.lock().await;
        match one_of > 0 && number.is_multiple_of(one_of) {
            true => whim,
            false => Whim::None,
        }
    }
}

/// A request by somebody who may.
struct Asked {
    method: Method,
    path: String,
    query: String,
    range: Option<String>,
    /// Not if there is such an object.
    only_new: bool,
    body: Bytes,
}

impl Asked {
    fn answer(&self, bucket: &str, objects: &mut Objects) -> Answer {
        let path = self.path.trim_start_matches('/');
        let (asked, key) = path.split_once('/').unwrap_or((path, ""));
        if asked != bucket {
            return refusal(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        match (&self.method, key) {
            (&Method::GET, "") => listing(&query(&self.query), objects).map_or_else(
                || refusal(StatusCode::BAD_REQUEST, "InvalidArgument"),
                |xml| answer(StatusCode::OK, xml),
            ),
            (&Method::POST, "") if self.query == "delete" || self.query == "delete=" => {
                answer(StatusCode::OK, delete(&self.body, objects))
            }
            (&Method::PUT, key) if self.only_new && objects.contains_key(key) => {
                refusal(StatusCode::PRECONDITION_FAILED, "PreconditionFailed")
            }
            (&Method::PUT, key) => {
                objects.insert(key.to_owned(), self.body.clone());
                answer(StatusCode::OK, "")
            }
            (&Method::GET | &Method::HEAD, key) => match objects.get(key) {
                Some(object) => self.read(object),
                None => refusal(StatusCode::NOT_FOUND, "NoSuchKey"),
            },
            (&Method::DELETE, key) => {
                objects.remove(key);
                answer(StatusCode::NO_CONTENT, "")
            }
            _ => refusal(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    /// An object, or the part of it that is asked for.
    fn read(&self, object: &Bytes) -> Answer {
        let Some(range) = &self.range else {
            return answer(StatusCode::OK, object.clone());
        };
        let part = objects::range(range, object.len());
        let Some(part) = part else {
            return refusal(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
        };
        let said = format!("bytes {}-{}/{}", part.start, part.end - 1, object.len());
        let mut answer = answer(StatusCode::PARTIAL_CONTENT, object.slice(part));
        if let Ok(said) = said.parse() {
            answer.headers_mut().insert(header::CONTENT_RANGE, said);
        }
        answer
    }
}

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::ETAG, header::HeaderValue::from_static("\"1\""));
    let modified = header::HeaderValue::from_static(MODIFIED);
    headers.insert(header::LAST_MODIFIED, modified);
    answer
}

fn refusal(status: StatusCode, code: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>said by a test.</Message></Error>"
    );
    answer(status, body)
}

fn text_of(headers: &header::HeaderMap, name: header::HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
