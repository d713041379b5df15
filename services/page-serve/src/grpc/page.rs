use std::{mem, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use palimpsest_api::{
    TimelineRef, error_detail, error_status,
    page::{PagesRequest, ReadAt, slru_kind},
    redo::TenantRedo,
    rel_tag, rel_tag_to_wire,
};
use palimpsest_proto::{
    common::v1 as common,
    page::v1::{
        GetPagesRequest, GetPagesResponse, GetReadableRequest, GetReadableResponse,
        GetRelationMapRequest, GetRelationMapResponse, GetRelationSizeRequest,
        GetRelationSizeResponse, GetSlruSegmentRequest, GetSlruSegmentResponse,
        ListRelationsRequest, ListRelationsResponse, ReadLsn, get_slru_segment_response::SlruPage,
        list_relations_response::Relation, page_service_server::PageService,
    },
};
use palimpsest_read::TimelineReader;
use palimpsest_runtime::{CancellationToken, finish};
use palimpsest_telemetry::trace;
use palimpsest_types::{ErrorKind, Lsn};
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, Span};

use crate::core::{ServeError, Timelines, Timer};

/// Answers `PageService`.
#[derive(Debug, Clone)]
pub(crate) struct PageHandler {
    timelines: Arc<Timelines>,
    token: CancellationToken,
}

/// Requests of one stream that are worked on at once; more wait unread.
const IN_FLIGHT: usize = 64;
/// Relations in one message of a listing.
const RELATIONS: usize = 1000;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl PageHandler {
    /// Reads no more requests once the token is cancelled; those under way are answered.
    pub(crate) fn new(timelines: Arc<Timelines>, token: CancellationToken) -> Self {
        Self { timelines, token }
    }

    /// Errors of a request are in its answer, so that the stream lives on.
    async fn answer(&self, mut message: GetPagesRequest) -> GetPagesResponse {
        let request_id = message.request_id;
        let traceparent = mem::take(&mut message.traceparent);
        let answered = match PagesRequest::try_from(message) {
            Ok(request) => {
                let span = span_of(request_id, &request, &traceparent);
                let pages = self.pages(request).instrument(span);
                pages.await.map_err(|error| (error.kind(), error.into()))
            }
            Err(error) => Err((
                ErrorKind::Invalid,
                Box::<dyn std::error::Error>::from(error),
            )),
        };
        match answered {
            Ok(answer) => GetPagesResponse {
                request_id,
                ..answer
            },
            Err((kind, error)) => {
                let error = Some(error_detail(kind, &*error));
                GetPagesResponse {
                    request_id,
                    error,
                    ..GetPagesResponse::default()
                }
            }
        }
    }

    /// The reader of the timeline that a request names, and the LSN to read at.
    async fn reader_at(
        &self,
        timeline: Option<common::TimelineRef>,
        read_lsn: Option<ReadLsn>,
    ) -> Result<(Arc<TimelineReader<TenantRedo>>, Lsn), Status> {
        let timeline = TimelineRef::try_from(timeline).map_err(invalid)?;
        let ReadAt {
            lsn,
            not_modified_since,
        } = read_lsn.into();
        let reader = self.timelines.reader(timeline).map_err(status)?;
        let patience = self.timelines.patience();
        let lsn = reader.settle(lsn, not_modified_since, patience).await;
        Ok((reader, lsn.map_err(failed)?))
    }

    async fn pages(&self, request: PagesRequest) -> Result<GetPagesResponse, ServeError> {
        let timer = self.timelines.metrics().begin();
        let outcome = self.timed_pages(request, &timer).await;
        timer.end(outcome.as_ref().ok().map(|answer| answer.pages.len()));
        outcome
    }

    async fn timed_pages(
        &self,
        request: PagesRequest,
        timer: &Timer<'_>,
    ) -> Result<GetPagesResponse, ServeError> {
        let reader = self.timelines.reader(request.timeline)?;
        let ReadAt {
            lsn,
            not_modified_since,
        } = request.at;
        let patience = self.timelines.patience();
        let lsn = reader.settle(lsn, not_modified_since, patience).await?;
        timer.settled();
        let pages = reader.pages(request.rel, &request.blocks, lsn).await?;
        Ok(GetPagesResponse {
            lsn: lsn.get(),
            pages,
            ..GetPagesResponse::default()
        })
    }
}

#[tonic::async_trait]
impl PageService for PageHandler {
    type GetPagesStream = Answers<GetPagesResponse>;
    type ListRelationsStream = Answers<ListRelationsResponse>;

    async fn get_pages(
        &self,
        request: Request<Streaming<GetPagesRequest>>,
    ) -> Result<Response<Self::GetPagesStream>, Status> {
        let handler = self.clone();
        let answer = move |message| {
            let handler = handler.clone();
            async move {
                match message {
                    Ok(message) => {
                        let answered = finish(async move { handler.answer(message).await }).await;
                        answered.ok_or_else(|| Status::internal("the request ended in a panic"))
                    }
                    Err(status) => Err(status),
                }
            }
        };
        let requests = request
            .into_inner()
            .take_until(self.token.clone().cancelled_owned());
        let answers = requests.map(answer).buffer_unordered(IN_FLIGHT);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_relation_size(
        &self,
        request: Request<GetRelationSizeRequest>,
    ) -> Result<Response<GetRelationSizeResponse>, Status> {
        let message = request.into_inner();
        let rel = rel_tag(message.rel).map_err(invalid)?;
        let (reader, lsn) = self.reader_at(message.timeline, message.read_lsn).await?;
        let blocks = reader.relation_size(rel, lsn).await.map_err(failed)?;
        Ok(Response::new(GetRelationSizeResponse {
            exists: blocks.is_some(),
            blocks: blocks.unwrap_or_default().get(),
            lsn: lsn.get(),
        }))
    }

    async fn list_relations(
        &self,
        request: Request<ListRelationsRequest>,
    ) -> Result<Response<Self::ListRelationsStream>, Status> {
        let message = request.into_inner();
        let (reader, lsn) = self.reader_at(message.timeline, message.read_lsn).await?;
        let relations = reader.relations(lsn).await.map_err(failed)?;
        let relation = |(rel, blocks): &(_, palimpsest_types::BlockNumber)| Relation {
            rel: Some(rel_tag_to_wire(*rel)),
            blocks: blocks.get(),
        };
        let message = |some: &[_]| ListRelationsResponse {
            lsn: lsn.get(),
            relations: some.iter().map(relation).collect(),
        };
        let mut messages: Vec<_> = relations.chunks(RELATIONS).map(message).collect();
        if messages.is_empty() {
            messages.push(message(&[]));
        }
        Ok(Response::new(Box::pin(stream::iter(
            messages.into_iter().map(Ok),
        ))))
    }

    async fn get_slru_segment(
        &self,
        request: Request<GetSlruSegmentRequest>,
    ) -> Result<Response<GetSlruSegmentResponse>, Status> {
        let message = request.into_inner();
        let kind = slru_kind(message.kind).map_err(invalid)?;
        let segment = message.segment_number;
        let (reader, lsn) = self.reader_at(message.timeline, message.read_lsn).await?;
        let pages = reader.slru_segment(kind, segment, lsn).await;
        let page = |(page_number, data)| SlruPage { page_number, data };
        Ok(Response::new(GetSlruSegmentResponse {
            lsn: lsn.get(),
            pages: pages.map_err(failed)?.into_iter().map(page).collect(),
        }))
    }

    async fn get_relation_map(
        &self,
        request: Request<GetRelationMapRequest>,
    ) -> Result<Response<GetRelationMapResponse>, Status> {
        let message = request.into_inner();
        let (spc, db) = (message.spc_oid, message.db_oid);
        let (reader, lsn) = self.reader_at(message.timeline, message.read_lsn).await?;
        let content = reader.relation_map(spc, db, lsn).await.map_err(failed)?;
        Ok(Response::new(GetRelationMapResponse {
            lsn: lsn.get(),
            content,
        }))
    }

    async fn get_readable(
        &self,
        request: Request<GetReadableRequest>,
    ) -> Result<Response<GetReadableResponse>, Status> {
        let timeline = request.into_inner().timeline.try_into().map_err(invalid)?;
        let (oldest, newest) = self.timelines.reader(timeline).map_err(status)?.readable();
        Ok(Response::new(GetReadableResponse {
            oldest_lsn: oldest.get(),
            newest_lsn: newest.get(),
        }))
    }
}

/// A request's part of the trace that its caller told, if it did: a stream is of no trace, its
/// requests are.
fn span_of(request_id: u64, request: &PagesRequest, traceparent: &str) -> Span {
    let span = tracing::debug_span!(
        target: trace::TARGET,
        parent: None,
        "get_pages",
        request_id,
        timeline = %request.timeline,
        lsn = request.at.lsn.map(tracing::field::display),
        rel = %request.rel,
        blocks = request.blocks.len(),
    );
    trace::follow(&span, traceparent);
    span
}

fn invalid(error: palimpsest_api::InvalidMessageError) -> Status {
    error_status(ErrorKind::Invalid, &error)
}

fn status(error: ServeError) -> Status {
    error_status(error.kind(), &error)
}

fn failed(error: palimpsest_read::ReadError) -> Status {
    error_status(error.kind(), &error)
}
