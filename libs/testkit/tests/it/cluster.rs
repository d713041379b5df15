//! A cluster's life.

use std::{fs, os::unix::fs::PermissionsExt as _};

use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::Lsn;

#[test]
fn committed_rows_survive_kill9_and_immediate_stop() {
    let mut cluster = Cluster::temporary(ClusterOptions::default()).unwrap();
    cluster.start().unwrap();
    cluster
        .psql(
            "postgres",
            "CREATE TABLE t (n int); INSERT INTO t VALUES (1)",
        )
        .unwrap();
    cluster.kill9().unwrap();
    cluster.start().unwrap();
    cluster
        .psql("postgres", "INSERT INTO t VALUES (2)")
        .unwrap();
    cluster.stop_immediate().unwrap();
    cluster.start().unwrap();
    assert_eq!(
        cluster
            .psql("postgres", "SELECT n FROM t ORDER BY n")
            .unwrap(),
        "1\n2"
    );
    cluster.stop().unwrap();
}

#[test]
fn errors_carry_the_words_of_psql_and_of_the_server_log() {
    let options = ClusterOptions::default().with("shared_buffers", "1kB");
    let mut cluster = Cluster::temporary(options).unwrap();
    let error = cluster.start().unwrap_err();
    assert!(format!("{error:#}").contains("shared_buffers"), "{error:#}");

    let mut cluster = Cluster::temporary(ClusterOptions::default()).unwrap();
    cluster.start().unwrap();
    let error = cluster
        .psql("postgres", "SELECT 1; SELECT * FROM nowhere")
        .unwrap_err();
    assert!(format!("{error:#}").contains("nowhere"), "{error:#}");
    let mut session = cluster.session("postgres").unwrap();
    assert_eq!(session.run("SELECT 7").unwrap(), "7");
    let error = session.run("SELECT 1/0").unwrap_err();
    assert!(error.to_string().contains("division by zero"), "{error:#}");
}

#[test]
fn a_directory_closed_to_the_server_user_is_replaced_and_can_be_opened_again() {
    let closed = tempfile::tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let dir = closed.path().join("cluster");
    let mut cluster = Cluster::init(&dir, ClusterOptions::default()).unwrap();
    cluster.start().unwrap();
    cluster.psql("postgres", "CREATE TABLE t ()").unwrap();
    let moved = cluster.moved_to().map(ToOwned::to_owned);
    assert_eq!(
        moved.is_some(),
        rustix_is_root(),
        "only root has a user to change to"
    );
    drop(cluster);

    let mut cluster = Cluster::open(&dir, ClusterOptions::default()).unwrap();
    cluster.start().unwrap();
    assert_eq!(
        cluster.psql("postgres", "SELECT count(*) FROM t").unwrap(),
        "0"
    );
    drop(cluster);
    assert!(
        Cluster::init(&dir, ClusterOptions::default()).is_err(),
        "it is taken"
    );
    if let Some(moved) = moved {
        fs::remove_dir_all(moved).unwrap();
    }
}

#[test]
fn a_cold_copy_opens_as_a_cluster_of_its_own() {
    let options = || ClusterOptions {
        data_checksums: true,
        wal_segment_size_mib: 1,
        ..ClusterOptions::default()
    };
    let mut original = Cluster::temporary(options()).unwrap();
    original.start().unwrap();
    let start = original.switch_wal().unwrap();
    original
        .psql(
            "postgres",
            "CREATE TABLE t AS SELECT generate_series(1, 10) n",
        )
        .unwrap();
    let stats = original.wal_stats(start, None).unwrap();
    assert!(
        stats
            .iter()
            .any(|(name, count)| name == "Heap/INSERT" && *count > 0),
        "{stats:?}"
    );
    assert!(
        original
            .copy_data_dir(&original.socket_dir().join("x"))
            .is_err(),
        "it is running"
    );
    original.stop().unwrap();
    assert!(original.waldump(start, None).unwrap().len() > 10);

    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    original.copy_data_dir(&place.path().join("data")).unwrap();
    let mut copy = Cluster::open(place.path(), options()).unwrap();
    original.start().unwrap();
    copy.start().unwrap();
    assert_eq!(copy.psql("postgres", "SELECT sum(n) FROM t").unwrap(), "55");
    assert_eq!(copy.psql("postgres", "SHOW data_checksums").unwrap(), "on");
    assert!(copy.lsn().unwrap() >= copy.flush_lsn().unwrap());
    assert!(copy.flush_lsn().unwrap() > Lsn::ZERO);
}

fn rustix_is_root() -> bool {
    rustix::process::geteuid().is_root()
}
