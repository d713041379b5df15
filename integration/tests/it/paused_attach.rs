//! P4: an attach that slept while another node began anew neither undoes nor completes anything when
//! it wakes up.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{TimelineRef, broker::BrokerClient};
use palimpsest_integration::{
    judge::{Judge, seed},
    processes::{Layers, Process, Processes},
};
use palimpsest_store::{ObjectStore, StorePath};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};

use crate::under_load::{Guard, SERVICE, Source, TENANT};

const NAME: &str = "paused-attach";
const PAGES: &str = "paused-attach-pages";
const PATIENCE: Duration = Duration::from_secs(120);
/// The one that wakes up does all that it would, while the other stands still; but not so long that
/// the other's lease runs out.
const AWAKE: Duration = Duration::from_secs(3);
/// A backup of several layers, so that there is time to stop it in the middle: what repeats itself would be packed into one.
const FILL: &str = "CREATE TABLE big AS SELECT i, \
    (SELECT string_agg(md5(i || '.' || j), '') FROM generate_series(1, 40) j) AS t \
    FROM generate_series(1, 160000) i";

#[tokio::test(flavor = "multi_thread")]
async fn p4_an_attach_that_slept_leaves_the_next_one_alone() {
    paused_attach().await.unwrap();
}

async fn paused_attach() -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed());
    let source = block_in_place(Source::start)?;
    block_in_place(|| source.cluster.psql("postgres", FILL))?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    let mut broker = BrokerClient::new(&processes.address(Process::StorageBroker))?;
    let conninfo = source.cluster.conninfo("postgres");
    let timeline = broker.attach_tenant(TENANT, &conninfo, None).await?;
    let store = Stored::of(&processes, timeline).await?;

    let first = store.wait_for_layers_but(&[]).await?;
    processes.sigstop(Process::WalIngest)?;
    processes.start(Process::SecondWalIngest)?;
    let others = store.wait_for_layers_but(&first).await?;
    processes.sigstop(Process::SecondWalIngest)?;
    let stored = store.names("layers").await?;
    processes.sigcont(Process::WalIngest)?;
    sleep(AWAKE).await;
    let mut judge = Judge::new(NAME, "P4");
    let published = !store.names("manifest").await?.is_empty();
    judge.check(published.then(|| "the one that woke up has published".to_owned()));
    let left = store.names("layers").await?;
    for layer in stored.iter().filter(|layer| others.contains(layer)) {
        let lost = !left.contains(layer);
        judge.check(lost.then(|| format!("the one that woke up has removed {layer}")));
    }
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let slots = block_in_place(|| source.cluster.psql("postgres", slots))?;
    judge.check((slots != "1").then(|| format!("there are {slots} slots")));
    processes.sigcont(Process::SecondWalIngest)?;
    processes.attached(timeline).await?;
    let guard = Guard::start(&source, &processes, timeline).await?;
    block_in_place(|| source.cluster.pgbench(&["-n", "-T", "2", "postgres"]))?;
    judge.check(guard.finish().await?);

    let mut pages = Judge::new(PAGES, "P4");
    let ending = source.finish(&processes, timeline).await?;
    // The filling came after the reference's backup, and hint bits are not in the WAL between.
    ending.compare(0, &mut random, &mut pages).await?;
    judge.close();
    pages.close();
    processes.stop();
    Ok(())
}

/// What is in the store of a timeline.
struct Stored {
    store: ObjectStore,
    path: StorePath,
}

impl Stored {
    async fn of(processes: &Processes, timeline: TimelineRef) -> Result<Self> {
        let TimelineRef { tenant, timeline } = timeline;
        Ok(Self {
            store: ObjectStore::open(&processes.store()).await?,
            path: StorePath::timeline(tenant, timeline),
        })
    }

    async fn names(&self, below: &str) -> Result<Vec<String>> {
        let objects = self.store.list(&self.path.child(below)).await?;
        let names = objects.iter().filter_map(StorePath::file_name);
        Ok(names.map(str::to_owned).collect())
    }

    /// Waits until there are other layers than `known`, and no manifest yet.
    async fn wait_for_layers_but(&self, known: &[String]) -> Result<Vec<String>> {
        let waiting = async {
            loop {
                let mut layers = self.names("layers").await?;
                layers.retain(|layer| !known.contains(layer));
                if !layers.is_empty() {
                    return Ok::<_, anyhow::Error>(layers);
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let layers = timeout(PATIENCE, waiting).await;
        let layers = layers.context("no layer is uploaded")??;
        let manifests = self.names("manifest").await?;
        ensure!(manifests.is_empty(), "the attach was too quick for this");
        Ok(layers)
    }
}
