use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;

async fn store() -> (tempfile::TempDir, ObjectStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(directory.path()).await.unwrap();
    (directory, store)
}

#[tokio::test]
async fn a_new_directory_is_private_and_an_old_one_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let new = directory.path().join("parent/store");
    ObjectStore::open(&new).await.unwrap();
    assert_eq!(mode(&new), 0o700);

    fs::set_permissions(&new, fs::Permissions::from_mode(0o750)).unwrap();
    ObjectStore::open(&new).await.unwrap();
    assert_eq!(mode(&new), 0o750);

    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = ObjectStore::open(&file).await;
    assert!(matches!(refused, Err(StoreError::Directory { .. })));
}

#[tokio::test]
async fn an_object_is_created_once() {
    let (_directory, store) = store().await;
    let path = StorePath::catalog().child("1");
    store
        .create(&path, Bytes::from_static(b"first"))
        .await
        .unwrap();
    let second = store.create(&path, Bytes::from_static(b"second")).await;
    assert!(matches!(second, Err(StoreError::AlreadyExists { .. })));
    assert_eq!(store.get(&path).await.unwrap(), "first");
    assert_eq!(store.get_range(&path, 1..3).await.unwrap(), "ir");
}

#[tokio::test]
async fn who_asks_may_read_files_itself_and_gets_the_same() {
    thread_local! {
        static TIMES: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    let (_directory, store) = store().await;
    let here = store.reading_here(|| TIMES.set(TIMES.get() + 1));
    let path = StorePath::catalog().child("1");
    let body = Bytes::from_static(b"0123456789");
    store.create(&path, body).await.unwrap();
    // Also across the end and behind it, as what a damaged file may ask for.
    for range in [0..10, 3..7, 8..100, 5..5, 10..11, 90..100] {
        let [here, there] = [&here, &store].map(|store| store.get_range(&path, range.clone()));
        let (here, there) = (here.await, there.await);
        assert_eq!(
            here.is_ok(),
            there.is_ok(),
            "{range:?}: {here:?}, {there:?}"
        );
        assert_eq!(here.ok(), there.ok(), "{range:?}");
    }
    assert_eq!(TIMES.get(), 6);
    let nowhere = StorePath::catalog().child("2");
    let missing = here.get_range(&nowhere, 0..1).await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn who_reads_files_itself_can_be_stopped() {
    let (_directory, store) = store().await;
    let here = store.reading_here(|| {});
    let path = StorePath::catalog().child("1");
    store.create(&path, Bytes::from_static(b"0")).await.unwrap();
    let reads = async {
        for _ in 0..1000 {
            here.get_range(&path, 0..1).await.unwrap();
        }
    };
    // Reads come first each time that both are looked at.
    tokio::select! {
        biased;
        () = reads => panic!("nobody else was looked at"),
        () = tokio::task::yield_now() => {}
    }
}

#[tokio::test]
async fn what_is_deleted_is_gone_and_stays_gone() {
    let (_directory, store) = store().await;
    let path = StorePath::catalog();
    for name in ["1", "2"] {
        store.create(&path.child(name), Bytes::new()).await.unwrap();
    }
    assert_eq!(store.list(&path).await.unwrap().len(), 2);
    store.delete_below(&path).await.unwrap();
    store.delete(&path.child("1")).await.unwrap();
    assert!(store.list(&path).await.unwrap().is_empty());
    assert!(matches!(
        store.get(&path.child("1")).await,
        Err(StoreError::NotFound { .. })
    ));
}
