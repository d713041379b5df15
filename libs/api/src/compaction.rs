//! Layers of timelines and what compactors do about them: the client of a compactor.

use std::time::Duration;

use palimpsest_proto::compaction::v1 as wire;
use palimpsest_types::{ByteCount, ErrorKind, Key, Lsn, WriterEpoch};
use wire::compaction_service_client::CompactionServiceClient;

use crate::{
    channel::Channel,
    convert::{InvalidMessageError, TimelineRef},
    status::RemoteError,
};

/// A layer file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its file name.
    pub name: String,
    /// Whether it has one version of each key, at `up_to`; else it has all changes.
    pub image: bool,
    /// Its changes end behind here.
    pub after: Lsn,
    /// Its changes end here or before.
    pub up_to: Lsn,
    /// The first key that it may have.
    pub first: Key,
    /// The last key that it may have.
    pub last: Key,
    /// Length of the file.
    pub size: ByteCount,
    /// Number of versions in it.
    pub entries: u64,
    /// How often its content was compacted.
    pub level: u8,
    /// Generation of the writer whose changes these are.
    pub epoch: WriterEpoch,
}

/// What would be compacted next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanInfo {
    /// Oldest first; none if nothing is worth it.
    pub inputs: Vec<LayerInfo>,
    /// Their changes end behind here.
    pub after: Lsn,
    /// Their changes end here or before.
    pub up_to: Lsn,
    /// How long another compactor's claim of the timeline holds; zero if there is none.
    pub claimed_for: Duration,
    /// If there are no inputs: keys of which images would be made.
    pub images: Vec<WornInfo>,
}

/// Keys of which an image is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WornInfo {
    /// The first.
    pub first: Key,
    /// The last.
    pub last: Key,
    /// Where their newest image is; zero if there is none.
    pub since: Lsn,
    /// Compacted layers that may have changes of one of them since then, at most.
    pub layers: u32,
}

/// A compaction that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionInfo {
    /// Of which timeline.
    pub timeline: TimelineRef,
    /// Layers that were replaced, and their size; none by images.
    pub read: (u32, ByteCount),
    /// Layers that were put in their place, or images that were made, and their size.
    pub written: (u32, ByteCount),
    /// When it was published, in milliseconds since 1970.
    pub ended_unix_ms: u64,
    /// How long it took.
    pub took: Duration,
}

/// A compaction under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkInfo {
    /// Of which timeline.
    pub timeline: TimelineRef,
    /// Layers that are read, and their size.
    pub read: (u32, ByteCount),
    /// Layers that are written already.
    pub written: u32,
    /// Of so many, about.
    pub to_write: u32,
}

/// Asks a compactor.
#[derive(Debug, Clone)]
pub struct CompactorClient(CompactionServiceClient<Channel>);

impl CompactorClient {
    /// A client over a channel.
    pub fn new(channel: Channel) -> Self {
        Self(CompactionServiceClient::new(channel))
    }

    /// The layers of a timeline, in the order of the LSNs at which they end.
    ///
    /// # Errors
    /// What the compactor says.
    pub async fn layers(&self, timeline: TimelineRef) -> Result<Vec<LayerInfo>, RemoteError> {
        let request = wire::ListLayersRequest {
            timeline: Some(timeline.into()),
        };
        let mut messages = self.0.clone().list_layers(request).await?.into_inner();
        let mut layers = Vec::new();
        while let Some(message) = messages.message().await? {
            let some = message.layers.into_iter().map(LayerInfo::try_from);
            layers.extend(some.collect::<Result<Vec<_>, _>>().map_err(malformed)?);
        }
        Ok(layers)
    }

    /// What would be compacted next if so many layers are worth it; `None` is what is set.
    ///
    /// # Errors
    /// What the compactor says.
    pub async fn plan(
        &self,
        timeline: TimelineRef,
        threshold: Option<u32>,
    ) -> Result<PlanInfo, RemoteError> {
        let request = wire::GetPlanRequest {
            timeline: Some(timeline.into()),
            threshold: threshold.unwrap_or_default(),
        };
        let plan = self.0.clone().get_plan(request).await?.into_inner();
        plan.try_into().map_err(malformed)
    }

    /// Compacts once; `None` if nothing is worth it. Takes as long as it takes.
    ///
    /// # Errors
    /// What the compactor says.
    pub async fn compact(
        &self,
        timeline: TimelineRef,
        threshold: Option<u32>,
    ) -> Result<Option<CompactionInfo>, RemoteError> {
        let request = wire::CompactRequest {
            timeline: Some(timeline.into()),
            threshold: threshold.unwrap_or_default(),
        };
        let answer = self.0.clone().compact(request).await?.into_inner();
        let done = answer.done.filter(|_| answer.compacted);
        done.map(CompactionInfo::try_from)
            .transpose()
            .map_err(malformed)
    }

    /// What the compactor does now, and what it has done, the newest first.
    ///
    /// # Errors
    /// What it says.
    pub async fn activity(&self) -> Result<(Option<WorkInfo>, Vec<CompactionInfo>), RemoteError> {
        let request = wire::GetActivityRequest {};
        let answer = self.0.clone().get_activity(request).await?.into_inner();
        let now = answer.now.map(WorkInfo::try_from).transpose();
        let done = answer.done.into_iter().map(CompactionInfo::try_from);
        let done = done.collect::<Result<Vec<_>, _>>();
        Ok((now.map_err(malformed)?, done.map_err(malformed)?))
    }
}

fn malformed(error: InvalidMessageError) -> RemoteError {
    RemoteError::new(ErrorKind::Internal, format!("malformed answer: {error}"))
}

impl From<LayerInfo> for wire::Layer {
    fn from(layer: LayerInfo) -> Self {
        Self {
            name: layer.name,
            image: layer.image,
            after_lsn: layer.after.get(),
            up_to_lsn: layer.up_to.get(),
            first_key: layer.first.to_bytes().to_vec().into(),
            last_key: layer.last.to_bytes().to_vec().into(),
            size_bytes: layer.size.get(),
            entries: layer.entries,
            level: layer.level.into(),
            writer_epoch: layer.epoch.get(),
        }
    }
}

impl TryFrom<wire::Layer> for LayerInfo {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Layer) -> Result<Self, Self::Error> {
        Ok(Self {
            name: message.name,
            image: message.image,
            after: Lsn::new(message.after_lsn),
            up_to: Lsn::new(message.up_to_lsn),
            first: key("first_key", &message.first_key)?,
            last: key("last_key", &message.last_key)?,
            size: ByteCount::new(message.size_bytes),
            entries: message.entries,
            level: u8::try_from(message.level).unwrap_or(u8::MAX),
            epoch: WriterEpoch::new(message.writer_epoch),
        })
    }
}

fn key(field: &'static str, bytes: &[u8]) -> Result<Key, InvalidMessageError> {
    let bytes = bytes.try_into().ok();
    let key = bytes.and_then(|bytes| Key::from_bytes(bytes).ok());
    key.ok_or_else(|| InvalidMessageError::new(field, "is no key".to_owned()))
}

impl From<PlanInfo> for wire::GetPlanResponse {
    fn from(plan: PlanInfo) -> Self {
        Self {
            inputs: plan.inputs.into_iter().map(wire::Layer::from).collect(),
            after_lsn: plan.after.get(),
            up_to_lsn: plan.up_to.get(),
            claimed_for_ms: millis(plan.claimed_for),
            images: plan.images.into_iter().map(wire::WornKeys::from).collect(),
        }
    }
}

impl From<WornInfo> for wire::WornKeys {
    fn from(worn: WornInfo) -> Self {
        Self {
            first_key: worn.first.to_bytes().to_vec().into(),
            last_key: worn.last.to_bytes().to_vec().into(),
            since_lsn: worn.since.get(),
            layers: worn.layers,
        }
    }
}

impl TryFrom<wire::WornKeys> for WornInfo {
    type Error = InvalidMessageError;

    fn try_from(message: wire::WornKeys) -> Result<Self, Self::Error> {
        Ok(Self {
            first: key("first_key", &message.first_key)?,
            last: key("last_key", &message.last_key)?,
            since: Lsn::new(message.since_lsn),
            layers: message.layers,
        })
    }
}

impl TryFrom<wire::GetPlanResponse> for PlanInfo {
    type Error = InvalidMessageError;

    fn try_from(message: wire::GetPlanResponse) -> Result<Self, Self::Error> {
        let inputs = message.inputs.into_iter().map(LayerInfo::try_from);
        Ok(Self {
            inputs: inputs.collect::<Result<_, _>>()?,
            after: Lsn::new(message.after_lsn),
            up_to: Lsn::new(message.up_to_lsn),
            claimed_for: Duration::from_millis(message.claimed_for_ms),
            images: {
                let images = message.images.into_iter().map(WornInfo::try_from);
                images.collect::<Result<_, _>>()?
            },
        })
    }
}

impl From<CompactionInfo> for wire::Compaction {
    fn from(done: CompactionInfo) -> Self {
        Self {
            timeline: Some(done.timeline.into()),
            layers_read: done.read.0,
            bytes_read: done.read.1.get(),
            layers_written: done.written.0,
            bytes_written: done.written.1.get(),
            ended_unix_ms: done.ended_unix_ms,
            took_ms: millis(done.took),
        }
    }
}

impl TryFrom<wire::Compaction> for CompactionInfo {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Compaction) -> Result<Self, Self::Error> {
        Ok(Self {
            timeline: message.timeline.try_into()?,
            read: (message.layers_read, ByteCount::new(message.bytes_read)),
            written: (
                message.layers_written,
                ByteCount::new(message.bytes_written),
            ),
            ended_unix_ms: message.ended_unix_ms,
            took: Duration::from_millis(message.took_ms),
        })
    }
}

impl From<WorkInfo> for wire::Work {
    fn from(work: WorkInfo) -> Self {
        Self {
            timeline: Some(work.timeline.into()),
            layers_read: work.read.0,
            bytes_read: work.read.1.get(),
            layers_to_write: work.to_write,
            layers_written: work.written,
        }
    }
}

impl TryFrom<wire::Work> for WorkInfo {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Work) -> Result<Self, Self::Error> {
        Ok(Self {
            timeline: message.timeline.try_into()?,
            read: (message.layers_read, ByteCount::new(message.bytes_read)),
            written: message.layers_written,
            to_write: message.layers_to_write,
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
