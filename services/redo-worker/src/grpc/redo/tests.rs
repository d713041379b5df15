use std::{future::pending, num::NonZeroUsize, sync::Mutex, thread, time::Duration};

use bytes::Bytes;
use palimpsest_api::redo::{BEAT, RedoTenant, SILENCE, Urgency};
use palimpsest_proto::{
    common::v1::RelTag,
    redo::v1::{apply_request::Job, redo_service_client::RedoServiceClient},
};
use palimpsest_redo::{Engine, EngineError};
use palimpsest_runtime::BackgroundLimits;
use tokio::{
    net::TcpListener,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::core::{Limits, RedoProcess, StartFailure};

/// Starts processes that work for ever, and counts what they are given, and where.
#[derive(Debug, Clone, Default)]
struct Busy(Arc<Mutex<Vec<(Urgency, Place)>>>);

/// Whether a thread gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    InFront,
    InBackground,
}

/// The name of threads that do.
const BACKGROUND: &str = "background";

#[derive(Debug, Clone)]
struct BusyProcess {
    urgency: Urgency,
    busy: Busy,
}

impl Busy {
    /// Jobs that processes for this urgency have got there.
    fn given(&self, urgency: Urgency, place: Place) -> usize {
        let given = self.0.lock().unwrap();
        let counts = |given: &&(Urgency, Place)| **given == (urgency, place);
        given.iter().filter(counts).count()
    }
}

impl ProcessSource for Busy {
    type Process = BusyProcess;

    fn check(&self, _: &RedoTenant) -> Result<(), StartFailure> {
        Ok(())
    }

    async fn start(&self, _: &RedoTenant, urgency: Urgency) -> Result<BusyProcess, StartFailure> {
        Ok(BusyProcess {
            urgency,
            busy: self.clone(),
        })
    }
}

impl Engine for BusyProcess {
    async fn apply(&self, _: palimpsest_redo::ApplyRequest) -> Result<Bytes, EngineError> {
        let place = match thread::current().name() {
            Some(BACKGROUND) => Place::InBackground,
            _ => Place::InFront,
        };
        self.busy.0.lock().unwrap().push((self.urgency, place));
        pending().await
    }
}

impl RedoProcess for BusyProcess {
    fn deaths(&self) -> u64 {
        0
    }

    async fn stop(self) {}
}

fn job() -> ApplyRequest {
    let rel = RelTag {
        spc_oid: 1663,
        db_oid: 5,
        rel_number: 16384,
        ..RelTag::default()
    };
    let job = Job {
        job_id: 1,
        rel: Some(rel),
        ..Job::default()
    };
    ApplyRequest {
        tenant_id: vec![1; 16].into(),
        pg_version: 15,
        wal_log_hints: false,
        jobs: vec![job],
        background: false,
    }
}

type Client = RedoServiceClient<tonic::transport::Channel>;

/// A client of a worker with such processes.
async fn client_of(busy: Busy) -> Client {
    let limits = Limits {
        processes_per_tenant: NonZeroUsize::MIN,
        tenants: NonZeroUsize::MIN,
    };
    let engines = Arc::new(TenantEngines::new(busy, limits));
    let limits = BackgroundLimits {
        tasks: NonZeroUsize::MIN,
        blocking: NonZeroUsize::MIN,
    };
    let background = BackgroundThreads::start(BACKGROUND, limits).unwrap();
    let service = RedoApi::new(engines, Arc::new(background), TaskScope::default()).into_server();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let client = RedoServiceClient::connect(format!("http://{address}"));
    client.await.unwrap()
}

#[tokio::test]
async fn jobs_that_nobody_waits_for_give_way_from_their_message_to_their_process() {
    let busy = Busy::default();
    let mut client = client_of(busy.clone()).await;
    let mut streams = Vec::new();
    for (background, count) in [(true, 7), (false, 5)] {
        let (jobs, outgoing) = mpsc::channel(1);
        streams.push(client.apply(ReceiverStream::new(outgoing)).await.unwrap());
        let one = job();
        let batch = ApplyRequest {
            jobs: vec![one.jobs[0].clone(); count],
            background,
            ..one
        };
        jobs.send(batch).await.unwrap();
    }
    while busy.0.lock().unwrap().len() < 12 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(busy.given(Urgency::Background, Place::InBackground), 7);
    assert_eq!(busy.given(Urgency::Awaited, Place::InFront), 5);
}

#[tokio::test]
async fn p8_a_worker_that_works_for_long_is_never_silent_for_long() {
    let (jobs, outgoing) = mpsc::channel(1);
    let mut client = client_of(Busy::default()).await;
    let answers = client.apply(ReceiverStream::new(outgoing)).await.unwrap();
    let mut answers = answers.into_inner();
    let idle = timeout(BEAT + BEAT / 2, answers.message()).await;
    assert!(idle.is_err(), "who has nothing to do says nothing");
    jobs.send(job()).await.unwrap();
    for _ in 0..2 {
        let begun = Instant::now();
        let word = timeout(SILENCE, answers.message()).await.unwrap();
        assert_eq!(word.unwrap().unwrap().results, []);
        assert!(begun.elapsed() <= SILENCE / 2, "{:?}", begun.elapsed());
    }
}
