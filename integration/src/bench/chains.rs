//! GetPages of pages that must be made: so many records on an image, none of it cached.

use anyhow::{Result, ensure};
use palimpsest_api::{channel::connect_lazily, page::PageClient};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::Lsn;

use super::{
    Places, ROUNDS, Row,
    pages::{Measured, Shape, Target, relation},
};
use crate::processes::{Layers, Process, Processes};

/// Records on top of the image.
const LENGTHS: [usize; 3] = [100, 10, 1];
/// Pages that each round reads once, in each shape.
const PAGES: u32 = 320;
/// Together in one request.
const BATCH: u32 = 32;

/// Lines of the table.
///
/// # Errors
/// If a service or PostgreSQL fails.
pub async fn measure(places: &Places) -> Result<Vec<Row>> {
    let mut cluster = Cluster::temporary(ClusterOptions::default().with("autovacuum", "off"))?;
    cluster.start()?;
    let shapes = [
        (
            "one at a time",
            Shape {
                pages: 1,
                depth: 1,
                requests: PAGES as usize,
            },
        ),
        (
            "64 requests under way",
            Shape {
                pages: 1,
                depth: 64,
                requests: PAGES as usize,
            },
        ),
        (
            "32 pages a request, 2 under way",
            Shape {
                pages: BATCH,
                depth: 2,
                requests: (PAGES / BATCH) as usize,
            },
        ),
    ];
    // Each round of each shape has pages of its own: what was read once is cached.
    let portions = u32::try_from(shapes.len() * ROUNDS)?;
    let blocks = portions * PAGES;
    make_table(&cluster, blocks)?;
    let directory = places.directory("chains")?;
    let processes = Processes::launch(places.service(), &directory, Layers::Rarely).await?;
    let timeline = processes
        .attach("chains", &cluster.conninfo("postgres"))
        .await?;
    let lsns = grow_chains(&cluster)?;
    let newest = cluster.flush_lsn()?;
    processes.served_up_to(timeline, newest).await?;
    let rel = relation(&cluster, "chains")?;
    let mut rows = Vec::new();
    // The longest first: an older version that is cached would shorten a longer chain.
    for length in LENGTHS {
        let address = processes.address(Process::PageServe);
        let target = Target {
            client: PageClient::connect(connect_lazily(&address)?).await?,
            timeline,
            rel,
            blocks,
            lsn: lsns[length],
        };
        let mut portion = 0;
        for (how, shape) in shapes {
            let mut measured = Measured::default();
            for _ in 0..ROUNDS {
                target.round(shape, portion * PAGES, &mut measured).await?;
                portion += 1;
            }
            let what = format!("GetPages, {length} records to redo, {how}");
            rows.push(Row::figure(what, measured.to_string()));
        }
    }
    processes.stop();
    Ok(rows)
}

/// Pages that are mostly empty, so that updates stay on them and nothing is pruned.
fn make_table(cluster: &Cluster, blocks: u32) -> Result<()> {
    // More than a page takes of them, so that there are pages enough.
    let rows = (blocks + 1) * 32;
    cluster.psql(
        "postgres",
        &format!(
            "CREATE TABLE chains (number int, updates int) WITH (fillfactor = 10);
             INSERT INTO chains SELECT n, 0 FROM generate_series(1, {rows}) n;
             ALTER TABLE chains SET (fillfactor = 100);
             VACUUM FREEZE chains"
        ),
    )?;
    let size = cluster.psql("postgres", "SELECT pg_relation_size('chains') / 8192")?;
    ensure!(
        size.parse::<u32>()? >= blocks,
        "the table has only {size} pages"
    );
    Ok(())
}

/// One record more for each page in each step; the first writes the image. Item `n` of the answer
/// is the LSN with `n` records on it.
fn grow_chains(cluster: &Cluster) -> Result<Vec<Lsn>> {
    cluster.checkpoint()?;
    let mut writer = cluster.session("postgres")?;
    // Rows stand in order: the same number of them on every page.
    let per_page = "SELECT count(*) FROM chains WHERE ctid < '(1,0)'";
    let per_page: usize = writer.run(per_page)?.parse()?;
    let longest = LENGTHS.into_iter().max().unwrap_or_default();
    let mut lsns = Vec::with_capacity(longest + 1);
    for step in 0..=longest {
        writer.run(&format!(
            "UPDATE chains SET updates = updates + 1 WHERE number % {per_page} = {step} % {per_page}"
        ))?;
        let lsn = writer.run("SELECT pg_current_wal_flush_lsn()")?;
        lsns.push(lsn.parse()?);
    }
    Ok(lsns)
}
