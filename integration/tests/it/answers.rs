//! What a page-serve says: errors that a program can tell apart, answers that wait for nobody, sizes.

use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::join_all;
use palimpsest_api::{
    RemoteError, TimelineRef,
    page::{PageClient, Pages, PagesRequest, ReadAt},
};
use palimpsest_testkit::Cluster;
use palimpsest_types::{
    BlockNumber, ErrorKind, Fork, Lsn, PAGE_SIZE, Reason, RelTag, SlruKind, TimelineId,
};
use tokio::{
    task::block_in_place,
    time::{Instant, timeout},
};

use crate::lifecycle::{relation, start};

/// Far more than the server waits for an LSN.
const LIMIT: Duration = Duration::from_secs(60);

async fn read(
    client: &PageClient,
    timeline: TimelineRef,
    at: ReadAt,
    (rel, block): (RelTag, u32),
) -> Result<Pages, RemoteError> {
    let request = PagesRequest {
        timeline,
        at,
        rel,
        blocks: vec![BlockNumber::new(block)],
    };
    client.pages(request).await
}

fn at(lsn: Lsn) -> ReadAt {
    ReadAt {
        lsn: Some(lsn),
        ..ReadAt::default()
    }
}

fn refused<T>(answer: Result<T, RemoteError>, kind: ErrorKind, reason: Reason) {
    match answer {
        Ok(_) => panic!("answered instead of {reason}"),
        Err(error) => assert_eq!((error.kind, error.reason), (kind, Some(reason)), "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_with_the_reason() {
    let (cluster, _files, mut services) = start().await.unwrap();
    let timeline = services
        .attach("errors", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    let view = services.wait_for(timeline, |_| true).await.unwrap();
    let one = relation(&cluster, "one").unwrap();
    let served = services.served(timeline).await.unwrap();
    let client = served.client();
    let newest = ReadAt::default();

    let missing = RelTag { rel: 1, ..one };
    let answer = read(client, timeline, newest, (missing, 0)).await;
    refused(answer, ErrorKind::NotFound, Reason::MissingRelation);
    let answer = read(client, timeline, newest, (one, 1 << 20)).await;
    refused(answer, ErrorKind::NotFound, Reason::BeyondEnd);
    let unknown = TimelineRef {
        timeline: TimelineId::from_bytes([7; 16]),
        ..timeline
    };
    let answer = read(client, unknown, newest, (one, 0)).await;
    refused(answer, ErrorKind::NotFound, Reason::UnknownTimeline);
    let torn = Lsn::new(view.status.oldest_readable.get() - 8);
    let answer = read(client, timeline, at(torn), (one, 0)).await;
    refused(answer, ErrorKind::Invalid, Reason::BelowHorizon);
    let nothing = PagesRequest {
        timeline,
        at: newest,
        rel: one,
        blocks: Vec::new(),
    };
    let answer = client.pages(nothing).await;
    refused(answer, ErrorKind::Invalid, Reason::Malformed);
    let answer = client
        .slru_segment(timeline, newest, SlruKind::Clog, 1 << 20)
        .await;
    refused(answer, ErrorKind::NotFound, Reason::MissingSegment);
    let answer = client.relation_map(timeline, newest, 1663, 1).await.err();
    assert!(answer.is_none(), "template1 has a map: {answer:?}");
    let answer = client.relation_map(timeline, newest, 1663, 7).await;
    refused(answer, ErrorKind::NotFound, Reason::MissingMap);

    let begun = Instant::now();
    let answer = read(client, timeline, at(Lsn::MAX), (one, 0)).await;
    refused(answer, ErrorKind::NotReady, Reason::NotArrived);
    let patient = begun.elapsed();
    let hasty = ReadAt {
        patience: Some(Duration::from_millis(10)),
        ..at(Lsn::MAX)
    };
    let begun = Instant::now();
    let answer = read(client, timeline, hasty, (one, 0)).await;
    refused(answer, ErrorKind::NotReady, Reason::NotArrived);
    assert!(begun.elapsed() < patient, "the timeout was not heeded");

    read(client, timeline, newest, (one, 0)).await.unwrap();
    services.delete("errors").await.unwrap();
    let dropped = async {
        loop {
            match read(client, timeline, newest, (one, 0)).await {
                Err(error) if error.reason == Some(Reason::UnknownTimeline) => return,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(LIMIT, dropped).await.unwrap();
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_requests_that_wait_for_an_lsn_hold_up_no_others() {
    /// More than are worked on at once, fewer than are read ahead.
    const WAITING: usize = 300;
    let (cluster, _files, mut services) = start().await.unwrap();
    let timeline = services
        .attach("waiting", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    let one = relation(&cluster, "one").unwrap();
    let served = services.served(timeline).await.unwrap();
    let client = served.client();
    let wait = async || {
        let answer = read(client, timeline, at(Lsn::MAX), (one, 0)).await;
        refused(answer, ErrorKind::NotReady, Reason::NotArrived);
        Instant::now()
    };
    let at_hand = async {
        // They are on their way before it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        read(client, timeline, ReadAt::default(), (one, 0))
            .await
            .unwrap();
        Instant::now()
    };
    let waiting = join_all((0..WAITING).map(|_| wait()));
    let (refusals, answered) = timeout(LIMIT, async { tokio::join!(waiting, at_hand) })
        .await
        .unwrap();
    let first = refusals.iter().min().unwrap();
    assert!(answered < *first, "a page at hand waited for others' LSN");
    let last = refusals.iter().max().unwrap();
    let apart = *last - *first;
    assert!(
        apart < Duration::from_secs(2),
        "they waited one after the other: {apart:?}"
    );
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_database_is_that_of_its_logged_relations() {
    let (cluster, _files, mut services) = start().await.unwrap();
    let timeline = services
        .attach("sizes", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    let sql = "CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 10000); \
               CREATE TABLE more AS SELECT generate_series(1, 10000); \
               CREATE INDEX ON more (generate_series); VACUUM one; DROP TABLE IF EXISTS nothing";
    block_in_place(|| {
        for statement in sql.split(';') {
            cluster.psql("postgres", statement)?;
        }
        cluster.psql("postgres", "CHECKPOINT")
    })
    .unwrap();
    let (logged, whole, end) = block_in_place(|| sizes(&cluster)).unwrap();
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await
        .unwrap();
    let served = services.served(timeline).await.unwrap();
    let client = served.client();
    let db = relation(&cluster, "one").unwrap().db;

    let size = client.database_size(timeline, at(end), db).await.unwrap();
    let blocks = size.blocks.unwrap();
    let (_, relations) = client.relations(timeline, at(end)).await.unwrap();
    let of_database = relations.iter().filter(|(rel, _)| rel.db == db);
    let sum = |fork: fn(Fork) -> bool| -> u64 {
        let forks = of_database.clone().filter(|(rel, _)| fork(rel.fork));
        forks.map(|(_, blocks)| u64::from(blocks.get())).sum()
    };
    assert_eq!(blocks, sum(|_| true));
    // A free space map grows without WAL.
    assert_eq!(sum(|fork| fork != Fork::FreeSpaceMap), logged);
    assert!(
        blocks * PAGE_SIZE as u64 <= whole,
        "more than PostgreSQL has"
    );

    let none = client.database_size(timeline, at(end), 7).await.unwrap();
    assert_eq!(none.blocks, None);
    let shared = client.database_size(timeline, at(end), 0).await.unwrap();
    assert!(shared.blocks.is_some_and(|blocks| blocks > 0));
    services.stop().await;
}

/// Blocks of what is logged but free space maps, `pg_database_size`, and the LSN at which that is so.
fn sizes(cluster: &Cluster) -> Result<(u64, u64, Lsn)> {
    let logged = "SELECT (sum(CASE relpersistence WHEN 'p' THEN pg_relation_size(oid, 'main') \
                  + pg_relation_size(oid, 'vm') ELSE 0 END + pg_relation_size(oid, 'init')) / 8192)::bigint \
                  FROM pg_class WHERE relkind IN ('r', 'i', 't', 'S', 'm') AND NOT relisshared";
    let whole = "SELECT pg_database_size(current_database())";
    for _ in 0..20 {
        let before = cluster.flush_lsn()?;
        let logged = cluster.psql("postgres", logged)?.parse()?;
        let whole = cluster.psql("postgres", whole)?.parse()?;
        if cluster.flush_lsn()? == before {
            return Ok((logged, whole, before));
        }
    }
    bail!("the cluster is never at rest")
}
