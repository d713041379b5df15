use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;
use palimpsest_postgres::{
    BackupEvent, BackupLabel, BackupOptions, BaseBackup, ControlFile, TarDecoder, TarEvent,
};
use palimpsest_types::{Lsn, Oid};

use crate::server::{Server, control_data};

/// Files and links of one archive by path.
#[derive(Default)]
struct Archive {
    files: BTreeMap<String, Vec<u8>>,
    links: BTreeMap<String, String>,
}

struct Received {
    start: palimpsest_postgres::BackupStart,
    archives: BTreeMap<Option<Oid>, Archive>,
    end: Lsn,
    bytes: u64,
    progress: u64,
}

fn unpack(decoder: &mut TarDecoder, archive: &mut Archive, mut data: Bytes, current: &mut String) {
    while let Some(event) = decoder.decode(&mut data).unwrap() {
        match event {
            TarEvent::File { path, .. } => {
                current.clone_from(&path);
                archive.files.insert(path, Vec::new());
            }
            TarEvent::Data(piece) => archive.files.get_mut(current).unwrap().extend(piece),
            TarEvent::Symlink { path, target } => {
                archive.links.insert(path, target);
            }
            TarEvent::FileEnd | TarEvent::Directory { .. } => {}
        }
    }
}

async fn receive(mut backup: BaseBackup) -> (Received, palimpsest_postgres::Connection) {
    let Some(BackupEvent::Start(start)) = backup.next().await.unwrap() else {
        panic!("no start")
    };
    let (mut archives, mut current) = (BTreeMap::new(), String::new());
    let mut open: Option<(Option<Oid>, TarDecoder, Archive)> = None;
    let (mut bytes, mut progress, mut end) = (0, 0, None);
    while let Some(event) = backup.next().await.unwrap() {
        match event {
            BackupEvent::ArchiveStart { tablespace_oid, .. } => {
                let next = (tablespace_oid, TarDecoder::new(), Archive::default());
                if let Some((oid, decoder, archive)) = open.replace(next) {
                    decoder.finish().unwrap();
                    archives.insert(oid, archive);
                }
            }
            BackupEvent::Data(data) => {
                bytes += data.len() as u64;
                let (_, decoder, archive) = open.as_mut().unwrap();
                unpack(decoder, archive, data, &mut current);
            }
            BackupEvent::Progress(done) => progress = done.get(),
            BackupEvent::End { lsn, timeline } => {
                assert_eq!(timeline, 1);
                end = Some(lsn);
            }
            BackupEvent::Start(_) => panic!("a second start"),
        }
    }
    let (oid, decoder, archive) = open.unwrap();
    decoder.finish().unwrap();
    archives.insert(oid, archive);
    let received = Received {
        start,
        archives,
        end: end.unwrap(),
        bytes,
        progress,
    };
    (received, backup.into_connection().unwrap())
}

/// Files below `root` that a backup contains, by their path from `root`.
fn files_below(root: &Path, directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(root, &path, found);
        } else if path.file_name().unwrap() != "pg_internal.init" {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, fs::read(&path).unwrap());
        }
    }
}

fn assert_same(actual: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(actual), names(expected));
    let different: Vec<_> = actual
        .iter()
        .filter(|(n, bytes)| expected[*n] != **bytes)
        .collect();
    assert!(
        different.is_empty(),
        "{:?}",
        different.iter().map(|(n, _)| n).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_backup_of_a_quiet_cluster_equals_its_files() {
    let server = Server::start().await;
    let space = server.make_directory("space");
    server.sql(&format!(
        "CREATE TABLESPACE extra LOCATION '{}'",
        space.display()
    ));
    server.sql(
        "CREATE TABLE here AS SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i;
         CREATE TABLE there (i int PRIMARY KEY) TABLESPACE extra;
         INSERT INTO there SELECT generate_series(1, 20000)",
    );
    server.sql("VACUUM ANALYZE");
    server.sql("CHECKPOINT");
    let oid: Oid = server
        .sql("SELECT oid FROM pg_tablespace WHERE spcname = 'extra'")
        .parse()
        .unwrap();

    let options = BackupOptions::new("it's a test");
    let backup = server.connect().await.base_backup(&options).await.unwrap();
    let (received, mut connection) = receive(backup).await;
    assert_eq!(received.start.tablespaces.len(), 1);
    let tablespace = &received.start.tablespaces[0];
    assert_eq!(
        (tablespace.oid, tablespace.location.as_ref()),
        (oid, space.to_str().unwrap())
    );
    assert!(received.end > received.start.lsn);
    assert!(received.progress > 0 && received.start.total.unwrap().get() > received.bytes / 2);

    let data = server.path("data");
    let base = &received.archives[&None];
    for directory in ["base", "global", "pg_xact", "pg_multixact"] {
        let mut expected = BTreeMap::new();
        files_below(&data, &data.join(directory), &mut expected);
        // Written by the backup's own checkpoint; looked at below.
        expected.remove("global/pg_control");
        let below = format!("{directory}/");
        let mut actual = base.files.clone();
        actual.retain(|name, _| name.starts_with(&below) && name != "global/pg_control");
        assert_same(&actual, &expected);
    }
    let mut expected = BTreeMap::new();
    files_below(&space, &space, &mut expected);
    assert_same(&received.archives[&Some(oid)].files, &expected);
    assert_eq!(
        base.links[&format!("pg_tblspc/{oid}")],
        space.display().to_string()
    );

    let label = BackupLabel::parse(&base.files["backup_label"]).unwrap();
    assert_eq!(
        (label.start, label.timeline),
        (received.start.lsn, received.start.timeline)
    );
    assert_eq!(label.label, "it's a test");
    check_control_file(&data, &base.files["global/pg_control"], &label);
    assert_eq!(connection.identify_system().await.unwrap().timeline, 1);
}

fn check_control_file(data: &Path, bytes: &[u8], label: &BackupLabel) {
    let control = ControlFile::parse(&Bytes::copy_from_slice(bytes)).unwrap();
    assert_eq!(
        (control.checkpoint, control.checkpoint_copy.redo),
        (label.checkpoint, label.start)
    );
    let copy = &control.checkpoint_copy;
    let next_xid = format!("{}:{}", copy.next_xid >> 32, copy.next_xid & 0xFFFF_FFFF);
    for (field, value) in [
        (
            "pg_control version number",
            control.control_version.to_string(),
        ),
        (
            "Catalog version number",
            control.catalog_version.to_string(),
        ),
        (
            "Database system identifier",
            control.system_identifier.to_string(),
        ),
        ("Latest checkpoint location", control.checkpoint.to_string()),
        ("Latest checkpoint's REDO location", copy.redo.to_string()),
        ("Latest checkpoint's TimeLineID", copy.timeline.to_string()),
        ("Latest checkpoint's NextXID", next_xid),
        ("Latest checkpoint's NextOID", copy.next_oid.to_string()),
        (
            "Latest checkpoint's NextMultiXactId",
            copy.next_multi.to_string(),
        ),
        (
            "Latest checkpoint's NextMultiOffset",
            copy.next_multi_offset.to_string(),
        ),
        ("Latest checkpoint's oldestXID", copy.oldest_xid.to_string()),
        (
            "Latest checkpoint's oldestXID's DB",
            copy.oldest_xid_db.to_string(),
        ),
        (
            "Latest checkpoint's oldestActiveXID",
            copy.oldest_active_xid.to_string(),
        ),
        (
            "Latest checkpoint's oldestMultiXid",
            copy.oldest_multi.to_string(),
        ),
        ("Database block size", control.block_size.to_string()),
        (
            "Blocks per segment of large relation",
            control.relation_segment_size.to_string(),
        ),
        ("WAL block size", control.wal_block_size.to_string()),
        (
            "Bytes per WAL segment",
            control.wal_segment_size.to_string(),
        ),
        (
            "Data page checksum version",
            control.data_checksum_version.to_string(),
        ),
    ] {
        assert_eq!(value, control_data(data, field), "{field}");
    }
}

#[tokio::test]
async fn a_bad_page_denies_the_backup_its_end() {
    let server = Server::start().await;
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i; CHECKPOINT");
    let path = server
        .path("data")
        .join(server.sql("SELECT pg_relation_filepath('t')"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, bytes).unwrap();

    let options = BackupOptions::new("bad");
    let mut backup = server.connect().await.base_backup(&options).await.unwrap();
    let error = loop {
        match backup.next().await {
            Ok(Some(BackupEvent::End { .. }) | None) => panic!("it ended well"),
            Ok(Some(_)) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), palimpsest_types::ErrorKind::Corrupt);
    assert!(backup.into_connection().is_err());
}
