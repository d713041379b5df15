//! The bytes in `docs/formats/get-pages.md` are the bytes of the generated code, and `docs/admin.md` knows all calls.

use std::collections::BTreeSet;

use bytes::Bytes;
use palimpsest_api::{
    TimelineRef,
    page::{PagesRequest, ReadAt},
    rel_tag_to_wire,
};
use palimpsest_proto::{common::v1 as common, page::v1 as wire};
use palimpsest_types::{BlockNumber, Lsn, PAGE_SIZE, Reason, TenantId, TimelineId};
use prost::Message as _;

const ADMIN: &str = include_str!("../../../docs/admin.md");
const ADMIN_PROTO: &str = include_str!("../../../proto/palimpsest/admin/v1/admin.proto");
const DOCUMENT: &str = include_str!("../../../docs/formats/get-pages.md");
/// Length and type, flags, stream.
const FRAME_HEAD: usize = 9;
/// A flag and a length.
const PREFIX: usize = 5;
const LSN: u64 = 0x016B_3748;

/// The bytes of an example: hex digits, texts in quotes, and `00 × 8192`.
pub(crate) fn example(name: &str) -> Vec<u8> {
    let fence = format!("```hex {name}\n");
    let (_, rest) = DOCUMENT.split_once(&fence).unwrap();
    let (lines, _) = rest.split_once("```").unwrap();
    lines.lines().flat_map(line_bytes).collect()
}

fn line_bytes(line: &str) -> Vec<u8> {
    let line = line.split('#').next().unwrap_or_default();
    if let Some((byte, count)) = line.split_once('×') {
        return hex_byte(byte.trim()).repeat(count.trim().parse().unwrap());
    }
    // Every second part is between quotes.
    let parts = line.split('"').enumerate();
    let bytes = |(index, part): (usize, &str)| match index % 2 {
        0 => part.split_whitespace().flat_map(hex_byte).collect(),
        _ => part.as_bytes().to_vec(),
    };
    parts.flat_map(bytes).collect()
}

fn hex_byte(digits: &str) -> Vec<u8> {
    assert_eq!(digits.len(), 2, "{digits:?} is not a byte");
    vec![u8::from_str_radix(digits, 16).unwrap()]
}

/// Splits HTTP/2 frames: type, stream, payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, &[u8])> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEAD>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let (payload, rest) = rest.split_at(length.try_into().unwrap());
        frames.push((head[3], stream, payload));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "bytes after the last frame");
    frames
}

/// The protocol buffer of a message, whose prefix must be right.
fn message(bytes: &[u8]) -> &[u8] {
    let (prefix, message) = bytes.split_first_chunk::<PREFIX>().unwrap();
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    assert_eq!((prefix[0], length as usize), (0, message.len()));
    message
}

fn timeline() -> TimelineRef {
    let id = |first: u8| std::array::from_fn(|index| first + index as u8);
    TimelineRef {
        tenant: TenantId::from_bytes(id(0)),
        timeline: TimelineId::from_bytes(id(16)),
    }
}

#[test]
fn the_documented_request_is_what_a_client_of_ours_sends() {
    let bytes = example("request");
    let frames = frames(&bytes);
    let [(0, 1, payload)] = frames[..] else {
        panic!("not one DATA frame of stream 1: {frames:?}");
    };
    let request = PagesRequest {
        timeline: timeline(),
        at: ReadAt {
            lsn: Some(Lsn::new(LSN)),
            ..ReadAt::default()
        },
        rel: "1663/5/16384".parse().unwrap(),
        blocks: [0, 1, 300].map(BlockNumber::new).to_vec(),
    };
    let sent = wire::GetPagesRequest {
        request_id: 7,
        timeline: Some(request.timeline.into()),
        read_lsn: Some(request.at.into()),
        rel: Some(rel_tag_to_wire(request.rel)),
        block_numbers: vec![0, 1, 300],
        traceparent: String::new(),
    };
    assert_eq!(message(payload), sent.encode_to_vec());
    let decoded = wire::GetPagesRequest::decode(message(payload)).unwrap();
    assert_eq!(decoded.request_id, 7);
    assert_eq!(PagesRequest::try_from(decoded), Ok(request));
}

#[test]
fn the_documented_traceparent_is_a_field_of_the_request() {
    let bytes = [&[0x08, 7][..], &example("traceparent")].concat();
    let decoded = wire::GetPagesRequest::decode(&bytes[..]).unwrap();
    assert_eq!(decoded.request_id, 7);
    assert_eq!(decoded.traceparent.len(), 55);
    assert!(decoded.traceparent.starts_with("00-"));
}

#[test]
fn block_numbers_may_come_one_by_one() {
    let bytes = [0x28, 0, 0x28, 1, 0x28, 0xac, 2];
    let decoded = wire::GetPagesRequest::decode(&bytes[..]).unwrap();
    assert_eq!(decoded.block_numbers, [0, 1, 300]);
}

#[test]
fn the_documented_answer_is_what_a_server_of_ours_sends() {
    let expected = wire::GetPagesResponse {
        request_id: 7,
        error: None,
        lsn: LSN,
        pages: vec![Bytes::from(vec![0; PAGE_SIZE])],
    };
    assert_eq!(message(&example("answer")), expected.encode_to_vec());
}

#[test]
fn the_documented_error_is_what_a_server_of_ours_sends() {
    let expected = wire::GetPagesResponse {
        request_id: 7,
        error: Some(common::ErrorDetail {
            kind: common::ErrorKind::NotFound.into(),
            message: format!("there is no timeline {}", timeline()),
            reason: common::ErrorReason::UnknownTimeline.into(),
        }),
        ..wire::GetPagesResponse::default()
    };
    assert_eq!(message(&example("error")), expected.encode_to_vec());
}

#[test]
fn the_documented_frames_have_the_lengths_they_say() {
    let opening = example("opening");
    let rest = opening.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let kinds = |bytes: &[u8]| -> Vec<_> {
        let frames = frames(bytes);
        frames.into_iter().map(|(kind, on, _)| (kind, on)).collect()
    };
    assert_eq!(kinds(rest.unwrap()), [(4, 0), (8, 0), (1, 1)]);
    assert_eq!(kinds(&example("window")), [(8, 0), (8, 1)]);
    assert_eq!(kinds(&example("acknowledgements")), [(4, 0), (6, 0)]);
}

#[test]
fn every_kind_and_every_reason_is_documented_under_its_number() {
    let kinds = (1..).map_while(|number| common::ErrorKind::try_from(number).ok());
    let kinds = kinds.map(|kind| (kind as i32, kind.as_str_name()));
    let reasons = (1..).map_while(|number| common::ErrorReason::try_from(number).ok());
    let reasons = reasons.map(|reason| (reason as i32, reason.as_str_name()));
    for (number, name) in kinds.chain(reasons) {
        let name = name
            .trim_start_matches("ERROR_KIND_")
            .trim_start_matches("ERROR_REASON_");
        let name = name.to_lowercase().replace('_', "-");
        let [row, text] = [
            format!("| {number} | `{name}` |"),
            format!("{number} `{name}`"),
        ];
        assert!(
            DOCUMENT.contains(&row) || DOCUMENT.contains(&text) || ADMIN.contains(&text),
            "{name} is not documented"
        );
    }
}

#[test]
fn every_call_of_the_admin_service_is_documented_and_no_other() {
    let calls = ADMIN_PROTO.lines().filter_map(|line| {
        let (name, _) = line.trim().strip_prefix("rpc ")?.split_once('(')?;
        Some(name)
    });
    let calls: BTreeSet<_> = calls.collect();
    let documented = ADMIN.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
        name.starts_with(|first: char| first.is_uppercase())
            .then_some(name)
    });
    let kinds = [
        "INVALID",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "CONFLICT",
        "FENCED",
        "NOT_READY",
    ];
    let kinds = kinds
        .into_iter()
        .chain(["THROTTLED", "CORRUPT", "INTERNAL"]);
    let kinds: BTreeSet<_> = kinds.collect();
    let documented: BTreeSet<_> = documented.filter(|name| !kinds.contains(name)).collect();
    assert_eq!(documented, calls);
    assert!(calls.len() > 15, "{calls:?}");
}

#[test]
fn every_documented_reason_is_one() {
    let (_, reasons) = ADMIN.split_once("Reasons that this service gives").unwrap();
    let rows = reasons.lines().filter_map(|line| line.strip_prefix("| `"));
    let named = rows.flat_map(|row| row.split('|').next().unwrap().split('`'));
    let named = named.filter(|part| part.starts_with(|first: char| first.is_lowercase()));
    let named: Vec<_> = named.collect();
    assert!(named.len() > 15, "{named:?}");
    for name in named {
        let known = Reason::ALL.iter().any(|reason| reason.name() == name);
        assert!(known, "{name}");
    }
}
