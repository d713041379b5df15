use tokio::{io::AsyncWriteExt, io::DuplexStream, time::timeout};

use super::*;
use crate::transport::Transport;

/// A backup that was asked for over a connection whose other end the test plays.
async fn asked_for() -> (DuplexStream, BaseBackup) {
    let (client, mut server) = tokio::io::duplex(4096);
    server.write_all(b"Z\0\0\0\x05I").await.unwrap();
    let connection = Connection::ready(Transport::new(client)).await.unwrap();
    let backup = connection.base_backup(&BackupOptions::new("test")).await;
    (server, backup.unwrap())
}

fn silent_for(error: &ClientError) -> Duration {
    match error {
        ClientError::Silent { after, .. } => *after,
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_begin_is_given_up_late() {
    let (_server, mut backup) = asked_for().await;
    let begun = Instant::now();
    let error = backup.next().await.unwrap_err();
    assert_eq!(silent_for(&error), START_LIMIT);
    assert_eq!(begun.elapsed(), START_LIMIT);
    assert!(matches!(backup.next().await, Err(ClientError::OutOfStep)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_is_given_up_even_if_calls_are_dropped() {
    let (mut server, mut backup) = asked_for().await;
    // The description of a row without columns: no event, but a word.
    server.write_all(b"T\0\0\0\x06\0\0").await.unwrap();
    let begun = Instant::now();
    let error = loop {
        if let Ok(event) = timeout(Duration::from_secs(50), backup.next()).await {
            break event.unwrap_err();
        }
    };
    assert_eq!(silent_for(&error), SILENCE_LIMIT);
    assert_eq!(begun.elapsed(), SILENCE_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_our_own_is_no_silence() {
    let (mut server, mut backup) = asked_for().await;
    let word = b"T\0\0\0\x06\0\0";
    for _ in 0..3 {
        server.write_all(word).await.unwrap();
        let call = timeout(Duration::from_secs(1), backup.next()).await;
        assert!(call.is_err(), "it is no event");
        server.write_all(word).await.unwrap();
        tokio::time::sleep(2 * SILENCE_LIMIT).await;
    }
}

#[test]
fn the_command_quotes_its_label() {
    let options = BackupOptions {
        max_rate: Some(32),
        ..BackupOptions::new("it's")
    };
    assert_eq!(
        command(&options).unwrap(),
        "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAL false, WAIT false, \
         MANIFEST 'no', TABLESPACE_MAP false, MAX_RATE 32)"
    );
    assert!(command(&BackupOptions::new("a\nSTART WAL LOCATION: 0/0")).is_err());
}

#[test]
fn archives_are_told_apart_by_their_directory() {
    let oid = |data: &[u8]| match archive_start(data).unwrap() {
        BackupEvent::ArchiveStart { tablespace_oid, .. } => tablespace_oid,
        other => panic!("{other:?}"),
    };
    assert_eq!(oid(b"base.tar\0\0"), None);
    assert_eq!(oid(b"16384.tar\0/mnt\0"), Some(16384));
    for data in [
        &b""[..],
        b"base.tar",
        b"base.tar\0",
        b"a.tar\0/mnt\0",
        b"base.tar\0\0x",
    ] {
        assert!(archive_start(data).is_err(), "{data:?}");
    }
}
