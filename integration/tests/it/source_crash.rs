//! P1 over crashes of the source, which alone dies and starts again.
//!
//! A server that dies in the midst of writing a long record has sent the record's first part, if
//! that part is flushed. After its recovery it goes on behind that part, with a page that says so
//! (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`) and a record that names the one that never was. Here the
//! source writes records of many segments, whose ends are flushed whatever stands there. Who writes one is halted
//! half way, and the source dies when the part that was flushed is here.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Buf as _;
use palimpsest_api::{
    TimelineRef,
    broker::{TimelineState, TimelineStatus, TimelineView},
};
use palimpsest_integration::{
    cable::Cable,
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::{boundaries, read_wal},
    recovered::{BackupTap, BaseBackup, Recovery},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::Lsn;
use palimpsest_wal::SegmentSize;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{task::block_in_place, time::sleep};

use crate::support::compare_with_recovered;

const NAME: &str = "source-crash";
const SEGMENT_MIB: u32 = 2;

/// Crashes at most, until enough of them have cut a record of which we had a part.
const MOST_CRASHES: usize = 40;

/// `XLOG_OVERWRITE_CONTRECORD`, of the resource manager 0.
const OVERWRITE: (u8, u8) = (0, 0xD0);

/// How long to look for a record that is being written; then the source dies as it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the source ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Kill9,
    /// `pg_ctl stop -m immediate`.
    Immediate,
}

/// What a crash left.
#[derive(Debug)]
struct Crash {
    /// End of the last record that we had whole.
    last_record: Lsn,
    /// End of what we had.
    flushed: Lsn,
    /// End of the source's log when it had recovered.
    recovered: Lsn,
    /// Whether it cut a record of which we had the beginning.
    cut: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_timeline_goes_on_when_its_source_crashes() {
    let size = JudgeSize::from_env();
    let seed = seed();
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut judge = Judge::new(NAME, "P1");
    judge_with(StdRng::seed_from_u64(seed), size, &mut judge)
        .await
        .unwrap();
    judge.close();
}

async fn judge_with(mut random: StdRng, size: JudgeSize, judge: &mut Judge) -> Result<()> {
    let options = ClusterOptions {
        data_checksums: random.random(),
        wal_segment_size_mib: SEGMENT_MIB,
        durable: true,
        autovacuum: false,
        ..ClusterOptions::default()
    }
    // A long record does not fit, so its parts are written as it is made.
    .with("wal_buffers", "64kB")
    .with(
        "full_page_writes",
        if random.random() { "on" } else { "off" },
    );
    let mut cluster = Cluster::temporary(options.clone())?;
    block_in_place(|| -> Result<()> {
        cluster.start()?;
        cluster.psql("postgres", MAKE)?;
        cluster.pgbench(&["--initialize", "--quiet", "postgres"])?;
        Ok(())
    })?;
    let tap = BackupTap::to(cluster.socket_dir(), cluster.port())?;
    let cable = Cable::to(tap.socket_dir(), cluster.port())?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let timeline = services
        .attach("judged", &cable.conninfo("postgres"))
        .await?;
    let backup = block_in_place(|| tap.take_backup())?;

    let wanted = size.pick(2, 6);
    let mut crashes = Vec::new();
    let mut cut = 0;
    for round in 0..MOST_CRASHES {
        let death = [Death::Kill9, Death::Immediate][round % 2];
        // Now and then the end of the log has not even been sent.
        let unsent = round % 6 == 2;
        let mut source = Source {
            cluster: &mut cluster,
            cable: &cable,
            services: &services,
            timeline,
        };
        let mut crash = source.crash(death, unsent, &mut random).await?;
        crash.cut = is_cut(&cluster.data_dir().join("pg_wal"), &backup, &crash)?;
        eprintln!("{NAME}: {death:?}, unsent {unsent}: {crash:?}");
        cut += usize::from(crash.cut);
        crashes.push(crash);
        if cut >= wanted && crashes.len() >= 3 {
            break;
        }
    }
    eprintln!("{NAME}: {cut} of {} crashes cut a record", crashes.len());
    ensure!(
        cut >= wanted,
        "records of which we had a part were cut too rarely"
    );
    block_in_place(|| cluster.pgbench(&["--transactions=200", "--no-vacuum", "postgres"]))?;
    let end = block_in_place(|| cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    block_in_place(|| cluster.stop())?;

    // The ones that matter most come first.
    crashes.sort_by_key(|crash| !crash.cut);
    let pg_wal = cluster.data_dir().join("pg_wal");
    let lsns = some_lsns(&pg_wal, &backup, &crashes, end, size, &mut random)?;
    let served = services.served(timeline).await?;
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: &pg_wal,
        options: &options,
    };
    compare_with_recovered(NAME, &served, recovery, lsns, judge).await?;
    services.stop().await;
    Ok(())
}

const MAKE: &str = "CREATE TABLE built (id int, p point, v text);
    INSERT INTO built SELECT i, point(random(), random()), md5(i::text)
        FROM generate_series(1, 8000) i;
    CREATE UNLOGGED TABLE forgotten (id int PRIMARY KEY);
    INSERT INTO forgotten SELECT generate_series(1, 1000);";

/// Writes long records until the server dies, and some that change pages. The longest takes 32 MB.
///
/// The index may be there from the time before a crash.
const WORK: &str = "DO $$ BEGIN LOOP
        DROP INDEX IF EXISTS passing;
        COMMIT;
        INSERT INTO built SELECT 0, point(random(), random()), 'more' FROM generate_series(1, 200);
        CREATE INDEX passing ON built USING spgist (p);
        PERFORM pg_logical_emit_message(true, 'long', repeat('long', 8000000));
        COMMIT;
    END LOOP; END $$";

/// Room for a record is taken at once and filled in order. Of the longest one a part is flushed when so much of all
/// that room was given to is not: more than other records leave, which are flushed with their segments, and less than it
/// takes itself.
const NOT_FLUSHED: RangeInclusive<i64> = 6 << 20..=30 << 20;

/// A source, and the way to it.
struct Source<'a> {
    cluster: &'a mut Cluster,
    cable: &'a Cable,
    services: &'a Embedded,
    timeline: TimelineRef,
}

impl Source<'_> {
    /// Has the source die at work and come back, and waits until all it has since is here.
    async fn crash(&mut self, death: Death, unsent: bool, random: &mut StdRng) -> Result<Crash> {
        let cable = self.cable;
        let mut session = self.cluster.session("postgres")?;
        let writer = block_in_place(|| session.run("SELECT pg_backend_pid()"))?;
        if unsent {
            cable.unplug();
        }
        // It ends with the server.
        let working = std::thread::spawn(move || session.run(WORK));
        if unsent {
            sleep(Duration::from_millis(random.random_range(200..600))).await;
        } else {
            self.halt_in_a_record(writer.parse()?).await?;
        }
        block_in_place(|| match death {
            Death::Kill9 => self.cluster.kill9(),
            Death::Immediate => self.cluster.stop_immediate(),
        })?;
        ensure!(
            block_in_place(|| working.join()).is_ok_and(|outcome| outcome.is_err()),
            "the work ended before the server"
        );
        let status = self.disconnected().await?;
        block_in_place(|| self.cluster.start())?;
        cable.plug_in();
        let recovered = block_in_place(|| self.cluster.flush_lsn())?;
        self.services
            .wait_for(self.timeline, |view| view.status.last_record >= recovered)
            .await?;
        Ok(Crash {
            last_record: status.last_record,
            flushed: status.flushed,
            recovered,
            cut: false,
        })
    }

    /// Halts who writes within a long record, if such a moment is seen, and waits until what was flushed of it
    /// is here. Otherwise the rest would be written while we look.
    async fn halt_in_a_record(&self, writer: i32) -> Result<()> {
        const ASK: &str =
            "SELECT (pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn())::bigint";
        let writer = Pid::from_raw(writer).context("process 0 writes")?;
        let mut session = self.cluster.session("postgres")?;
        let mut within = || -> Result<bool> {
            let not_flushed = block_in_place(|| session.run(ASK))?;
            Ok(NOT_FLUSHED.contains(&not_flushed.parse()?))
        };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if !within()? {
                continue;
            }
            kill_process(writer, Signal::STOP)?;
            if within()? {
                let flushed = block_in_place(|| self.cluster.flush_lsn())?;
                let here = |view: &TimelineView| view.status.flushed >= flushed;
                self.services.wait_for(self.timeline, here).await?;
                return Ok(());
            }
            kill_process(writer, Signal::CONT)?;
        }
        Ok(())
    }

    /// How far we were when the stream had ended.
    async fn disconnected(&self) -> Result<TimelineStatus> {
        let ended = |view: &TimelineView| view.status.state == TimelineState::Disconnected;
        Ok(self.services.wait_for(self.timeline, ended).await?.status)
    }
}

/// Whether the crash cut a record of which we had the beginning.
fn is_cut(pg_wal: &Path, backup: &BaseBackup, crash: &Crash) -> Result<bool> {
    let mut cut = false;
    read_wal(pg_wal, backup.start(), segment_size()?, |record| {
        let decoded = record.decode()?;
        if (decoded.header.rmid, decoded.header.rmgr_info()) == OVERWRITE {
            let mut data = decoded.main_data;
            let overwritten = Lsn::new(data.try_get_u64_le()?);
            cut |= (crash.last_record..crash.flushed).contains(&overwritten);
        }
        Ok(())
    })?;
    Ok(cut)
}

fn segment_size() -> Result<SegmentSize> {
    Ok(SegmentSize::new(u64::from(SEGMENT_MIB) << 20)?)
}

/// Before crashes and after, at random, and the end.
fn some_lsns(
    pg_wal: &Path,
    backup: &BaseBackup,
    crashes: &[Crash],
    end: Lsn,
    size: JudgeSize,
    random: &mut StdRng,
) -> Result<Vec<Lsn>> {
    let judged = backup.end()..=end;
    let boundaries = boundaries(pg_wal, backup.start(), segment_size()?, judged)?;
    let boundaries: BTreeSet<Lsn> = boundaries.into_iter().collect();
    let at_or_before = |lsn: Lsn| boundaries.range(..=lsn).next_back().copied();
    let around = |crash: &Crash| [crash.last_record, crash.recovered].map(at_or_before);
    let around = crashes.iter().take(size.pick(2, 8)).flat_map(around);
    let mut lsns: BTreeSet<Lsn> = around.flatten().collect();
    lsns.extend(boundaries.iter().sample(random, size.pick(1, 10)));
    lsns.extend(boundaries.last());
    Ok(lsns.into_iter().collect())
}
