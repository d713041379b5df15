//! The change feed: from wal-ingest to page-serve.

use palimpsest_layer::LogRecord;
use palimpsest_proto::ingest::v1 as wire;
use palimpsest_types::{BlockNumber, Key, Lsn, PAGE_SIZE, WriterEpoch};
use palimpsest_wal::{Change, PagePatches, RawRecord, TransactionEnd, Value};
use tonic::Streaming;
use wire::{
    change::{CopyOf, TransactionsEnded, Value as WireValue},
    feed_service_client::FeedServiceClient,
};

use crate::{
    channel::{Channel, MAX_MESSAGE},
    convert::{InvalidMessageError, TimelineRef, record_from_wire, record_to_wire},
    status::RemoteError,
};

/// Some records' changes, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedBatch {
    /// Generation of the writer.
    pub epoch: WriterEpoch,
    /// What an earlier writer told of LSNs after here is void.
    pub epoch_start: Lsn,
    /// Everything up to here has come with this batch.
    pub up_to: Lsn,
    /// Records that change something.
    pub records: Vec<LogRecord>,
}

/// An open feed.
#[derive(Debug)]
pub struct FeedStream {
    inner: Streaming<wire::SubscribeResponse>,
}

/// Opens the feed of a timeline after `after`.
///
/// # Errors
/// If the writer can't be reached or does not have that timeline.
pub async fn subscribe(
    channel: Channel,
    timeline: TimelineRef,
    after: Lsn,
) -> Result<FeedStream, RemoteError> {
    let mut client = FeedServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let request = wire::SubscribeRequest {
        timeline: Some(timeline.into()),
        after_lsn: after.get(),
    };
    Ok(FeedStream {
        inner: client.subscribe(request).await?.into_inner(),
    })
}

impl FeedStream {
    /// The next batch; `None` when the writer ended the feed. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the feed broke or a message is malformed.
    pub async fn next(&mut self) -> Result<Option<FeedBatch>, RemoteError> {
        let Some(message) = self.inner.message().await? else {
            return Ok(None);
        };
        let batch = FeedBatch::try_from(message)
            .map_err(|error| RemoteError::new(error.kind(), error.to_string()))?;
        Ok(Some(batch))
    }
}

impl From<FeedBatch> for wire::SubscribeResponse {
    fn from(batch: FeedBatch) -> Self {
        Self {
            writer_epoch: batch.epoch.get(),
            epoch_start_lsn: batch.epoch_start.get(),
            up_to_lsn: batch.up_to.get(),
            records: batch
                .records
                .into_iter()
                .map(record_changes_to_wire)
                .collect(),
        }
    }
}

impl TryFrom<wire::SubscribeResponse> for FeedBatch {
    type Error = InvalidMessageError;

    fn try_from(message: wire::SubscribeResponse) -> Result<Self, Self::Error> {
        Ok(Self {
            epoch: WriterEpoch::new(message.writer_epoch),
            epoch_start: Lsn::new(message.epoch_start_lsn),
            up_to: Lsn::new(message.up_to_lsn),
            records: message
                .records
                .into_iter()
                .map(record_changes_from_wire)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The record itself travels once, however many pages it changes.
fn record_changes_to_wire(record: LogRecord) -> wire::RecordChanges {
    let mut raw = None;
    let changes = record.changes.into_iter().map(|Change { key, value }| {
        let value = match value {
            Value::Image(page) => WireValue::Image(page),
            Value::ZeroPage => WireValue::ZeroPage(true),
            Value::Record { will_init, record } => {
                raw.get_or_insert(record);
                WireValue::RecordWillInit(will_init)
            }
            Value::TruncateVisibilityMap { heap_blocks } => {
                WireValue::TruncateVisibilityMap(heap_blocks.get())
            }
            Value::TransactionsEnded { end, xids } => {
                WireValue::TransactionsEnded(TransactionsEnded {
                    committed: end == TransactionEnd::Committed,
                    xids: xids.to_vec(),
                })
            }
            Value::Patched(patches) => WireValue::Patches(patches.encoded().clone()),
            Value::RelSize(blocks) => WireValue::RelSize(blocks.get()),
            Value::File(content) => WireValue::File(content),
            Value::CopyOf { spc, db } => WireValue::CopyOf(CopyOf {
                tablespace: spc,
                database: db,
            }),
            Value::Dropped => WireValue::Dropped(true),
        };
        wire::Change {
            key: key.to_bytes().to_vec().into(),
            value: Some(value),
        }
    });
    let changes = changes.collect();
    wire::RecordChanges {
        lsn: record.lsn.get(),
        record: raw.map(record_to_wire),
        changes,
    }
}

fn record_changes_from_wire(
    message: wire::RecordChanges,
) -> Result<LogRecord, InvalidMessageError> {
    let record = message.record.map(record_from_wire);
    let change = |change| change_from_wire(change, record.as_ref());
    Ok(LogRecord {
        lsn: Lsn::new(message.lsn),
        changes: message
            .changes
            .into_iter()
            .map(change)
            .collect::<Result<_, _>>()?,
    })
}

fn change_from_wire(
    message: wire::Change,
    record: Option<&RawRecord>,
) -> Result<Change, InvalidMessageError> {
    let key = message
        .key
        .first_chunk()
        .filter(|_| message.key.len() == Key::LEN);
    let key = key.ok_or_else(|| InvalidMessageError::new("key", "has a wrong length"))?;
    let key =
        Key::from_bytes(key).map_err(|error| InvalidMessageError::new("key", error.to_string()))?;
    let value = match message
        .value
        .ok_or_else(|| InvalidMessageError::missing("value"))?
    {
        WireValue::Image(page) if page.len() != PAGE_SIZE => {
            let problem = format!("has {} bytes, not {PAGE_SIZE}", page.len());
            return Err(InvalidMessageError::new("image", problem));
        }
        WireValue::Image(page) => Value::Image(page),
        WireValue::ZeroPage(_) => Value::ZeroPage,
        WireValue::RecordWillInit(will_init) => {
            let record = record
                .cloned()
                .ok_or_else(|| InvalidMessageError::missing("record"))?;
            Value::Record { will_init, record }
        }
        WireValue::TruncateVisibilityMap(blocks) => Value::TruncateVisibilityMap {
            heap_blocks: BlockNumber::new(blocks),
        },
        WireValue::TransactionsEnded(TransactionsEnded { committed, xids }) => {
            let end = match committed {
                true => TransactionEnd::Committed,
                false => TransactionEnd::Aborted,
            };
            Value::TransactionsEnded {
                end,
                xids: xids.into(),
            }
        }
        WireValue::Patches(encoded) => {
            let invalid = |error| InvalidMessageError::new("patches", format!("{error}"));
            Value::Patched(PagePatches::decode(encoded).map_err(invalid)?)
        }
        WireValue::RelSize(blocks) => Value::RelSize(BlockNumber::new(blocks)),
        WireValue::File(content) => Value::File(content),
        WireValue::CopyOf(CopyOf {
            tablespace: spc,
            database: db,
        }) => Value::CopyOf { spc, db },
        WireValue::Dropped(_) => Value::Dropped,
    };
    Ok(Change { key, value })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use palimpsest_types::{Fork, RelTag, SlruKind};

    use super::*;

    /// A byte 7 at offset 3.
    const PATCH: &[u8] = &[3, 0, 1, 0, 7];

    #[test]
    fn a_batch_survives_the_wire_and_carries_a_record_once() {
        let rel = RelTag {
            spc: 1,
            db: 2,
            rel: 3,
            fork: Fork::Main,
        };
        let bytes = Bytes::from_static(b"a record");
        let record = RawRecord {
            start_lsn: Lsn::new(8),
            end_lsn: Lsn::new(16),
            bytes,
        };
        let block = |number| Key::RelBlock(rel, BlockNumber::new(number));
        let changes = vec![
            Change {
                key: block(0),
                value: Value::Record {
                    will_init: true,
                    record: record.clone(),
                },
            },
            Change {
                key: block(1),
                value: Value::Record {
                    will_init: false,
                    record,
                },
            },
            Change {
                key: block(2),
                value: Value::ZeroPage,
            },
            Change {
                key: block(3),
                value: Value::Image(Bytes::from_static(&[7; PAGE_SIZE])),
            },
            Change {
                key: Key::RelSize(rel),
                value: Value::RelSize(BlockNumber::new(4)),
            },
            Change {
                key: Key::RelMap { spc: 1, db: 2 },
                value: Value::Dropped,
            },
            Change {
                key: Key::Database { spc: 1, db: 2 },
                value: Value::CopyOf { spc: 3, db: 4 },
            },
            Change {
                key: Key::SlruBlock(SlruKind::Clog, 0),
                value: Value::TransactionsEnded {
                    end: TransactionEnd::Aborted,
                    xids: [700, 701].into(),
                },
            },
            Change {
                key: Key::SlruBlock(SlruKind::CommitTs, 0),
                value: Value::Patched(PagePatches::decode(Bytes::from_static(PATCH)).unwrap()),
            },
        ];
        let records = vec![LogRecord {
            lsn: Lsn::new(16),
            changes,
        }];
        let batch = FeedBatch {
            epoch: WriterEpoch::FIRST,
            epoch_start: Lsn::new(8),
            up_to: Lsn::new(16),
            records,
        };
        let message = wire::SubscribeResponse::from(batch.clone());
        assert!(message.records[0].record.is_some());
        assert_eq!(FeedBatch::try_from(message).unwrap(), batch);
    }

    #[test]
    fn a_change_that_refers_to_no_record_is_an_error() {
        assert!(decode(WireValue::RecordWillInit(false)).is_err());
    }

    #[test]
    fn an_image_that_is_no_page_is_an_error() {
        for len in [0, PAGE_SIZE - 1, PAGE_SIZE + 1] {
            let value = WireValue::Image(vec![0; len].into());
            assert!(decode(value).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn patches_beyond_a_page_are_an_error() {
        assert!(decode(WireValue::Patches(Bytes::from_static(PATCH))).is_ok());
        for bad in [[0xFF, 0x1F, 2, 0, 7, 7].as_slice(), &[3, 0, 2, 0, 7], &[3]] {
            let value = WireValue::Patches(Bytes::copy_from_slice(bad));
            assert!(decode(value).is_err(), "{bad:?}");
        }
    }

    fn decode(value: WireValue) -> Result<FeedBatch, InvalidMessageError> {
        let value = Some(value);
        let key = Key::RelMap { spc: 1, db: 2 }.to_bytes().to_vec().into();
        let changes = vec![wire::Change { key, value }];
        let records = vec![wire::RecordChanges {
            lsn: 1,
            record: None,
            changes,
        }];
        let message = wire::SubscribeResponse {
            epoch_start_lsn: 0,
            writer_epoch: 1,
            up_to_lsn: 1,
            records,
        };
        FeedBatch::try_from(message)
    }
}
