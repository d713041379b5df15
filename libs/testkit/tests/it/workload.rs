//! The whole workload, once.

use std::{num::NonZeroU32, time::Instant};

use palimpsest_testkit::{
    Cluster, ClusterOptions, Workload,
    workload::{DATABASE, Extra, QUICK},
};

/// Records that only careful steps bring about; losing one would weaken every test above this.
const RARE_RECORDS: [&str; 16] = [
    "Btree/DELETE",
    "Btree/UNLINK_PAGE",
    "Btree/REUSE_PAGE",
    "Btree/DEDUP",
    "Hash/MOVE_PAGE_CONTENTS",
    "Hash/SQUEEZE_PAGE",
    "Hash/VACUUM_ONE_PAGE",
    "Gin/DELETE_PAGE",
    "Gin/VACUUM_DATA_LEAF_PAGE",
    "Gist/PAGE_REUSE",
    "SPGist/VACUUM_REDIRECT",
    "BRIN/DESUMMARIZE",
    "Heap2/LOCK_UPDATED",
    "Heap2/FREEZE_PAGE",
    "MultiXact/ZERO_MEM_PAGE",
    "Transaction/ABORT_PREPARED",
];

/// Every resource manager that stock use of PostgreSQL 15 writes with, but the two for commit
/// timestamps and replication origins, which are off by default.
const RESOURCE_MANAGERS: [&str; 20] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "Generic",
    "LogicalMessage",
];

#[test]
fn the_full_workload_writes_with_every_resource_manager() {
    let mut cluster = Cluster::temporary(ClusterOptions::default()).unwrap();
    cluster.start().unwrap();
    let start = cluster.lsn().unwrap();
    let begun = Instant::now();
    let mut last = begun;
    let workload = Workload::full(1, QUICK)
        .with(Extra::FileCopy)
        .with(Extra::Tablespaces);
    let mut previous = start;
    let mut ended = Vec::new();
    workload
        .run_with(&cluster, |boundary| {
            let wal = boundary.lsn.checked_sub(previous).expect("LSNs grow") >> 10;
            println!(
                "{:18} {:>6} ms {wal:>7} KiB",
                boundary.step,
                last.elapsed().as_millis()
            );
            (previous, last) = (boundary.lsn, Instant::now());
            ended.push(boundary.step);
            Ok(())
        })
        .unwrap();
    println!("{:18} {:>6} ms", "total", begun.elapsed().as_millis());
    assert!(ended.iter().copied().eq(workload.step_names()));

    cluster.stop().unwrap();
    let stats = cluster.wal_stats(start, None).unwrap();
    for (kind, count) in &stats {
        println!("{kind:40} {count:>8}");
    }
    for name in RESOURCE_MANAGERS {
        let of_this = |kind: &str| kind.split('/').next() == Some(name);
        assert!(
            stats.iter().any(|(kind, _)| of_this(kind)),
            "no record of {name}"
        );
    }
    for kind in RARE_RECORDS {
        assert!(
            stats.iter().any(|(seen, _)| seen == kind),
            "no record {kind}"
        );
    }
}

#[test]
fn the_workload_runs_again_in_the_same_cluster_with_another_seed_and_size() {
    let options = ClusterOptions {
        data_checksums: true,
        autovacuum: false,
        ..Default::default()
    };
    let mut cluster = Cluster::temporary(options.with("wal_compression", "pglz")).unwrap();
    cluster.start().unwrap();
    let small = Workload::full(7, QUICK)
        .with(Extra::Tablespaces)
        .with(Extra::FileCopy);
    let large = Workload::full(u32::MAX, NonZeroU32::new(2).unwrap()).with(Extra::Tablespaces);
    for workload in [small, large] {
        let boundaries = workload.run(&cluster).unwrap();
        assert!(
            boundaries.is_sorted_by(|a, b| a.lsn < b.lsn),
            "every step writes WAL"
        );
    }
    let checked = "CREATE EXTENSION amcheck;
        SELECT count(bt_index_check(indexrelid, true)) > 20 FROM pg_index
        JOIN pg_class ON pg_class.oid = indexrelid
        WHERE relam = 403 AND relkind = 'i' AND relpersistence = 'p'
            AND indisready AND indisvalid";
    assert_eq!(cluster.psql(DATABASE, checked).unwrap(), "t");
}
