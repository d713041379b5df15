use palimpsest_types::{Fork, RelTag, SlruKind};
use palimpsest_wal::RecordReader;
use proptest::prelude::*;

use super::*;

const REL: RelTag = RelTag {
    spc: 1663,
    db: 5,
    rel: 16384,
    fork: Fork::Main,
};

const SEGMENT: Key = Key::SlruSegment(SlruKind::Clog, 1);

fn block(number: u32) -> Key {
    Key::RelBlock(REL, BlockNumber::new(number))
}

fn noisy_page(seed: u32) -> [u8; PAGE_SIZE] {
    let mut state = u64::from(seed) | 1;
    std::array::from_fn(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
}

fn file() -> Bytes {
    let mut writer = ImageLayerWriter::new(Lsn::new(77));
    writer.page(block(2), &[7; PAGE_SIZE]);
    writer.page(block(1), &noisy_page(3));
    writer.rel_size(Key::RelSize(REL), BlockNumber::new(3));
    writer.file(Key::RelMap { spc: 1663, db: 5 }, b"map");
    writer.file(Key::TwoPhase(700), b"prepared");
    writer.rel_size(SEGMENT, BlockNumber::new(32));
    writer.file(Key::Parameters, b"settings");
    writer.finish().unwrap().0
}

fn open(file: &Bytes) -> Result<ImageLayerIndex, ImageLayerError> {
    let len = file.len();
    let tail = file.slice(len.saturating_sub(Footer::LEN)..);
    let footer = Footer::decode(&tail, len as u64)?;
    let end = (footer.index_offset + footer.index_len) as usize;
    ImageLayerIndex::decode(&footer, &file.slice(footer.index_offset as usize..end))
}

fn read(file: &Bytes, key: Key) -> Result<Option<Value>, ImageLayerError> {
    let Some(value) = open(file)?.find(key) else {
        return Ok(None);
    };
    let start = value.offset as usize;
    value
        .decode(key, file.slice(start..start + value.len as usize))
        .map(Some)
}

#[test]
fn every_value_comes_back() {
    let file = file();
    assert_eq!(open(&file).unwrap().lsn(), Lsn::new(77));
    let pages = [(1, noisy_page(3)), (2, [7; PAGE_SIZE])];
    for (number, page) in pages {
        let expected = Value::Image(Bytes::copy_from_slice(&page));
        assert_eq!(read(&file, block(number)).unwrap(), Some(expected));
    }
    let size = read(&file, Key::RelSize(REL)).unwrap();
    assert_eq!(size, Some(Value::RelSize(BlockNumber::new(3))));
    let map = read(&file, Key::RelMap { spc: 1663, db: 5 }).unwrap();
    assert_eq!(map, Some(Value::File(Bytes::from_static(b"map"))));
    let prepared = read(&file, Key::TwoPhase(700)).unwrap();
    assert_eq!(prepared, Some(Value::File(Bytes::from_static(b"prepared"))));
    let segment = read(&file, SEGMENT).unwrap();
    assert_eq!(segment, Some(Value::RelSize(BlockNumber::new(32))));
    let last = open(&file).unwrap().entries().last();
    assert_eq!(last.map(|(key, _)| key), Some(Key::Parameters));
    assert_eq!(read(&file, block(9)).unwrap(), None);
    let keys: Vec<_> = open(&file)
        .unwrap()
        .range(block(0)..block(9))
        .map(|(k, _)| k)
        .collect();
    assert_eq!(keys, [block(1), block(2)]);
}

#[test]
fn an_empty_layer_is_no_file() {
    assert!(ImageLayerWriter::new(Lsn::ZERO).finish().is_none());
}

proptest! {
    #[test]
    fn a_flipped_byte_is_an_error_or_harmless(at in 0usize..100_000, flip in 1u8..) {
        let clean = file();
        let mut damaged = Vec::from(clean.clone());
        let at = at % damaged.len();
        damaged[at] ^= flip;
        let damaged = Bytes::from(damaged);
        for key in [block(1), block(2), Key::RelSize(REL)] {
            if let Ok(value) = read(&damaged, key) {
                prop_assert_eq!(value, read(&clean, key).unwrap());
            }
        }
    }

    #[test]
    fn a_shortened_file_is_an_error(len in 0usize..1000) {
        let file = file();
        prop_assert!(open(&file.slice(..len.min(file.len() - 1))).is_err());
    }
}

/// What a reader says of an index with one entry of this length, of a file of nearly any length.
fn open_one(key: Key, len: u32) -> Result<ImageLayerIndex, ImageLayerError> {
    open_forged(&[(key, HEADER_LEN as u64, len)], 1 << 40)
}

/// What a reader says of an index with these entries (key, offset, length), which stands at `at`.
fn open_forged(entries: &[(Key, u64, u32)], at: u64) -> Result<ImageLayerIndex, ImageLayerError> {
    let mut index = BytesMut::new();
    for (key, offset, len) in entries {
        index.put_slice(&key.to_bytes());
        index.put_u64_le(*offset);
        index.put_u32_le(*len);
        index.put_u32_le(0);
    }
    let footer = Footer {
        lsn: Lsn::new(77),
        index_offset: at,
        index_len: index.len() as u64,
        index_crc: crc32c(&index),
    };
    ImageLayerIndex::decode(&footer, &index.freeze())
}

#[test]
fn a_value_is_as_long_as_its_key_allows() {
    let page = PAGE_SIZE as u32;
    let two_phase = RecordReader::MAX_RECORD_LEN;
    let map = Key::RelMap { spc: 1663, db: 5 };
    for (key, shortest, longest) in [
        (block(1), 1, page),
        (Key::SlruBlock(SlruKind::Clog, 0), 1, page),
        (Key::RelSize(REL), 4, 4),
        (SEGMENT, 4, 4),
        (map, 0, 524),
        (Key::TwoPhase(700), 0, two_phase),
        (Key::Parameters, 0, 28),
        (Key::ControlFile, 0, 512),
        (Key::ControlData, 0, 76),
        (Key::NextMultiXact, 0, 8),
        (Key::CommitTime, 0, 16),
        (Key::Origin(1), 0, 8),
    ] {
        for len in [shortest, longest] {
            assert!(open_one(key, len).is_ok(), "{key} of {len} bytes");
        }
        for len in [shortest.wrapping_sub(1), longest + 1, u32::MAX] {
            assert!(open_one(key, len).is_err(), "{key} of {len} bytes");
        }
    }
    let expected = ImageLayerError::Length {
        key: SEGMENT,
        len: 5,
    };
    assert_eq!(open_one(SEGMENT, 5), Err(expected));
    let database = Key::Database { spc: 1663, db: 5 };
    assert!(open_one(database, 0).is_err(), "no image has such keys");
}

#[test]
fn values_share_no_bytes_and_stand_behind_the_header() {
    let header = HEADER_LEN as u64;
    let two = |offset, at| open_forged(&[(block(1), header, 9), (block(2), offset, 9)], at);
    assert!(two(header + 9, header + 18).is_ok());
    assert!(
        two(header, header + 17).is_err(),
        "there is no room for both"
    );
    assert!(two(header - 1, header + 18).is_err());
}

/// More than three pieces.
fn long_file() -> Bytes {
    let mut writer = ImageLayerWriter::new(Lsn::new(77));
    for number in 0..1000 {
        writer.page(block(number), &[number as u8; PAGE_SIZE]);
    }
    writer.finish().unwrap().0
}

fn pieces_of(file: &Bytes) -> (ImageLayerIndex, IndexPieces) {
    let footer_at = file.len() - Footer::LEN;
    let footer = Footer::decode(&file.slice(footer_at..), file.len() as u64).unwrap();
    let index = file.slice(footer.index_offset as usize..footer_at);
    IndexPieces::decode(&footer, &index).unwrap()
}

fn piece_bytes(file: &Bytes, pieces: &IndexPieces, piece: u32) -> Bytes {
    let place = pieces.place(piece).unwrap();
    file.slice(place.start as usize..place.end as usize)
}

#[test]
fn pieces_say_what_the_whole_index_says() {
    let file = long_file();
    let (index, pieces) = pieces_of(&file);
    for (number, (key, value)) in (0..).zip(index.entries()) {
        let no = IndexPieces::piece_of(number);
        let piece = pieces.piece(no, &piece_bytes(&file, &pieces, no)).unwrap();
        assert_eq!(piece.entry(number), Some((key, value)));
    }
    let last = IndexPieces::piece_of(999);
    let piece = pieces.piece(last, &piece_bytes(&file, &pieces, last));
    let piece = piece.unwrap();
    assert_eq!(piece.entry(1000), None, "behind the end");
    assert_eq!(piece.entry(0), None, "in another piece");
    assert_eq!(pieces.place(last + 1), None);
}

#[test]
fn a_piece_that_is_not_what_it_was_is_refused() {
    let file = long_file();
    let (_, pieces) = pieces_of(&file);
    let whole = piece_bytes(&file, &pieces, 1);
    let mut flipped = whole.to_vec();
    flipped[100] ^= 1;
    for wrong in [Bytes::from(flipped), whole.slice(..whole.len() - 34)] {
        let refused = pieces.piece(1, &wrong);
        assert!(matches!(refused, Err(ImageLayerError::Checksum { .. })));
    }
    assert!(pieces.piece(0, &whole).is_err(), "another piece");
    assert!(pieces.piece(9, &whole).is_err(), "no piece");
}
