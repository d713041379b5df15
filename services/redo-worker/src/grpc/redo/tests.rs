use std::{future::pending, num::NonZeroUsize};

use bytes::Bytes;
use palimpsest_api::redo::{BEAT, RedoTenant, SILENCE};
use palimpsest_proto::{
    common::v1::RelTag,
    redo::v1::{apply_request::Job, redo_service_client::RedoServiceClient},
};
use palimpsest_redo::{Engine, EngineError};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::core::{Limits, RedoProcess, StartFailure};

/// Starts processes that work for ever.
struct Busy;

#[derive(Debug, Clone)]
struct BusyProcess;

impl ProcessSource for Busy {
    type Process = BusyProcess;

    fn check(&self, _: &RedoTenant) -> Result<(), StartFailure> {
        Ok(())
    }

    async fn start(&self, _: &RedoTenant) -> Result<BusyProcess, StartFailure> {
        Ok(BusyProcess)
    }
}

impl Engine for BusyProcess {
    async fn apply(&self, _: palimpsest_redo::ApplyRequest) -> Result<Bytes, EngineError> {
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

#[tokio::test]
async fn p8_a_worker_that_works_for_long_is_never_silent_for_long() {
    let limits = Limits {
        processes_per_tenant: NonZeroUsize::MIN,
        tenants: NonZeroUsize::MIN,
    };
    let engines = Arc::new(TenantEngines::new(Busy, limits));
    let service = RedoApi::new(engines, TaskScope::default()).into_server();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let client = RedoServiceClient::connect(format!("http://{address}"));
    let (jobs, outgoing) = mpsc::channel(1);
    let mut client = client.await.unwrap();
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
