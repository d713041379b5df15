use palimpsest_disk::{DiskStep, FullDisk, LossyDisk, OsDisk, Survival};
use proptest::prelude::*;

use super::*;

const SEGMENT: u64 = 1 << 20;
/// Within the first segment, so that the files begin before it.
const START: Lsn = Lsn::new((3 << 20) + 5);

fn try_open(disk: Arc<dyn Disk>, root: &Path, start: Lsn) -> Result<WalFiles, IngestError> {
    let size = SegmentSize::new(SEGMENT).unwrap();
    WalFiles::open(disk, root.join("new/pg_wal"), size, 1, start)
}

fn open(root: &Path) -> WalFiles {
    try_open(Arc::new(OsDisk), root, START).unwrap()
}

fn content(files: &WalFiles, from: Lsn) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = files.read(Lsn::new(from.get() + all.len() as u64)).unwrap() {
        all.extend_from_slice(&bytes);
    }
    all
}

fn names(root: &Path) -> Vec<String> {
    let entries = OsDisk.list(&root.join("new/pg_wal")).unwrap();
    entries.into_iter().map(|entry| entry.name).collect()
}

fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i / 1000) as u8).collect()
}

#[test]
fn what_was_appended_is_there_after_opening_again() {
    let root = tempfile::tempdir().unwrap();
    let mut files = open(root.path());
    assert_eq!(files.end(), Lsn::new(3 << 20));
    let bytes = pattern(3_000_000);
    files.append(std::slice::from_ref(&bytes)).unwrap();
    assert_eq!(files.size(), ByteCount::new(3_000_000));
    let again = open(root.path());
    assert_eq!((again.end(), again.size()), (files.end(), files.size()));
    assert!(content(&again, Lsn::new(3 << 20)) == bytes);
    assert_eq!(names(root.path())[0], "000000010000000000000003");
}

#[test]
fn truncating_removes_what_follows() {
    let root = tempfile::tempdir().unwrap();
    let mut files = open(root.path());
    files.append(&[Bytes::from(vec![1; 3 << 20])]).unwrap();
    let end = Lsn::new((4 << 20) + 100);
    files.truncate(end).unwrap();
    assert_eq!(open(root.path()).end(), end);
    files.append(&[Bytes::from_static(&[2; 10])]).unwrap();
    assert_eq!(content(&open(root.path()), end), [2; 10]);
}

#[test]
fn p2_truncating_beyond_the_end_leaves_no_gap_before_what_comes() {
    let root = tempfile::tempdir().unwrap();
    let mut files = open(root.path());
    // What replay does with a start in the midst of a segment, and no WAL from there.
    files.truncate(START).unwrap();
    assert_eq!(files.end(), Lsn::new(3 << 20));
    files.append(&[pattern(2000)]).unwrap();
    files.truncate(Lsn::new((3 << 20) + 3000)).unwrap();
    let again = open(root.path());
    assert_eq!((again.end(), again.size()), (files.end(), files.size()));
    assert!(content(&again, Lsn::new(3 << 20)) == pattern(2000));
}

#[test]
fn old_segments_go_and_the_one_that_holds_the_lsn_stays() {
    let root = tempfile::tempdir().unwrap();
    let mut files = open(root.path());
    files.append(&[pattern(3_500_000)]).unwrap();
    let trim = files.trim();
    let within_second = Lsn::new((5 << 20) - 1);
    let left = trim.remove_below(within_second).unwrap();
    assert_eq!(left, ByteCount::new(3_500_000 - SEGMENT));
    assert_eq!(names(root.path())[0], "000000010000000000000004");
    assert_eq!(trim.remove_below(START).unwrap(), left, "never backwards");
    let left = trim.remove_below(Lsn::MAX).unwrap();
    assert_eq!(names(root.path()), ["000000010000000000000006"]);
    assert_eq!((left, files.size()), (files.size(), left));
    files.append(&[pattern(10)]).unwrap();
    let again = try_open(Arc::new(OsDisk), root.path(), Lsn::new(6 << 20)).unwrap();
    assert_eq!(again.end(), files.end());
}

#[test]
fn opening_removes_what_is_older_or_does_not_follow() {
    let root = tempfile::tempdir().unwrap();
    open(root.path()).append(&[pattern(4 << 20)]).unwrap();
    let directory = root.path().join("new/pg_wal");
    std::fs::remove_file(directory.join("000000010000000000000005")).unwrap();
    std::fs::write(directory.join("notes"), "not WAL").unwrap();
    let start = Lsn::new((4 << 20) + 1);
    let files = try_open(Arc::new(OsDisk), root.path(), start).unwrap();
    assert_eq!(files.end(), Lsn::new(5 << 20));
    assert_eq!(names(root.path()), ["000000010000000000000004", "notes"]);
}

#[test]
fn p2_a_full_segment_that_a_dead_process_did_not_fsync_is_fsynced() {
    let root = tempfile::tempdir().unwrap();
    let disk = LossyDisk::new(root.path()).unwrap();
    let reopen = || try_open(Arc::new(disk.clone()), root.path(), START).unwrap();
    reopen().append(&[pattern(1000)]).unwrap();
    let path = root.path().join("new/pg_wal/000000010000000000000003");
    let mut rest = disk.append(&path).unwrap();
    io::Write::write_all(&mut rest, &pattern(SEGMENT as usize - 1000)).unwrap();
    drop(rest);
    disk.restart();
    // Whoever opens them now tells the source that all of it is safe.
    assert_eq!(reopen().end(), Lsn::new(4 << 20));
    disk.crash();
    disk.recover(Survival::Nothing).unwrap();
    assert_eq!(reopen().end(), Lsn::new(4 << 20));
}

#[test]
fn p2_what_is_set_aside_is_there_until_it_has_come_again() {
    let root = tempfile::tempdir().unwrap();
    let bytes = pattern(3_500_000);
    let mut files = open(root.path());
    files.append(std::slice::from_ref(&bytes)).unwrap();
    let end = files.end();
    let from = Lsn::new((4 << 20) + 77);
    let directory = files.set_aside(from).unwrap();
    assert_eq!(files.end(), from);
    let kept = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let (segment, start) = (SEGMENT as usize, 1 << 20);
    assert!(kept("000000010000000000000004") == bytes[start..start + segment]);
    assert!(kept("000000010000000000000006") == bytes[start + 2 * segment..]);
    // A start in between does not forget it.
    let mut files = open(root.path());
    let awaited: Vec<_> = files.awaited().map(|(_, end)| end).collect();
    assert_eq!((files.end(), awaited), (from, vec![end]));
    assert!(files.is_setting_aside(from));
    assert!(
        files.size() > ByteCount::new(bytes.len() as u64),
        "it takes no room"
    );
    // What came after it and was damaged as well is not what is to be kept.
    files.append(&[Bytes::from(vec![7; 2 << 20])]).unwrap();
    assert_eq!(files.set_aside(from).unwrap(), directory);
    assert!(kept("000000010000000000000004") == bytes[start..start + segment]);
    assert!(kept("000000010000000000000005")[..] == bytes[start + segment..start + 2 * segment]);
    assert_eq!(
        kept("000000010000000000000005.again"),
        [7; SEGMENT as usize]
    );
    let again = bytes.slice(start + 77..);
    files.append(&[again.slice(..again.len() - 1)]).unwrap();
    assert!(directory.exists());
    files.append(&[again.slice(again.len() - 1..)]).unwrap();
    assert!(!directory.exists() && files.awaited().count() == 0);
    assert!(content(&open(root.path()), Lsn::new(3 << 20)) == bytes);
}

#[test]
fn a_write_that_failed_is_done_again_from_where_it_began() {
    let root = tempfile::tempdir().unwrap();
    let mut files = open(root.path());
    files.append(&[pattern(1000)]).unwrap();
    let directory = root.path().join("new/pg_wal");
    // A directory in the place of the next segment: it can't be opened for writing.
    let obstacle = directory.join("000000010000000000000004");
    std::fs::create_dir(&obstacle).unwrap();
    let end = files.end();
    let bytes = pattern(2 << 20);
    files.append(std::slice::from_ref(&bytes)).unwrap_err();
    assert_eq!(files.end(), end);
    std::fs::remove_dir(&obstacle).unwrap();
    files.append(std::slice::from_ref(&bytes)).unwrap();
    assert!(content(&open(root.path()), end) == bytes);
}

/// Something that happens to the files.
#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    /// Cuts this part of what is there.
    Truncate(f64),
    /// Sets this part of what is there aside.
    SetAside(f64),
    /// Removes segments below this part of what is there.
    RemoveBelow(f64),
    /// The power goes at the durable operation after so many more.
    CrashSoon(u64),
    /// The power goes now.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..2_500_000usize).prop_map(Step::Append),
        1 => (0.0..1.0).prop_map(Step::Truncate),
        1 => (0.0..1.0).prop_map(Step::SetAside),
        2 => (0.0..1.0).prop_map(Step::RemoveBelow),
        2 => (1..12u64).prop_map(Step::CrashSoon),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..14)
}

/// What the files must hold.
#[derive(Debug)]
struct Model {
    /// From the start of the first segment ever on: what was acknowledged.
    acknowledged: Vec<u8>,
    /// What was being added or cut when the power went.
    at_risk: Option<Risk>,
    /// Nothing below is asked for any more.
    floor: Lsn,
    written: u8,
}

#[derive(Debug)]
enum Risk {
    Added(Vec<u8>),
    CutTo(usize),
}

const BEGIN: u64 = 3 << 20;

impl Model {
    fn end(&self) -> Lsn {
        Lsn::new(BEGIN + self.acknowledged.len() as u64)
    }

    /// A point between the floor and the end.
    fn point(&self, part: f64) -> Lsn {
        let held = self.end().saturating_sub(self.floor) as f64;
        Lsn::new(self.floor.get() + (held * part) as u64)
    }

    fn apply(&mut self, files: &mut WalFiles, step: &Step) -> Result<(), IngestError> {
        match step {
            Step::Append(len) => {
                self.written = self.written.wrapping_add(1);
                let bytes = vec![self.written; *len];
                self.at_risk = Some(Risk::Added(bytes.clone()));
                files.append(&[Bytes::from(bytes.clone())])?;
                self.acknowledged.extend(bytes);
            }
            Step::Truncate(part) => {
                let end = self.point(*part);
                let len = end.saturating_sub(Lsn::new(BEGIN)) as usize;
                self.at_risk = Some(Risk::CutTo(len));
                files.truncate(end)?;
                self.acknowledged.truncate(len);
            }
            Step::SetAside(part) => {
                let end = self.point(*part);
                let len = end.saturating_sub(Lsn::new(BEGIN)) as usize;
                self.at_risk = Some(Risk::CutTo(len));
                let before = files.end();
                let directory = files.set_aside(end)?;
                let kept = files.awaited().find(|(kept, _)| *kept == directory);
                assert!(before <= end || kept.is_some_and(|(_, end)| end >= before));
                self.acknowledged.truncate(len);
            }
            Step::RemoveBelow(part) => {
                self.floor = self.point(*part);
                files.trim().remove_below(self.floor)?;
            }
            Step::CrashSoon(_) | Step::Crash => {}
        }
        self.at_risk = None;
        Ok(())
    }

    /// Compares what a power cut has left, and goes on from there.
    fn check(&mut self, files: &WalFiles) {
        let len = files.end().saturating_sub(Lsn::new(BEGIN)) as usize;
        let mut possible = self.acknowledged.clone();
        let least = match self.at_risk.take() {
            Some(Risk::Added(bytes)) => {
                let least = possible.len();
                possible.extend(bytes);
                least
            }
            Some(Risk::CutTo(len)) => len,
            None => possible.len(),
        };
        assert!(
            len >= least,
            "{least} bytes were acknowledged, {len} are left"
        );
        assert!(len <= possible.len(), "there is more than was written");
        possible.truncate(len);
        let from = self.floor.saturating_sub(Lsn::new(BEGIN)) as usize;
        assert!(content(files, self.floor) == possible[from..]);
        let first_held = self.floor.floor_to(SEGMENT);
        let held = files.end().saturating_sub(first_held);
        assert!(files.size() >= ByteCount::new(held));
        self.acknowledged = possible;
    }
}

fn survive(steps: &[Step], seed: u64) {
    let root = tempfile::tempdir().unwrap();
    let disk = LossyDisk::new(root.path()).unwrap();
    let reopen = |floor| try_open(Arc::new(disk.clone()), root.path(), floor);
    let mut model = Model {
        acknowledged: Vec::new(),
        at_risk: None,
        floor: START.floor_to(SEGMENT),
        written: 0,
    };
    let mut files = reopen(model.floor).unwrap();
    for (number, step) in (0..).zip(steps) {
        match step {
            Step::CrashSoon(after) => disk.crash_at(disk.durable_operations() + after),
            Step::Crash => disk.crash(),
            _ => {}
        }
        let failed = !disk.is_crashed() && model.apply(&mut files, step).is_err();
        if failed || disk.is_crashed() {
            match seed.wrapping_add(number) {
                seed if seed % 3 == 0 => disk.recover(Survival::Nothing).unwrap(),
                seed if seed % 3 == 1 => disk.recover(Survival::Some(seed)).unwrap(),
                // Only the process is gone, for now.
                _ => disk.restart(),
            }
            files = reopen(model.floor).unwrap();
            model.check(&files);
        }
    }
    disk.crash();
    disk.recover(Survival::Nothing).unwrap();
    model.check(&reopen(model.floor).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn p2_what_was_acknowledged_survives_a_power_cut_at_any_instant(
        steps in steps(),
        seed: u64,
    ) {
        survive(&steps, seed);
    }
}

#[test]
fn p2_a_power_cut_at_each_durable_operation_loses_nothing() {
    let steps = [
        Step::Append(1_500_000),
        Step::Append(700_000),
        Step::Truncate(0.6),
        Step::Append(2_200_000),
        Step::RemoveBelow(0.8),
        Step::Append(100),
    ];
    for at in 1..60 {
        let mut with_crash = vec![Step::CrashSoon(at)];
        with_crash.extend_from_slice(&steps);
        survive(&with_crash, at);
    }
}

#[test]
fn on_a_full_disk_nothing_counts_and_nothing_is_lost() {
    for step in DiskStep::EACH {
        // A segment's own name is synced, and no other is changed.
        if step == DiskStep::Rename {
            continue;
        }
        let root = tempfile::tempdir().unwrap();
        let disk = FullDisk::default();
        let mut files = try_open(Arc::new(disk.clone()), root.path(), START).unwrap();
        let begin = files.end();
        let bytes = pattern(3_000_000);
        let (before, after) = (bytes.slice(..1_500_000), bytes.slice(1_500_000..));
        files.append(&[before]).unwrap();
        let (end, size) = (files.end(), files.size());
        disk.fill(step, "pg_wal");
        for _ in 0..2 {
            let error = files.append(std::slice::from_ref(&after)).unwrap_err();
            assert!(error.is_full_disk(), "{step:?}: {error}");
            assert_eq!((files.end(), files.size()), (end, size), "{step:?}");
            assert!(!files.trim().has_room());
        }
        disk.empty();
        assert!(files.trim().has_room());
        files.append(&[after]).unwrap();
        assert!(content(&files, begin) == bytes, "{step:?}");
        assert!(content(&open(root.path()), begin) == bytes, "{step:?}");
    }
}

#[test]
fn what_did_not_fit_gives_its_room_back() {
    let root = tempfile::tempdir().unwrap();
    let disk = FullDisk::default();
    let mut files = try_open(Arc::new(disk.clone()), root.path(), START).unwrap();
    let bytes = pattern(100_000);
    files.append(std::slice::from_ref(&bytes)).unwrap();
    disk.fill(DiskStep::Write, "pg_wal");
    files.append(&[bytes]).unwrap_err();
    let entries = OsDisk.list(&root.path().join("new/pg_wal")).unwrap();
    let held: u64 = entries.iter().map(|entry| entry.len).sum();
    assert_eq!(held, 100_000);
}

#[test]
fn a_reader_is_told_of_what_was_removed_under_it() {
    let directory = tempfile::tempdir().unwrap();
    let size = SegmentSize::new(1 << 20).unwrap();
    let path = directory.path().to_owned();
    let start = Lsn::new(1 << 20);
    let mut files = WalFiles::open(Arc::new(OsDisk), path, size, 1, start).unwrap();
    files.append(&[Bytes::from(vec![7; 3 << 20])]).unwrap();
    let reader = files.reader();
    let read = |at: u64, to: u64| reader.read(Lsn::new(at), Lsn::new(to));
    assert_eq!(read(1 << 20, (1 << 20) + 5).unwrap().unwrap().len(), 5);
    files.trim().remove_below(Lsn::new(3 << 20)).unwrap();
    assert_eq!(read(2 << 20, 3 << 20).unwrap(), None);
    assert!(read(3 << 20, 4 << 20).unwrap().is_some());
    // A file that is needed and not there is an error.
    std::fs::remove_file(
        directory
            .path()
            .join(size.file_name(1, size.number_of(Lsn::new(3 << 20)))),
    )
    .unwrap();
    assert!(read(3 << 20, 4 << 20).is_err());
}
