use std::{fs, time::Duration};

use palimpsest_postgres::{
    ClientError, Connection, ReplicationEvent, ReplicationStream, SlotName, StandbyStatus,
};
use palimpsest_types::{ErrorKind, Lsn};
use rustix::process::Signal;

use crate::server::{Cluster, Server};

const SEGMENT: u64 = 16 << 20;

fn status_at(lsn: Lsn) -> StandbyStatus {
    StandbyStatus {
        write: lsn,
        flush: lsn,
        apply: lsn,
        reply_requested: false,
    }
}

/// Receives WAL up to `end`, which must be a boundary that the server sends up to.
async fn receive(stream: &mut ReplicationStream, end: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    while stream.position() < end {
        if let Some(ReplicationEvent::XLogData { data, .. }) = stream.next().await.unwrap() {
            bytes.extend(data);
        }
    }
    bytes
}

#[tokio::test]
async fn the_stream_is_the_bytes_of_the_wal_files() {
    let server = Server::start().await;
    let info = server.tcp("user=trusted application_name=pal");
    let mut connection = Connection::connect(&info).await.unwrap();
    let slot: SlotName = "pal".parse().unwrap();
    connection.create_physical_slot(&slot, true).await.unwrap();
    let start = connection
        .identify_system()
        .await
        .unwrap()
        .xlogpos
        .floor_to(SEGMENT);

    server.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) i");
    let file = server.sql("SELECT pg_walfile_name(pg_switch_wal())");
    // The end of a segment reaches us only once something follows it.
    server.sql("CREATE TABLE u (); CHECKPOINT");
    let mut stream = connection
        .start_physical_replication(Some(&slot), start, 1)
        .await
        .unwrap();
    let end = start.checked_add(SEGMENT).unwrap();
    let mut bytes = receive(&mut stream, end).await;
    bytes.truncate(usize::try_from(SEGMENT).unwrap());
    let expected = fs::read(server.path("data/pg_wal").join(file)).unwrap();
    assert!(
        bytes == expected,
        "{} and {} bytes differ",
        bytes.len(),
        expected.len()
    );

    stream
        .send_status(StandbyStatus {
            write: end,
            flush: start,
            ..status_at(end)
        })
        .await
        .unwrap();
    // The answer proves that the status was read.
    stream
        .send_status(StandbyStatus {
            flush: start,
            reply_requested: true,
            ..status_at(end)
        })
        .await
        .unwrap();
    while !matches!(
        stream.next().await.unwrap(),
        Some(ReplicationEvent::KeepAlive { .. })
    ) {}
    let seen = server.sql(
        "SELECT application_name, write_lsn, flush_lsn, replay_lsn,
                now() - reply_time < interval '1 minute' FROM pg_stat_replication",
    );
    assert_eq!(seen, format!("pal|{end}|{start}|{end}|t"));
    assert_eq!(
        server.sql("SELECT restart_lsn FROM pg_replication_slots"),
        start.to_string()
    );
    stream.close().await;
}

#[tokio::test]
async fn dropping_next_loses_nothing() {
    let server = Server::start().await;
    let start = server
        .connect()
        .await
        .identify_system()
        .await
        .unwrap()
        .xlogpos
        .floor_to(SEGMENT);
    let file = server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) i");
    let end: Lsn = server
        .sql("SELECT pg_current_wal_flush_lsn()")
        .parse()
        .unwrap();
    let connection = server.connect().await;
    let mut stream = connection
        .start_physical_replication(None, start, 1)
        .await
        .unwrap();
    let mut bytes = Vec::new();
    while stream.position() < end {
        // Cancel-safe as documented; zero time makes it be dropped at every pending read.
        tokio::select! {
            biased;
            event = stream.next() => {
                if let Some(ReplicationEvent::XLogData { data, .. }) = event.unwrap() {
                    bytes.extend(data);
                }
            }
            () = tokio::time::sleep(Duration::ZERO) => {}
        }
        stream
            .send_status(status_at(stream.position()))
            .await
            .unwrap();
    }
    let expected = fs::read(server.path("data/pg_wal").join(file)).unwrap();
    assert!(bytes == expected[..bytes.len()]);
}

#[tokio::test]
async fn a_server_in_good_order_sends_everything_before_it_stops() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let start = connection.identify_system().await.unwrap().xlogpos;
    let mut stream = connection
        .start_physical_replication(None, start, 1)
        .await
        .unwrap();
    server.sql("CREATE TABLE t ()");
    server.signal(Signal::INT);
    let error = loop {
        match stream.next().await {
            // It waits until everything is confirmed, and may be gone when it is told so once more.
            Ok(_) => {
                let told = stream.send_status(status_at(stream.position())).await;
                if let Err(error) = told {
                    break error;
                }
            }
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, ClientError::ServerShutdown | ClientError::Closed),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(stream.position() > start);
}

#[tokio::test]
async fn a_server_that_dies_is_an_error_that_says_so() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let start = connection.identify_system().await.unwrap().xlogpos;
    let mut stream = connection
        .start_physical_replication(None, start, 1)
        .await
        .unwrap();
    server.signal(Signal::QUIT);
    let error = loop {
        if let Err(error) = stream.next().await {
            break error;
        }
    };
    let told = error
        .server_error()
        .is_some_and(|error| error.code() == "57P01" || error.code() == "57P02");
    assert!(told || matches!(error, ClientError::Closed), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::NotReady);
}

#[tokio::test]
async fn a_promotion_ends_the_timeline_and_the_next_one_goes_on() {
    let cluster = Cluster::new();
    fs::write(cluster.path("data").join("standby.signal"), "").unwrap();
    let server = cluster.start().await;
    let mut connection = server.connect().await;
    let start = connection.identify_system().await.unwrap().xlogpos;
    let mut stream = connection
        .start_physical_replication(None, start, 1)
        .await
        .unwrap();
    let primary = server.unix("user=postgres").with_primary_only();
    let refused = Connection::connect(&primary).await.unwrap_err();
    assert!(
        matches!(refused, ClientError::Standby { .. }),
        "{refused:?}"
    );
    assert_eq!(server.sql("SELECT pg_promote()"), "t");
    Connection::connect(&primary).await.unwrap().close().await;
    let (next_timeline, switch_point) = loop {
        match stream.next().await.unwrap() {
            Some(ReplicationEvent::EndOfTimeline {
                next_timeline,
                switch_point,
            }) => {
                break (next_timeline, switch_point);
            }
            Some(_) => {}
            None => panic!("it ended without a word"),
        }
    };
    assert_eq!((next_timeline, stream.position()), (2, switch_point));
    assert!(stream.next().await.unwrap().is_none());

    let mut connection = stream.into_connection().unwrap();
    let history = connection.timeline_history(2).await.unwrap();
    assert_eq!(history.file_name, "00000002.history");
    assert_eq!(
        (history.ancestors.len(), history.ancestors[0].end),
        (1, switch_point)
    );
    let mut stream = connection
        .start_physical_replication(None, switch_point, 2)
        .await
        .unwrap();
    assert!(matches!(
        stream.next().await.unwrap(),
        Some(ReplicationEvent::XLogData { .. })
    ));

    // At the very end of the old timeline there is nothing to stream, only where to go on.
    let connection = server.connect().await;
    let mut stream = connection
        .start_physical_replication(None, switch_point, 1)
        .await
        .unwrap();
    let event = stream.next().await.unwrap().unwrap();
    assert_eq!(
        event,
        ReplicationEvent::EndOfTimeline {
            next_timeline,
            switch_point
        }
    );
}

#[tokio::test]
async fn a_stream_that_is_finished_has_moved_its_slot_and_gives_the_connection_back() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let slot: SlotName = "moved".parse().unwrap();
    connection.create_physical_slot(&slot, true).await.unwrap();
    server.sql("CREATE TABLE t ()");
    let end = connection.identify_system().await.unwrap().xlogpos;
    let mut stream = connection
        .start_physical_replication(Some(&slot), end, 1)
        .await
        .unwrap();
    stream.send_status(status_at(end)).await.unwrap();
    // WAL that nobody reads does not stand in the way.
    server.sql("CREATE TABLE u AS SELECT generate_series(1, 20000)");
    let mut connection = stream.finish().await.unwrap();
    let state = connection.read_replication_slot(&slot).await.unwrap();
    assert_eq!(state.unwrap().restart_lsn, Some(end));
    connection.drop_slot(&slot).await.unwrap();
}
