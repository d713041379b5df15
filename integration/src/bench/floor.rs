//! The least that pages over gRPC cost: a server with the settings and the runtime of a page-serve,
//! and with as many pages in memory, that does nothing but send them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use palimpsest_api::channel::MAX_MESSAGE;
use palimpsest_proto::page::v1::{
    GetBaseBackupRequest, GetBaseBackupResponse, GetDatabaseSizeRequest, GetDatabaseSizeResponse,
    GetLsnAtTimeRequest, GetLsnAtTimeResponse, GetPagesRequest, GetPagesResponse,
    GetReadableRequest, GetReadableResponse, GetRelationMapRequest, GetRelationMapResponse,
    GetRelationSizeRequest, GetRelationSizeResponse, GetSlruSegmentRequest, GetSlruSegmentResponse,
    GetTimeAtLsnRequest, GetTimeAtLsnResponse, ListRelationsRequest, ListRelationsResponse,
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

/// Sends the page of a block's number, whatever else it is asked.
#[derive(Debug)]
struct Pages(Arc<[Bytes]>);

/// So many pages it has.
const PAGES: usize = super::pages::CACHED_BLOCKS as usize;

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
    // Each in a place of its own, as cached pages are: copying what is in the CPU's cache anyway
    // would be cheaper than it can be for anybody who serves pages.
    let pages = (0..PAGES).map(|number| Bytes::from(vec![number as u8; PAGE_SIZE]));
    let service = PageServiceServer::new(Pages(pages.collect()))
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

fn answer(pages: &[Bytes], request: &GetPagesRequest) -> GetPagesResponse {
    let page = |block: &u32| pages.get(*block as usize % PAGES).cloned();
    GetPagesResponse {
        request_id: request.request_id,
        pages: request.block_numbers.iter().filter_map(page).collect(),
        ..GetPagesResponse::default()
    }
}

#[tonic::async_trait]
impl PageService for Pages {
    type GetPagesStream = Answers<GetPagesResponse>;
    type ListRelationsStream = Answers<ListRelationsResponse>;
    type GetBaseBackupStream = Answers<GetBaseBackupResponse>;

    async fn get_pages(
        &self,
        request: Request<Streaming<GetPagesRequest>>,
    ) -> Result<Response<Self::GetPagesStream>, Status> {
        let pages = Arc::clone(&self.0);
        let answers = request.into_inner().map(move |message| {
            let message = message?;
            Ok(answer(&pages, &message))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_relation_size(
        &self,
        _: Request<GetRelationSizeRequest>,
    ) -> Result<Response<GetRelationSizeResponse>, Status> {
        Err(only_pages())
    }

    async fn get_database_size(
        &self,
        _: Request<GetDatabaseSizeRequest>,
    ) -> Result<Response<GetDatabaseSizeResponse>, Status> {
        Err(only_pages())
    }

    async fn list_relations(
        &self,
        _: Request<ListRelationsRequest>,
    ) -> Result<Response<Self::ListRelationsStream>, Status> {
        Err(only_pages())
    }

    async fn get_base_backup(
        &self,
        _: Request<GetBaseBackupRequest>,
    ) -> Result<Response<Self::GetBaseBackupStream>, Status> {
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

    async fn get_lsn_at_time(
        &self,
        _: Request<GetLsnAtTimeRequest>,
    ) -> Result<Response<GetLsnAtTimeResponse>, Status> {
        Err(only_pages())
    }

    async fn get_time_at_lsn(
        &self,
        _: Request<GetTimeAtLsnRequest>,
    ) -> Result<Response<GetTimeAtLsnResponse>, Status> {
        Err(only_pages())
    }
}

fn only_pages() -> Status {
    Status::unimplemented("the floor sends pages and nothing else")
}
