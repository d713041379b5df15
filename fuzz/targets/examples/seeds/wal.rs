//! Pages and records of the log, and what is made of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use palimpsest_api::feed::FeedBatch;
use palimpsest_layer::{LogRecord, OpenLayer, delta_file::write_delta_layer};
use palimpsest_proto::ingest::v1::SubscribeResponse;
use palimpsest_types::{Lsn, WriterEpoch};
use palimpsest_wal::{
    BaseFacts, Change, Interpreter, RawRecord, RecordReader, RelationSizes, SegmentSize, Value,
};
use prost::Message as _;

use crate::Corpora;

const SEGMENT: u64 = 1 << 20;
const PAGE: usize = 8192;
/// The first page continues no record.
const CONTINUES: u8 = 1;
/// Records longer than this are not worth their place.
const RECORD: usize = 1500;
/// Streams of pages, and records in a layer and in a batch.
const STREAMS: usize = 4;
const CHANGED: usize = 40;

pub(crate) fn write(corpora: &Corpora, pg_wal: &Path) -> Result<()> {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(pg_wal)? {
        let path = entry?.path();
        let bytes = match path.is_file() {
            true => fs::read(&path)?,
            false => continue,
        };
        let address = u64::from_le_bytes(
            *bytes
                .get(8..)
                .and_then(<[u8]>::first_chunk)
                .context("a page")?,
        );
        segments.insert(address, Bytes::from(bytes));
    }
    write_pages(corpora, segments.values())?;
    let records = records(&segments)?;
    write_records(corpora, &records)?;
    write_changes(corpora, &records)
}

fn write_pages<'a>(corpora: &Corpora, segments: impl Iterator<Item = &'a Bytes>) -> Result<()> {
    let mut streams = 0;
    for segment in segments {
        let pages = segment.chunks(PAGE).enumerate();
        let begins = |(_, page): &(usize, &[u8])| page[2] & CONTINUES == 0 && page[0] != 0;
        for (number, _) in pages.filter(begins).take(2) {
            let stream = &segment[number * PAGE..];
            corpora.seed("wal_pages", &format!("stream-{streams}"), stream)?;
            streams += 1;
            if streams == STREAMS {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// All records from the first segment that begins with one.
fn records(segments: &BTreeMap<u64, Bytes>) -> Result<Vec<RawRecord>> {
    let (first, _) = segments
        .iter()
        .find(|(_, segment)| segment[2] & CONTINUES == 0)
        .context("no segment begins with a record")?;
    let mut reader = RecordReader::new(Lsn::new(*first), SegmentSize::new(SEGMENT)?);
    let mut records = Vec::new();
    for (_, segment) in segments.range(first..) {
        reader.push(reader.expects(), segment.clone())?;
        // Segments that are kept for later use are not the log's any more.
        while let Ok(Some(record)) = reader.next_record() {
            records.push(record);
        }
    }
    Ok(records)
}

/// For each resource manager one of each kind of record, in one input; and images by compression.
fn write_records(corpora: &Corpora, records: &[RawRecord]) -> Result<()> {
    let mut known = BTreeSet::new();
    let mut by_manager: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for record in records {
        let header = record.header().context("a header")?;
        let kind = (header.rmid, header.info);
        if record.bytes.len() <= RECORD && known.insert(kind) {
            let input = by_manager.entry(header.rmid).or_default();
            input.extend(&record.bytes);
        }
        if let Some((flags, image)) = image(&record.bytes) {
            corpora.seed("page_images", &format!("image-{flags:02x}"), &image)?;
        }
    }
    for (rmid, input) in by_manager {
        corpora.seed("wal_records", &format!("rmgr-{rmid:02}"), &input)?;
    }
    Ok(())
}

/// The input of `page_images` that the image of a record's only block is.
fn image(record: &[u8]) -> Option<(u8, Vec<u8>)> {
    const HAS_IMAGE: u8 = 0x10;
    const HAS_HOLE: u8 = 1;
    const COMPRESSED: u8 = 0x1C;
    let block = record.get(24..)?;
    let (id, fork_flags) = (*block.first()?, *block.get(1)?);
    if id != 0 || fork_flags & HAS_IMAGE == 0 {
        return None;
    }
    let len = usize::from(u16::from_le_bytes(*block.get(4..)?.first_chunk()?));
    let flags = *block.get(8)?;
    let explicit_hole = flags & HAS_HOLE != 0 && flags & COMPRESSED != 0;
    let hole = match explicit_hole {
        true => [*block.get(9)?, *block.get(10)?],
        false => [0, 0],
    };
    let headers = 9 + if explicit_hole { 2 } else { 0 } + 16;
    let rest = block.get(headers..)?;
    // Main data, or none; another block's header would come first.
    let stored = match rest.first()? {
        0xFF => rest.get(2..)?,
        _ if rest.len() == len => rest,
        _ => return None,
    };
    let mut input = vec![flags, *block.get(6)?, *block.get(7)?];
    input.extend(hole);
    input.extend(stored.get(..len)?);
    Some((flags, input))
}

/// A small layer and a small batch of the feed.
fn write_changes(corpora: &Corpora, records: &[RawRecord]) -> Result<()> {
    let mut interpreter = Interpreter::new(RelationSizes::default(), BaseFacts::consistent());
    let mut changed = Vec::new();
    for record in records {
        let Ok(changes) = interpreter.interpret(record) else {
            continue;
        };
        let is_small = |change: &Change| match &change.value {
            Value::Image(_) => false,
            Value::Record { record, .. } => record.bytes.len() <= RECORD / 4,
            _ => true,
        };
        if !changes.is_empty() && changes.iter().all(is_small) {
            changed.push(LogRecord {
                lsn: record.end_lsn,
                changes,
            });
        }
    }
    let step = changed.len() / CHANGED + 1;
    let some: Vec<_> = changed.into_iter().step_by(step).collect();
    let up_to = some.last().context("no changes")?.lsn;
    let mut layer = OpenLayer::new(WriterEpoch::FIRST, Lsn::ZERO);
    for record in some.clone() {
        layer.append(record)?;
    }
    let mut file = Vec::new();
    write_delta_layer(&layer, &mut file)?;
    corpora.seed("delta_layer", "layer", &file)?;
    let batch = FeedBatch {
        epoch: WriterEpoch::FIRST,
        epoch_start: Lsn::ZERO,
        up_to,
        records: some,
    };
    corpora.seed(
        "feed",
        "batch",
        &SubscribeResponse::from(batch).encode_to_vec(),
    )
}
