use bytes::Bytes;
use palimpsest_types::{Fork, Key, PAGE_SIZE};
use proptest::prelude::*;

use super::slru::tests::{numbers, record as slru_record};
use super::{
    gaps::MAX_GAP_BLOCKS,
    maps::{SLOTS_PER_FSM_PAGE, free_space_map_len},
    *,
};
use crate::Value;

mod databases;

#[test]
fn the_free_space_map_keeps_its_upper_pages() {
    // Physical page 0 is the root, 1 the first middle page, 2 the first leaf.
    assert_eq!(free_space_map_len(BlockNumber::new(0)), BlockNumber::new(2));
    assert_eq!(free_space_map_len(BlockNumber::new(1)), BlockNumber::new(3));
    assert_eq!(
        free_space_map_len(BlockNumber::new(SLOTS_PER_FSM_PAGE)),
        BlockNumber::new(3)
    );
    assert_eq!(
        free_space_map_len(BlockNumber::new(SLOTS_PER_FSM_PAGE + 1)),
        BlockNumber::new(4)
    );
}

#[test]
fn truncating_a_map_page_keeps_the_bits_before() {
    let mut page = vec![0xFF; 8192];
    truncate_visibility_map_page(&mut page, BlockNumber::new(4 * 10 + 3));
    assert!(page[..34].iter().all(|byte| *byte == 0xFF));
    assert_eq!(page[34], 0b0011_1111);
    assert!(page[35..].iter().all(|byte| *byte == 0));
}

const REL: RelTag = RelTag {
    spc: 1663,
    db: 5,
    rel: 16384,
    fork: Fork::Main,
};

const IMAGE: u8 = 0x10;
const WILL_INIT: u8 = 0x40;

/// Block references to pages of [`REL`], each with what builds it.
fn record_of(
    rmgr: ResourceManager,
    info: u8,
    end_lsn: u64,
    references: &[(u8, u32, u8)],
) -> RawRecord {
    let mut headers = Vec::new();
    let mut images = Vec::new();
    for (id, block, builds) in references {
        headers.extend([*id, *builds, 0, 0]);
        if builds & IMAGE != 0 {
            let image = image_of_gist_page();
            headers.extend((image.len() as u16).to_le_bytes());
            // No hole; to be applied.
            headers.extend([0, 0, 0x02]);
            images.extend(image);
        }
        headers.extend([REL.spc, REL.db, REL.rel].map(u32::to_le_bytes).concat());
        headers.extend(block.to_le_bytes());
    }
    let mut bytes = vec![0; 24];
    bytes.extend(headers);
    bytes.extend(images);
    let len = (bytes.len() as u32).to_le_bytes();
    bytes[..4].copy_from_slice(&len);
    bytes[16] = info;
    bytes[17] = rmgr.number();
    RawRecord {
        start_lsn: Lsn::new(end_lsn - 8),
        end_lsn: Lsn::new(end_lsn),
        bytes: bytes.into(),
    }
}

/// The left half of a split: all flags set, an old NSN.
fn image_of_gist_page() -> Vec<u8> {
    let mut page = vec![0x11; PAGE_SIZE];
    page[PAGE_SIZE - 4..PAGE_SIZE - 2].fill(0xFF);
    page
}

fn record(references: &[(u8, u32, u8)]) -> RawRecord {
    record_of(ResourceManager::Gin, 0x20, 64, references)
}

fn interpreter(blocks: u32, consistent_from: u64) -> Interpreter {
    let mut sizes = RelationSizes::default();
    sizes.set(REL, BlockNumber::new(blocks));
    let base = BaseFacts {
        consistent_from: Lsn::new(consistent_from),
        ..BaseFacts::consistent()
    };
    Interpreter::new(sizes, base)
}

fn block(number: u32) -> Key {
    Key::RelBlock(REL, BlockNumber::new(number))
}

fn value(changes: &[Change], key: Key) -> Option<&Value> {
    let mut found = changes.iter().filter(|change| change.key == key);
    let first = found.next();
    assert!(found.next().is_none(), "{key:?} changes twice");
    first.map(|change| &change.value)
}

#[test]
fn new_pages_may_be_named_in_any_order() {
    // As a GIN root split does: the left half is the later page.
    let split = record(&[(0, 4, WILL_INIT), (1, 3, IMAGE), (2, 7, WILL_INIT)]);
    let changes = interpreter(3, 0).interpret(&split).unwrap();
    assert_eq!(changes.len(), 6);
    assert!(matches!(value(&changes, block(3)), Some(Value::Image(_))));
    for number in [4, 7] {
        let value = value(&changes, block(number));
        assert!(matches!(value, Some(Value::Record { .. })), "{value:?}");
    }
    for number in [5, 6] {
        assert_eq!(value(&changes, block(number)), Some(&Value::ZeroPage));
    }
    let size = Value::RelSize(BlockNumber::new(8));
    assert_eq!(value(&changes, Key::RelSize(REL)), Some(&size));
}

#[test]
fn a_page_named_twice_is_refused() {
    let twice = record(&[(0, 1, WILL_INIT), (1, 1, IMAGE)]);
    let error = interpreter(3, 0).interpret(&twice).unwrap_err();
    assert!(matches!(error.reason, Reason::NamedTwice { .. }), "{error}");
}

proptest! {
    #[test]
    fn a_key_changes_at_most_once_and_no_new_page_is_without_a_version(
        size in 0u32..6,
        blocks in prop::collection::btree_set(0u32..12, 1..5),
        order in any::<prop::sample::Index>(),
    ) {
        let mut blocks: Vec<u32> = blocks.into_iter().collect();
        let by = order.index(blocks.len());
        blocks.rotate_left(by);
        let numbered = blocks.iter().enumerate();
        let references: Vec<_> =
            numbered.map(|(id, block)| (id as u8, *block, WILL_INIT)).collect();
        let changes = interpreter(size, 0).interpret(&record(&references)).unwrap();
        let end = blocks.iter().max().map_or(size, |last| size.max(last + 1));
        for number in 0..12 {
            let is_changed = value(&changes, block(number)).is_some();
            let is_expected = (size..end).contains(&number) || blocks.contains(&number);
            prop_assert_eq!(is_changed, is_expected);
        }
    }
}

#[test]
fn a_restored_left_half_gets_what_its_image_lacks() {
    const PAGE_UPDATE: u8 = 0x00;
    const PAGE_SPLIT: u8 = 0x30;
    const PAGE_DELETE: u8 = 0x60;
    let special = |info, id| -> Bytes {
        let end_lsn = 0x0A_0000_0B00;
        let gist = ResourceManager::Gist;
        let record = record_of(gist, info, end_lsn, &[(id, 1, IMAGE)]);
        let changes = interpreter(3, 0).interpret(&record).unwrap();
        match value(&changes, block(1)) {
            Some(Value::Image(page)) => page.slice(PAGE_SIZE - 16..),
            other => panic!("{other:?} instead of an image"),
        }
    };
    let nsn = [0x0A, 0, 0, 0, 0, 0x0B, 0, 0];
    for (info, id) in [(PAGE_UPDATE, 1), (PAGE_SPLIT, 0)] {
        let special = special(info, id);
        assert_eq!(special[..8], nsn);
        assert_eq!(special[8..12], [0x11; 4]);
        assert_eq!(special[12..14], [0xF7, 0xFF]);
    }
    for (info, id) in [(PAGE_UPDATE, 0), (PAGE_SPLIT, 1), (PAGE_DELETE, 1)] {
        let special = special(info, id);
        assert_eq!(special[..12], [0x11; 12]);
        assert_eq!(special[12..14], [0xFF, 0xFF]);
    }
}

#[test]
fn a_relation_does_not_grow_without_bound() {
    let far = 3 + MAX_GAP_BLOCKS + 1;
    for block in [far, u32::MAX] {
        let error = interpreter(3, 0)
            .interpret(&record(&[(0, block, IMAGE)]))
            .unwrap_err();
        assert!(matches!(error.reason, Reason::Gap { .. }), "{error}");
    }
    let changes = interpreter(3, 0).interpret(&record(&[(0, far - 1, IMAGE)]));
    assert_eq!(changes.unwrap().len(), MAX_GAP_BLOCKS as usize + 2);
}

#[test]
fn little_wal_does_not_leave_gaps_without_end() {
    let mut interpreter = interpreter(1, 0);
    let mut gaps = (1..).map(|nth: u32| {
        let end_lsn = 64 * u64::from(nth);
        record_of(
            ResourceManager::Xlog,
            0xB0,
            end_lsn,
            &[(0, nth << 18, IMAGE)],
        )
    });
    let zeros: usize = gaps
        .by_ref()
        .map_while(|record| interpreter.interpret(&record).ok())
        .take(1 << 20)
        .map(|changes| changes.len())
        .sum();
    assert!((1 << 19..1 << 22).contains(&zeros), "{zeros}");
    // With as much log as it makes, growing goes on.
    let refused = gaps.next().unwrap();
    let later = RawRecord {
        end_lsn: Lsn::new(1 << 30),
        ..refused
    };
    assert!(interpreter.interpret(&later).is_ok());
}

#[test]
fn forks_are_not_created_without_end() {
    let mut interpreter = interpreter(1, 0);
    let mut created = (0..=MAX_FORKS as u32).map(|rel| {
        let data = numbers(&[REL.spc, REL.db, rel, 0]);
        let created = slru_record(ResourceManager::Storage, 0x10, 0, &data);
        interpreter.interpret(&created).map(drop)
    });
    let error = created.find_map(Result::err).unwrap();
    assert!(matches!(error.reason, Reason::TooManyForks(_)), "{error}");
    drop(created);
    assert!(interpreter.size().get() >= MAX_FORKS as u64 * 20);
}

#[test]
fn a_hash_index_may_double_to_32_gib() {
    // It makes room for a quarter of its 2 to the 21st buckets, and logs the last page only.
    let quarter = 1 << 19;
    let room = record_of(ResourceManager::Xlog, 0xB0, 64, &[(0, quarter, IMAGE)]);
    let changes = interpreter(1, 0).interpret(&room).unwrap();
    assert_eq!(changes.len(), quarter as usize + 1);
}

/// What the log says of a relation that was dropped while it was backed up, and read after that.
fn dropped_during_the_backup() -> [RawRecord; 3] {
    let far = 3 + 2 * MAX_GAP_BLOCKS;
    [
        record_of(ResourceManager::Btree, 0, 64, &[(0, far, IMAGE)]),
        record_of(ResourceManager::Btree, 0, 72, &[(0, far / 2, WILL_INIT)]),
        record_of(ResourceManager::Btree, 0, 80, &[(0, far + 5, 0)]),
    ]
}

#[test]
fn until_the_backup_ends_the_log_may_name_pages_of_files_that_are_gone() {
    let mut interpreter = interpreter(0, 200);
    for record in dropped_during_the_backup() {
        let changes = interpreter.interpret(&record).unwrap();
        assert!(changes.len() <= 2, "{changes:?}");
    }
    // A page that is neither there nor built does not make the fork longer.
    let size = BlockNumber::new(3 + 2 * MAX_GAP_BLOCKS + 1);
    assert_eq!(interpreter.sizes().get(REL), Some(size));
    interpreter.interpret(&truncated_to(0, 150)).unwrap();
    assert_eq!(interpreter.sizes().get(REL), Some(BlockNumber::ZERO));
    let changes = interpreter.interpret(&record_of(
        ResourceManager::Btree,
        0,
        208,
        &[(0, 0, WILL_INIT)],
    ));
    assert_eq!(changes.unwrap().len(), 2);
}

#[test]
fn a_gap_that_outlives_the_backup_stops_the_timeline() {
    let mut interpreter = interpreter(0, 200);
    for record in dropped_during_the_backup() {
        interpreter.interpret(&record).unwrap();
    }
    interpreter.interpret(&truncated_to(1, 150)).unwrap();
    let after = record_of(ResourceManager::Btree, 0, 208, &[]);
    for _ in 0..2 {
        let error = interpreter.interpret(&after).unwrap_err();
        assert!(matches!(error.reason, Reason::Gap { .. }), "{error}");
    }
}

#[test]
fn after_the_backup_a_missing_page_stops_the_timeline() {
    let missing = record_of(ResourceManager::Btree, 0, 208, &[(0, 3, 0)]);
    let changes = interpreter(3, 208).interpret(&missing).unwrap();
    assert_eq!(changes, []);
    let error = interpreter(3, 200).interpret(&missing).unwrap_err();
    assert!(
        matches!(error.reason, Reason::MissingPage { .. }),
        "{error}"
    );
}

/// Of the main fork only.
fn truncated_to(blocks: u32, end_lsn: u64) -> RawRecord {
    let numbers = [blocks, REL.spc, REL.db, REL.rel, 1];
    let data = numbers.map(u32::to_le_bytes).concat();
    with_main_data(ResourceManager::Storage, 0x20, end_lsn, &data)
}

fn with_main_data(rmgr: ResourceManager, info: u8, end_lsn: u64, data: &[u8]) -> RawRecord {
    let mut record = record_of(rmgr, info, end_lsn, &[]);
    let mut bytes = Vec::from(record.bytes);
    // The long form, `XLR_BLOCK_ID_DATA_LONG`: any length fits.
    bytes.push(254);
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    record.bytes = bytes.into();
    record
}

/// `xl_parameter_change`, with its padding.
fn parameters(wal_level: u32, wal_log_hints: bool) -> RawRecord {
    let mut data = [100, 8, 10, 0, 64, wal_level]
        .map(u32::to_le_bytes)
        .concat();
    data.extend([u8::from(wal_log_hints), 1, 0, 0]);
    with_main_data(ResourceManager::Xlog, 0x60, 64, &data)
}

#[test]
fn a_setting_that_redo_depends_on_may_not_change() {
    let interpret = |known, record| {
        let base = BaseFacts {
            wal_log_hints: known,
            ..BaseFacts::consistent()
        };
        let mut interpreter = Interpreter::new(RelationSizes::default(), base);
        interpreter.interpret(&record)
    };
    for (known, now) in [(Some(false), true), (Some(true), false)] {
        let error = interpret(known, parameters(1, now)).unwrap_err();
        assert!(
            matches!(error.reason, Reason::WalLogHints { on } if on == now),
            "{error}"
        );
    }
    for (known, now) in [
        (Some(false), false),
        (Some(true), true),
        (None, false),
        (None, true),
    ] {
        let changes = interpret(known, parameters(2, now)).unwrap();
        let keys: Vec<_> = changes.iter().map(|change| change.key).collect();
        assert_eq!(keys, [Key::Parameters]);
    }
    let error = interpret(None, parameters(0, false)).unwrap_err();
    assert!(matches!(error.reason, Reason::WalLevel), "{error}");
}

#[test]
fn a_hint_record_without_an_image_changes_nothing() {
    const XLOG_FPI_FOR_HINT: u8 = 0xA0;
    const XLOG_FPI: u8 = 0xB0;
    let without_image = |info| record_of(ResourceManager::Xlog, info, 56, &[(0, 7, 0)]);
    let mut interpreter = Interpreter::new(RelationSizes::default(), BaseFacts::consistent());
    let changes = interpreter.interpret(&without_image(XLOG_FPI_FOR_HINT));
    assert_eq!(changes.unwrap(), []);
    assert_eq!(interpreter.sizes(), &RelationSizes::default());

    // Without its image the other kind is damaged, and must not go unnoticed.
    let error = interpreter.interpret(&without_image(XLOG_FPI)).unwrap_err();
    assert!(
        matches!(error.reason, Reason::MissingPage { .. }),
        "{error}"
    );
}
