use palimpsest_proto::redo::v1::{
    ApplyRequest, ApplyResponse, redo_service_client::RedoServiceClient,
    redo_service_server::RedoService, redo_service_server::RedoServiceServer,
};
use palimpsest_types::ErrorKind;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus as Health, health_client::HealthClient,
};

use super::*;

/// A service whose streams never end by themselves.
struct Endless;

#[tonic::async_trait]
impl RedoService for Endless {
    type ApplyStream = ReceiverStream<Result<ApplyResponse, Status>>;

    async fn apply(
        &self,
        _: Request<Streaming<ApplyRequest>>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move { sender.closed().await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn start(drain: Duration) -> (Channel, Readiness, TaskScope, SocketAddr) {
    let server = GrpcServer::bind("127.0.0.1:0").await.unwrap();
    let (address, scope, readiness) =
        (server.address(), TaskScope::default(), Readiness::default());
    let services = Services::default().with(RedoServiceServer::new(Endless));
    server
        .drain_within(drain)
        .start(services, &readiness, &scope);
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    (channel.connect_lazy(), readiness, scope, address)
}

async fn health(channel: &Channel, service: &str) -> Health {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(channel.clone()).check(request).await;
    answer.unwrap().into_inner().status()
}

#[tokio::test]
async fn is_not_serving_until_ready() {
    let (channel, readiness, scope, _) = start(DRAIN).await;
    let name = "palimpsest.redo.v1.RedoService";
    for service in ["", name] {
        assert_eq!(health(&channel, service).await, Health::NotServing);
    }
    readiness.set(true);
    while health(&channel, name).await != Health::Serving {
        tokio::task::yield_now().await;
    }
    assert_eq!(health(&channel, "").await, Health::Serving);
    scope.stop().await;
}

#[tokio::test]
async fn a_stream_that_never_ends_does_not_hold_the_shutdown() {
    let (channel, readiness, scope, address) = start(Duration::from_millis(200)).await;
    readiness.set(true);
    let (_open, requests) = tokio::sync::mpsc::channel(1);
    let mut answers = RedoServiceClient::new(channel)
        .apply(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    let stopped = tokio::time::timeout(Duration::from_secs(5), scope.stop());
    stopped.await.expect("the drain time bounds the shutdown");
    answers.message().await.expect_err("the stream was cut");
    GrpcServer::bind(&address.to_string())
        .await
        .expect("the address is free again");
}

#[tokio::test]
async fn describes_its_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let (channel, _readiness, scope, _) = start(DRAIN).await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(
        names
            .iter()
            .any(|name| name == "palimpsest.redo.v1.RedoService"),
        "{names:?}"
    );
    drop(answers);
    scope.stop().await;
}

#[tokio::test]
async fn refuses_what_others_could_reach_and_what_is_no_address() {
    let error = GrpcServer::bind("0.0.0.0:0").await.unwrap_err();
    assert!(matches!(error, BindError::NotLoopback { .. }), "{error}");
    let error = GrpcServer::bind("nonsense").await.unwrap_err();
    assert!(matches!(error, BindError::Address { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let first = GrpcServer::bind("localhost:0").await.unwrap();
    let second = GrpcServer::bind(&first.address().to_string()).await;
    assert!(matches!(second, Err(BindError::Listen { .. })));
}
