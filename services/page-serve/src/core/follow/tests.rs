use palimpsest_layer::LogRecord;
use palimpsest_manifest::SourceCluster;
use palimpsest_types::SystemIdentifier;

use super::*;

const FIRST: WriterEpoch = WriterEpoch::FIRST;
const SECOND: WriterEpoch = WriterEpoch::new(2);
const THIRD: WriterEpoch = WriterEpoch::new(3);

/// A tail of the first writer, from 100 up to 500.
fn tail() -> Tail {
    let tail = Tail::new(FIRST, Lsn::new(100));
    for lsn in [200, 300, 400, 500] {
        tail.extend(vec![record(lsn)], Lsn::new(lsn), ByteCount::mib(1))
            .unwrap();
        tail.freeze();
    }
    tail
}

fn record(lsn: u64) -> LogRecord {
    LogRecord {
        lsn: Lsn::new(lsn),
        changes: Vec::new(),
    }
}

fn batch(epoch: WriterEpoch, epoch_start: u64) -> FeedBatch {
    FeedBatch {
        epoch,
        epoch_start: Lsn::new(epoch_start),
        up_to: Lsn::new(600),
        records: Vec::new(),
    }
}

fn manifest(epoch: WriterEpoch, epoch_start: u64, lsn: u64) -> TimelineManifest {
    let source = SourceCluster {
        system_identifier: SystemIdentifier::new(1),
        pg_version: 15,
        pg_timeline: 1,
        wal_segment_size: ByteCount::mib(16),
        wal_log_hints: false,
    };
    let mut manifest = TimelineManifest::new(source, Lsn::new(100), Lsn::new(100));
    manifest.writer_epoch = epoch;
    manifest.epoch_start = Lsn::new(epoch_start);
    manifest.lsn = Lsn::new(lsn);
    manifest
}

#[test]
fn p4_a_manifest_of_a_newer_writer_takes_back_what_the_older_one_told() {
    let tail = tail();
    take_over(&manifest(SECOND, 300, 300), &tail);
    assert_eq!(tail.newest(), Lsn::new(300));
    assert_eq!(tail.read().epoch(), SECOND);
    // The older writer's feed goes on.
    let mut newest = FIRST;
    let refused = accept_epoch(&batch(FIRST, 100), &mut newest, &tail);
    assert!(matches!(refused, Err(FollowError::Fenced { .. })));
    accept_epoch(&batch(SECOND, 300), &mut newest, &tail).unwrap();
    assert_eq!(tail.newest(), Lsn::new(300));
}

#[test]
fn p4_so_does_one_that_has_no_more_layers_than_the_one_before() {
    let tail = tail();
    take_over(&manifest(SECOND, 100, 100), &tail);
    assert_eq!(tail.newest(), Lsn::new(100));
}

#[test]
fn a_manifest_of_the_same_writer_only_lets_go_of_what_layers_have() {
    let tail = tail();
    take_over(&manifest(FIRST, 100, 300), &tail);
    assert_eq!(tail.newest(), Lsn::new(500));
    assert_eq!(tail.read().start(), Lsn::new(300));
}

#[test]
fn p7_a_tail_to_which_nothing_comes_holds_nothing_that_layers_have() {
    let tail = Tail::new(FIRST, Lsn::new(100));
    tail.extend(vec![record(200)], Lsn::new(200), ByteCount::mib(1))
        .unwrap();
    assert_eq!(tail.read().start(), Lsn::new(100));
    take_over(&manifest(FIRST, 100, 200), &tail);
    assert_eq!(tail.read().start(), Lsn::new(200));
}

#[test]
fn a_manifest_that_is_further_than_the_feed_is_where_it_goes_on() {
    let tail = tail();
    take_over(&manifest(FIRST, 100, 900), &tail);
    assert_eq!(tail.newest(), Lsn::new(900));
    // One that was read before it, and comes after it, changes nothing.
    accept_epoch(&batch(THIRD, 900), &mut SECOND.clone(), &tail).unwrap();
    take_over(&manifest(SECOND, 300, 900), &tail);
    assert_eq!(tail.newest(), Lsn::new(900));
    assert_eq!(tail.read().epoch(), THIRD);
}
