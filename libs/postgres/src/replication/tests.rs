use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::transport::Transport;

/// A message of the server.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

fn xlog_data(start: u64, data: &[u8]) -> Vec<u8> {
    let end = start + data.len() as u64;
    let header = [start.to_be_bytes(), end.to_be_bytes(), [0; 8]].concat();
    message(b'd', &[b"w", &header[..], data].concat())
}

fn text_row(columns: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for column in columns {
        body.extend(u32::try_from(column.len()).unwrap().to_be_bytes());
        body.extend(column.bytes());
    }
    message(b'D', &body)
}

/// A stream at position 100 whose server is the test.
async fn stream() -> (ReplicationStream, DuplexStream) {
    let (client, mut server) = tokio::io::duplex(64 << 10);
    server.write_all(&message(b'Z', b"I")).await.unwrap();
    let connection = Connection::ready(Transport::new(client)).await.unwrap();
    server.write_all(&message(b'W', &[0, 0, 0])).await.unwrap();
    let stream = connection
        .start_physical_replication(None, Lsn::new(100), 1)
        .await
        .unwrap();
    let mut command = vec![0; 5 + "START_REPLICATION PHYSICAL 0/64 TIMELINE 1\0".len()];
    server.read_exact(&mut command).await.unwrap();
    (stream, server)
}

#[tokio::test]
async fn hands_out_wal_and_refuses_a_gap() {
    let (mut stream, mut server) = stream().await;
    for bytes in [
        xlog_data(100, b"abc"),
        xlog_data(103, b"de"),
        xlog_data(106, b"gap"),
    ] {
        server.write_all(&bytes).await.unwrap();
    }
    for piece in [&b"abc"[..], b"de"] {
        let event = stream.next().await.unwrap().unwrap();
        assert!(matches!(event, ReplicationEvent::XLogData { data, .. } if data == piece));
    }
    let error = stream.next().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "protocol violation: WAL at 0/6A where 0/69 was expected"
    );
    assert!(matches!(stream.next().await, Err(ClientError::OutOfStep)));
}

#[tokio::test]
async fn goes_through_the_end_of_a_timeline() {
    let (mut stream, mut server) = stream().await;
    server.write_all(&message(b'c', b"")).await.unwrap();
    let switch = async {
        let mut answer = [0; 5];
        server.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *b"c\0\0\0\x04");
        let row = text_row(&["2", "0/65"]);
        let complete = message(b'C', b"START_STREAMING\0");
        for bytes in [message(b'T', &[0, 0]), row, complete, message(b'Z', b"I")] {
            server.write_all(&bytes).await.unwrap();
        }
    };
    let (event, ()) = tokio::join!(stream.next(), switch);
    let expected = ReplicationEvent::EndOfTimeline {
        next_timeline: 2,
        switch_point: Lsn::new(0x65),
    };
    assert_eq!(event.unwrap(), Some(expected));
    assert_eq!(stream.next().await.unwrap(), None);
    assert!(stream.into_connection().is_ok());
}

#[tokio::test]
async fn the_parting_words_of_a_server_are_heard_after_a_failed_status() {
    let (mut stream, mut server) = stream().await;
    server
        .write_all(&message(b'E', b"SFATAL\0C57P01\0Mbye\0\0"))
        .await
        .unwrap();
    drop(server);
    let at = Lsn::new(100);
    let status = StandbyStatus {
        write: at,
        flush: at,
        apply: at,
        reply_requested: false,
    };
    assert!(matches!(
        stream.send_status(status).await,
        Err(ClientError::Closed)
    ));
    let error = stream.next().await.unwrap_err();
    assert_eq!(error.server_error().unwrap().code(), "57P01");
}

#[tokio::test]
async fn a_stream_can_be_owned_by_a_spawned_task() {
    fn spawnable<T: Send + 'static>(_: &T) {}
    let (mut stream, _server) = stream().await;
    spawnable(&async move { stream.next().await });
}

#[test]
fn times_convert_both_ways() {
    let day = SystemTime::UNIX_EPOCH + Duration::from_secs(PG_EPOCH + 86_400);
    assert_eq!(PgTimestamp::from(day).micros(), 86_400_000_000);
    assert_eq!(PgTimestamp::from(day).to_system_time(), Some(day));
    assert_eq!(
        PgTimestamp::from(UNIX_EPOCH).to_system_time(),
        Some(UNIX_EPOCH)
    );
}

proptest! {
    #[test]
    fn any_copy_data_is_an_event_or_an_error(bytes: Vec<u8>) {
        let _ = decode(Bytes::from(bytes));
    }
}
