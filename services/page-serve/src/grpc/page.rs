use std::{mem, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _};
use palimpsest_api::{
    TimelineRef, error_detail, error_status,
    lease::{HeldLease, LeaseClient},
    page::{ANSWER_LIMIT, LsnAtTime, PagesRequest, ReadAt, slru_kind},
    redo::TenantRedo,
    rel_tag,
};
use palimpsest_proto::{
    common::v1 as common,
    page::v1::{
        GetBaseBackupRequest, GetBaseBackupResponse, GetDatabaseSizeRequest,
        GetDatabaseSizeResponse, GetLsnAtTimeRequest, GetLsnAtTimeResponse, GetPagesRequest,
        GetPagesResponse, GetReadableRequest, GetReadableResponse, GetRelationMapRequest,
        GetRelationMapResponse, GetRelationSizeRequest, GetRelationSizeResponse,
        GetSlruSegmentRequest, GetSlruSegmentResponse, GetTimeAtLsnRequest, GetTimeAtLsnResponse,
        ListRelationsRequest, ListRelationsResponse, ReadLsn, get_slru_segment_response::SlruPage,
        page_service_server::PageService,
    },
};
use palimpsest_read::{ReadError, TimeAt, TimelineReader, lsn_at_time, time_at_lsn};
use palimpsest_runtime::TaskScope;
use palimpsest_telemetry::trace;
use palimpsest_types::{Fault, Lsn, SlruKind};
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, Span};

use super::{base_backup, hold::holding, listing, stream::AnswerStream};
use crate::core::{Call, Lane, Room, RunningBackup, ServeError, Timelines, Timer, within};

/// Answers `PageService`.
#[derive(Debug, Clone)]
pub(crate) struct PageHandler {
    timelines: Arc<Timelines>,
    leases: LeaseClient,
    scope: TaskScope,
}

/// What a call is answered with.
struct Reading {
    reader: Arc<TimelineReader<TenantRedo>>,
    lsn: Lsn,
    room: Room,
}

/// When PostgreSQL's times begin, in microseconds since 1970: with the year 2000.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl PageHandler {
    /// Reads no more requests once the scope's token is cancelled; those under way are answered.
    pub(crate) fn new(timelines: Arc<Timelines>, leases: LeaseClient, scope: TaskScope) -> Self {
        Self {
            timelines,
            leases,
            scope,
        }
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

    /// The reader of the timeline that a call names, the LSN to read at, and room for the answer.
    async fn begin(
        &self,
        call: Call,
        timeline: Option<common::TimelineRef>,
        read_lsn: Option<ReadLsn>,
    ) -> Result<Reading, Status> {
        let timeline = TimelineRef::try_from(timeline).map_err(invalid)?;
        let reader = self.timelines.reader(timeline).await.map_err(status)?;
        let lsn = self.settle(&reader, read_lsn.into()).await;
        let lsn = lsn.map_err(failed)?;
        // What else there is is no page, or is read at its own pace.
        if call == Call::SlruSegment {
            let pages = SlruKind::PAGES_PER_SEGMENT as usize;
            let turn = self.timelines.in_turn(timeline.tenant, pages).await;
            turn.map_err(status)?;
        }
        let room = self.timelines.admission().call(call).await;
        let room = room.map_err(status)?;
        Ok(Reading { reader, lsn, room })
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
        let reader = self.timelines.reader(request.timeline).await?;
        // Before there is room for it: who waits for an LSN keeps nobody else from working.
        let lsn = self.settle(&reader, request.at).await?;
        timer.settled();
        let tenant = request.timeline.tenant;
        self.timelines.in_turn(tenant, request.blocks.len()).await?;
        let room = lane.enter(request.blocks.len()).await?;
        let made = reader.pages(request.rel, &request.blocks, lsn);
        let late = ServeError::Late {
            limit: ANSWER_LIMIT,
        };
        let pages = within(ANSWER_LIMIT, made).await.ok_or(late)??;
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
    type GetBaseBackupStream = Answers<GetBaseBackupResponse>;

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
        let begun = self.begin(Call::Small, message.timeline, message.read_lsn);
        let Reading { reader, lsn, room } = begun.await?;
        let blocks = reader.relation_size(rel, lsn).await.map_err(failed)?;
        let answer = GetRelationSizeResponse {
            exists: blocks.is_some(),
            blocks: blocks.unwrap_or_default().get(),
            lsn: lsn.get(),
        };
        Ok(holding(room, answer))
    }

    async fn get_database_size(
        &self,
        request: Request<GetDatabaseSizeRequest>,
    ) -> Result<Response<GetDatabaseSizeResponse>, Status> {
        let message = request.into_inner();
        let begun = self.begin(Call::Listing, message.timeline, message.read_lsn);
        let Reading { reader, lsn, room } = begun.await?;
        let blocks = reader.database_size(message.db_oid, lsn).await;
        let blocks = blocks.map_err(failed)?;
        let answer = GetDatabaseSizeResponse {
            exists: blocks.is_some(),
            blocks: blocks.unwrap_or_default(),
            lsn: lsn.get(),
        };
        Ok(holding(room, answer))
    }

    async fn list_relations(
        &self,
        request: Request<ListRelationsRequest>,
    ) -> Result<Response<Self::ListRelationsStream>, Status> {
        let message = request.into_inner();
        let begun = self.begin(Call::Listing, message.timeline, message.read_lsn);
        let Reading { reader, lsn, room } = begun.await?;
        let relations = reader.relations(lsn).await.map_err(failed)?;
        let messages: Self::ListRelationsStream =
            Box::pin(listing::messages(lsn, relations).map(Ok));
        Ok(holding(room, messages))
    }

    async fn get_base_backup(
        &self,
        request: Request<GetBaseBackupRequest>,
    ) -> Result<Response<Self::GetBaseBackupStream>, Status> {
        let message = request.into_inner();
        let wanted = base_backup::wanted(&message);
        let timeline = TimelineRef::try_from(message.timeline.clone()).map_err(invalid)?;
        let begun = self.begin(Call::BaseBackup, message.timeline, message.read_lsn);
        let Reading { reader, lsn, room } = begun.await?;
        // It may take long, and what it reads at must stay.
        let lease = HeldLease::take(&self.leases, timeline, lsn, &self.scope);
        let backup = RunningBackup::start(reader, lsn, wanted, lease, &self.scope).await;
        let backup = backup.map_err(|error| base_backup::failed(&error))?;
        let messages: Self::GetBaseBackupStream = Box::pin(base_backup::messages(backup));
        Ok(holding(room, messages))
    }

    async fn get_slru_segment(
        &self,
        request: Request<GetSlruSegmentRequest>,
    ) -> Result<Response<GetSlruSegmentResponse>, Status> {
        let message = request.into_inner();
        let kind = slru_kind(message.kind).map_err(invalid)?;
        let segment = message.segment_number;
        let begun = self.begin(Call::SlruSegment, message.timeline, message.read_lsn);
        let Reading { reader, lsn, room } = begun.await?;
        let pages = reader.slru_segment(kind, segment, lsn).await;
        let page = |(page_number, data)| SlruPage { page_number, data };
        let answer = GetSlruSegmentResponse {
            lsn: lsn.get(),
            pages: pages.map_err(failed)?.into_iter().map(page).collect(),
        };
        Ok(holding(room, answer))
    }

    async fn get_relation_map(
        &self,
        request: Request<GetRelationMapRequest>,
    ) -> Result<Response<GetRelationMapResponse>, Status> {
        let message = request.into_inner();
        let (spc, db) = (message.spc_oid, message.db_oid);
        let begun = self.begin(Call::Small, message.timeline, message.read_lsn);
        let Reading { reader, lsn, room } = begun.await?;
        let content = reader.relation_map(spc, db, lsn).await.map_err(failed)?;
        let answer = GetRelationMapResponse {
            lsn: lsn.get(),
            content,
        };
        Ok(holding(room, answer))
    }

    async fn get_readable(
        &self,
        request: Request<GetReadableRequest>,
    ) -> Result<Response<GetReadableResponse>, Status> {
        let timeline = request.into_inner().timeline.try_into().map_err(invalid)?;
        let reader = self.timelines.reader(timeline).await.map_err(status)?;
        let (oldest, newest) = reader.readable();
        Ok(Response::new(GetReadableResponse {
            oldest_lsn: oldest.get(),
            newest_lsn: newest.get(),
        }))
    }

    async fn get_lsn_at_time(
        &self,
        request: Request<GetLsnAtTimeRequest>,
    ) -> Result<Response<GetLsnAtTimeResponse>, Status> {
        let GetLsnAtTimeRequest { timeline, unix_us } = request.into_inner();
        let Reading { reader, lsn, room } = self.begin(Call::Small, timeline, None).await?;
        let (oldest, _) = reader.readable();
        let time = unix_us.saturating_sub(POSTGRES_EPOCH_US);
        let found = lsn_at_time(&*reader, time, oldest..=lsn).await;
        let answer = match found.map_err(failed)? {
            TimeAt::Lsn(lsn) => {
                reader.expect_no_hole(lsn).map_err(failed)?;
                LsnAtTime::Exact(lsn)
            }
            TimeAt::Newest => LsnAtTime::Newest(lsn),
            TimeAt::BeforeOldest => LsnAtTime::BeforeOldest,
        };
        Ok(holding(room, answer.into()))
    }

    async fn get_time_at_lsn(
        &self,
        request: Request<GetTimeAtLsnRequest>,
    ) -> Result<Response<GetTimeAtLsnResponse>, Status> {
        let GetTimeAtLsnRequest { timeline, read_lsn } = request.into_inner();
        let begun = self.begin(Call::Small, timeline, read_lsn);
        let Reading { reader, lsn, room } = begun.await?;
        let latest = time_at_lsn(&*reader, lsn).await.map_err(failed)?;
        let answer = GetTimeAtLsnResponse {
            lsn: lsn.get(),
            unix_us: latest.map(|time| time.saturating_add(POSTGRES_EPOCH_US)),
        };
        Ok(holding(room, answer))
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
