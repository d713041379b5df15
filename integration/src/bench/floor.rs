//! The least that pages over gRPC cost: a server with the settings of a page-serve that sends the
//! same page whatever it is asked for.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    pin::Pin,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use palimpsest_api::channel::MAX_MESSAGE;
use palimpsest_proto::page::v1::{
    GetPagesRequest, GetPagesResponse, GetReadableRequest, GetReadableResponse,
    GetRelationMapRequest, GetRelationMapResponse, GetRelationSizeRequest, GetRelationSizeResponse,
    GetSlruSegmentRequest, GetSlruSegmentResponse, ListRelationsRequest, ListRelationsResponse,
    page_service_server::{PageService, PageServiceServer},
};
use palimpsest_runtime::TaskScope;
use palimpsest_service_kit::{GrpcServer, Readiness, Services};
use palimpsest_types::PAGE_SIZE;
use tonic::{Request, Response, Status, Streaming};

/// The server as a process, for as long as this value lives.
#[derive(Debug)]
pub struct Floor {
    child: Child,
    address: String,
}

/// Sends one page, always the same.
#[derive(Debug)]
struct SamePage(Bytes);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Floor {
    /// Starts it: the program `bench` with the argument `floor`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(bench: &Path) -> Result<Self> {
        let mut command = Command::new(bench);
        command
            .arg("floor")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("executing the floor")?;
        let mut address = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut address)?;
        }
        if address.is_empty() {
            // It has ended; an error of these would add nothing.
            let _ = child.kill();
            let _ = child.wait();
            bail!("the floor did not come up");
        }
        let address = address.trim_end().to_owned();
        Ok(Self { child, address })
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until standard input ends, which it does with the process that started this one.
///
/// # Errors
/// If it can't listen.
pub async fn serve() -> Result<()> {
    let scope = TaskScope::default();
    let server = GrpcServer::bind("127.0.0.1:0").await?;
    let address = server.address();
    let page = Bytes::from(vec![0x5a; PAGE_SIZE]);
    let service = PageServiceServer::new(SamePage(page))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    server.start(
        Services::default().with(service),
        &Readiness::new(true),
        &scope,
    );
    writeln!(std::io::stdout(), "{address}")?;
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop));
    ended.await?;
    scope.stop().await;
    Ok(())
}

impl SamePage {
    fn answer(page: &Bytes, request: &GetPagesRequest) -> GetPagesResponse {
        GetPagesResponse {
            request_id: request.request_id,
            pages: vec![page.clone(); request.block_numbers.len()],
            ..GetPagesResponse::default()
        }
    }
}

#[tonic::async_trait]
impl PageService for SamePage {
    type GetPagesStream = Answers<GetPagesResponse>;
    type ListRelationsStream = Answers<ListRelationsResponse>;

    async fn get_pages(
        &self,
        request: Request<Streaming<GetPagesRequest>>,
    ) -> Result<Response<Self::GetPagesStream>, Status> {
        let page = self.0.clone();
        let answers = request.into_inner().map(move |message| {
            let message = message?;
            Ok(Self::answer(&page, &message))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_relation_size(
        &self,
        _: Request<GetRelationSizeRequest>,
    ) -> Result<Response<GetRelationSizeResponse>, Status> {
        Err(only_pages())
    }

    async fn list_relations(
        &self,
        _: Request<ListRelationsRequest>,
    ) -> Result<Response<Self::ListRelationsStream>, Status> {
        Err(only_pages())
    }

    async fn get_slru_segment(
        &self,
        _: Request<GetSlruSegmentRequest>,
    ) -> Result<Response<GetSlruSegmentResponse>, Status> {
        Err(only_pages())
    }

    async fn get_relation_map(
        &self,
        _: Request<GetRelationMapRequest>,
    ) -> Result<Response<GetRelationMapResponse>, Status> {
        Err(only_pages())
    }

    async fn get_readable(
        &self,
        _: Request<GetReadableRequest>,
    ) -> Result<Response<GetReadableResponse>, Status> {
        Err(only_pages())
    }
}

fn only_pages() -> Status {
    Status::unimplemented("the floor sends pages and nothing else")
}
