//! P1 for what a compute extension will do: a C program that knows GetPages by its documented bytes
//! alone reads the pages that PostgreSQL has in its own files, and is told what it can't have.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use palimpsest_api::{TimelineRef, broker::Role};
use palimpsest_integration::{
    demo::Primary,
    embedded::{Embedded, ServedTimeline},
    judge::{Judge, JudgeSize, seed},
    oracle::{DataFiles, Oracle, PageSource},
};
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_types::{BlockNumber, Lsn, PAGE_SIZE, RelTag, TenantId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::block_in_place,
};

use crate::{
    documented::example,
    support::{checkpoint, engine},
};

const NAME: &str = "c-client";
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../compute/client");
/// Blocks that one run of the program asks for, at most; several requests.
const BLOCKS: usize = 1000;
/// Exit statuses of the program.
const REFUSED: i32 = 1;
const FAILED: i32 = 2;

/// The program, reading one timeline.
struct CClient<'a> {
    program: &'a Path,
    address: &'a str,
    timeline: TimelineRef,
    /// For what the program does not ask for.
    served: &'a ServedTimeline,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_c_client_reads_what_postgres_has_in_its_files() {
    judge().await.unwrap();
}

async fn judge() -> Result<()> {
    let built = tempfile::tempdir()?;
    let programs = block_in_place(|| build(built.path()))?;
    let mut cluster = Cluster::temporary(ClusterOptions::default())?;
    block_in_place(|| {
        cluster.start()?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])
    })?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let timeline = services
        .attach("judged", &cluster.conninfo("postgres"))
        .await?;
    let oldest = services.status(timeline)?.oldest_readable;
    let scale = workload::QUICK.saturating_add(JudgeSize::from_env().pick(0, 3));
    block_in_place(|| {
        Workload::full(seed() as u32, scale).run(&cluster)?;
        cluster.stop()
    })?;
    let end = checkpoint(cluster.data_dir())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;

    let served = services.served(timeline).await?;
    let addresses = services.cluster().borrow().addresses(Role::PageServe);
    let address = addresses.first().context("no page-serve is alive")?;
    let engine = engine(false).await?;
    let oracle = Oracle::new(engine.clone());
    let attached = served.relations(oldest).await?;
    let primary = Primary {
        files: DataFiles::read(cluster.data_dir())?,
        attached_databases: attached.iter().map(|(rel, _)| rel.db).collect(),
    };
    let mut judge = Judge::new(NAME, "P1");
    for program in &programs {
        let client = CClient {
            program,
            address,
            timeline,
            served: &served,
        };
        let pages = primary.compare(&client, end, &oracle, &mut judge).await?;
        eprintln!("{NAME}: {pages} pages read by {}", program.display());
        client.judge_refusals(&primary, oldest, end, &mut judge)?;
    }
    judge_documented_bytes(address, &mut judge).await?;
    judge.close();
    engine.stop().await;
    services.stop().await;
    Ok(())
}

/// The program as it is, and one that stops at any wrong use of memory if the compiler can do that.
fn build(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut targets = vec!["getpages"];
    match has_sanitizers(directory)? {
        true => targets.push("sanitized"),
        false => eprintln!("{NAME}: the compiler has no sanitizers; one build less"),
    }
    let out = format!("OUT={}", directory.display());
    let made = Command::new("make")
        .args(["--silent", "--directory", SOURCE, &out])
        .args(&targets)
        // Of a make that runs the tests.
        .env_remove("MAKEFLAGS")
        .output()?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "{said}");
    let names = ["getpages", "getpages-sanitized"].iter();
    Ok(names
        .take(targets.len())
        .map(|name| directory.join(name))
        .collect())
}

fn has_sanitizers(directory: &Path) -> Result<bool> {
    let source = directory.join("empty.c");
    std::fs::write(&source, "int main(void) { return 0; }\n")?;
    let compiled = Command::new("cc")
        .args(["-fsanitize=address,undefined", "-o"])
        .arg(directory.join("empty"))
        .arg(source)
        .stderr(Stdio::null())
        .status()?;
    Ok(compiled.success())
}

impl CClient<'_> {
    fn run(&self, timeline: TimelineRef, rel: &str, lsn: Lsn, blocks: &[u32]) -> Result<Output> {
        let output = Command::new(self.program)
            .arg(self.address)
            .args([
                timeline.tenant.to_string(),
                timeline.timeline.to_string(),
                rel.to_owned(),
                lsn.to_string(),
            ])
            .args(blocks.iter().map(u32::to_string))
            .output()?;
        Ok(output)
    }

    fn read(&self, rel: RelTag, lsn: Lsn, blocks: &[BlockNumber]) -> Result<Vec<Bytes>> {
        let numbers: Vec<_> = blocks.iter().map(|block| block.get()).collect();
        let output = self.run(self.timeline, &rel.to_string(), lsn, &numbers)?;
        ensure!(
            output.status.success() && output.stderr.is_empty(),
            "{rel}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let expected = blocks.len() * PAGE_SIZE;
        ensure!(
            output.stdout.len() == expected,
            "{rel}: not {expected} bytes"
        );
        let pages = Bytes::from(output.stdout);
        let page = |index| pages.slice(index * PAGE_SIZE..(index + 1) * PAGE_SIZE);
        Ok((0..blocks.len()).map(page).collect())
    }

    /// What can't be read is refused with the kind and the reason that are documented.
    fn judge_refusals(
        &self,
        primary: &Primary,
        oldest: Lsn,
        end: Lsn,
        judge: &mut Judge,
    ) -> Result<()> {
        let longest = primary.files.iter().map(|(rel, file)| (file.blocks(), rel));
        let longest = longest.filter_map(|(blocks, rel)| Some((blocks.ok()?, rel)));
        let (blocks, rel) = longest.max().context("no relations")?;
        let missing = RelTag {
            rel: u32::MAX,
            ..rel
        };
        let (rel, missing) = (rel.to_string(), missing.to_string());
        let future = Lsn::new(end.get() + (1 << 40));
        let unknown = TimelineRef {
            tenant: TenantId::from_bytes([7; 16]),
            ..self.timeline
        };
        let here = self.timeline;
        let below = Lsn::new(oldest.get() - 1);
        let cases = [
            (here, &missing, end, 0, "not-found/3: "),
            (here, &rel, end, blocks.get(), "not-found/4: "),
            (here, &rel, end, u32::MAX, "there is no block"),
            (here, &rel, below, 0, "invalid/5: "),
            (here, &rel, below, 0, "the oldest LSN that can be read"),
            (here, &rel, future, 0, "not-ready/6: "),
            (here, &format!("{rel}:what"), end, 0, "invalid/1: "),
            (unknown, &rel, end, 0, "not-found/2: "),
        ];
        for (timeline, rel, lsn, block, expected) in cases {
            // With a block that there is, to show that nothing of it is written.
            let output = self.run(timeline, rel, lsn, &[0, block])?;
            let said = String::from_utf8_lossy(&output.stderr);
            let right = output.status.code() == Some(REFUSED)
                && output.stdout.is_empty()
                && said.contains(expected);
            let finding = || format!("{rel} at {lsn}: {}: {said}", output.status);
            judge.check((!right).then(finding));
        }
        let nobody = CClient {
            address: "127.0.0.1:1",
            ..*self
        };
        for (client, rel) in [(&nobody, rel.as_str()), (self, "1663/5"), (self, "1/2/3:")] {
            let output = client.run(here, rel, end, &[0])?;
            let right = output.status.code() == Some(FAILED) && output.stdout.is_empty();
            judge.check((!right).then(|| format!("{rel}: {}", output.status)));
        }
        Ok(())
    }
}

impl PageSource for CClient<'_> {
    async fn relations(&self, lsn: Lsn) -> Result<Vec<(RelTag, BlockNumber)>> {
        self.served.relations(lsn).await
    }

    async fn pages(&self, rel: RelTag, blocks: &[BlockNumber], lsn: Lsn) -> Vec<Result<Bytes>> {
        let mut pages = Vec::with_capacity(blocks.len());
        for some in blocks.chunks(BLOCKS) {
            match block_in_place(|| self.read(rel, lsn, some)) {
                Ok(read) => pages.extend(read.into_iter().map(Ok)),
                Err(error) => pages.extend(some.iter().map(|_| Err(anyhow::anyhow!("{error:#}")))),
            }
        }
        pages
    }
}

/// The document's own request, about a timeline that there is not, gets the document's own answer.
async fn judge_documented_bytes(address: &str, judge: &mut Judge) -> Result<()> {
    /// Length and type, flags, stream.
    const FRAME_HEAD: usize = 9;
    const DATA: u8 = 0;
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(&example("opening")).await?;
    connection.write_all(&example("request")).await?;
    let expected = example("error");
    let mut answer = Vec::new();
    while answer.len() < expected.len() {
        let mut head = [0; FRAME_HEAD];
        connection.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        connection.read_exact(&mut payload).await?;
        if head[3] == DATA {
            answer.extend(payload);
        }
    }
    let finding = || format!("the documented request is answered by {answer:02x?}");
    judge.check((answer != expected).then(finding));
    Ok(())
}
