use std::{path::Path, sync::Arc};

use palimpsest_disk::OsDisk;
use palimpsest_layer::{LogRecord, OpenLayer};
use palimpsest_manifest::{SourceCluster, TimelineManifest};
use palimpsest_read::Tail;
use palimpsest_store::faulty::FaultyStore;
use palimpsest_types::{ByteCount, Fork, Key, RelTag, SystemIdentifier, WriterEpoch};
use palimpsest_wal::{BaseFacts, Change, Interpreter, RelationSizes, SegmentSize, Value};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::core::{fixtures::timeline, growth::Growth, node::Limits};

const SEGMENT: ByteCount = ByteCount::mib(1);
const START: Lsn = Lsn::new(SEGMENT.get());

/// A timeline that may hold less on the local disk than the WAL that is there, which is one segment
/// without any record.
struct Full {
    timeline: Timeline,
    growth: Arc<Growth>,
    frozen: UnboundedReceiver<Arc<OpenLayer>>,
}

impl Full {
    async fn begin(directory: &Path) -> (Self, Resumed) {
        let (_, store) = FaultyStore::in_memory().await.unwrap();
        let limits = Limits {
            local_disk: ByteCount::kib(4),
            ..Limits::default()
        };
        let timeline = timeline(store, directory, limits);
        let tail = Arc::new(Tail::new(WriterEpoch::FIRST, START));
        let share = timeline.shared.budget.share(timeline.id().tenant);
        let (growth, frozen) = Growth::new(tail, share, &limits);
        let growth = Arc::new(growth);
        let segment = SegmentSize::new(SEGMENT.get()).unwrap();
        let name = segment.file_name(1, segment.number_of(START));
        std::fs::write(directory.join(name), vec![0; SEGMENT.as_len()]).unwrap();
        let files = WalFiles::open(Arc::new(OsDisk), directory.to_owned(), segment, 1, START);
        let files = files.unwrap();
        growth.share().set_wal(files.size());
        let interpreter = Interpreter::new(RelationSizes::default(), BaseFacts::consistent());
        let decoder = Decoder::new(START, segment, interpreter, Arc::clone(&growth));
        let source = SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline: 1,
            wal_segment_size: SEGMENT,
            wal_log_hints: false,
        };
        let manifest = TimelineManifest::new(source, START, START);
        let full = Self {
            timeline,
            growth,
            frozen,
        };
        let resumed = Resumed {
            manifest,
            files,
            decoder,
        };
        (full, resumed)
    }
}

#[tokio::test]
async fn local_wal_that_uses_the_allowance_up_is_decoded_all_the_same() {
    let files = tempfile::tempdir().unwrap();
    let (full, resumed) = Full::begin(files.path()).await;
    assert!(resumed.decoder.room().is_err(), "there is room");
    let replayed = tokio::time::timeout(Duration::from_secs(20), replay(&full.timeline, resumed));
    let replayed = replayed.await.expect("nothing is decoded");
    // What is no WAL was dropped.
    assert_eq!(replayed.unwrap().files.end(), START);
}

#[tokio::test]
async fn p2_more_than_a_crash_can_leave_is_kept_until_it_has_come_again() {
    let files = tempfile::tempdir().unwrap();
    let (full, mut resumed) = Full::begin(files.path()).await;
    // What is no WAL, and far more than one write.
    let more = vec![0; (2 * TORN) as usize];
    resumed.files.append(&[more.into()]).unwrap();
    let end = resumed.files.end();
    let replayed = replay(&full.timeline, resumed).await.unwrap();
    assert_eq!(replayed.files.end(), START);
    let awaited: Vec<_> = replayed.files.awaited().map(|(_, end)| end).collect();
    assert_eq!(awaited, [end]);
    let warnings = full.timeline.status().warnings;
    assert!(warnings[0].contains("damaged"), "{warnings:?}");
}

#[tokio::test]
async fn who_waits_for_room_hands_over_what_takes_it() {
    let files = tempfile::tempdir().unwrap();
    let (mut full, resumed) = Full::begin(files.path()).await;
    // A layer waits for its upload, and something is in memory.
    full.growth.share().set_layers(ByteCount::new(1));
    let rel = RelTag {
        spc: 1663,
        db: 5,
        rel: 16384,
        fork: Fork::Main,
    };
    let lsn = Lsn::new(START.get() + 64);
    let change = Change {
        key: Key::RelSize(rel),
        value: Value::Dropped,
    };
    let changes = vec![change];
    full.growth
        .extend(vec![LogRecord { lsn, changes }], lsn)
        .unwrap();
    let uploading = async {
        full.frozen.recv().await.expect("the piece");
        full.growth.share().set_layers(ByteCount::new(0));
    };
    let both = async { tokio::join!(replay(&full.timeline, resumed), uploading) };
    let both = tokio::time::timeout(Duration::from_secs(20), both).await;
    both.expect("it waits for nobody").0.unwrap();
}
