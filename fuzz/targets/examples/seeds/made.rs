//! What needs no PostgreSQL.

use anyhow::{Context as _, Result};
use palimpsest_layer::image::ImageLayerWriter;
use palimpsest_manifest::{
    KeySpan, LayerEntry, LayerKind, LsnSpan, SourceCluster, TimelineManifest, seal,
};
use palimpsest_proto::{common::v1 as common, page::v1 as page};
use palimpsest_types::{
    BlockNumber, ByteCount, Fork, Key, Lsn, PAGE_SIZE, RelTag, SlruKind, SystemIdentifier,
    WriterEpoch,
};
use prost::Message as _;

use crate::Corpora;

const REL: RelTag = RelTag {
    spc: 1663,
    db: 5,
    rel: 16384,
    fork: Fork::Main,
};
/// Length of what [`seal`] puts before a body.
const ENVELOPE: usize = 12;

pub(crate) fn write(corpora: &Corpora) -> Result<()> {
    corpora.seed("image_layer", "layer", &image_layer()?)?;
    corpora.seed("manifest", "layers", &manifest()?)?;
    corpora.seed("get_pages", "request", &get_pages())?;
    corpora.seed("redo_answers", "answers", &redo_answers())?;
    corpora.seed("slru_pages", "changes", &slru_changes())?;
    corpora.seed("base_backup", "backup", &base_backup())?;
    corpora.seed("replication", "stream", &replication())?;
    corpora.seed("commands", "answers", &commands())?;
    let history = b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tbefore x\n";
    corpora.seed("backup_label", "history", history)?;
    let infos = [
        "host=/tmp,db.example port=54320,5432 user=pal password='a b\\'c' sslmode=prefer",
        "postgresql://pal:s%20e@[::1]:5433,b/db?connect_timeout=3&application_name=x\n\
         ::1:5433:*:pal:with\\:colon\n*:*:replication:pal:other",
    ];
    for (number, info) in infos.iter().enumerate() {
        corpora.seed("conninfo", &number.to_string(), info.as_bytes())?;
    }
    let names = [
        "1663/5/16384:vm",
        "postgres.public.\"T.a\"\"b\":fsm",
        "16/B374D848",
        "000102030405060708090a0b0c0d0e0f",
        "10 GiB",
        "palimpsest_slot",
    ];
    for (number, name) in names.iter().enumerate() {
        corpora.seed("names", &number.to_string(), name.as_bytes())?;
    }
    Ok(())
}

fn image_layer() -> Result<Vec<u8>> {
    let mut layer = ImageLayerWriter::new(Lsn::new(0x0100_0000));
    let mut page = [0; PAGE_SIZE];
    for block in 0..3 {
        page[100..200].fill(block);
        let block = BlockNumber::new(block.into());
        layer.page(Key::RelBlock(REL, block), &page);
    }
    layer.rel_size(Key::RelSize(REL), BlockNumber::new(3));
    layer.rel_size(Key::SlruSegment(SlruKind::Clog, 0), BlockNumber::new(1));
    layer.file(Key::RelMap { spc: 1663, db: 5 }, &[7; 512]);
    let (bytes, _) = layer.finish().context("it is not empty")?;
    Ok(bytes.into())
}

fn manifest() -> Result<Vec<u8>> {
    let source = SourceCluster {
        system_identifier: SystemIdentifier::new(7),
        pg_version: 15,
        pg_timeline: 1,
        wal_segment_size: ByteCount::mib(16),
        wal_log_hints: false,
    };
    let (begin, end) = (Lsn::new(0x0100_0000), Lsn::new(0x0200_0000));
    let mut manifest = TimelineManifest::new(source, begin, begin);
    let layer = |name: &str, kind| LayerEntry {
        name: name.to_owned(),
        kind,
        keys: KeySpan {
            first: Key::RelSize(REL),
            last: Key::RelBlock(REL, BlockNumber::new(9)),
        },
        size: ByteCount::kib(8),
        entries: 10,
        level: 0,
        epoch: WriterEpoch::FIRST,
    };
    let span = LsnSpan {
        after: begin,
        up_to: end,
    };
    manifest.add_layers(vec![
        layer("image-1", LayerKind::Base(begin)),
        layer("delta-2", LayerKind::Delta(span)),
    ])?;
    manifest.lsn = end;
    let object = seal(*b"SEED", 1, &manifest)?;
    Ok(object.slice(ENVELOPE..).into())
}

fn get_pages() -> Vec<u8> {
    let request = page::GetPagesRequest {
        request_id: 7,
        timeline: Some(common::TimelineRef {
            tenant_id: vec![1; 16].into(),
            timeline_id: vec![2; 16].into(),
        }),
        read_lsn: Some(page::ReadLsn {
            request_lsn: 0x016B_3748,
            not_modified_since_lsn: 1,
            timeout_ms: 1500,
        }),
        rel: Some(palimpsest_api::rel_tag_to_wire(REL)),
        block_numbers: vec![0, 1, 300],
        traceparent: String::new(),
    };
    request.encode_to_vec()
}

fn redo_answers() -> Vec<u8> {
    let answer = |status: u32, body: &[u8]| {
        let numbers = [u32::from_le_bytes(*b"PRA1"), status, body.len() as u32, 0];
        let head = numbers.iter().flat_map(|number| number.to_le_bytes());
        head.chain(body.iter().copied()).collect::<Vec<_>>()
    };
    let verified = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0; PAGE_SIZE]].concat();
    [
        answer(1, b"could not"),
        answer(0, &[3, 0, 0, 0]),
        answer(0, &verified),
    ]
    .concat()
}

/// Commits, a patch and an abort.
fn slru_changes() -> Vec<u8> {
    let commit = [0, 8, 3, 0, 0, 0, 9, 0, 0, 0];
    let patch = [5, 6, 16, 0, 2, 0, 0xAB, 0xCD];
    let abort = [1, 4, 0xFF, 0x7F, 0, 0];
    [&commit[..], &patch, &abort].concat()
}

/// A message of the server.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[tag], &length[..], body].concat()
}

/// A result of one row, with a description that says nothing of its columns.
fn result(columns: &[Option<&str>]) -> Vec<u8> {
    let mut row = (columns.len() as u16).to_be_bytes().to_vec();
    for column in columns {
        let length = column.map_or(-1, |text| text.len() as i32);
        row.extend(length.to_be_bytes());
        row.extend(column.unwrap_or_default().bytes());
    }
    let description = message(b'T', &[0, 0]);
    let complete = message(b'C', b"SELECT\0");
    [description, message(b'D', &row), complete].concat()
}

fn base_backup() -> Vec<u8> {
    let archive = message(b'd', b"nbase.tar\0\0");
    let data = message(b'd', &[&b"d"[..], &[0; 512]].concat());
    let progress = message(b'd', &[b'p', 0, 0, 0, 0, 0, 0, 2, 0]);
    let manifest = message(b'd', b"m");
    let parts = [
        vec![100],
        result(&[Some("0/2000028"), Some("1")]),
        result(&[None, None, Some("30000")]),
        message(b'H', &[0, 0, 0]),
        [archive, data, progress, manifest].concat(),
        message(b'c', b""),
        result(&[Some("0/2000100"), Some("1")]),
        message(b'C', b"BASE_BACKUP\0"),
        message(b'Z', b"I"),
    ];
    parts.concat()
}

fn replication() -> Vec<u8> {
    let start: u64 = 0x0100_0000;
    let data = [&start.to_be_bytes()[..], &[0; 16], b"some WAL"].concat();
    let alive = [&start.to_be_bytes()[..], &[0; 8], &[1]].concat();
    let parts = [
        vec![100],
        message(b'd', &[b"w", &data[..]].concat()),
        message(b'd', &[b"k", &alive[..]].concat()),
        message(b'N', b"SNOTICE\0C00000\0Mhello\0\0"),
        message(b'c', b""),
        result(&[Some("2"), Some("0/1000008")]),
        message(b'Z', b"I"),
    ];
    parts.concat()
}

fn commands() -> Vec<u8> {
    let ready = message(b'Z', b"I");
    let history = "1\t0/3000000\tno recovery target specified\n";
    let refused = message(b'E', b"SERROR\0VERROR\0C42704\0Mno such slot\0\0");
    let parts = [
        vec![100],
        result(&[Some("7"), Some("1"), Some("0/1000000"), None]),
        ready.clone(),
        result(&[Some("16MB")]),
        ready.clone(),
        refused,
        ready.clone(),
        result(&[Some("00000002.history"), Some(history)]),
        ready,
    ];
    parts.concat()
}
