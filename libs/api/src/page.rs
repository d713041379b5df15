//! Pages and sizes at an LSN: the client of page-serve.

mod base_backup;
mod catalog;
mod files;
mod limits;
mod pool;
mod sizes;
mod stream;
mod time;

pub use base_backup::{BaseBackupFacts, BaseBackupRequest, BaseBackupStream};
pub use catalog::TimelineAt;
pub use files::{RelationMapFile, SlruSegment, slru_kind};
pub use limits::{ANSWER_LIMIT, LSN_PATIENCE};
pub use pool::PagePool;
pub use sizes::{DatabaseSize, RelationSize};
pub use time::LsnAtTime;

use std::time::Duration;

use bytes::Bytes;
use palimpsest_proto::page::v1 as wire;
use palimpsest_telemetry::trace;
use palimpsest_types::{BlockNumber, ErrorKind, Lsn, RelTag};
use wire::page_service_client::PageServiceClient;

use self::stream::PageStreams;
use crate::{
    channel::{Channel, MAX_MESSAGE},
    convert::{InvalidMessageError, TimelineRef, lsn_from_wire, rel_tag, rel_tag_to_wire},
    status::RemoteError,
};

/// At which LSN to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadAt {
    /// As of this LSN; `None` is the newest that has arrived.
    pub lsn: Option<Lsn>,
    /// Nothing asked for has changed after this LSN.
    pub not_modified_since: Option<Lsn>,
    /// How long to wait for it, at most; `None` is as long as the server is set to.
    pub patience: Option<Duration>,
}

/// Asks for some pages of one relation fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagesRequest {
    /// Of which timeline.
    pub timeline: TimelineRef,
    /// When.
    pub at: ReadAt,
    /// Of which fork.
    pub rel: RelTag,
    /// Which pages; at most [`MAX_BLOCKS`].
    pub blocks: Vec<BlockNumber>,
}

/// Pages as they were at an LSN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// The LSN that was read.
    pub lsn: Lsn,
    /// In the order of the request.
    pub pages: Vec<Bytes>,
}

/// Pages in one request, at most.
pub const MAX_BLOCKS: usize = 256;

/// A client of one page-serve. Its pages go over one long-lived stream; when that breaks, the next
/// call opens another, so the client outlives a restart of its page-serve.
#[derive(Debug)]
pub struct PageClient {
    unary: PageServiceClient<Channel>,
    streams: PageStreams,
}

impl PageClient {
    /// Opens the stream.
    ///
    /// # Errors
    /// If page-serve can't be reached.
    pub async fn connect(channel: Channel) -> Result<Self, RemoteError> {
        let unary = PageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let streams = PageStreams::open(unary.clone()).await?;
        Ok(Self { unary, streams })
    }

    /// Pages at an LSN. Many calls may be under way; each is answered as it is ready.
    ///
    /// # Errors
    /// What page-serve says; not ready if the stream broke, or could not be opened again. The
    /// request may be repeated then.
    pub async fn pages(&self, request: PagesRequest) -> Result<Pages, RemoteError> {
        self.streams.stream().await?.pages(request).await
    }

    /// The oldest and the newest LSN that can be read there now.
    ///
    /// # Errors
    /// What page-serve says.
    pub async fn readable(&self, timeline: TimelineRef) -> Result<(Lsn, Lsn), RemoteError> {
        let request = wire::GetReadableRequest {
            timeline: Some(timeline.into()),
        };
        let answer = self.unary.clone().get_readable(request).await?.into_inner();
        Ok((Lsn::new(answer.oldest_lsn), Lsn::new(answer.newest_lsn)))
    }
}

fn malformed(error: InvalidMessageError) -> RemoteError {
    RemoteError::new(ErrorKind::Internal, format!("malformed answer: {error}"))
}

/// Whole milliseconds, at least one: none would be as many as the server likes.
fn millis(patience: Duration) -> u32 {
    u32::try_from(patience.as_millis())
        .unwrap_or(u32::MAX)
        .max(1)
}

impl From<Lsn> for ReadAt {
    /// As of this LSN, of which nothing else is known.
    fn from(lsn: Lsn) -> Self {
        Self {
            lsn: Some(lsn),
            ..Self::default()
        }
    }
}

impl From<ReadAt> for wire::ReadLsn {
    fn from(at: ReadAt) -> Self {
        Self {
            request_lsn: at.lsn.unwrap_or_default().get(),
            not_modified_since_lsn: at.not_modified_since.unwrap_or_default().get(),
            timeout_ms: at.patience.map_or(0, millis),
        }
    }
}

impl From<Option<wire::ReadLsn>> for ReadAt {
    fn from(message: Option<wire::ReadLsn>) -> Self {
        let message = message.unwrap_or_default();
        Self {
            lsn: lsn_from_wire(message.request_lsn),
            not_modified_since: lsn_from_wire(message.not_modified_since_lsn),
            patience: (message.timeout_ms != 0)
                .then(|| Duration::from_millis(message.timeout_ms.into())),
        }
    }
}

fn pages_request_to_wire(request_id: u64, request: PagesRequest) -> wire::GetPagesRequest {
    wire::GetPagesRequest {
        request_id,
        timeline: Some(request.timeline.into()),
        read_lsn: Some(request.at.into()),
        rel: Some(rel_tag_to_wire(request.rel)),
        block_numbers: request.blocks.into_iter().map(BlockNumber::get).collect(),
        traceparent: trace::current().unwrap_or_default(),
    }
}

impl TryFrom<wire::GetPagesRequest> for PagesRequest {
    type Error = InvalidMessageError;

    fn try_from(message: wire::GetPagesRequest) -> Result<Self, Self::Error> {
        let count = message.block_numbers.len();
        if count == 0 || count > MAX_BLOCKS {
            let problem = format!("has {count} entries; 1 to {MAX_BLOCKS} are allowed");
            return Err(InvalidMessageError::new("block_numbers", problem));
        }
        Ok(Self {
            timeline: message.timeline.try_into()?,
            at: message.read_lsn.into(),
            rel: rel_tag(message.rel)?,
            blocks: message
                .block_numbers
                .into_iter()
                .map(BlockNumber::new)
                .collect(),
        })
    }
}

fn pages_from_wire(message: wire::GetPagesResponse) -> Result<Pages, RemoteError> {
    match message.error {
        Some(error) => Err(error.into()),
        None => Ok(Pages {
            lsn: Lsn::new(message.lsn),
            pages: message.pages,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_to_wait_survives_the_wire_and_none_is_no_patience() {
        let through = |patience| {
            let at = ReadAt {
                patience,
                ..ReadAt::default()
            };
            ReadAt::from(Some(wire::ReadLsn::from(at))).patience
        };
        for patience in [None, Some(Duration::from_millis(1500))] {
            assert_eq!(through(patience), patience);
        }
        let shortest = Some(Duration::from_millis(1));
        assert_eq!(through(Some(Duration::ZERO)), shortest);
        let longest = Some(Duration::from_millis(u32::MAX.into()));
        assert_eq!(through(Some(Duration::MAX)), longest);
    }
}
