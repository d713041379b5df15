//! What does not work is told: what, where, and what to do, each once.

use std::{net::TcpListener, time::Duration};

use palimpsest_store::{ObjectStore, StoreError, StorePath, Trouble};
use palimpsest_testkit::{BucketServer, Whim};
use palimpsest_types::ErrorKind;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use crate::{in_full, location, open, variables};

/// Opens a place with changed variables, and fails.
async fn failure(server: &BucketServer, place: &str, other: &[(&str, &str)]) -> StoreError {
    let opened = ObjectStore::open_with(location(place), &variables(server, other)).await;
    let error = opened.unwrap_err();
    eprintln!("{}", in_full(&error));
    error
}

#[track_caller]
fn tells(error: &StoreError, trouble: Trouble, words: &[&str]) {
    let text = in_full(error);
    match error {
        StoreError::Bucket { trouble: found, .. } => assert_eq!(*found, trouble, "{text}"),
        other => panic!("{other:?}"),
    }
    for word in words {
        assert_eq!(text.matches(word).count(), 1, "{word:?} in {text}");
    }
    assert!(!text.contains('<'), "{text}");
}

#[tokio::test]
async fn a_wrong_key_is_told_as_denied_access() {
    let server = BucketServer::start("bucket").await.unwrap();
    let wrong = [("AWS_SECRET_ACCESS_KEY", "guessed")];
    let error = failure(&server, "s3://bucket/p", &wrong).await;
    let words = [
        "s3://bucket/p/",
        "access is denied",
        "credentials",
        "403",
        "SignatureDoesNotMatch",
    ];
    tells(&error, Trouble::NoAccess, &words);
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(!in_full(&error).contains("guessed"));
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_no_missing_object() {
    let server = BucketServer::start("bucket").await.unwrap();
    let error = failure(&server, "s3://other/p", &[]).await;
    tells(
        &error,
        Trouble::NoBucket,
        &["s3://other/p/", "make it", "NoSuchBucket"],
    );

    // A listing and a read are told the same.
    let store = open(&server).await.unwrap();
    let missing = store.get(&StorePath::catalog()).await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }), "{missing}");
}

/// An endpoint that is some other server.
#[tokio::test]
async fn a_new_object_that_is_not_found_is_a_wrong_place() {
    let server = BucketServer::start("bucket").await.unwrap();
    let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", stranger.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        while let Ok((mut stream, _)) = stranger.accept().await {
            let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(answer).await.unwrap();
        }
    });
    let other = [("AWS_ENDPOINT_URL", endpoint.as_str())];
    let error = failure(&server, "s3://bucket/p", &other).await;
    tells(&error, Trouble::NoBucket, &["s3://bucket/p/", "endpoint"]);
    answering.abort();
}

#[tokio::test]
async fn a_refused_connection_is_told_with_the_systems_words() {
    let server = BucketServer::start("bucket").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let endpoint = format!("http://{closed}");
    let other = [("AWS_ENDPOINT_URL", endpoint.as_str())];
    let error = failure(&server, "s3://bucket/p", &other).await;
    let words = ["s3://bucket/p/", "can't be reached", "Connection refused"];
    tells(&error, Trouble::Unreachable, &words);
    assert_eq!(error.kind(), ErrorKind::NotReady);
}

#[tokio::test]
async fn an_endpoint_without_tls_has_to_be_allowed() {
    let server = BucketServer::start("bucket").await.unwrap();
    let error = failure(&server, "s3://bucket/p", &[("AWS_ALLOW_HTTP", "")]).await;
    tells(
        &error,
        Trouble::PlainHttp,
        &["s3://bucket/p/", "AWS_ALLOW_HTTP=true"],
    );
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn variables_that_mean_nothing_are_told_before_anything_is_asked() {
    let server = BucketServer::start("bucket").await.unwrap();
    let other = [("AWS_ALLOW_HTTP", "perhaps")];
    let error = failure(&server, "s3://bucket/p", &other).await;
    assert!(matches!(error, StoreError::Environment { .. }), "{error:?}");
    assert!(in_full(&error).contains("AWS_"), "{}", in_full(&error));
    let error = failure(&server, "az://container", &[]).await;
    assert!(in_full(&error).contains("AZURE_"), "{}", in_full(&error));
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn a_store_that_ignores_the_condition_is_not_used() {
    let server = BucketServer::start("bucket").await.unwrap();
    server.set(Whim::Unconditional, 1).await;
    let error = failure(&server, "s3://bucket/p", &[]).await;
    assert!(matches!(error, StoreError::NotAtomic { .. }), "{error:?}");
    for words in ["s3://bucket/p", "If-None-Match"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(server.names().await.is_empty(), "the probe left something");
}

#[tokio::test]
async fn a_store_that_refuses_the_condition_is_told_apart() {
    let server = BucketServer::start("bucket").await.unwrap();
    server.set(Whim::NoConditions, 1).await;
    let error = failure(&server, "s3://bucket/p", &[]).await;
    tells(
        &error,
        Trouble::NoConditionalCreate,
        &["s3://bucket/p/", "If-None-Match", "501"],
    );
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_store_that_is_asked_for_too_much_is_asked_again_a_few_times() {
    let server = BucketServer::start("bucket").await.unwrap();
    let store = open(&server).await.unwrap();
    server.set(Whim::SlowDown, 1).await;
    let before = server.requests();
    let error = store.get(&StorePath::catalog()).await.unwrap_err();
    tells(
        &error,
        Trouble::Throttled,
        &["s3://bucket/some/prefix/catalog", "SlowDown"],
    );
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert_eq!(server.requests() - before, 5);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_keeps_silent_is_not_waited_for_without_end() {
    let server = BucketServer::start("bucket").await.unwrap();
    let store = open(&server).await.unwrap();
    server.set(Whim::Silent, 1).await;
    let path = StorePath::catalog();
    let begun = Instant::now();
    for outcome in [
        store.get(&path).await.map(drop),
        store.list(&path).await.map(drop),
        store.delete(&path).await,
        store.create(&path, Vec::new()).await,
    ] {
        let error = outcome.unwrap_err();
        tells(
            &error,
            Trouble::Silent,
            &["s3://bucket/some/prefix/catalog", "in time"],
        );
        assert_eq!(error.kind(), ErrorKind::NotReady);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(150),
        "{:?}",
        begun.elapsed()
    );
}
