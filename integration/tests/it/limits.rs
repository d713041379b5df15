//! P9: each service keeps within an address space of 2 GiB, all of them in one process within
//! 4 GiB, and their memory within what their settings say.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, Processes},
};
use palimpsest_types::ByteCount;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{task::block_in_place, time::sleep};

use crate::under_load::{Load, SERVICE, Source, TENANT};

const NAME: &str = "address-space";
const DEMO: &str = env!("CARGO_BIN_EXE_demo");
/// Of one service.
const EACH: ByteCount = ByteCount::gib(2);
/// Of all of them in one process, as `pal up` runs them.
const TOGETHER: ByteCount = ByteCount::gib(4);
/// Code, stacks, buffers of connections, indexes of layers, and what the allocator keeps: what a
/// service takes that no budget counts.
const ALLOWANCE: ByteCount = ByteCount::mib(128);

/// What each process is told, and how much memory that gives it.
const BUDGETS: [(Process, &[(&str, u64)]); 4] = [
    (Process::StorageBroker, &[]),
    (Process::RedoWorker, &[]),
    (
        Process::PageServe,
        &[
            ("PALIMPSEST_PAGE_SERVE__PAGE_CACHE", 16),
            ("PALIMPSEST_PAGE_SERVE__BLOCK_CACHE", 16),
            ("PALIMPSEST_PAGE_SERVE__TAIL_MEMORY", 96),
        ],
    ),
    (Process::WalIngest, &[("PALIMPSEST_WAL_INGEST__MEMORY", 64)]),
];

/// A program that becomes `program` within a limit, and with the budgets if they are to be small.
fn limited(directory: &Path, program: &str, limit: ByteCount, small: bool) -> Result<PathBuf> {
    let path = directory.join("limited");
    let mut script = format!("#!/bin/sh\nulimit -v {}\n", limit.get() >> 10);
    let budgets = BUDGETS.iter().flat_map(|(_, settings)| settings.iter());
    for (name, mib) in budgets.filter(|_| small) {
        script.push_str(&format!("export {name}={mib}MiB\n"));
    }
    script.push_str(&format!("exec '{program}' \"$@\"\n"));
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A line of `/proc/PID/status` that counts in kilobytes.
fn in_status(pid: u32, line: &str) -> Result<ByteCount> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|text| text.strip_prefix(line));
    let value = value.and_then(|text| text.split_whitespace().nth(1));
    let value = value.with_context(|| format!("{line} is not in {status}"))?;
    Ok(ByteCount::kib(value.parse()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_every_service_keeps_within_its_limits() {
    each_service().await.unwrap();
}

async fn each_service() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    let mut random = StdRng::seed_from_u64(seed);
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let program = limited(files.path(), SERVICE, EACH, true)?;
    let processes = Processes::launch(&program, files.path(), Layers::Often).await?;
    let conninfo = source.cluster.conninfo("postgres");
    let timeline = processes.attach(TENANT, &conninfo).await?;
    let load = Load::start(&source.cluster);
    sleep(Duration::from_secs(size.pick(10, 120))).await;
    load.stop().await?;
    let written = block_in_place(|| source.cluster.flush_lsn())?;
    processes.served_up_to(timeline, written).await?;

    let mut judge = Judge::new(NAME, "P9");
    let ending = source.finish(&processes, timeline).await?;
    ending
        .compare(size.pick(2, 6), &mut random, &mut judge)
        .await?;
    for (process, settings) in BUDGETS {
        let pid = processes.pid(process).context("it has ended")?;
        let budget = ByteCount::mib(settings.iter().map(|(_, mib)| mib).sum());
        let most = ByteCount::new(budget.get() + ALLOWANCE.get());
        let (peak, reserved) = (in_status(pid, "VmHWM")?, in_status(pid, "VmPeak")?);
        let name = process.name();
        eprintln!("{NAME}: {name}: {peak} of {most}, {reserved} reserved");
        judge.check((peak > most).then(|| format!("{name} took {peak}; {most} are its budgets")));
        judge.check((reserved > EACH).then(|| format!("{name} reserved {reserved}")));
    }
    judge.close();
    processes.stop();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_all_services_in_one_process_keep_within_the_limit() {
    one_process().await.unwrap();
}

/// The demo's check is `pal up`, a workload, and a comparison of every page.
async fn one_process() -> Result<()> {
    let files = tempfile::tempdir()?;
    let program = limited(files.path(), DEMO, TOGETHER, false)?;
    let checking = block_in_place(|| {
        Command::new(program)
            .args(["check", "--lsns", "1"])
            .output()
    })?;
    let said = String::from_utf8_lossy(&checking.stdout);
    let errors = String::from_utf8_lossy(&checking.stderr);
    ensure!(checking.status.success(), "{said}{errors}");
    eprintln!("{}", said.lines().last().unwrap_or_default());
    Ok(())
}
