//! P5, P8: very many branches are made as one is, and a storage-broker or page-serve that starts anew
//! knows all of them: see what is printed.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use palimpsest_api::{
    TimelineRef,
    broker::{BranchView, Branched, BrokerClient, ClusterView, Role},
};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    oracle::PageSource as _,
    processes::{Layers, Process, Processes},
};
use palimpsest_types::{BlockNumber, Lsn};
use rand::{SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::{task::block_in_place, time::Instant};

use crate::under_load::{Load, SERVICE, Source, TENANT};

const NAME: &str = "many-branches";
/// Made side by side.
const AT_ONCE: usize = 4;
/// One in so many begins on a branch.
const ON_BRANCHES: usize = 10;
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn p5_p8_very_many_branches_are_made_as_one_is() {
    many_branches().await.unwrap();
}

async fn many_branches() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let count = size.pick(400, 10_000);
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    let main = processes
        .attach(TENANT, &source.cluster.conninfo("postgres"))
        .await?;
    // Under load first, when there are few, then idle.
    let load = Load::start_gently(&source.cluster);
    let mut branches = make(&processes, main, 0..count / 4).await?;
    load.stop().await?;
    branches.extend(make(&processes, main, count / 4..count).await?);

    let mut judge = Judge::new(NAME, "P8");
    for (process, role) in [
        (Process::StorageBroker, None),
        (Process::PageServe, Some(Role::PageServe)),
    ] {
        memory(&processes, process)?;
        processes.kill9(process)?;
        let begun = Instant::now();
        processes.start(process)?;
        let mut cluster = processes.cluster().clone();
        cluster.mark_unchanged();
        let there = |view: &ClusterView| {
            let alive = role.is_none_or(|role| !view.addresses(role).is_empty());
            alive && view.timelines.len() > branches.len()
        };
        let told = async {
            loop {
                cluster.changed().await?;
                if there(&cluster.borrow_and_update()) {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(PATIENCE, told)
            .await
            .context("nobody tells of the branches")??;
        eprintln!(
            "{NAME}: {process:?} knows them {:.1?} after its start",
            begun.elapsed()
        );
        memory(&processes, process)?;
    }
    let view = processes.cluster().borrow().clone();
    for made in &branches {
        judge.check(differs(&view, made));
    }
    let newest = branches
        .iter()
        .map(|branch| branch.lsn)
        .max()
        .context("no branches")?;
    let of_main = processes.served_up_to(main, newest).await?;
    for made in branches.iter().sample(&mut random, size.pick(10, 50)) {
        let served = processes.served_up_to(made.timeline, made.lsn).await?;
        let relations = served.relations(made.lsn).await?;
        ensure!(relations == of_main.relations(made.lsn).await?, "{made:?}");
        let some = relations.iter().filter(|(_, blocks)| blocks.get() > 0);
        let (rel, blocks) = *some.choose(&mut random).context("no relations")?;
        let block = BlockNumber::new(blocks.get() - 1);
        let page = served.pages(rel, &[block], made.lsn).await.pop();
        let expected = of_main.pages(rel, &[block], made.lsn).await.pop();
        let (page, expected) = (page.context("no page")??, expected.context("no page")??);
        judge.check((page != expected).then(|| format!("{rel} {block} of {made:?}")));
    }
    memory(&processes, Process::PageServe)?;
    judge.close();
    processes.stop();
    Ok(())
}

/// Makes some branches side by side, and prints how long each took.
async fn make(
    processes: &Processes,
    main: TimelineRef,
    numbers: std::ops::Range<usize>,
) -> Result<Vec<Branched>> {
    let broker = BrokerClient::new(&processes.address(Process::StorageBroker))?;
    let begun = Instant::now();
    let from = numbers.start;
    let on = broker
        .clone()
        .create_branch(main, &format!("b{from}"), None)
        .await?;
    let made = stream::iter(numbers.skip(1)).map(|number| {
        let mut broker = broker.clone();
        async move {
            let parent = match number % ON_BRANCHES {
                0 => on.timeline,
                _ => main,
            };
            let begun = Instant::now();
            let made = broker
                .create_branch(parent, &format!("b{number}"), None)
                .await?;
            anyhow::Ok((made, begun.elapsed()))
        }
    });
    let made: Vec<_> = made.buffer_unordered(AT_ONCE).try_collect().await?;
    let mut took: Vec<_> = made.iter().map(|(_, took)| *took).collect();
    took.sort_unstable();
    let at = |part: usize| {
        took.get((took.len() - 1) * part / 100)
            .copied()
            .unwrap_or_default()
    };
    eprintln!(
        "{NAME}: {} from {from} on, {AT_ONCE} at once: p50 {:.1?}, p99 {:.1?}, longest {:.1?}; {:.1?} for all",
        took.len() + 1,
        at(50),
        at(99),
        at(100),
        begun.elapsed()
    );
    let made = made.into_iter().map(|(made, _)| made);
    Ok(std::iter::once(on).chain(made).collect())
}

/// How a branch is not as it was made, if so.
fn differs(view: &ClusterView, made: &Branched) -> Option<String> {
    let told = view.timeline(made.timeline).and_then(|view| view.branch);
    let (timeline, lsn): (_, Lsn) = (made.begins_on.timeline, made.lsn);
    let same = |point: &BranchView| (point.timeline, point.lsn) == (timeline, lsn);
    (!told.as_ref().is_some_and(same)).then(|| format!("{made:?} is {told:?}"))
}

/// Prints what a process has resident.
fn memory(processes: &Processes, process: Process) -> Result<()> {
    let pid = processes.pid(process).context("it does not run")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.map(str::trim).unwrap_or_default().to_owned()
    };
    eprintln!(
        "{NAME}: {process:?} has {} resident, at most {}",
        field("VmRSS:"),
        field("VmHWM:")
    );
    Ok(())
}
