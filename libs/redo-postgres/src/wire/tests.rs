use palimpsest_types::{Fork, Lsn, RelTag};
use proptest::prelude::*;

use super::*;

/// What the process makes of a request, written down independently of the encoder.
#[derive(Debug, PartialEq)]
struct Seen {
    operation: u32,
    tag: [u32; 5],
    base: Option<Vec<u8>>,
    records: Vec<(u64, u64, Vec<u8>)>,
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(taken)
}

fn take_u32(input: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(input, 4)?.try_into().unwrap()))
}

fn take_u64(input: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(input, 8)?.try_into().unwrap()))
}

fn see(mut input: &[u8]) -> Option<Seen> {
    let total = input.len();
    let mut words = [0; 10];
    for word in &mut words {
        *word = take_u32(&mut input)?;
    }
    let [magic, total_len, operation, flags, tag @ .., count] = words;
    if magic != 0x3151_5250 || total_len as usize != total || flags > 1 {
        return None;
    }
    let base = if flags == 1 {
        Some(take(&mut input, 8192)?.to_vec())
    } else {
        None
    };
    let mut records = Vec::new();
    for _ in 0..count {
        let (start, end) = (take_u64(&mut input)?, take_u64(&mut input)?);
        let len = take_u32(&mut input)? as usize;
        let zero = take_u32(&mut input)?;
        let padded = take(&mut input, len.div_ceil(8) * 8)?;
        if zero != 0 || padded[len..].iter().any(|byte| *byte != 0) {
            return None;
        }
        records.push((start, end, padded[..len].to_vec()));
    }
    input.is_empty().then_some(Seen {
        operation,
        tag,
        base,
        records,
    })
}

fn answer(status: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    let words = [0x3141_5250, status, len, 0].map(u32::to_le_bytes);
    [words.as_flattened(), body].concat()
}

fn any_request() -> impl Strategy<Value = ApplyRequest> {
    let record = (
        any::<u64>(),
        any::<u64>(),
        prop::collection::vec(any::<u8>(), 0..100),
    )
        .prop_map(|(start, end, bytes)| RedoRecord {
            start_lsn: Lsn::new(start),
            end_lsn: Lsn::new(end),
            bytes: bytes.into(),
        });
    let records = prop::collection::vec(record, 0..6);
    let tag = (
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        0u32..4,
        any::<u32>(),
    );
    (tag, any::<Option<u8>>(), records).prop_map(|((spc, db, rel, fork, block), fill, records)| {
        ApplyRequest {
            rel: RelTag {
                spc,
                db,
                rel,
                fork: Fork::try_from(fork).unwrap(),
            },
            block: BlockNumber::new(block),
            base: fill.map(|byte| Bytes::from(vec![byte; PAGE_SIZE])),
            records,
        }
    })
}

proptest! {
    #[test]
    fn requests_arrive_as_they_were_sent(request in any_request(), verify: bool) {
        let operation = if verify { Operation::ApplyVerify } else { Operation::Apply };
        let frame = encode_apply(operation, &request).unwrap();
        prop_assert_eq!(frame.len(), apply_len(&request));
        prop_assert_eq!(frame.len() % 8, 0);

        let rel = request.rel;
        let expected = Seen {
            operation: operation as u32,
            tag: [rel.spc, rel.db, rel.rel, rel.fork.number().into(), request.block.get()],
            base: request.base.map(|page| page.to_vec()),
            records: request
                .records
                .into_iter()
                .map(|r| (r.start_lsn.get(), r.end_lsn.get(), r.bytes.to_vec()))
                .collect(),
        };
        prop_assert_eq!(see(&frame), Some(expected));
    }

    #[test]
    fn a_truncated_request_is_not_a_shorter_one(request in any_request(), cut in 1usize..9000) {
        let frame = encode_apply(Operation::Apply, &request).unwrap();
        let kept = frame.len().saturating_sub(cut);
        prop_assert_eq!(see(&frame[..kept]), None);
    }

    #[test]
    fn answers_survive_any_splitting(
        bodies in prop::collection::vec((0u32..2, prop::collection::vec(0u8..128, 0..300)), 1..5),
        piece in 1usize..40,
    ) {
        let stream: Vec<u8> =
            bodies.iter().flat_map(|(status, body)| answer(*status, body)).collect();
        let mut input = BytesMut::new();
        let mut answers = Vec::new();
        for part in stream.chunks(piece) {
            input.extend_from_slice(part);
            while let Some(answer) = decode_answer(&mut input).unwrap() {
                answers.push(answer);
            }
        }
        let expected: Vec<Answer> = bodies
            .into_iter()
            .map(|(status, body)| match status {
                0 => Answer::Done(body.into()),
                _ => Answer::Refused(String::from_utf8(body).unwrap()),
            })
            .collect();
        prop_assert_eq!(answers, expected);
        prop_assert!(input.is_empty());
    }

    #[test]
    fn any_bytes_are_answers_or_an_error(bytes: Vec<u8>) {
        let mut input = BytesMut::from(bytes.as_slice());
        while let Ok(Some(_)) = decode_answer(&mut input) {}
    }
}

#[test]
fn a_truncated_answer_is_waited_for() {
    let whole = answer(0, &[7; 100]);
    for len in 0..whole.len() {
        let mut input = BytesMut::from(&whole[..len]);
        assert_eq!(decode_answer(&mut input), Ok(None), "{len} bytes");
        assert_eq!(input.len(), len, "nothing is consumed");
    }
}

#[test]
fn a_flipped_header_is_no_answer() {
    let decode = |bytes: &[u8]| decode_answer(&mut BytesMut::from(bytes));
    for byte in 0..4 {
        let mut bytes = answer(0, &[0; 8]);
        bytes[byte] ^= 0x10;
        assert!(matches!(decode(&bytes), Err(AnswerError::Magic(_))));
    }
    assert_eq!(decode(&answer(2, &[])), Err(AnswerError::Status(2)));
}

#[test]
fn an_answer_never_claims_more_than_a_verified_page() {
    let decode = |body: usize| decode_answer(&mut BytesMut::from(&answer(0, &vec![0; body])[..]));
    assert!(matches!(decode(8200), Ok(Some(Answer::Done(_)))));
    assert_eq!(decode(8201), Err(AnswerError::Length(8201)));
}

#[test]
fn bodies_of_the_wrong_length_are_refused() {
    let body = |len| Bytes::from(vec![1; len]);
    assert!(decode_page(body(8192)).is_ok());
    assert!(matches!(
        decode_page(body(8200)),
        Err(RedoError::UnexpectedAnswer { len: 8200 })
    ));
    assert!(matches!(
        decode_verified(body(8192)),
        Err(RedoError::UnexpectedAnswer { .. })
    ));
    let verified = decode_verified(body(8200)).unwrap();
    assert_eq!(
        (verified.compared, verified.page.len()),
        (0x0101_0101, 8192)
    );
}

#[test]
fn requests_out_of_bounds_are_not_sent() {
    let request = |base: Option<Bytes>, bytes: usize| ApplyRequest {
        rel: RelTag {
            spc: 1663,
            db: 5,
            rel: 1,
            fork: Fork::Main,
        },
        block: BlockNumber::ZERO,
        base,
        records: vec![RedoRecord {
            start_lsn: Lsn::ZERO,
            end_lsn: Lsn::ZERO,
            bytes: Bytes::from(vec![0; bytes]),
        }],
    };
    let largest = REQUEST_MAX - REQUEST_HEADER - RECORD_HEADER;
    let encode = |request| encode_apply(Operation::Apply, &request);
    assert_eq!(encode(request(None, largest)).unwrap().len(), REQUEST_MAX);
    assert!(matches!(
        encode(request(None, largest + 1)),
        Err(RedoError::TooLarge { .. })
    ));
    let short = Some(Bytes::from_static(&[0; 100]));
    assert!(matches!(
        encode(request(short, 8)),
        Err(RedoError::PageLength { len: 100 })
    ));
    assert!(encode_mask(10, BlockNumber::ZERO, &Bytes::new()).is_err());
}
