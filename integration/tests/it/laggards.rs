//! P2, P8: with the object store away, memory has only the newest changes. Who is behind that is
//! served from the local WAL: the same records, each once, and ingest does not wait.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use palimpsest_api::{
    TimelineRef,
    broker::{Role, TimelineState},
    channel::connect_lazily,
    feed::{FeedStream, subscribe},
};
use palimpsest_disk::OsDisk;
use palimpsest_integration::{
    embedded::{Embedded, ServedTimeline},
    judge::Judge,
};
use palimpsest_layer::LogRecord;
use palimpsest_store::faulty::{Fault, FaultyStore};
use palimpsest_types::{ByteCount, ErrorKind, Lsn};
use palimpsest_wal_ingest::{Backing, Settings};
use tokio::{task::block_in_place, time::timeout};

use crate::durability::{Source, start_ingest};

const RECORDS: &str = "laggard-feeds";
const PAGES: &str = "laggard-pages";
/// Several times what memory may hold.
const MEMORY: ByteCount = ByteCount::mib(8);
const BEHIND: ByteCount = ByteCount::mib(48);
/// The layers are asked as soon as the manifest has moved.
const LEARNING: Duration = Duration::from_secs(2);
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn p8_who_is_behind_memory_gets_the_same_from_local_wal() {
    laggards().await.unwrap();
}

async fn laggards() -> Result<()> {
    let mut source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let (faulty, store) = FaultyStore::in_directory(&services.store()).await?;
    let disk = Arc::new(OsDisk);
    let backing = Backing { disk, store };
    let settings = Settings {
        memory: MEMORY,
        local_disk: ByteCount::gib(1),
        layer_size: ByteCount::mib(1),
        layer_age: Duration::from_secs(1),
        ..services.wal_ingest_settings()
    };
    start_ingest(&services, backing, settings).await?;
    let conninfo = source.cable.conninfo("postgres");
    let timeline = services.attach("laggards", &conninfo).await?;
    // The manifest moves once before the store goes away: where decoding begins has moved, too.
    let begin = services.status(timeline)?.remote_consistent;
    block_in_place(|| source.write(1))?;
    services
        .wait_for(timeline, |view| view.status.remote_consistent > begin)
        .await?;
    // So has what is known there, last by a layer that tells of no relation what became of it.
    let dropped = block_in_place(|| drop_a_database(&source))?;
    services
        .wait_for(timeline, |view| view.status.remote_consistent >= dropped)
        .await?;
    tokio::time::sleep(LEARNING).await;
    faulty.set(Fault::Refuse);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stored = services.status(timeline)?.remote_consistent;

    // One that takes nothing meanwhile; it has what fits into the channels.
    let mut sleeper = Reader::open(&services, timeline, stored).await?;
    let middle = grow(&source, &services, timeline, stored).await?;
    let mut judge = Judge::new(RECORDS, "P8");
    let mut late = Reader::open(&services, timeline, stored).await?;
    let mut from_the_middle = Reader::open(&services, timeline, middle).await?;
    let page_serve = services.start_page_serve(services.scope()).await?;
    // While they catch up, more is written.
    let end = block_in_place(|| {
        source.write(2)?;
        source.cluster.flush_lsn()
    })?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    for reader in [&mut sleeper, &mut late, &mut from_the_middle] {
        reader.read_up_to(end).await?;
    }
    ensure!(
        services.status(timeline)?.remote_consistent == stored,
        "the store was not away"
    );
    compare(&sleeper, &late, stored, end, &mut judge);
    compare(&from_the_middle, &late, middle, end, &mut judge);
    let served = [
        services.served(timeline).await?,
        services.served_by(&page_serve, timeline).await?,
    ];
    for one in &served {
        comes_to(one, timeline, end).await?;
    }

    // What layers have is read there.
    faulty.set(Fault::None);
    services
        .wait_for(timeline, |view| {
            view.status.state == TimelineState::Streaming && view.status.remote_consistent >= end
        })
        .await?;
    let mut gone = Reader::open(&services, timeline, stored).await?;
    let refused = gone.read_up_to(end).await.expect_err("it is in layers");
    let refused = refused.downcast::<palimpsest_api::RemoteError>()?;
    let finding = (refused.kind != ErrorKind::Conflict).then(|| format!("{refused:?}"));
    judge.check(finding);
    let mut pages = Judge::new(PAGES, "P8");
    source
        .judge_served(&served, &[middle, end], &mut pages)
        .await?;
    judge.close();
    pages.close();
    services.stop().await;
    Ok(())
}

/// Makes a database and drops it, which is one change, whatever was in it. Where that ends.
fn drop_a_database(source: &Source) -> Result<Lsn> {
    let cluster = &source.cluster;
    cluster.psql("postgres", "CREATE DATABASE gone STRATEGY file_copy")?;
    cluster.psql("postgres", "DROP DATABASE gone")?;
    cluster.flush_lsn()
}

/// Writes until memory can't have what comes after `stored`; an LSN on the way. With the store away
/// only the local disk may hold ingest up, and it is large enough.
async fn grow(
    source: &Source,
    services: &Embedded,
    timeline: TimelineRef,
    stored: Lsn,
) -> Result<Lsn> {
    let mut middle = None;
    for _ in 0..60 {
        block_in_place(|| source.write(1))?;
        let status = services.status(timeline)?;
        let held = status.disk_consistent.saturating_sub(stored);
        if held > BEHIND.get() / 2 {
            middle.get_or_insert(status.last_record);
        }
        if held > BEHIND.get() {
            return middle.context("it grew too fast");
        }
    }
    bail!("too little was written: {:?}", services.status(timeline)?)
}

/// Reads a feed as page-serve does, and keeps all of it.
struct Reader<'a> {
    services: &'a Embedded,
    timeline: TimelineRef,
    stream: FeedStream,
    after: Lsn,
    records: Vec<LogRecord>,
}

impl<'a> Reader<'a> {
    async fn open(services: &'a Embedded, timeline: TimelineRef, after: Lsn) -> Result<Self> {
        Ok(Self {
            services,
            timeline,
            stream: Self::subscribe(services, timeline, after).await?,
            after,
            records: Vec::new(),
        })
    }

    async fn subscribe(
        services: &Embedded,
        timeline: TimelineRef,
        after: Lsn,
    ) -> Result<FeedStream> {
        let writers = services.cluster().borrow().addresses(Role::WalIngest);
        let writer = writers.first().context("no wal-ingest is alive")?;
        Ok(subscribe(connect_lazily(writer)?, timeline, after).await?)
    }

    async fn read_up_to(&mut self, end: Lsn) -> Result<()> {
        while self.after < end {
            let batch = timeout(PATIENCE, self.stream.next()).await;
            let batch = batch.context("the feed stands still")??;
            let Some(batch) = batch else {
                // It took nothing for too long.
                self.stream = Self::subscribe(self.services, self.timeline, self.after).await?;
                continue;
            };
            self.records.extend(batch.records);
            self.after = self.after.max(batch.up_to);
        }
        Ok(())
    }
}

/// Compares what two were told of the LSNs after `from` and up to `to`.
fn compare(one: &Reader<'_>, other: &Reader<'_>, from: Lsn, to: Lsn, judge: &mut Judge) {
    let range = |reader: &Reader<'_>| -> Vec<LogRecord> {
        let within = |record: &&LogRecord| from < record.lsn && record.lsn <= to;
        reader.records.iter().filter(within).cloned().collect()
    };
    let (one, other) = (range(one), range(other));
    judge.check((one.len() != other.len()).then(|| {
        format!(
            "one was told {} records, another {}",
            one.len(),
            other.len()
        )
    }));
    for (one, other) in one.iter().zip(&other) {
        judge.check((one != other).then(|| format!("{} is not {}", one.lsn, other.lsn)));
    }
}

async fn comes_to(served: &ServedTimeline, timeline: TimelineRef, lsn: Lsn) -> Result<()> {
    let coming = async {
        while served.client().readable(timeline).await?.1 < lsn {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    let came = timeout(PATIENCE, coming).await;
    came.with_context(|| format!("a page-serve does not come to {lsn}"))?
}
