//! P1: our list of WAL records is `pg_waldump`'s.

use std::fmt::Write as _;

use palimpsest_integration::{judge::Judge, oracle::read_wal};
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_types::Fork;
use palimpsest_wal::{RawRecord, ResourceManager, SegmentSize};

use crate::support::checkpoint;

#[test]
fn p1_records_are_those_of_pg_waldump() {
    // Small segments, so that records across them are frequent.
    let options = ClusterOptions {
        wal_segment_size_mib: 1,
        ..ClusterOptions::default()
    }
    .with("wal_compression", "pglz");
    let mut cluster = Cluster::temporary(options).unwrap();
    let start = checkpoint(cluster.data_dir()).unwrap();
    cluster.start().unwrap();
    Workload::full(11, workload::QUICK).run(&cluster).unwrap();
    cluster
        .psql(
            "postgres",
            "SELECT pg_switch_wal(); CREATE TABLE after_switch (i int)",
        )
        .unwrap();
    cluster.stop().unwrap();

    let size = SegmentSize::new(1 << 20).unwrap();
    let mut ours = Vec::new();
    let pg_wal = cluster.data_dir().join("pg_wal");
    read_wal(&pg_wal, start, size, |record| {
        ours.push(describe(&record));
        Ok(())
    })
    .unwrap();
    let theirs = cluster.waldump(start, None).unwrap();

    let mut judge = Judge::new("offline-records", "P1");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let theirs = reduce(theirs);
        let wrong = (*ours != theirs).then(|| format!("ours {ours:?}, theirs {theirs:?}"));
        judge.check(wrong);
    }
    let counts = (ours.len() != theirs.len())
        .then(|| format!("{} records are ours, {} theirs", ours.len(), theirs.len()));
    judge.check(counts);
    judge.close();
}

/// A record in the words of `pg_waldump`, without its description of the main data.
fn describe(record: &RawRecord) -> String {
    let decoded = record.decode().unwrap();
    let header = decoded.header;
    let rmgr = ResourceManager::from_number(header.rmid).unwrap();
    let mut text = format!(
        "rmgr: {rmgr} tot: {} tx: {} lsn: {} prev {}",
        header.total_len,
        header.xid,
        padded(record.start_lsn),
        padded(header.previous),
    );
    for block in &decoded.blocks {
        let rel = block.rel.with_fork(Fork::Main);
        let fork = match block.rel.fork {
            Fork::Main => String::new(),
            fork => format!(" fork {}", fork.name()),
        };
        let image = match block.image.as_ref().map(|image| image.apply) {
            None => "",
            Some(true) => " FPW",
            Some(false) => " FPW for WAL verification",
        };
        write!(
            text,
            " blkref #{}: rel {rel}{fork} blk {}{image}",
            block.id, block.block
        )
        .unwrap();
    }
    text
}

/// `pg_waldump` pads the low half.
fn padded(lsn: palimpsest_types::Lsn) -> String {
    format!("{:X}/{:08X}", lsn.get() >> 32, lsn.get() & 0xFFFF_FFFF)
}

/// A line of `pg_waldump` reduced to what [`describe`] says.
fn reduce(line: &str) -> String {
    let (head, rest) = line.split_once(", desc: ").unwrap();
    let words: Vec<_> = head
        .split([' ', ',', '/'])
        .filter(|word| !word.is_empty())
        .collect();
    // rmgr: Heap len (rec tot): 54 54 tx: 735 lsn: 0 0149E7F8 prev 0 0149E7B8
    let after = |name: &str| words.iter().position(|word| *word == name).unwrap() + 1;
    let lsn = |name: &str| format!("{}/{}", words[after(name)], words[after(name) + 1]);
    let mut text = format!(
        "rmgr: {} tot: {} tx: {} lsn: {} prev {}",
        words[after("rmgr:")],
        words[after("tot):") + 1],
        words[after("tx:")],
        lsn("lsn:"),
        lsn("prev"),
    );
    for reference in rest.split(", blkref #").skip(1) {
        write!(text, " blkref #{}", reference.trim_end()).unwrap();
    }
    text
}
