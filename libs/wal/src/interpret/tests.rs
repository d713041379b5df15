use super::*;

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

#[test]
fn a_relation_does_not_grow_without_bound() {
    let rel = RelTag {
        spc: 1663,
        db: 5,
        rel: 16384,
        fork: Fork::Main,
    };
    let mut sizes = RelationSizes::default();
    let mut changes = Changes {
        sizes: &mut sizes,
        resized: BTreeSet::new(),
        list: Vec::new(),
    };
    assert!(changes.extend_to(rel, BlockNumber::new(u32::MAX)).is_err());
    assert!(changes.extend_to(rel, BlockNumber::new(2)).unwrap());
    assert!(!changes.extend_to(rel, BlockNumber::new(1)).unwrap());
    let list = changes.finish();
    assert_eq!(list.len(), 3);
    assert_eq!(list[2].value, Value::RelSize(BlockNumber::new(3)));
}

/// A record of the log's own resource manager that names one page and holds nothing else.
fn reference_only(rmgr_info: u8) -> RawRecord {
    let rel = [1663u32, 5, 16384].map(u32::to_le_bytes).concat();
    let block = 7u32.to_le_bytes();
    let reference = [&[0, 0, 0, 0], rel.as_slice(), &block].concat();
    let mut bytes = vec![0; 24];
    bytes[..4].copy_from_slice(&44u32.to_le_bytes());
    bytes[16] = rmgr_info;
    bytes.extend(reference);
    RawRecord {
        start_lsn: Lsn::new(8),
        end_lsn: Lsn::new(56),
        bytes: bytes.into(),
    }
}

#[test]
fn a_hint_record_without_an_image_changes_nothing() {
    const XLOG_FPI_FOR_HINT: u8 = 0xA0;
    const XLOG_FPI: u8 = 0xB0;
    let mut interpreter = Interpreter::new(RelationSizes::default());
    let changes = interpreter.interpret(&reference_only(XLOG_FPI_FOR_HINT));
    assert_eq!(changes.unwrap(), []);
    assert_eq!(interpreter.sizes(), &RelationSizes::default());

    // Without its image the other kind is damaged, and must not go unnoticed.
    let changes = interpreter.interpret(&reference_only(XLOG_FPI)).unwrap();
    assert!(
        changes
            .iter()
            .any(|change| matches!(change.value, Value::Record { .. }))
    );
}
