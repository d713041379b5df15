use palimpsest_types::KeyRange;
use proptest::prelude::*;

use super::*;
use crate::versions::{Images, Listing};

/// Versions in memory.
#[derive(Default)]
struct Made(BTreeMap<(Key, Lsn), Value>);

impl Made {
    fn put(&mut self, key: Key, lsn: u64, content: Bytes) {
        self.0.insert((key, Lsn::new(lsn)), Value::File(content));
    }
}

impl Versions for Made {
    async fn newest(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> Result<Option<(Lsn, Value)>, ReadError> {
        let range = (key, *lsns.start())..=(key, *lsns.end());
        let newest = self.0.range(range).next_back();
        Ok(newest.map(|((_, at), value)| (*at, value.clone())))
    }

    async fn newest_in(&self, keys: KeyRange, up_to: Lsn) -> Result<Listing, ReadError> {
        let versions = self.0.range((keys.start, Lsn::ZERO)..(keys.end, Lsn::ZERO));
        let old = versions.filter(|((_, at), _)| *at <= up_to);
        let versions = old.map(|((key, at), value)| (*key, (*at, value.clone())));
        Ok(Listing {
            versions: versions.collect(),
            images: Images::default(),
        })
    }
}

const CONTROL: ControlData = ControlData {
    checkpoint: Lsn::new(8),
    redo: Lsn::new(8),
    time: 1,
    next_xid: 700,
    timeline: 1,
    previous_timeline: 1,
    next_oid: 16_384,
    oldest_xid: 3,
    oldest_xid_db: 1,
    oldest_multi: 1,
    oldest_multi_db: 1,
    oldest_commit_ts_xid: 0,
    newest_commit_ts_xid: 0,
    oldest_active_xid: 0,
    full_page_writes: true,
};

#[tokio::test]
async fn the_cluster_is_what_was_said_last() {
    let mut made = Made::default();
    assert_eq!(cluster_at(&made, Lsn::new(50)).await.unwrap(), None);
    made.put(Key::ControlFile, 10, Bytes::from_static(b"file"));
    let unknown = cluster_at(&made, Lsn::new(50)).await;
    assert!(matches!(unknown, Err(ReadError::NotInBackup(_))));
    let later = ControlData {
        next_xid: 1024,
        ..CONTROL
    };
    made.put(Key::ControlData, 10, CONTROL.to_bytes());
    made.put(Key::ControlData, 40, later.to_bytes());
    let next_multi = NextMultiXact { id: 1, offset: 0 };
    made.put(Key::NextMultiXact, 10, next_multi.to_bytes());
    made.put(Key::Parameters, 10, vec![0; Parameters::LEN].into());
    made.put(
        Key::Origin(3),
        20,
        Bytes::from_static(&[9, 0, 0, 0, 0, 0, 0, 0]),
    );
    made.0
        .insert((Key::Origin(3), Lsn::new(45)), Value::Dropped);
    for (lsn, control, origins) in [
        (10, CONTROL, BTreeMap::new()),
        (39, CONTROL, BTreeMap::from([(3, Lsn::new(9))])),
        (40, later, BTreeMap::from([(3, Lsn::new(9))])),
        (50, later, BTreeMap::new()),
    ] {
        let found = cluster_at(&made, Lsn::new(lsn)).await.unwrap().unwrap();
        assert_eq!((found.control, found.origins), (control, origins), "{lsn}");
        assert_eq!(
            (&found.control_file[..], found.next_multi),
            (&b"file"[..], next_multi)
        );
    }
}

/// Ends of transactions as the log has them, and the versions that come of them.
fn made_of(times: &[i64]) -> Made {
    let mut made = Made::default();
    let mut latest: Option<i64> = None;
    for (index, time) in times.iter().enumerate() {
        let record = Lsn::new(100 + 40 * index as u64);
        let end = CommitTime {
            time: *time,
            record,
        };
        if latest.is_none_or(|latest| end.is_after(latest)) {
            made.put(Key::CommitTime, record.get() + 32, end.to_bytes());
            latest = Some(*time);
        }
    }
    made
}

proptest! {
    /// As `recovery_target_time`: before the first end of a transaction that is later.
    #[test]
    fn a_time_is_before_the_first_later_end(
        times in prop::collection::vec(-9_000..9_000_i64, 0..40),
        time in -10_000..10_000_i64,
        oldest in 0..1_000_u64,
    ) {
        let newest = 100 + 40 * times.len() as u64;
        let oldest = (100 + oldest / 40 * 40).min(newest);
        let millis = |time: i64| time.div_euclid(1000);
        let first = times.iter().position(|it| millis(*it) > millis(time));
        let expected = match first.map(|index| 100 + 40 * index as u64) {
            None => TimeAt::Newest,
            Some(record) if record < oldest => TimeAt::BeforeOldest,
            Some(record) => TimeAt::Lsn(Lsn::new(record)),
        };
        let made = made_of(&times);
        let readable = Lsn::new(oldest)..=Lsn::new(newest);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(lsn_at_time(&made, time, readable)).unwrap();
        prop_assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn at_an_lsn_it_is_the_latest_time_of_an_end() {
    let made = made_of(&[5_000, 9_000, 7_000]);
    let mut times = Vec::new();
    for lsn in [100, 131, 132, 172, 400] {
        times.push(time_at_lsn(&made, Lsn::new(lsn)).await.unwrap());
    }
    let none_yet = [None, None];
    let ends = [Some(5_000), Some(9_000), Some(9_000)];
    assert_eq!(times, [&none_yet[..], &ends[..]].concat());
}

#[tokio::test]
async fn before_the_first_checkpoint_nothing_is_known() {
    for ends in [vec![], vec![7 * SECOND]] {
        let mut made = made_of(&ends);
        let control = ControlData {
            time: UNIX_TO_2000 + 5,
            ..CONTROL
        };
        made.put(Key::ControlData, 90, control.to_bytes());
        let at = async |time| {
            let readable = Lsn::new(95)..=Lsn::new(200);
            lsn_at_time(&made, time, readable).await.unwrap()
        };
        for before in [i64::MIN, 0, 5 * SECOND, 6 * SECOND - 1] {
            assert_eq!(at(before).await, TimeAt::BeforeOldest, "{before}");
        }
        let behind = match ends.is_empty() {
            true => TimeAt::Newest,
            false => TimeAt::Lsn(Lsn::new(100)),
        };
        assert_eq!(at(6 * SECOND).await, behind);
    }
}
