use std::{net::SocketAddr, pin::Pin};

use palimpsest_types::{BlockNumber, ErrorKind, Lsn, TenantId, TimelineId};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};
use wire::page_service_server::{PageService, PageServiceServer};

use super::*;
use crate::{channel::connect_lazily, convert::TimelineRef, page::ReadAt};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers each request with its block number as LSN, and [`SILENT`] never. When told to, it ends
/// its streams of answers in good order and keeps those of requests.
struct FakePageServe {
    streams: Arc<AtomicU64>,
    end: watch::Receiver<u64>,
    kept: Mutex<Vec<mpsc::Sender<()>>>,
}

const SILENT: u32 = 1000;
const LIMIT: Duration = Duration::from_secs(20);

#[tonic::async_trait]
impl PageService for FakePageServe {
    type GetPagesStream = Answers<wire::GetPagesResponse>;
    type ListRelationsStream = Answers<wire::ListRelationsResponse>;
    type GetBaseBackupStream = Answers<wire::GetBaseBackupResponse>;

    async fn get_pages(
        &self,
        request: Request<Streaming<wire::GetPagesRequest>>,
    ) -> Result<Response<Self::GetPagesStream>, Status> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let mut requests = request.into_inner();
        let mut end = self.end.clone();
        end.mark_unchanged();
        let (keep, mut kept) = mpsc::channel(1);
        unpoisoned(&self.kept).push(keep);
        let (answers, outgoing) = mpsc::channel(REQUESTS);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        if request.block_numbers == [SILENT] {
                            continue;
                        }
                        let answer = wire::GetPagesResponse {
                            request_id: request.request_id,
                            lsn: request.block_numbers[0].into(),
                            ..wire::GetPagesResponse::default()
                        };
                        let _ = answers.send(Ok(answer)).await;
                    }
                    _ = end.changed() => break,
                }
            }
            drop(answers);
            // Holding it keeps the requests' half of the stream open.
            let _requests = requests;
            kept.recv().await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn get_relation_size(
        &self,
        _: Request<wire::GetRelationSizeRequest>,
    ) -> Result<Response<wire::GetRelationSizeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_database_size(
        &self,
        _: Request<wire::GetDatabaseSizeRequest>,
    ) -> Result<Response<wire::GetDatabaseSizeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_relations(
        &self,
        _: Request<wire::ListRelationsRequest>,
    ) -> Result<Response<Self::ListRelationsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_base_backup(
        &self,
        _: Request<wire::GetBaseBackupRequest>,
    ) -> Result<Response<Self::GetBaseBackupStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_slru_segment(
        &self,
        _: Request<wire::GetSlruSegmentRequest>,
    ) -> Result<Response<wire::GetSlruSegmentResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_relation_map(
        &self,
        _: Request<wire::GetRelationMapRequest>,
    ) -> Result<Response<wire::GetRelationMapResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_readable(
        &self,
        _: Request<wire::GetReadableRequest>,
    ) -> Result<Response<wire::GetReadableResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_lsn_at_time(
        &self,
        _: Request<wire::GetLsnAtTimeRequest>,
    ) -> Result<Response<wire::GetLsnAtTimeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_time_at_lsn(
        &self,
        _: Request<wire::GetTimeAtLsnRequest>,
    ) -> Result<Response<wire::GetTimeAtLsnResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

pub(in crate::page) struct Server {
    pub(in crate::page) address: SocketAddr,
    streams: Arc<AtomicU64>,
    end: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Server {
    pub(in crate::page) async fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ends) = watch::channel(0);
        let streams = Arc::new(AtomicU64::new(0));
        let service = PageServiceServer::new(FakePageServe {
            streams: Arc::clone(&streams),
            end: ends,
            kept: Mutex::default(),
        });
        let serve = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Self {
            address,
            streams,
            end,
            task,
        }
    }

    async fn client(&self) -> PageStreams {
        let channel = connect_lazily(&self.address.to_string()).unwrap();
        PageStreams::open(PageServiceClient::new(channel))
            .await
            .unwrap()
    }

    fn end_streams(&self) {
        self.end.send_modify(|count| *count += 1);
    }
}

pub(in crate::page) fn request(block: u32) -> PagesRequest {
    PagesRequest {
        timeline: TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        },
        at: ReadAt::default(),
        rel: "1663/5/16384".parse().unwrap(),
        blocks: vec![BlockNumber::new(block)],
    }
}

async fn ask(client: &PageStreams, block: u32) -> Answer {
    let answer = async { client.stream().await?.pages(request(block)).await };
    timeout(LIMIT, answer).await.expect("no call hangs")
}

async fn until_ended(stream: &PageStream) {
    let ended = async {
        while stream.waiting.lock().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, ended).await.expect("the end is noticed");
}

#[tokio::test]
async fn a_call_on_a_stream_that_ended_in_good_order_fails_and_the_next_opens_another() {
    let server = Server::start("127.0.0.1:0").await;
    let client = server.client().await;
    assert_eq!(ask(&client, 7).await.unwrap().lsn, Lsn::new(7));
    let first = client.stream().await.unwrap();
    server.end_streams();
    until_ended(&first).await;
    assert!(!first.requests.is_closed(), "requests could still be sent");

    let late = timeout(LIMIT, first.pages(request(7))).await;
    assert_eq!(late.unwrap().unwrap_err(), ended());
    let client = Arc::new(client);
    let mut calls = JoinSet::new();
    for block in 0..20 {
        let client = Arc::clone(&client);
        calls.spawn(async move { (block, ask(&client, block).await.unwrap().lsn) });
    }
    for (block, lsn) in calls.join_all().await {
        assert_eq!(lsn, Lsn::new(block.into()));
    }
    assert_eq!(server.streams.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn calls_under_way_fail_when_the_stream_ends() {
    let server = Server::start("127.0.0.1:0").await;
    let client = server.client().await;
    let end = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.end_streams();
    };
    let (answer, ()) = tokio::join!(ask(&client, SILENT), end);
    assert_eq!(answer.unwrap_err(), ended());
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_nothing_behind() {
    let server = Server::start("127.0.0.1:0").await;
    let client = server.client().await;
    let stream = client.stream().await.unwrap();
    let waiting = || stream.waiting.lock().as_ref().unwrap().len();
    {
        let mut call = Box::pin(stream.pages(request(SILENT)));
        assert!(
            timeout(Duration::from_millis(20), &mut call).await.is_err(),
            "answered by nobody"
        );
        assert_eq!(waiting(), 1);
    }
    assert_eq!(waiting(), 0);
    assert_eq!(ask(&client, 3).await.unwrap().lsn, Lsn::new(3));
    assert_eq!(waiting(), 0);
}

#[tokio::test]
async fn a_client_outlives_a_restart_of_its_page_serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let first = runtime.spawn(Server::start("127.0.0.1:0")).await.unwrap();
    let client = first.client().await;
    ask(&client, 1).await.unwrap();
    let stream = client.stream().await.unwrap();
    // With its runtime go its connections, as with a process that is killed.
    runtime.shutdown_background();
    until_ended(&stream).await;
    let error = ask(&client, 2).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);

    let second = Server::start(&first.address.to_string()).await;
    assert_eq!(ask(&client, 3).await.unwrap().lsn, Lsn::new(3));
    second.task.abort();
    assert!(first.task.is_finished());
}
