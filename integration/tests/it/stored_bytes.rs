//! P6: a stored byte that is not what was written is an error with a name, never another page.
//!
//! A page-serve that has read nothing yet reads everything, once for each damage: one byte of one
//! object of the timeline, which is mended afterwards.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use palimpsest_api::{RemoteError, TimelineRef};
use palimpsest_integration::{
    embedded::{Embedded, ServedTimeline},
    judge::{Judge, JudgeSize, seed},
    oracle::PageSource as _,
};
use palimpsest_runtime::TaskScope;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, ErrorKind, Lsn, RelTag};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::task::block_in_place;

const NAME: &str = "stored-bytes";
/// Of every three damages, that many must be noticed: what is damaged may be an older manifest, or a
/// version that no read at this LSN needs.
const NOTICED_OF_THREE: usize = 1;
/// A page-serve opens its timelines in less, or says why not.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// Pages as they are, before anything is damaged.
type Pages = BTreeMap<(RelTag, BlockNumber), Bytes>;

/// A byte of a file that is another than it was, until this is dropped.
struct Damage {
    path: PathBuf,
    at: u64,
    was: u8,
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_damaged_byte_is_an_error_and_never_a_page() {
    stored_bytes().await.unwrap();
}

async fn stored_bytes() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::temporary(ClusterOptions::default())?;
    block_in_place(|| cluster.start())?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let timeline = services
        .attach("judged", &cluster.conninfo("postgres"))
        .await?;
    block_in_place(|| load(&cluster))?;
    let end = block_in_place(|| cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.remote_consistent >= end)
        .await?;
    // Nobody writes the store any more, and all is in layers.
    services.stop().await;
    let services = Embedded::start_without_wal_ingest(files.path()).await?;
    let served = services.served(timeline).await?;
    let whole = read_all(&served, end).await?;
    drop(served);
    let kinds = ["/layers/image-", "/layers/delta-", "/manifest/"];
    let objects = objects_of(&services.store().join("tenants"), &kinds)?;

    let mut judge = Judge::new(NAME, "P6");
    let damages = size.pick(18, 150);
    let mut noticed = 0;
    for number in 0..damages {
        let objects = &objects[number % kinds.len()];
        let path = objects
            .choose(&mut random)
            .context("an object of each kind")?;
        let damage = Damage::do_to(path, &mut random)?;
        let wrong = damaged_reads(&services, (timeline, end), &whole, &mut judge).await?;
        noticed += usize::from(wrong);
        drop(damage);
    }
    eprintln!("{NAME}: {noticed} of {damages} damages were noticed");
    let scope = TaskScope::default();
    let address = services.start_page_serve(&scope).await?;
    let served = services.served_by(&address, timeline).await?;
    opened(&served, timeline).await?;
    let again = read_all(&served, end).await?;
    ensure!(again == whole, "what was mended reads as before");
    services.stop().await;
    judge.close();
    ensure!(
        noticed * 3 >= damages * NOTICED_OF_THREE,
        "damage is hardly ever noticed"
    );
    Ok(())
}

fn load(cluster: &Cluster) -> Result<()> {
    cluster.pgbench(&["--initialize", "--quiet", "--scale=1", "postgres"])?;
    cluster.pgbench(&["--transactions=1000", "--no-vacuum", "postgres"])?;
    Ok(())
}

/// Reads everything by a page-serve of its own; whether any read failed.
async fn damaged_reads(
    services: &Embedded,
    (timeline, lsn): (TimelineRef, Lsn),
    whole: &Pages,
    judge: &mut Judge,
) -> Result<bool> {
    let scope = TaskScope::default();
    let address = services.start_page_serve(&scope).await?;
    let served = services.served_by(&address, timeline).await?;
    let mut errors = Vec::new();
    match opened(&served, timeline).await {
        Err(error) => errors.push(error.into()),
        Ok(()) => {
            for (rel, blocks) in by_relation(whole) {
                let pages = served.pages(rel, &blocks, lsn).await;
                for (block, page) in blocks.into_iter().zip(pages) {
                    match page {
                        Ok(page) => {
                            let same = whole.get(&(rel, block)) == Some(&page);
                            judge.check((!same).then(|| format!("{rel} block {block} differs")));
                        }
                        Err(error) => errors.push(error),
                    }
                }
            }
        }
    }
    for error in &errors {
        let named = kind_of(error) == Some(ErrorKind::Corrupt);
        judge.check((!named).then(|| format!("damage was reported as {error:#}")));
    }
    scope.stop().await;
    Ok(!errors.is_empty())
}

/// Waits until a timeline is open, or can't be.
async fn opened(served: &ServedTimeline, timeline: TimelineRef) -> Result<(), RemoteError> {
    let mut left = PATIENCE.as_millis() / LOOK.as_millis();
    loop {
        match served.client().readable(timeline).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == ErrorKind::NotReady && left > 0 => {}
            Err(error) => return Err(error),
        }
        left -= 1;
        tokio::time::sleep(LOOK).await;
    }
}

async fn read_all(served: &ServedTimeline, lsn: Lsn) -> Result<Pages> {
    let mut whole = Pages::new();
    for (rel, size) in served.relations(lsn).await? {
        let blocks: Vec<_> = (0..size.get()).map(BlockNumber::new).collect();
        let pages = served.pages(rel, &blocks, lsn).await;
        for (block, page) in blocks.into_iter().zip(pages) {
            whole.insert((rel, block), page?);
        }
    }
    Ok(whole)
}

fn by_relation(pages: &Pages) -> BTreeMap<RelTag, Vec<BlockNumber>> {
    let mut relations = BTreeMap::<_, Vec<_>>::new();
    for (rel, block) in pages.keys() {
        relations.entry(*rel).or_default().push(*block);
    }
    relations
}

fn kind_of(error: &anyhow::Error) -> Option<ErrorKind> {
    error.downcast_ref::<RemoteError>().map(|error| error.kind)
}

/// The files whose paths have each of these parts.
fn objects_of(directory: &Path, kinds: &[&str]) -> Result<Vec<Vec<PathBuf>>> {
    let mut objects = vec![Vec::new(); kinds.len()];
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let text = path.to_string_lossy();
            if path.is_dir() {
                directories.push(path);
            } else if let Some(kind) = kinds.iter().position(|part| text.contains(part)) {
                objects[kind].push(path);
            }
        }
    }
    // In an order that the seed decides about alone.
    objects.iter_mut().for_each(|paths| paths.sort());
    Ok(objects)
}

impl Damage {
    fn do_to(path: &Path, random: &mut StdRng) -> Result<Self> {
        let file = fs::File::options().read(true).write(true).open(path)?;
        let at = random.random_range(0..file.metadata()?.len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        let damage = Self {
            path: path.to_owned(),
            at,
            was: byte[0],
        };
        damage.write(byte[0] ^ random.random_range(1..=u8::MAX))?;
        Ok(damage)
    }

    fn write(&self, byte: u8) -> Result<()> {
        let file = fs::File::options().write(true).open(&self.path)?;
        Ok(file.write_all_at(&[byte], self.at)?)
    }
}

impl Drop for Damage {
    fn drop(&mut self) {
        self.write(self.was).unwrap();
    }
}
