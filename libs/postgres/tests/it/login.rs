use std::{fs, os::unix::fs::PermissionsExt};

use palimpsest_postgres::{ClientError, ConnInfo, Connection};
use palimpsest_types::{ErrorKind, Lsn, SystemIdentifier};

use crate::server::{Server, control_data};

async fn refused(info: &ConnInfo) -> ClientError {
    Connection::connect(info).await.expect_err("logged in")
}

#[tokio::test]
async fn logs_in_by_every_method_and_says_why_not() {
    let server = Server::start().await;
    for user in ["plain", "old", "scram"] {
        let info = server.tcp(&format!(r"user={user} password='it\'s secret'"));
        Connection::connect(&info).await.unwrap().close().await;

        let error = refused(&server.tcp(&format!("user={user} password=wrong"))).await;
        let said = error.server_error().unwrap();
        assert_eq!((said.code(), error.kind()), ("28P01", ErrorKind::Invalid));
        assert_eq!(
            said.message(),
            format!("password authentication failed for user \"{user}\"")
        );

        let error = refused(&server.tcp(&format!("user={user}"))).await;
        assert!(matches!(&error, ClientError::PasswordRequired { user: u } if u == user));
    }
    let error = refused(&server.tcp("user=stranger password=any")).await;
    assert_eq!(error.server_error().unwrap().code(), "28000");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn takes_the_password_from_a_file() {
    let server = Server::start().await;
    let file = server.path("pgpass");
    fs::write(&file, "localhost:*:replication:scram:it's secret\n").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let info = server
        .tcp("user=scram")
        .with_default_passfile(Some(&file), None);
    Connection::connect(&info).await.unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(matches!(
        refused(&info).await,
        ClientError::PasswordRequired { .. }
    ));
}

#[tokio::test]
async fn identifies_the_system_and_shows_settings() {
    let server = Server::start().await;
    let data = server.path("data");
    let expected: u64 = control_data(&data, "Database system identifier")
        .parse()
        .unwrap();
    for info in [server.tcp("user=trusted"), server.unix("user=trusted")] {
        let mut connection = Connection::connect(&info).await.unwrap();
        assert_eq!(connection.server_major_version(), Some(15));
        let identity = connection.identify_system().await.unwrap();
        assert_eq!(identity.system_id, SystemIdentifier::new(expected));
        assert_eq!((identity.timeline, identity.dbname), (1, None));
        let flushed: Lsn = server
            .sql("SELECT pg_current_wal_flush_lsn()")
            .parse()
            .unwrap();
        assert_eq!(identity.xlogpos, flushed);
        assert_eq!(connection.show("wal_segment_size").await.unwrap(), "16MB");

        // An error leaves the connection usable.
        let error = connection.show("no_such_setting").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let error = connection.timeline_history(7).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(connection.show("data_checksums").await.unwrap(), "on");
    }
}

#[tokio::test]
async fn the_next_host_is_tried_when_one_is_not_there() {
    let server = Server::start().await;
    let port = server.port;
    let info = format!("postgresql://trusted@127.0.0.1:1,127.0.0.1:{port}/?connect_timeout=5");
    Connection::connect(&info.parse().unwrap()).await.unwrap();
    let error = refused(&"host=127.0.0.1 port=1 user=a".parse().unwrap()).await;
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(error.to_string().contains("127.0.0.1:1"));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let info = format!("host=127.0.0.1 port={port} user=a connect_timeout=1");
    let error = refused(&info.parse().unwrap()).await;
    assert!(matches!(error, ClientError::ConnectTimeout { .. }));
}
