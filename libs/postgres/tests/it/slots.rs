use palimpsest_postgres::{ClientError, Connection, SlotName};
use palimpsest_types::{ErrorKind, Lsn};

use crate::server::Server;

#[tokio::test]
async fn a_slot_is_created_read_and_dropped() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let name: SlotName = "pal_1".parse().unwrap();
    assert_eq!(connection.read_replication_slot(&name).await.unwrap(), None);

    let state = connection.create_physical_slot(&name, true).await.unwrap();
    let in_view = server.sql("SELECT restart_lsn FROM pg_replication_slots");
    assert_eq!(state.restart_lsn, Some(in_view.parse::<Lsn>().unwrap()));
    assert_eq!(state.restart_tli, Some(1));
    assert_eq!(
        connection.read_replication_slot(&name).await.unwrap(),
        Some(state)
    );

    let error = connection
        .create_physical_slot(&name, true)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    connection.drop_slot(&name).await.unwrap();
    assert_eq!(connection.read_replication_slot(&name).await.unwrap(), None);
    let error = connection.drop_slot(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let idle = connection.create_physical_slot(&name, false).await.unwrap();
    assert_eq!((idle.restart_lsn, idle.restart_tli), (None, None));
}

#[tokio::test]
async fn a_slot_serves_one_stream_at_a_time() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let name: SlotName = "pal".parse().unwrap();
    let state = connection.create_physical_slot(&name, true).await.unwrap();
    let start = state.restart_lsn.unwrap();

    let stream = connection
        .start_physical_replication(Some(&name), start, 1)
        .await
        .unwrap();
    let second = server.connect().await;
    let error = second
        .start_physical_replication(Some(&name), start, 1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    stream.close().await;

    let missing: SlotName = "missing".parse().unwrap();
    let third: Connection = server.connect().await;
    let error = third
        .start_physical_replication(Some(&missing), start, 1)
        .await
        .unwrap_err();
    assert!(matches!(&error, ClientError::Server(_)) && error.kind() == ErrorKind::NotFound);
}
