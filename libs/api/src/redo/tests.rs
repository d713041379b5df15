use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use palimpsest_types::{BlockNumber, NodeId};
use tokio::net::TcpListener;
use tokio_stream::{
    StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status};
use wire::redo_service_server::{RedoService, RedoServiceServer};

use palimpsest_types::Fault;

use super::*;
use crate::{broker::Member, status::error_detail, tenant_settings::TenantSettings};

/// What a worker does with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Answers,
    SaysNothing,
    /// It is there, and that is all.
    OnlyBeats,
    LosesItsProcess,
    /// The page is whether somebody waits for it.
    TellsUrgency,
}

#[derive(Debug)]
struct FakeWorker {
    manner: Manner,
    jobs: Arc<AtomicUsize>,
}

const PAGE: &[u8] = b"a page";
const LIMIT: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_millis(300);

#[tonic::async_trait]
impl RedoService for FakeWorker {
    type ApplyStream = ReceiverStream<Result<wire::ApplyResponse, Status>>;

    async fn apply(
        &self,
        request: Request<Streaming<wire::ApplyRequest>>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        let (manner, jobs) = (self.manner, Arc::clone(&self.jobs));
        let mut requests = request.into_inner();
        let (answers, outgoing) = mpsc::channel(8);
        if manner == Manner::OnlyBeats {
            tokio::spawn(beat(answers.clone()));
        }
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                jobs.fetch_add(request.jobs.len(), Ordering::Relaxed);
                let results = request
                    .jobs
                    .iter()
                    .filter_map(|job| answer(manner, job.job_id, request.background));
                let results: Vec<_> = results.collect();
                if results.is_empty() {
                    continue;
                }
                let _ = answers.send(Ok(wire::ApplyResponse { results })).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

async fn beat(answers: mpsc::Sender<Result<wire::ApplyResponse, Status>>) {
    while answers
        .send(Ok(wire::ApplyResponse::default()))
        .await
        .is_ok()
    {
        tokio::time::sleep(SILENCE / 3).await;
    }
}

fn answer(manner: Manner, job_id: u64, background: bool) -> Option<wire::apply_response::Result> {
    let mut result = wire::apply_response::Result {
        job_id,
        ..Default::default()
    };
    match manner {
        Manner::SaysNothing | Manner::OnlyBeats => return None,
        Manner::Answers => result.page = PAGE.into(),
        Manner::TellsUrgency if background => result.page = "background".into(),
        Manner::TellsUrgency => result.page = "awaited".into(),
        Manner::LosesItsProcess => {
            let fault = Fault::new(ErrorKind::Internal, Reason::RedoDied);
            let died = std::io::Error::other("it died");
            result.error = Some(error_detail(fault, &died));
        }
    }
    Some(result)
}

/// A pool of such workers, and how many jobs each was given.
async fn pool(manners: &[Manner]) -> (RedoPool, Vec<Arc<AtomicUsize>>, watch::Sender<ClusterView>) {
    let (mut members, mut counts) = (Vec::new(), Vec::new());
    for manner in manners {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        members.push(Member {
            node: NodeId::from_bytes([u8::try_from(members.len()).unwrap(); 16]),
            role: Role::RedoWorker,
            address: listener.local_addr().unwrap().to_string(),
            version: String::new(),
            tenant_defaults: TenantSettings::default(),
        });
        let jobs = Arc::new(AtomicUsize::new(0));
        counts.push(Arc::clone(&jobs));
        let worker = FakeWorker {
            manner: *manner,
            jobs,
        };
        let server =
            tonic::transport::Server::builder().add_service(RedoServiceServer::new(worker));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    }
    let (sender, cluster) = watch::channel(ClusterView {
        members,
        ..ClusterView::default()
    });
    let pool = RedoPool {
        silence: SILENCE,
        ..RedoPool::new(cluster, TaskScope::default())
    };
    (pool, counts, sender)
}

pub(super) fn request(block: u32) -> ApplyRequest {
    ApplyRequest {
        rel: "1663/5/16384".parse().unwrap(),
        block: BlockNumber::new(block),
        base: None,
        records: vec![palimpsest_wal::RawRecord {
            start_lsn: palimpsest_types::Lsn::new(100),
            end_lsn: palimpsest_types::Lsn::new(200),
            bytes: Bytes::from_static(b"a record"),
        }],
    }
}

pub(super) const TENANT: RedoTenant = RedoTenant {
    tenant: TenantId::from_bytes([1; 16]),
    pg_version: 15,
    wal_log_hints: false,
};

fn given(counts: &[Arc<AtomicUsize>]) -> usize {
    counts.iter().map(|jobs| jobs.load(Ordering::Relaxed)).sum()
}

#[tokio::test]
async fn p8_jobs_of_a_worker_that_says_nothing_are_done_by_another() {
    let (pool, counts, _cluster) = pool(&[Manner::SaysNothing, Manner::Answers]).await;
    let jobs = (0..8).map(|block| {
        let pool = pool.clone();
        tokio::spawn(async move { pool.apply(TENANT, request(block)).await })
    });
    for job in jobs.collect::<Vec<_>>() {
        let page = tokio::time::timeout(LIMIT, job).await.unwrap().unwrap();
        assert_eq!(page.unwrap(), PAGE);
    }
    let stuck = counts[0].load(Ordering::Relaxed);
    assert!(stuck > 0, "the stuck one was given nothing");
    // It is asked last for a while, though it has less to do.
    tokio::time::sleep(REST).await;
    for block in 0..8 {
        pool.apply(TENANT, request(block)).await.unwrap();
    }
    assert_eq!(counts[0].load(Ordering::Relaxed), stuck);
}

#[tokio::test]
async fn p8_jobs_of_a_worker_that_is_there_and_does_none_fail_in_time() {
    let (pool, counts, _cluster) = pool(&[Manner::OnlyBeats]).await;
    let pool = RedoPool {
        job_limit: 4 * SILENCE,
        ..pool
    };
    // More than the queue holds: those that wait to get into it fail, too.
    let jobs = (0..2 * QUEUE as u32).map(|block| {
        let pool = pool.clone();
        tokio::spawn(async move { pool.apply(TENANT, request(block)).await })
    });
    for job in jobs.collect::<Vec<_>>() {
        let answer = tokio::time::timeout(LIMIT, job).await.unwrap().unwrap();
        let error = answer.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotReady);
        assert_eq!(error.reason, Some(Reason::NoWorker));
        assert!(error.message.contains("within"), "{error}");
    }
    assert!(given(&counts) > 0);
    assert_eq!(pool.metrics.breaks.get(), 0, "it was there all the time");
}

#[tokio::test]
async fn p7_records_that_kill_are_tried_twice_and_then_left_alone() {
    let (pool, counts, _cluster) = pool(&[Manner::LosesItsProcess; 2]).await;
    let error = pool.apply(TENANT, request(0)).await.unwrap_err();
    assert_eq!(error.reason, Some(Reason::RedoDied));
    let each: HashSet<_> = counts
        .iter()
        .map(|jobs| jobs.load(Ordering::Relaxed))
        .collect();
    assert_eq!(each, HashSet::from([1]), "not one by each worker");
    for _ in 0..5 {
        let error = pool.apply(TENANT, request(0)).await.unwrap_err();
        assert_eq!(error.reason, Some(Reason::Quarantined));
        assert_eq!(error.kind, ErrorKind::Internal);
        assert!(error.message.contains("1663/5/16384 block 0"), "{error}");
    }
    assert_eq!(given(&counts), 2);
    // Another page is not to blame.
    let error = pool.apply(TENANT, request(1)).await.unwrap_err();
    assert_eq!(error.reason, Some(Reason::RedoDied));
    assert_eq!(given(&counts), 4);
}

#[tokio::test]
async fn a_process_that_died_by_chance_costs_no_error() {
    let (pool, counts, _cluster) = pool(&[Manner::LosesItsProcess, Manner::Answers]).await;
    for block in 0..4 {
        assert_eq!(pool.apply(TENANT, request(block)).await.unwrap(), PAGE);
    }
    // Nothing was remembered against a page either.
    for block in 0..4 {
        assert_eq!(pool.apply(TENANT, request(block)).await.unwrap(), PAGE);
    }
    assert!(given(&counts) >= 8);
}

#[tokio::test]
async fn a_worker_is_told_what_nobody_waits_for() {
    let (pool, _, _cluster) = pool(&[Manner::TellsUrgency]).await;
    let background = pool.clone().in_background();
    assert!(background.job_limit > pool.job_limit);
    for _ in 0..2 {
        assert_eq!(pool.apply(TENANT, request(0)).await.unwrap(), "awaited");
        let page = background.apply(TENANT, request(0)).await.unwrap();
        assert_eq!(page, "background");
    }
}
