//! `pal page`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use palimpsest_api::{
    TimelineRef,
    page::{PageClient, PagesRequest},
};
use palimpsest_catalog::RelationName;
use palimpsest_types::{BlockNumber, Lsn, RelTag};
use serde::Serialize;

use super::rel::at;
use crate::{
    cli::Common,
    client::{Client, find},
    error::CliError,
    hex_dump::hex_dump,
    output::Output,
    page_view::{Difference, PageHeader, differences},
    relation::locate,
};

/// Commands about pages.
#[derive(Debug, Subcommand)]
pub enum PageCommand {
    /// Show a page as it was at an LSN.
    Get(GetArgs),
    /// Show what differs in a page between two LSNs.
    Diff(DiffArgs),
}

/// Which page.
#[derive(Debug, Args)]
pub struct PageName {
    /// TENANT or TENANT/TIMELINE.
    pub name: String,
    /// database.schema.table\[:fork\], or SPC/DB/REL\[:fork\] as `pal rel list` shows them.
    pub rel: RelationName,
    /// Block number, from 0.
    pub block: u32,
}

/// Shows a page.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Which page.
    #[command(flatten)]
    pub page: PageName,
    /// As of this LSN; the newest without it.
    #[arg(long)]
    pub lsn: Option<Lsn>,
    /// Only the bytes in hexadecimal, without the header in words.
    #[arg(long, conflicts_with = "out")]
    pub hex: bool,
    /// Write the 8192 bytes to a file.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Compares a page with itself.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Which page.
    #[command(flatten)]
    pub page: PageName,
    /// Give it twice: the earlier and the later LSN.
    #[arg(long, required = true, num_args = 1, value_name = "LSN")]
    pub lsn: Vec<Lsn>,
}

/// A page that was read.
#[derive(Debug)]
struct Fetched {
    rel: RelTag,
    block: u32,
    lsn: Lsn,
    bytes: Bytes,
}

#[derive(Debug, Serialize)]
struct Page {
    rel: String,
    block: u32,
    lsn: Lsn,
    header: PageHeader,
    hex: Option<String>,
}

#[derive(Debug, Serialize)]
struct Diff {
    before: Page,
    after: Page,
    differences: Vec<Difference>,
}

/// Bytes of a difference that are printed.
const SHOWN: usize = 12;

pub(crate) async fn run(
    common: &Common,
    command: PageCommand,
    output: Output,
) -> Result<(), CliError> {
    match command {
        PageCommand::Get(arguments) => get(common, arguments, output).await,
        PageCommand::Diff(arguments) => diff(common, arguments, output).await,
    }
}

async fn get(common: &Common, arguments: GetArgs, output: Output) -> Result<(), CliError> {
    let (client, timeline) = open(common, &arguments.page).await?;
    let fetched = fetch(&client, timeline, &arguments.page, arguments.lsn).await?;
    if let Some(path) = &arguments.out {
        return write(path, &fetched.bytes);
    }
    let page = Page::new(&fetched)?;
    if output.is_json() {
        let hex = Some(hex(&fetched.bytes));
        return output.json(&Page { hex, ..page });
    }
    if !arguments.hex {
        output.line(format!("{} block {} at {}", page.rel, page.block, page.lsn))?;
        output.line(&page.header)?;
    }
    output.line(hex_dump(&fetched.bytes))
}

async fn diff(common: &Common, arguments: DiffArgs, output: Output) -> Result<(), CliError> {
    let &[before, after] = arguments.lsn.as_slice() else {
        return Err(CliError::Failed {
            what: format!("a diff is between two LSNs, not {}", arguments.lsn.len()),
            hint: Some("give --lsn twice".into()),
        });
    };
    let (client, timeline) = open(common, &arguments.page).await?;
    let old = fetch(&client, timeline, &arguments.page, Some(before)).await?;
    let new = fetch(&client, timeline, &arguments.page, Some(after)).await?;
    let diff = Diff::new(&old, &new)?;
    if output.is_json() {
        return output.json(&diff);
    }
    diff.print([&old.bytes, &new.bytes], output)
}

async fn open(common: &Common, page: &PageName) -> Result<(PageClient, TimelineRef), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let timeline = find(&view, &page.name)?.timeline;
    Ok((client.pages(&view).await?, timeline))
}

async fn fetch(
    client: &PageClient,
    timeline: TimelineRef,
    page: &PageName,
    lsn: Option<Lsn>,
) -> Result<Fetched, CliError> {
    let (rel, lsn) = locate(client, timeline, &page.rel, lsn).await?;
    let block = page.block;
    let request = PagesRequest {
        timeline,
        at: at(lsn),
        rel,
        blocks: vec![BlockNumber::new(block)],
    };
    let what = format!("reading {rel} block {block} of {}", page.name);
    let answer = client
        .pages(request)
        .await
        .map_err(CliError::remote(what.clone()))?;
    let bytes = answer.pages.into_iter().next();
    let bytes = bytes.ok_or_else(|| no_page(what))?;
    Ok(Fetched {
        rel,
        block,
        lsn: answer.lsn,
        bytes,
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    std::fs::write(path, bytes).map_err(|source| CliError::File {
        path: path.to_owned(),
        source,
    })
}

fn no_page(what: String) -> CliError {
    CliError::Failed {
        what: format!("{what}: page-serve sent no page"),
        hint: None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first bytes of a range of a page.
fn excerpt(page: &[u8], difference: &Difference) -> String {
    let bytes = page.get(difference.from..difference.to).unwrap_or_default();
    let more = if bytes.len() > SHOWN { "…" } else { "" };
    let shown: Vec<_> = bytes
        .iter()
        .take(SHOWN)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    shown.join(" ") + more
}

impl Page {
    fn new(fetched: &Fetched) -> Result<Self, CliError> {
        let header = PageHeader::read(&fetched.bytes);
        Ok(Self {
            rel: fetched.rel.to_string(),
            block: fetched.block,
            lsn: fetched.lsn,
            header: header.ok_or_else(|| no_page("reading the header".to_owned()))?,
            hex: None,
        })
    }
}

impl Diff {
    fn new(old: &Fetched, new: &Fetched) -> Result<Self, CliError> {
        let before = Page::new(old)?;
        let after = Page::new(new)?;
        Ok(Self {
            differences: differences(&old.bytes, &new.bytes, &after.header),
            before,
            after,
        })
    }

    fn print(&self, [old, new]: [&[u8]; 2], output: Output) -> Result<(), CliError> {
        let Self { before, after, .. } = self;
        let page = format!("{} block {}", after.rel, after.block);
        if self.differences.is_empty() {
            return output.line(format!(
                "{page} is the same at {} and {}",
                before.lsn, after.lsn
            ));
        }
        output.line(format!("{page}, {} → {}", before.lsn, after.lsn))?;
        if before.rel != after.rel {
            output.line(format!("  rewritten: it was {}", before.rel))?;
        }
        let fields = before
            .header
            .fields()
            .into_iter()
            .zip(after.header.fields());
        for ((name, was), (_, is)) in fields {
            if was != is {
                output.line(format!("  {name:<10} {was} → {is}"))?;
            }
        }
        let count: usize = self.differences.iter().map(Difference::len).sum();
        output.line(format!("{count} bytes differ:"))?;
        for difference in &self.differences {
            let Difference { from, to, area } = difference;
            output.line(format!(
                "  {from:>4}..{to:<4}  {area:<13}  {} → {}",
                excerpt(old, difference),
                excerpt(new, difference)
            ))?;
        }
        Ok(())
    }
}
