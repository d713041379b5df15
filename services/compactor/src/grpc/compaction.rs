use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use palimpsest_api::{
    InvalidMessageError, TimelineRef,
    compaction::{CompactionInfo, LayerInfo, PlanInfo, WorkInfo, WornInfo},
    error_status,
};
use palimpsest_manifest::{LayerEntry, LayerKind};
use palimpsest_proto::{
    common::v1 as common,
    compaction::v1::{
        CompactRequest, CompactResponse, GetActivityRequest, GetActivityResponse, GetPlanRequest,
        GetPlanResponse, ListLayersRequest, ListLayersResponse,
        compaction_service_server::{CompactionService, CompactionServiceServer},
    },
};
use palimpsest_runtime::BackgroundThreads;
use palimpsest_types::{ByteCount, Lsn, unix_ms};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::core::{CompactError, Compactor, Done, Next, Work, Worn};

/// `CompactionService`.
#[derive(Debug)]
pub(crate) struct CompactionApi {
    compactor: Arc<Compactor>,
    threads: Arc<BackgroundThreads>,
}

/// Layers in one message.
const LAYERS: usize = 1000;

impl CompactionApi {
    /// Answers for this compactor, which works on these threads.
    pub(crate) fn new(compactor: Arc<Compactor>, threads: Arc<BackgroundThreads>) -> Self {
        Self { compactor, threads }
    }

    /// The service with its limits.
    pub(crate) fn into_server(self) -> CompactionServiceServer<Self> {
        CompactionServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl CompactionService for CompactionApi {
    type ListLayersStream = Pin<Box<dyn Stream<Item = Result<ListLayersResponse, Status>> + Send>>;

    async fn list_layers(
        &self,
        request: Request<ListLayersRequest>,
    ) -> Result<Response<Self::ListLayersStream>, Status> {
        let timeline = named(request.into_inner().timeline)?;
        let manifest = self.compactor.manifest(timeline).await.map_err(failed)?;
        let layers = manifest.layers().len();
        // Made as they are sent; what is held is the manifest, which has all of them anyway.
        let messages = (0..layers).step_by(LAYERS).map(move |from| {
            let some = manifest.layers().iter().skip(from).take(LAYERS);
            Ok(ListLayersResponse {
                layers: some.map(|entry| layer_info(entry).into()).collect(),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn get_plan(
        &self,
        request: Request<GetPlanRequest>,
    ) -> Result<Response<GetPlanResponse>, Status> {
        let request = request.into_inner();
        let timeline = named(request.timeline)?;
        let manifest = self.compactor.manifest(timeline).await.map_err(failed)?;
        let policy = self
            .compactor
            .policy_with(timeline, threshold(request.threshold));
        let next = self.compactor.next(timeline, &manifest, &policy);
        let plan = plan_info(next, manifest.claimed_for(SystemTime::now()));
        Ok(Response::new(plan.into()))
    }

    async fn compact(
        &self,
        request: Request<CompactRequest>,
    ) -> Result<Response<CompactResponse>, Status> {
        let request = request.into_inner();
        let timeline = named(request.timeline)?;
        let policy = self
            .compactor
            .policy_with(timeline, threshold(request.threshold));
        // Who asks for a timeline that is not there should hear so.
        self.compactor.manifest(timeline).await.map_err(failed)?;
        let compactor = Arc::clone(&self.compactor);
        let work = async move { compactor.compact_now(timeline, policy).await };
        let done = self.threads.run(work).await.map_err(failed)?;
        Ok(Response::new(CompactResponse {
            compacted: done.is_some(),
            done: done.map(|done| done_info(&done).into()),
        }))
    }

    async fn get_activity(
        &self,
        _: Request<GetActivityRequest>,
    ) -> Result<Response<GetActivityResponse>, Status> {
        let (now, done) = self.compactor.activity().told();
        Ok(Response::new(GetActivityResponse {
            now: now.map(|work| work_info(&work).into()),
            done: done.iter().map(|done| done_info(done).into()).collect(),
        }))
    }
}

fn named(timeline: Option<common::TimelineRef>) -> Result<TimelineRef, Status> {
    TimelineRef::try_from(timeline)
        .map_err(|error: InvalidMessageError| error_status(error.fault(), &error))
}

/// What was asked for; fewer than two are nothing to put together.
fn threshold(asked: u32) -> Option<usize> {
    (asked != 0).then(|| asked.max(2) as usize)
}

fn failed(error: CompactError) -> Status {
    error_status(error.kind(), &error)
}

fn layer_info(entry: &LayerEntry) -> LayerInfo {
    let (image, after) = match entry.kind {
        LayerKind::Base(lsn) | LayerKind::Image(lsn) => (true, lsn),
        LayerKind::Delta(lsns) => (false, lsns.after),
    };
    LayerInfo {
        name: entry.name.clone(),
        image,
        after,
        up_to: entry.up_to(),
        first: entry.keys.first,
        last: entry.keys.last,
        size: entry.size,
        entries: entry.entries,
        level: entry.level,
        epoch: entry.epoch,
    }
}

fn plan_info(next: Option<Next>, claimed_for: Duration) -> PlanInfo {
    let mut info = PlanInfo {
        inputs: Vec::new(),
        after: Lsn::ZERO,
        up_to: Lsn::ZERO,
        claimed_for,
        images: Vec::new(),
    };
    match next {
        None => {}
        Some(Next::Merge(plan)) => {
            info.inputs = plan.inputs.iter().map(layer_info).collect();
            (info.after, info.up_to) = (plan.lsns.after, plan.lsns.up_to);
        }
        Some(Next::Images(worn)) => info.images = worn.iter().map(worn_info).collect(),
    }
    info
}

fn worn_info(worn: &Worn) -> WornInfo {
    WornInfo {
        first: worn.keys.first,
        last: worn.keys.last,
        since: worn.since,
        layers: count(worn.layers),
    }
}

fn done_info(done: &Done) -> CompactionInfo {
    CompactionInfo {
        timeline: done.timeline,
        read: counted(done.read),
        written: counted(done.written),
        ended_unix_ms: unix_ms(done.ended),
        took: done.took,
    }
}

fn work_info(work: &Work) -> WorkInfo {
    WorkInfo {
        timeline: work.timeline,
        read: counted(work.read),
        written: count(work.written),
        to_write: count(work.to_write),
    }
}

fn counted((layers, bytes): (usize, ByteCount)) -> (u32, ByteCount) {
    (count(layers), bytes)
}

fn count(layers: usize) -> u32 {
    u32::try_from(layers).unwrap_or(u32::MAX)
}
