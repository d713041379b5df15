//! One read is one trace, whatever services it takes.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::ResourceSpans,
};
use opentelemetry_sdk::trace::SdkTracerProvider;
use palimpsest_api::{
    channel::connect_lazily,
    page::{PageClient, PagesRequest, ReadAt},
};
use palimpsest_integration::processes::{Layers, Process, Processes};
use palimpsest_telemetry::trace;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::BlockNumber;
use tokio::{net::TcpListener, task::block_in_place, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tracing::{
    Dispatch, Instrument as _, dispatcher::with_default, instrument::WithSubscriber as _,
};
use tracing_subscriber::layer::SubscriberExt as _;

use super::{LOOK, PATIENCE};
use crate::under_load::SERVICE;

/// What a caller of ours belongs to.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// Rows for some pages, each changed by many records.
const FILL: &str = "CREATE TABLE traced AS SELECT i, repeat('x', 100) AS t \
    FROM generate_series(1, 300) i; UPDATE traced SET t = 'y' WHERE i % 3 = 0";

/// Keeps what is exported to it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

/// A span, as far as it matters.
#[derive(Debug, Clone)]
struct Seen {
    service: String,
    name: String,
    trace: String,
    span: String,
    parent: String,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let exported = request.into_inner().resource_spans;
        self.0
            .lock()
            .unwrap()
            .extend(exported.into_iter().flat_map(seen));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn seen(exported: ResourceSpans) -> Vec<Seen> {
    let attributes = exported.resource.unwrap_or_default().attributes;
    let name = attributes
        .into_iter()
        .find(|found| found.key == "service.name");
    let Some(Value::StringValue(service)) = name.and_then(|name| name.value?.value) else {
        panic!("spans of no service");
    };
    let hex = |id: &[u8]| {
        id.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let spans = exported
        .scope_spans
        .into_iter()
        .flat_map(|scope| scope.spans);
    let seen = |span: opentelemetry_proto::tonic::trace::v1::Span| Seen {
        service: service.clone(),
        trace: hex(&span.trace_id),
        span: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
    };
    spans.map(seen).collect()
}

impl Collector {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(async move { serve.await.unwrap() });
        format!("http://{address}")
    }

    /// Waits until a page-serve's request and a redo-worker's job have been told that are `wanted`,
    /// and returns all spans of their trace. The job must be a part of the request.
    async fn read(&self, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let found = async {
            loop {
                let seen = self.0.lock().unwrap().clone();
                let request = seen
                    .iter()
                    .find(|span| span.name == "get_pages" && wanted(span));
                let job = request.and_then(|request| {
                    let of_it = |span: &&Seen| span.parent == request.span && span.name == "redo";
                    seen.iter().find(of_it)
                });
                if let (Some(request), Some(job)) = (request, job) {
                    assert_eq!(request.service, "page-serve");
                    assert_eq!(job.service, "redo-worker");
                    let same = |span: &Seen| span.trace == request.trace;
                    return seen.iter().filter(|span| same(span)).cloned().collect();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let found = timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| {
            let mut seen = self.0.lock().unwrap().clone();
            seen.retain(|span| span.name != "call");
            panic!("no such trace in {seen:#?}")
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_one_trace_of_all_services_and_the_clients_if_it_has_one() {
    let mut cluster = Cluster::temporary(ClusterOptions::default()).unwrap();
    block_in_place(|| cluster.start()).unwrap();
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let files = tempfile::tempdir().unwrap();
    let program = Path::new(SERVICE);
    let launched = Processes::launch_with(program, files.path(), Layers::Rarely, &variables);
    let processes = launched.await.unwrap();
    let conninfo = cluster.conninfo("postgres");
    let timeline = processes.attach("a", &conninfo).await.unwrap();
    let sql = |sql: &str| block_in_place(|| cluster.psql("postgres", sql)).unwrap();
    sql(FILL);
    let path = sql("SELECT pg_relation_filepath('traced')");
    let lsn = block_in_place(|| cluster.flush_lsn()).unwrap();
    let page = |number| PagesRequest {
        timeline,
        at: ReadAt {
            lsn: Some(lsn),
            ..ReadAt::default()
        },
        rel: path.trim().replacen("base", "1663", 1).parse().unwrap(),
        blocks: vec![BlockNumber::new(number)],
    };
    let channel = connect_lazily(&processes.address(Process::PageServe)).unwrap();
    let client = PageClient::connect(channel).await.unwrap();

    // Of a client without traces: a trace of its own.
    client.pages(page(0)).await.unwrap();
    let own = collector.read(|_| true).await;
    assert!(own.iter().all(|span| span.trace != TRACE), "{own:#?}");
    let roots = own.iter().filter(|span| span.parent.is_empty()).count();
    assert_eq!(roots, 1, "{own:#?}");

    // Of a client with one, over the same stream.
    let tracer = SdkTracerProvider::builder().build().tracer("client");
    let layer = tracing_opentelemetry::layer().with_tracer(tracer);
    let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
    let span = with_default(&dispatch, || {
        let span = tracing::debug_span!(target: trace::TARGET, parent: None, "client");
        trace::follow(&span, PARENT);
        span
    });
    let asked = async { client.pages(page(1)).await };
    asked
        .instrument(span)
        .with_subscriber(dispatch)
        .await
        .unwrap();
    let clients = collector.read(|span| span.trace == TRACE).await;
    let services: BTreeSet<_> = clients.iter().map(|span| span.service.as_str()).collect();
    assert_eq!(services, BTreeSet::from(["page-serve", "redo-worker"]));
    processes.stop();
    block_in_place(|| cluster.stop()).unwrap();
}
