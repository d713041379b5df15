//! What works, also when answers are lost on the way.

use std::time::Duration;

use bytes::Bytes;
use palimpsest_store::{StoreError, StorePath};
use palimpsest_testkit::{BucketServer, Whim};
use tokio::time::Instant;

use crate::open;

#[tokio::test]
async fn objects_are_created_once_read_and_deleted_below_the_prefix() {
    let server = BucketServer::start("bucket").await.unwrap();
    let store = open(&server).await.unwrap();
    assert!(server.names().await.is_empty(), "the probe left something");
    let path = StorePath::catalog();
    // More than one portion of a listing.
    for number in 0..120 {
        let body = Bytes::from(format!("number {number}"));
        let object = path.child(&format!("{number:03}"));
        store.create(&object, body).await.unwrap();
    }
    let object = path.child("007");
    let second = store.create(&object, Bytes::from_static(b"other")).await;
    assert!(matches!(second, Err(StoreError::AlreadyExists { .. })));
    assert_eq!(store.get(&object).await.unwrap(), "number 7");
    assert_eq!(store.get_range(&object, 3..6).await.unwrap(), "ber");
    let names = server.names().await;
    assert!(names.contains(&"some/prefix/catalog/007".to_owned()));
    assert!(names.iter().all(|name| name.starts_with("some/prefix/")));

    let mut listed = store.list(&path).await.unwrap();
    listed.sort();
    assert_eq!(listed.len(), 120);
    assert_eq!(listed[7], object);
    store.delete(&object).await.unwrap();
    store.delete(&object).await.unwrap();
    let gone = store.get(&object).await.unwrap_err();
    assert!(matches!(gone, StoreError::NotFound { .. }), "{gone}");
    store.delete_below(&path).await.unwrap();
    assert!(server.names().await.is_empty());
}

#[tokio::test]
async fn what_passes_by_itself_is_not_even_noticed() {
    let server = BucketServer::start("bucket").await.unwrap();
    server.set(Whim::SlowDown, 3).await;
    let store = open(&server).await.unwrap();
    let path = StorePath::catalog().child("1");
    let body = Bytes::from_static(b"body");
    store.create(&path, body.clone()).await.unwrap();
    assert_eq!(store.get(&path).await.unwrap(), body);
}

#[tokio::test]
async fn a_lost_answer_is_no_lost_object() {
    let server = BucketServer::start("bucket").await.unwrap();
    // Also of the probe's winner, which then lost against itself.
    server.set(Whim::LoseAnswer, 3).await;
    let store = open(&server).await.unwrap();
    let path = StorePath::catalog();
    let body = Bytes::from_static(b"body");
    let mut repeated_out_of_sight = 0;
    for number in 1..=12 {
        let object = path.child(&number.to_string());
        match store.create(&object, body.clone()).await {
            Err(StoreError::AlreadyExists { .. }) => repeated_out_of_sight += 1,
            created => created.unwrap(),
        }
        assert_eq!(store.get(&object).await.unwrap(), body);
        store.put_once(&object, body.clone()).await.unwrap();
    }
    assert!(repeated_out_of_sight > 0);

    // Whoever hears nothing tries again, and finds it done.
    server.set(Whim::LoseAnswer, 1).await;
    let object = path.child("13");
    let lost = store.put_once(&object, body.clone()).await.unwrap_err();
    assert!(matches!(lost, StoreError::Bucket { .. }), "{lost}");
    server.set(Whim::None, 1).await;
    store.put_once(&object, body.clone()).await.unwrap();
    assert_eq!(store.get(&object).await.unwrap(), body);
}

#[tokio::test]
async fn a_slow_bucket_is_waited_for() {
    let server = BucketServer::start("bucket").await.unwrap();
    let store = open(&server).await.unwrap();
    server.set(Whim::Slow, 1).await;
    let path = StorePath::catalog().child("1");
    let begun = Instant::now();
    store.put_once(&path, Bytes::new()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

/// Amazon says so when an object of the name is deleted meanwhile: nothing is stored then.
#[tokio::test]
async fn an_object_counts_as_stored_only_if_it_is_there() {
    let server = BucketServer::start("bucket").await.unwrap();
    let store = open(&server).await.unwrap();
    server.set(Whim::Conflict, 1).await;
    let path = StorePath::catalog().child("1");
    let stored = store.put_once(&path, Bytes::new()).await;
    assert!(matches!(stored, Err(StoreError::NotFound { .. })));
    server.set(Whim::None, 1).await;
    store.put_once(&path, Bytes::new()).await.unwrap();
}
