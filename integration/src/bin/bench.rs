//! `make bench`: what Palimpsest does, and beside it what it is held against, as a Markdown table.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use palimpsest_integration::bench::{
    Places, Table, branches, chains, circumstances, commit, commit_in_names, compaction, floor,
    ingest, pages, put_picture,
};
use palimpsest_service_kit::threads;
use tokio::runtime::Builder;

/// Measures, and prints a table.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to measure; everything unless told
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// A file to which the table is added, with the circumstances; pictures go into a directory
    /// beside it that has its name
    #[arg(long)]
    append_to: Option<PathBuf>,
    /// WAL that is compacted, in MiB; layers are smaller with less than 5120
    #[arg(long, default_value_t = 5120)]
    wal_mib: u64,
    /// Size of the database that is branched, in MiB
    #[arg(long, default_value_t = 1024)]
    database_mib: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The server that pages are compared with; the benchmark starts it
    #[command(hide = true)]
    Floor,
}

/// A group of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// WAL that has piled up, against a stock standby
    Ingest,
    /// Cached pages, against a bare gRPC server
    Pages,
    /// Pages with records to redo
    Chains,
    /// From commit to readable
    Commit,
    /// Layers per read, write amplification and costs of compaction, over gigabytes of WAL
    Compaction,
    /// Branches, against copies that PostgreSQL's own programs make
    Branches,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        // As a service runs.
        Some(Command::Floor) => threads::block_on(floor::serve())?,
        // One thread, as a client has; the services are processes.
        None => Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(measure(&cli)),
    }
}

async fn measure(cli: &Cli) -> Result<()> {
    let Cli {
        only,
        append_to,
        wal_mib,
        database_mib,
        ..
    } = cli;
    let places = Places::beside_this_program()?;
    let mut table = Table::default();
    let mut more = String::new();
    for part in Part::value_variants() {
        if !only.is_empty() && !only.contains(part) {
            continue;
        }
        eprintln!("measuring: {part:?}");
        match part {
            Part::Ingest => {
                table.extend(ingest::measure(&places, "on").await?);
                table.extend(ingest::measure(&places, "off").await?);
            }
            Part::Pages => table.extend(pages::measure(&places).await?),
            Part::Chains => table.extend(chains::measure(&places).await?),
            Part::Commit => table.extend(commit::measure(&places).await?),
            Part::Branches => table.extend(branches::measure(&places, *database_mib).await?),
            Part::Compaction => {
                let report = compaction::measure(&places, *wal_mib).await?;
                table.extend(report.rows());
                if let Some(path) = append_to {
                    let name = format!("compaction-{wal_mib}mib-{}", commit_in_names());
                    let link = put_picture(path, &name, &report.picture())?;
                    more.push_str(&format!("\n![layers per read]({link})\n"));
                }
                more.push_str(&format!("\n{}", report.rounds()));
            }
        }
    }
    let mut out = std::io::stdout();
    writeln!(out, "{table}{more}")?;
    if let Some(path) = append_to {
        let parts: Vec<String> = only.iter().map(|part| format!("{part:?}")).collect();
        let section = format!("\n{}\n{table}{more}", circumstances(&parts));
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        file.write_all(section.as_bytes())?;
    }
    for what in table.missed() {
        writeln!(out, "aim missed: {what}")?;
    }
    Ok(())
}
