use std::io;

use palimpsest_wal::RecordReader;

use super::{
    super::{
        entry::{HEAD_LEN, RECORD_HEAD_LEN},
        file_writer::OpenBlock,
    },
    sample::{EPOCH, START, block, small_layer},
    *,
};

fn write(entries: &[(Key, u64)]) -> Result<DeltaLayerSummary, WriteDeltaLayerError> {
    let entries = entries
        .iter()
        .map(|(key, lsn)| (*key, Lsn::new(*lsn), Value::ZeroPage));
    write_delta_entries(EPOCH, START..Lsn::new(2000), entries, io::sink())
}

#[test]
fn refuses_versions_out_of_order() {
    let ordered = [(block(1), 1001), (block(1), 2000), (block(2), 1001)];
    assert_eq!(write(&ordered).unwrap().entries, 3);
    for wrong in [
        [(block(1), 1002), (block(1), 1001)],
        [(block(1), 1002), (block(1), 1002)],
        [(block(2), 1001), (block(1), 1002)],
    ] {
        let error = write(&wrong).unwrap_err();
        assert!(
            matches!(error, WriteDeltaLayerError::Order { .. }),
            "{error}"
        );
    }
}

#[test]
fn refuses_versions_of_other_lsns() {
    for lsn in [0, 1000, 2001] {
        let error = write(&[(block(1), lsn)]).unwrap_err();
        assert!(
            matches!(error, WriteDeltaLayerError::Outside { .. }),
            "{error}"
        );
    }
}

#[test]
fn says_that_the_disk_is_full() {
    let mut room = [0; 200];
    let error = write_delta_layer(&small_layer(), &mut room[..]).unwrap_err();
    let WriteDeltaLayerError::Write(cause) = error else {
        panic!("{error}");
    };
    assert_eq!(cause.kind(), io::ErrorKind::WriteZero);
}

#[test]
fn what_is_read_of_a_log_fits() {
    let (longest, block) = (RecordReader::MAX_RECORD_LEN as usize, OpenBlock::default());
    let record = RECORD_HEAD_LEN + longest;
    let file = 4 + longest;
    for body in [record, file] {
        assert!(block.has_room(HEAD_LEN + body).unwrap());
    }
    let longer = block.has_room(HEAD_LEN + record + 1);
    assert!(matches!(longer, Err(WriteDeltaLayerError::TooLong(_))));
}

#[test]
fn writes_the_same_file_each_time() {
    assert_eq!(written(&small_layer()), written(&small_layer()));
}
