//! Files whose checksums are right, and nothing else.

use proptest::{collection::vec, prelude::*};

use super::{
    super::{
        entry::{ToStore, encode_record},
        footer::encode_header,
        frame::{Frame, MAX_RAW, MAX_SHARED_RAW},
        index::{Span, Version},
    },
    sample::{EPOCH, START, any_layer, block, noise, record_at, small_layer},
    *,
};
use bytes::BytesMut;
use palimpsest_codec::crc32c;

const END: Lsn = Lsn::new(1_000_000);

/// A file of any blocks and any index.
struct Forged {
    blocks: BytesMut,
    index: BytesMut,
    footer: Footer,
}

impl Forged {
    fn new() -> Self {
        let footer = Footer {
            epoch: EPOCH,
            lsns: START..END,
            entries: 0,
            index_offset: 0,
            index_len: 0,
            record_blocks: 0,
            entry_blocks: 0,
            index_crc: 0,
        };
        Self {
            blocks: BytesMut::from(&encode_header()[..]),
            index: BytesMut::new(),
            footer,
        }
    }

    fn records(mut self, raw: &[u8], items: u32) -> Self {
        let (frame, stored) = Frame::seal(raw, items);
        self.blocks.extend_from_slice(&stored);
        frame.encode(&mut self.index);
        self.footer.record_blocks += 1;
        self
    }

    fn entries(self, span: (Version, Version), raw: &[u8], items: u32) -> Self {
        self.framed(span, raw, |frame| frame.items = items)
    }

    /// A block of entries whose frame says what it likes.
    fn framed(
        mut self,
        (first, last): (Version, Version),
        raw: &[u8],
        claim: impl FnOnce(&mut Frame),
    ) -> Self {
        let (mut frame, stored) = Frame::seal(raw, 1);
        claim(&mut frame);
        self.blocks.extend_from_slice(&stored);
        Span { first, last }.encode(&mut self.index);
        frame.encode(&mut self.index);
        self.footer.entry_blocks += 1;
        self.footer.entries += u64::from(frame.items);
        self
    }

    fn bytes(mut self) -> Bytes {
        self.footer.index_offset = self.blocks.len() as u64;
        self.footer.index_crc = crc32c(&self.index);
        let parts = [&self.blocks[..], &self.index, &self.footer.encode()];
        parts.concat().into()
    }

    fn read(self) -> Result<Vec<(Key, Lsn, Value)>, DeltaLayerError> {
        File::open(self.bytes())?.everything()
    }

    /// What the reader says of it.
    fn problem(self) -> &'static str {
        match self.read() {
            Err(DeltaLayerError::Malformed { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }
}

fn at(number: u32, lsn: u64) -> Version {
    (block(number), Lsn::new(lsn))
}

fn whole_span() -> (Version, Version) {
    (at(0, 1001), at(9, 2000))
}

fn raw(entries: &[(Version, ToStore<'_>)]) -> Vec<u8> {
    let mut raw = Vec::new();
    for (version, entry) in entries {
        let before = raw.len();
        entry.encode(*version, &mut raw);
        assert_eq!(raw.len() - before, entry.entry_len());
    }
    raw
}

fn zero_pages(versions: &[Version]) -> Vec<u8> {
    let entries: Vec<_> = versions
        .iter()
        .map(|version| (*version, ToStore::Value(&Value::ZeroPage)))
        .collect();
    raw(&entries)
}

fn one_reference(no: u32, offset: u32) -> Vec<u8> {
    let block = BlockNo::new(no);
    let at_place = ToStore::Shared {
        at: RecordPlace { block, offset },
        will_init: false,
    };
    raw(&[(at(1, 1001), at_place)])
}

#[test]
fn a_well_forged_file_is_read() {
    let (first, last) = (at(1, 1001), at(2, 1001));
    let forged = Forged::new().entries((first, last), &zero_pages(&[first, last]), 2);
    assert_eq!(forged.read().unwrap().len(), 2);
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_allocated() {
    let content = zero_pages(&[at(1, 1001)]);
    let span = (at(1, 1001), at(1, 1001));
    for (stored, raw, items) in [
        (10, 2551, 1),
        (10, MAX_RAW, 1),
        (MAX_RAW, MAX_RAW + 1, 1),
        (MAX_RAW / 255, MAX_RAW, 2),
        (MAX_SHARED_RAW, MAX_SHARED_RAW + 1, 2),
        (MAX_SHARED_RAW + 1, MAX_SHARED_RAW + 1, u32::MAX),
        (u32::MAX, u32::MAX, 1),
        (11, 10, 1),
        (0, 0, 1),
        (0, 1, 1),
    ] {
        let forged = Forged::new().framed(span, &content, |frame| {
            frame.stored_len = stored;
            frame.raw_len = raw;
            frame.items = items;
        });
        let expected = DeltaLayerError::BlockLength { stored, raw, items };
        assert_eq!(forged.read().unwrap_err(), expected);
    }
}

#[test]
fn a_block_of_several_is_as_large_as_a_writer_lets_one_grow_and_one_alone_larger() {
    let entry_len = zero_pages(&[at(1, 1001)]).len();
    let several = MAX_SHARED_RAW as usize / entry_len;
    let versions: Vec<_> = (0..=several as u32)
        .map(|number| at(number, 1001))
        .collect();
    let read = |versions: &[Version]| {
        let span = (versions[0], versions[versions.len() - 1]);
        let items = versions.len() as u32;
        Forged::new()
            .entries(span, &zero_pages(versions), items)
            .read()
    };
    assert_eq!(read(&versions[..several]).unwrap().len(), several);
    let refused = read(&versions);
    assert!(
        matches!(refused, Err(DeltaLayerError::BlockLength { .. })),
        "{refused:?}"
    );

    let file = Value::File(vec![0; 2 * MAX_SHARED_RAW as usize].into());
    let content = raw(&[(at(1, 1001), ToStore::Value(&file))]);
    let alone = Forged::new().entries((at(1, 1001), at(1, 1001)), &content, 1);
    assert_eq!(alone.read().unwrap().len(), 1);
}

#[test]
fn blocks_fill_the_file_up_to_the_index() {
    let content = zero_pages(&[at(1, 1001)]);
    let span = (at(1, 1001), at(1, 1001));
    for difference in [-1, 1, 1000] {
        let forged = Forged::new().framed(span, &content, |frame| {
            frame.stored_len = frame.stored_len.saturating_add_signed(difference);
            frame.raw_len = frame.stored_len;
        });
        assert_eq!(forged.problem(), "the blocks do not end where it begins");
    }
}

#[test]
fn a_compressed_block_unpacks_to_what_the_index_says() {
    let page = Value::Image(vec![1; 8192].into());
    let content = raw(&[(at(1, 1001), ToStore::Value(&page))]);
    for difference in [-1, 1] {
        let forged = Forged::new().framed((at(1, 1001), at(1, 1001)), &content, |frame| {
            frame.raw_len = frame.raw_len.saturating_add_signed(difference);
        });
        assert_eq!(
            forged.problem(),
            "it does not unpack to the length of the index"
        );
    }
}

#[test]
fn blocks_rise_and_stay_within_the_layer() {
    let one = |first, last| Forged::new().entries((first, last), &[0; 20], 1);
    let order = "its blocks are not in the order of keys and LSNs";
    assert_eq!(one(at(2, 1001), at(1, 1001)).problem(), order);
    let two = one(at(1, 1001), at(2, 1001)).entries((at(2, 1001), at(3, 1001)), &[0; 20], 1);
    assert_eq!(two.problem(), order);
    let outside = "a version is outside of the layer's LSNs";
    assert_eq!(one(at(1, 1000), at(2, 1001)).problem(), outside);
    assert_eq!(one(at(1, 1001), at(2, END.get() + 1)).problem(), outside);
}

#[test]
fn a_block_has_the_entries_that_the_index_says() {
    let content = zero_pages(&[at(1, 1001), at(2, 1001)]);
    let expected = "its entries are not those that the index tells of";
    for (span, items) in [
        ((at(1, 1001), at(2, 1001)), 1),
        ((at(1, 1001), at(2, 1002)), 2),
        ((at(0, 1001), at(2, 1001)), 2),
    ] {
        let forged = Forged::new().entries(span, &content, items);
        assert_eq!(forged.problem(), expected);
    }
}

#[test]
fn entries_rise_and_stay_within_the_layer() {
    let span = (at(1, 1001), at(2, 1001));
    let mixed = [at(1, 1001), at(1, 1001), at(2, 1001)];
    let forged = Forged::new().entries(span, &zero_pages(&mixed), 3);
    assert_eq!(
        forged.problem(),
        "its entries are not in the order of keys and LSNs"
    );
    let late = [at(1, 1001), at(1, END.get() + 1), at(2, 1001)];
    let forged = Forged::new().entries(span, &zero_pages(&late), 3);
    assert_eq!(forged.problem(), "an entry is outside of the layer's LSNs");
}

#[test]
fn references_lead_to_records() {
    let mut records = Vec::new();
    for start in [1001, 1009] {
        let record = record_at(start, Bytes::from_static(b"record"));
        encode_record(&record, &mut records);
    }
    let forge = |no, offset| {
        let span = (at(1, 1001), at(1, 1001));
        Forged::new()
            .records(&records, 2)
            .entries(span, &one_reference(no, offset), 1)
    };
    for offset in [0, 26] {
        assert_eq!(forge(0, offset).read().unwrap().len(), 1);
    }
    let nothing = "no record begins where an entry says that its record does";
    assert_eq!(forge(0, 1).problem(), nothing);
    assert_eq!(forge(0, 51).problem(), nothing);
    let behind = "an entry refers to a record behind the end of its block";
    assert_eq!(forge(0, 52).problem(), behind);
    for no in [1, 2, u32::MAX] {
        let expected = DeltaLayerError::NoBlock(BlockNo::new(no));
        assert_eq!(
            forge(no, 0).read().unwrap_err(),
            expected,
            "not a record block"
        );
    }
}

#[test]
fn a_block_is_not_taken_for_one_of_the_other_kind() {
    let file = File::open(written(&small_layer())).unwrap();
    let [records, entries, none] = [0, 1, 2].map(BlockNo::new);
    let stored = |no| file.stored(no).unwrap();
    let as_entries = |no, bytes| EntryBlock::decode(&file.index, no, bytes).unwrap_err();
    let as_records = |no, bytes| RecordBlock::decode(&file.index, no, bytes).unwrap_err();
    assert_eq!(
        as_entries(records, stored(records)),
        DeltaLayerError::NoBlock(records)
    );
    assert_eq!(
        as_records(entries, stored(entries)),
        DeltaLayerError::NoBlock(entries)
    );
    assert_eq!(
        as_entries(none, Bytes::new()),
        DeltaLayerError::NoBlock(none)
    );
    assert_eq!(file.index.place(none), Err(DeltaLayerError::NoBlock(none)));
}

#[test]
fn other_versions_of_the_format_are_told_from_damage() {
    let mut header = Vec::from(&encode_header()[..]);
    header[8] = 2;
    let newer = DeltaLayerError::Version { found: 2, known: 1 };
    assert_eq!(check_header(&header.clone().into()), Err(newer));
    header[0] = b'X';
    assert_eq!(check_header(&header.into()), Err(DeltaLayerError::Magic));

    let mut footer = Vec::from(&Forged::new().footer.encode()[..]);
    footer[52] = 2;
    let crc = crc32c(&footer[..56]);
    footer[56..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Footer::decode(&footer.into(), 76), Err(newer));
}

proptest! {
    #[test]
    fn any_content_of_an_entry_block_is_entries_or_an_error(
        raw in vec(any::<u8>(), 1..600),
        items in 1u32..20,
    ) {
        prop_assert!(Forged::new().entries(whole_span(), &raw, items).read().is_err());
    }

    #[test]
    fn any_content_of_a_record_block_is_records_or_an_error(
        lens in vec(0usize..60, 1..6),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut raw = Vec::new();
        for (start, len) in (1u64..).zip(&lens) {
            encode_record(&record_at(start, noise(start, *len)), &mut raw);
        }
        for (index, byte) in changes {
            raw[index.index(20 * lens.len())] = byte;
        }
        let file = File::open(Forged::new().records(&raw, lens.len() as u32).bytes()).unwrap();
        let no = BlockNo::new(0);
        if let Ok(block) = RecordBlock::decode(&file.index, no, file.stored(no).unwrap()) {
            let places = (0..=raw.len() as u32).map(|offset| RecordPlace { block: no, offset });
            let found = places.filter(|place| block.record(*place).is_ok());
            prop_assert_eq!(found.count(), lens.len());
        }
    }

    /// Almost right content comes further than noise. Its checksum is made right again.
    #[test]
    fn entries_changed_before_the_checksum_are_an_error_or_in_order(
        layer in any_layer(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut len = 0;
        let fits = |(_, _, value): &(Key, Lsn, &Value)| {
            len += ToStore::Value(value).entry_len();
            len <= MAX_SHARED_RAW as usize
        };
        let entries = layer.entries().take(20).take_while(fits).collect::<Vec<_>>().into_iter();
        let versions: Vec<Version> = entries.clone().map(|(key, lsn, _)| (key, lsn)).collect();
        let (Some(first), Some(last)) = (versions.first(), versions.last()) else {
            return Ok(());
        };
        let stored: Vec<_> = entries
            .map(|(key, lsn, value)| ((key, lsn), ToStore::Value(value)))
            .collect();
        let mut raw = raw(&stored);
        for (index, byte) in changes {
            // Heads and lengths are near the beginning more often than not.
            let limit = raw.len().min(400);
            raw[index.index(limit)] = byte;
        }
        if cut.index(4) == 0 {
            raw.truncate(cut.index(raw.len()).max(1));
        }
        let forged = Forged::new().entries((*first, *last), &raw, versions.len() as u32);
        if let Ok(found) = forged.read() {
            prop_assert!(found.is_sorted_by_key(|(key, lsn, _)| (*key, *lsn)));
            prop_assert!(found.len() <= versions.len());
        }
    }

    #[test]
    fn any_index_with_a_right_checksum_is_an_index_or_an_error(
        index in vec(any::<u8>(), 0..300),
        record_blocks in 0u32..4,
        entry_blocks in 0u32..4,
    ) {
        let mut forged = Forged::new();
        forged.index = BytesMut::from(&index[..]);
        forged.footer.record_blocks = record_blocks;
        forged.footer.entry_blocks = entry_blocks;
        let _ = forged.read();
    }

    #[test]
    fn any_compressed_bytes_unpack_or_are_an_error(seed: u64, len in 1usize..500, ratio in 2u32..256) {
        let span = (at(1, 1001), at(1, 1001));
        let forged = Forged::new().framed(span, &noise(seed, len), |frame| {
            frame.raw_len = frame.stored_len.saturating_mul(ratio).min(frame.stored_len * 255);
        });
        prop_assert!(forged.read().is_err());
    }
}
