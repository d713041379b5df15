use proptest::prelude::*;

use super::*;
use crate::clog::XIDS_PER_CLOG_PAGE;

pub(crate) fn sample() -> ControlData {
    ControlData {
        checkpoint: Lsn::new(0x300_0060),
        redo: Lsn::new(0x300_0028),
        time: 1_700_000_000,
        next_xid: 1 << 32 | 740,
        timeline: 3,
        previous_timeline: 2,
        next_oid: 16_390,
        oldest_xid: 716,
        oldest_xid_db: 1,
        oldest_multi: 7,
        oldest_multi_db: 5,
        oldest_commit_ts_xid: 0,
        newest_commit_ts_xid: 0,
        oldest_active_xid: 739,
        full_page_writes: true,
    }
}

fn at(next_xid: u64) -> ControlData {
    ControlData {
        next_xid,
        ..sample()
    }
}

fn noted(next_xid: u64, xid: Xid) -> u64 {
    let mut data = at(next_xid);
    data.note_xid(xid);
    data.next_xid
}

#[test]
fn fields_stand_where_the_format_says() {
    let bytes = sample().to_bytes();
    assert_eq!(bytes.len(), ControlData::LEN);
    assert_eq!(bytes[..8], 0x300_0060_u64.to_le_bytes());
    assert_eq!(bytes[24..32], (1_u64 << 32 | 740).to_le_bytes());
    assert_eq!(bytes[32..40], [3, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(bytes[68..], [0xE3, 2, 0, 0, 1, 0, 0, 0]);
    for end in 0..ControlData::LEN {
        assert!(ControlData::decode(&bytes.slice(..end)).is_err());
    }
    let next = NextMultiXact { id: 1, offset: 2 };
    assert_eq!(next.to_bytes().as_ref(), [1, 0, 0, 0, 2, 0, 0, 0]);
    let time = CommitTime {
        time: -2,
        record: Lsn::new(7),
    };
    assert_eq!(
        time.to_bytes()[..9],
        [254, 255, 255, 255, 255, 255, 255, 255, 7]
    );
    assert_eq!(CommitTime::decode(&time.to_bytes()), Ok(time));
}

#[test]
fn the_next_transaction_is_a_version_only_now_and_then() {
    assert_eq!(noted(740, 739), 740);
    assert_eq!(noted(740, 740), 1024);
    assert_eq!(noted(1024, 1023), 1024);
    assert_eq!(noted(1024, 1024), 2048);
    // Ids of nobody.
    assert_eq!(noted(740, 2), 740);
    // The next is known exactly where it is a multiple.
    assert_eq!(noted(740, 2047), 2048);
}

#[test]
fn the_epoch_rises_when_ids_wrap_around() {
    let last = u64::from(u32::MAX);
    assert_eq!(noted(last - 100, u32::MAX - 100), last);
    // All ids of the epoch are given out; the page that the next is on need not exist.
    assert_eq!(noted(last, u32::MAX), 1 << 32 | 3);
    assert_eq!(noted(last, 3), 1 << 32 | 1024);
    assert_eq!(noted(1 << 32 | 3, u32::MAX), 1 << 32 | 3);
}

#[test]
fn commit_times_are_known_up_to_the_end_of_a_page() {
    let mut data = at(900);
    data.keep_commit_ts(true);
    assert_eq!(
        (data.oldest_commit_ts_xid, data.newest_commit_ts_xid),
        (900, 900)
    );
    data.note_commit_ts(901);
    assert_eq!(data.newest_commit_ts_xid, 2 * 819 - 1);
    data.keep_commit_ts(true);
    data.note_oldest_commit_ts(950);
    assert_eq!(
        (data.oldest_commit_ts_xid, data.newest_commit_ts_xid),
        (950, 1637)
    );
    data.note_commit_ts(u32::MAX - 5);
    data.keep_commit_ts(false);
    data.note_oldest_commit_ts(960);
    assert_eq!(
        (data.oldest_commit_ts_xid, data.newest_commit_ts_xid),
        (0, 0)
    );
}

#[test]
fn a_checkpoint_may_be_older_than_what_is_known() {
    let mut data = sample();
    let said = ControlData {
        checkpoint: Lsn::new(0x400_0000),
        next_xid: 700,
        next_oid: 1,
        oldest_xid: 710,
        oldest_multi: 9,
        oldest_multi_db: 4,
        full_page_writes: false,
        ..sample()
    };
    data.note_checkpoint(&said);
    let expected = ControlData {
        checkpoint: Lsn::new(0x400_0000),
        oldest_multi: 9,
        oldest_multi_db: 4,
        full_page_writes: false,
        ..sample()
    };
    assert_eq!(data, expected);
}

#[test]
fn the_next_multixact_wraps_around() {
    let mut next = NextMultiXact {
        id: u32::MAX,
        offset: u32::MAX - 1,
    };
    next.advance(NextMultiXact { id: 1, offset: 5 });
    assert_eq!(next, NextMultiXact { id: 1, offset: 5 });
    next.advance(NextMultiXact {
        id: u32::MAX,
        offset: 6,
    });
    assert_eq!(next, NextMultiXact { id: 1, offset: 6 });
}

#[test]
fn times_within_a_millisecond_count_as_one() {
    let at = |time| CommitTime {
        time,
        record: Lsn::ZERO,
    };
    assert!(!at(1999).is_after(1000));
    assert!(at(2000).is_after(1999));
    assert!(at(0).is_after(-1));
    assert!(!at(-1).is_after(-1000));
}

proptest! {
    #[test]
    fn control_data_round_trips(bytes: [u8; ControlData::LEN]) {
        let mut bytes = bytes.to_vec();
        bytes[72] &= 1;
        bytes[73..].fill(0);
        let bytes = Bytes::from(bytes);
        prop_assert_eq!(ControlData::decode(&bytes).unwrap().to_bytes(), bytes);
    }

    /// What is said is never below what PostgreSQL would say, never far above, and on a page of
    /// `pg_xact` that the newest id made, or the first of one.
    #[test]
    fn the_next_transaction_is_safe_to_go_on_from(
        start in 3..u64::from(u32::MAX) << 2,
        steps in prop::collection::vec(0..3_000_u32, 1..50),
    ) {
        prop_assume!(start as u32 >= FIRST_NORMAL_XID);
        let (mut data, mut exact) = (at(start), start);
        for step in steps {
            let (epoch, next) = split(exact);
            let xid = next.wrapping_add(step);
            if xid < FIRST_NORMAL_XID {
                continue;
            }
            exact = after(epoch + u32::from(xid < next), xid);
            data.note_xid(xid);
            prop_assert!(data.next_xid >= exact);
            prop_assert!(data.next_xid < exact + ControlData::XID_PRECISION);
            let (_, rounded) = split(data.next_xid);
            let first_on_page = rounded % XIDS_PER_CLOG_PAGE == 0 || rounded == FIRST_NORMAL_XID;
            let page = |xid: Xid| xid / XIDS_PER_CLOG_PAGE;
            prop_assert!(first_on_page || page(rounded) == page(xid));
            prop_assert_eq!(data.next_xid >> 32, exact >> 32);
        }
    }
}
