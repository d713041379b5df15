use std::{
    io,
    path::Path,
    sync::{
        Condvar,
        atomic::{AtomicUsize, Ordering},
    },
};

use palimpsest_disk::{DiskEntry, DiskFile, OsDisk};
use palimpsest_types::{TenantId, TimelineId};

use super::*;
use crate::core::fixtures;

#[test]
fn a_tenant_has_its_own_limits_but_for_those_that_are_the_nodes() {
    let limits = Limits::default();
    let set = TenantSettings {
        layer_size: Some(ByteCount::mib(3)),
        layer_age: Some(Duration::from_secs(5)),
        slot_retention_limit: Some(ByteCount::gib(7)),
        reattach_after_drop: Some(false),
        memory_share: "25%".parse().ok(),
        ..TenantSettings::default()
    };
    let own = limits.of_tenant(&set);
    assert_eq!(
        (own.layer_size, own.layer_age),
        (ByteCount::mib(3), Duration::from_secs(5))
    );
    assert_eq!(
        (own.slot_retention, own.reattach_after_drop),
        (ByteCount::gib(7), false)
    );
    assert_eq!(
        (own.memory, own.local_disk),
        (limits.memory, limits.local_disk)
    );
    assert_eq!(own.tenant_memory(), ByteCount::mib(256));
    let none = limits.of_tenant(&TenantSettings::default());
    assert_eq!(
        (none.layer_size, none.slot_retention),
        (limits.layer_size, limits.slot_retention)
    );
    assert_eq!(none.tenant_memory(), limits.memory);
}

/// A disk on which the removal of a directory takes until it is let go on.
#[derive(Debug, Default)]
struct SlowDisk {
    begun: AtomicUsize,
    allowed: Mutex<usize>,
    changed: Condvar,
}

impl SlowDisk {
    fn allow_one(&self) {
        *self.allowed.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    async fn has_begun(&self, count: usize) -> bool {
        for _ in 0..100 {
            if self.begun.load(Ordering::SeqCst) >= count {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

impl Disk for SlowDisk {
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let allowed = self.allowed.lock().unwrap();
        let mut allowed = self
            .changed
            .wait_while(allowed, |allowed| *allowed == 0)
            .unwrap();
        *allowed -= 1;
        OsDisk.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir_all(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        OsDisk.create(path)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        OsDisk.append(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        OsDisk.sync_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        OsDisk.list(path)
    }

    fn read_exact_at(&self, path: &Path, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        OsDisk.read_exact_at(path, buffer, offset)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        OsDisk.available(path)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        OsDisk.len(path)
    }
}

fn deletion() -> Assignment {
    Assignment {
        timeline: TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        },
        source: "host=nowhere".to_owned(),
        slot: "palimpsest_test".to_owned(),
        task: AssignedTask::Delete { forget_slot: false },
        writer: None,
        reattach: None,
        settings: TenantSettings::default(),
    }
}

/// A node whose only work is to remove directories, slowly.
struct Scene {
    disk: Arc<SlowDisk>,
    scope: TaskScope,
    node: Node,
    _files: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(&files.path().join("store")).await;
        let disk = Arc::new(SlowDisk::default());
        let local = Local {
            disk: Arc::clone(&disk) as Arc<dyn Disk>,
            directory: files.path().join("wal"),
            restore_command: None,
        };
        let scope = TaskScope::default();
        let (limits, broker) = (Limits::default(), fixtures::broker(&scope));
        let node = Node::new(store.unwrap(), local, limits, broker, scope.clone());
        Self {
            disk,
            scope,
            node,
            _files: files,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_that_comes_back_waits_for_what_it_left_running() {
    let Scene {
        disk, scope, node, ..
    } = &Scene::new().await;
    node.assign(vec![deletion()]);
    assert!(disk.has_begun(1).await);
    // Given back, taken again and given back, while its first work still blocks.
    node.assign(Vec::new());
    node.assign(vec![deletion()]);
    node.assign(Vec::new());
    node.assign(vec![deletion()]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(disk.begun.load(Ordering::SeqCst), 1);
    disk.allow_one();
    assert!(disk.has_begun(2).await);
    disk.allow_one();
    scope.stop().await;
    assert_eq!(disk.begun.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_whose_source_moved_begins_anew() {
    let Scene {
        disk, scope, node, ..
    } = &Scene::new().await;
    node.assign(vec![deletion()]);
    assert!(disk.has_begun(1).await);
    let moved = Assignment {
        source: "host=elsewhere".to_owned(),
        ..deletion()
    };
    node.assign(vec![moved.clone()]);
    disk.allow_one();
    assert!(disk.has_begun(2).await);
    node.assign(vec![moved]);
    disk.allow_one();
    tokio::time::sleep(Duration::from_millis(200)).await;
    scope.stop().await;
    assert_eq!(disk.begun.load(Ordering::SeqCst), 2, "nothing is new");
}
