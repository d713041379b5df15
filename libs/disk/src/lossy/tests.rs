use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use super::*;

fn disk() -> (tempfile::TempDir, LossyDisk) {
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyDisk::new(directory.path()).unwrap();
    (directory, disk)
}

/// Every file below the disk's root, with its content.
fn files(disk: &LossyDisk) -> Vec<(String, String)> {
    let state = disk.lock();
    let mut all: Vec<(String, String)> = state
        .names
        .files_below(&disk.root)
        .into_iter()
        .map(|(path, _)| {
            let name = path.strip_prefix(&disk.root).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            (name.display().to_string(), text)
        })
        .collect();
    all.sort();
    all
}

fn write(disk: &LossyDisk, path: &Path, text: &str) -> Box<dyn DiskFile> {
    let mut file = disk.append(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn cut_power(disk: &LossyDisk) -> Vec<(String, String)> {
    disk.crash();
    disk.recover(Survival::Nothing).unwrap();
    files(disk)
}

fn one(name: &str, text: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), text.to_owned())]
}

#[test]
fn bytes_need_a_sync_and_so_does_the_name() {
    let (root, disk) = disk();
    let path = root.path().join("f");
    write(&disk, &path, "named, not synced");
    disk.sync_directory(root.path()).unwrap();
    assert_eq!(cut_power(&disk), one("f", ""));
    write(&disk, &path, "one").sync().unwrap();
    write(&disk, &path, "two");
    write(&disk, &root.path().join("g"), "no name")
        .sync()
        .unwrap();
    assert_eq!(cut_power(&disk), one("f", "one"));
}

#[test]
fn what_is_cut_off_is_back_unless_it_was_synced() {
    let (root, disk) = disk();
    let path = root.path().join("f");
    write(&disk, &path, "0123456789").sync().unwrap();
    disk.sync_directory(root.path()).unwrap();
    let mut file = disk.append(&path).unwrap();
    file.set_len(6).unwrap();
    file.write_all(b"ab").unwrap();
    file.set_len(4).unwrap();
    file.write_all(b"cdefghijkl").unwrap();
    assert_eq!(cut_power(&disk), one("f", "0123456789"));
    let mut file = disk.append(&path).unwrap();
    file.set_len(4).unwrap();
    file.sync().unwrap();
    file.write_all(b"more").unwrap();
    assert_eq!(cut_power(&disk), one("f", "0123"));
    drop(disk.create(&path).unwrap());
    assert_eq!(cut_power(&disk), one("f", "0123"));
}

#[test]
fn renames_and_removals_are_undone_unless_synced() {
    let (root, disk) = disk();
    let (old, new) = (root.path().join("old"), root.path().join("new"));
    write(&disk, &old, "old").sync().unwrap();
    write(&disk, &new, "replaced").sync().unwrap();
    disk.sync_directory(root.path()).unwrap();
    disk.rename(&old, &new).unwrap();
    assert_eq!(files(&disk), one("new", "old"));
    let mut both = one("new", "replaced");
    both.extend(one("old", "old"));
    assert_eq!(cut_power(&disk), both);
    disk.rename(&old, &new).unwrap();
    disk.sync_directory(root.path()).unwrap();
    assert_eq!(cut_power(&disk), one("new", "old"));
    disk.remove_file(&new).unwrap();
    assert_eq!(cut_power(&disk), one("new", "old"));
    disk.remove_file(&new).unwrap();
    disk.sync_directory(root.path()).unwrap();
    assert_eq!(cut_power(&disk), []);
}

#[test]
fn directories_are_durable_when_made_and_back_when_their_removal_was_not_synced() {
    let (root, disk) = disk();
    let inner = root.path().join("a/b");
    disk.create_dir_all(&inner).unwrap();
    write(&disk, &inner.join("f"), "x").sync().unwrap();
    disk.sync_directory(&inner).unwrap();
    assert_eq!(cut_power(&disk), one("a/b/f", "x"));
    disk.remove_dir_all(&root.path().join("a")).unwrap();
    disk.remove_dir_all(&root.path().join("a")).unwrap();
    assert_eq!(cut_power(&disk), one("a/b/f", "x"));
    disk.remove_dir_all(&root.path().join("a")).unwrap();
    disk.sync_directory(root.path()).unwrap();
    assert_eq!(cut_power(&disk), []);
}

#[test]
fn after_a_crash_nothing_works_and_old_files_stay_dead() {
    let (root, disk) = disk();
    let path = root.path().join("f");
    let mut file = write(&disk, &path, "x");
    disk.crash_at(2);
    file.sync().unwrap();
    assert!(disk.sync_directory(root.path()).is_err(), "the second");
    assert!(disk.is_crashed());
    assert!(file.write_all(b"y").is_err());
    assert!(disk.list(root.path()).is_err());
    disk.recover(Survival::Nothing).unwrap();
    assert_eq!(disk.list(root.path()).unwrap(), []);
    assert!(file.sync().is_err());
    assert_eq!(disk.durable_operations(), 0);
}

#[test]
fn by_chance_more_survives_but_never_out_of_order() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let (root, disk) = disk();
        write(&disk, &root.path().join("a"), "sync").sync().unwrap();
        write(&disk, &root.path().join("a"), "ed");
        write(&disk, &root.path().join("b"), "later");
        disk.recover(Survival::Some(seed)).unwrap();
        let left = files(&disk);
        if let Some((name, text)) = left.first() {
            assert_eq!(name, "a", "b came after a");
            assert!(text.starts_with("sync") && "synced".starts_with(text));
        }
        seen.insert(left.len());
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn paths_elsewhere_are_refused() {
    let (_root, disk) = disk();
    assert!(disk.create(&PathBuf::from("/elsewhere")).is_err());
}
