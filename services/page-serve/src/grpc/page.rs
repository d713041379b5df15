use std::{mem, pin::Pin, sync::Arc};

use futures::{Stream, stream};
use palimpsest_api::{
    TimelineRef, error_detail, error_status,
    page::{PagesRequest, ReadAt, slru_kind},
    redo::TenantRedo,
    rel_tag, rel_tag_to_wire,
};
use palimpsest_proto::{
    common::v1 as common,
    page::v1::{
        GetDatabaseSizeRequest, GetDatabaseSizeResponse, GetPagesRequest, GetPagesResponse,
        GetReadableRequest, GetReadableResponse, GetRelationMapRequest, GetRelationMapResponse,
        GetRelationSizeRequest, GetRelationSizeResponse, GetSlruSegmentRequest,
        GetSlruSegmentResponse, ListRelationsRequest, ListRelationsResponse, ReadLsn,
        get_slru_segment_response::SlruPage, list_relations_response::Relation,
        page_service_server::PageService,
    },
};
use palimpsest_read::{ReadError, TimelineReader};
use palimpsest_runtime::TaskScope;
use palimpsest_telemetry::trace;
use palimpsest_types::{BlockNumber, Fault, Lsn, Oid, RelTag};
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, Span};

use super::stream::AnswerStream;
use crate::core::{Lane, Room, ServeError, Timelines, Timer};

/// Answers `PageService`.
#[derive(Debug, Clone)]
pub(crate) struct PageHandler {
    timelines: Arc<Timelines>,
    scope: TaskScope,
}

/// Relations in one message of a listing.
const RELATIONS: usize = 1000;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl PageHandler {
    /// Reads no more requests once the scope's token is cancelled; those under way are answered.
    pub(crate) fn new(timelines: Arc<Timelines>, scope: TaskScope) -> Self {
        Self { timelines, scope }
    }

    /// Errors of a request are in its answer, so that the stream lives on.
    pub(super) async fn answer(
        &self,
        mut message: GetPagesRequest,
        lane: &Lane,
    ) -> (GetPagesResponse, Option<Room>) {
        let request_id = message.request_id;
        let traceparent = mem::take(&mut message.traceparent);
        let answered = match PagesRequest::try_from(message) {
            Ok(request) => {
                let span = span_of(request_id, &request, &traceparent);
                let pages = self.pages(request, lane).instrument(span).await;
                pages.map_err(|error| error_detail(error.fault(), &error))
            }
            Err(error) => Err(error_detail(error.fault(), &error)),
        };
        let (answer, room) = match answered {
            Ok((answer, room)) => (answer, Some(room)),
            Err(error) => {
                let error = Some(error);
                let answer = GetPagesResponse {
                    error,
                    ..GetPagesResponse::default()
                };
                (answer, None)
            }
        };
        let answer = GetPagesResponse {
            request_id,
            ..answer
        };
        (answer, room)
    }

    /// The reader of the timeline that a request names, and the LSN to read at.
    async fn reader_at(
        &self,
        timeline: Option<common::TimelineRef>,
        read_lsn: Option<ReadLsn>,
    ) -> Result<(Arc<TimelineReader<TenantRedo>>, Lsn), Status> {
        let timeline = TimelineRef::try_from(timeline).map_err(invalid)?;
        let reader = self.timelines.reader(timeline).map_err(status)?;
        let lsn = self.settle(&reader, read_lsn.into()).await;
        Ok((reader, lsn.map_err(failed)?))
    }

    /// The LSN to read at, once everything that is needed of it has arrived.
    async fn settle(
        &self,
        reader: &TimelineReader<TenantRedo>,
        at: ReadAt,
    ) -> Result<Lsn, ReadError> {
        let longest = self.timelines.patience();
        let patience = at.patience.map_or(longest, |asked| asked.min(longest));
        reader.settle(at.lsn, at.not_modified_since, patience).await
    }

    async fn pages(
        &self,
        request: PagesRequest,
        lane: &Lane,
    ) -> Result<(GetPagesResponse, Room), ServeError> {
        let timer = self.timelines.metrics().begin();
        let outcome = self.timed_pages(request, lane, &timer).await;
        timer.end(outcome.as_ref().ok().map(|(answer, _)| answer.pages.len()));
        outcome
    }

    async fn timed_pages(
        &self,
        request: PagesRequest,
        lane: &Lane,
        timer: &Timer<'_>,
    ) -> Result<(GetPagesResponse, Room), ServeError> {
        let reader = self.timelines.reader(request.timeline)?;
        // Before there is room for it: who waits for an LSN keeps nobody else from working.
        let lsn = self.settle(&reader, request.at).await?;
        timer.settled();
        let room = lane.enter(request.blocks.len()).await?;
        let pages = reader.pages(request.rel, &request.blocks, lsn).await?;
        let answer = GetPagesResponse {
            lsn: lsn.get(),
            pages,
            ..GetPagesResponse::default()
        };
        Ok((answer, room))
    }
}

#[tonic::async_trait]
impl PageService for PageHandler {
    type GetPagesStream = AnswerStream;
    type ListRelationsStream = Answers<ListRelationsResponse>;

    async fn get_pages(
        &self,
        request: Request<Streaming<GetPagesRequest>>,
    ) -> Result<Response<Self::GetPagesStream>, Status> {
        let lane = self.timelines.admission().open().map_err(status)?;
        let requests = request.into_inner();
        let answers = AnswerStream::start(self.clone(), lane, requests, &self.scope);
        Ok(Response::new(answers))
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

    async fn get_database_size(
        &self,
        request: Request<GetDatabaseSizeRequest>,
    ) -> Result<Response<GetDatabaseSizeResponse>, Status> {
        let message = request.into_inner();
        let (reader, lsn) = self.reader_at(message.timeline, message.read_lsn).await?;
        let relations = reader.relations(lsn).await.map_err(failed)?;
        let blocks = database_blocks(&relations, message.db_oid);
        Ok(Response::new(GetDatabaseSizeResponse {
            exists: blocks.is_some(),
            blocks: blocks.unwrap_or_default(),
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
        let relation = |(rel, blocks): &(_, BlockNumber)| Relation {
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
    error_status(error.fault(), &error)
}

fn status(error: ServeError) -> Status {
    error_status(error.fault(), &error)
}

fn failed(error: ReadError) -> Status {
    error_status(Fault::new(error.kind(), error.reason()), &error)
}

/// Blocks of all forks of a database; `None` if it has none.
fn database_blocks(relations: &[(RelTag, BlockNumber)], db: Oid) -> Option<u64> {
    let of_database = relations.iter().filter(|(rel, _)| rel.db == db);
    let blocks = of_database.map(|(_, blocks)| u64::from(blocks.get()));
    blocks.reduce(|sum, blocks| sum + blocks)
}
