//! Services say that they are ready when they can serve, and not before.

use std::path::Path;

use palimpsest_api::{TimelineRef, channel::connect_lazily, page::PageClient};
use palimpsest_integration::processes::{Layers, Process, Processes};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{ErrorKind, TenantId, TimelineId};
use tokio::{task::block_in_place, time::timeout};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{LOOK, PATIENCE, Running, free_port, get};
use crate::under_load::SERVICE;

const NOBODYS: TimelineRef = TimelineRef {
    tenant: TenantId::from_bytes([1; 16]),
    timeline: TimelineId::from_bytes([2; 16]),
};

async fn health(port: u16) -> ServingStatus {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let request = HealthCheckRequest::default();
    let answer = HealthClient::new(channel).check(request).await.unwrap();
    answer.into_inner().status()
}

/// What a page-serve says about a timeline that it does not know.
async fn about_nobodys(port: u16) -> (ErrorKind, String) {
    let channel = connect_lazily(&format!("127.0.0.1:{port}")).unwrap();
    let client = PageClient::connect(channel).await.unwrap();
    let error = client.readable(NOBODYS).await.unwrap_err();
    (error.kind, error.message)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_heard_from_the_broker_is_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let data = directory.path().join("data");
    let [store, data] = [&store, &data].map(|path| path.to_str().unwrap());
    let (port, path) = (free_port(), directory.path());
    let broker = format!("127.0.0.1:{port}");
    let common = ["--broker", &broker, "--store", store];
    let more = [&common[..], &["--data", data]].concat();
    let mut services = [
        Running::spawn("page-serve", free_port(), path, &common),
        Running::spawn("wal-ingest", free_port(), path, &more),
    ];
    for service in &mut services {
        block_in_place(|| {
            service.until("it is up", |service| {
                let answer = service.get("/readyz").unwrap_or_default();
                answer.starts_with("HTTP/1.1 503") && answer.contains("storage-broker")
            });
        });
        assert!(service.get("/livez").unwrap().starts_with("HTTP/1.1 200"));
        assert_eq!(health(service.port).await, ServingStatus::NotServing);
    }
    let (kind, words) = about_nobodys(services[0].port).await;
    assert_eq!(kind, ErrorKind::NotReady, "{words}");
    assert!(words.contains("has not said what timelines"), "{words}");

    let _broker = Running::spawn("storage-broker", port, path, &["--store", store]);
    for service in &mut services {
        block_in_place(|| service.until("it is ready", Running::is_ready));
        while health(service.port).await != ServingStatus::Serving {
            tokio::time::sleep(LOOK).await;
        }
    }
    let (kind, words) = about_nobodys(services[0].port).await;
    assert_eq!(kind, ErrorKind::NotFound, "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_serve_that_is_ready_has_opened_what_there_is() {
    let mut cluster = Cluster::temporary(ClusterOptions::default()).unwrap();
    block_in_place(|| cluster.start()).unwrap();
    let files = tempfile::tempdir().unwrap();
    let launched = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often);
    let mut processes = launched.await.unwrap();
    let conninfo = cluster.conninfo("postgres");
    let timeline = processes.attach("a", &conninfo).await.unwrap();
    let address = processes.address(Process::PageServe);
    let port = address.rsplit_once(':').unwrap().1.parse().unwrap();

    processes.kill9(Process::PageServe).unwrap();
    processes.start(Process::PageServe).unwrap();
    let ready = async {
        let is_ready = || get(port, "/readyz").is_some_and(|answer| answer.contains("200 OK"));
        while !block_in_place(is_ready) {
            tokio::time::sleep(LOOK).await;
        }
    };
    timeout(PATIENCE, ready).await.unwrap();
    let client = PageClient::connect(connect_lazily(&address).unwrap());
    let readable = client.await.unwrap().readable(timeline).await;
    readable.expect("what is ready answers at once");
    processes.stop();
    block_in_place(|| cluster.stop()).unwrap();
}
