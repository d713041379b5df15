//! `make bench`: what Palimpsest does, and beside it what it is held against, as a Markdown table.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use palimpsest_integration::bench::{
    Places, Table, chains, circumstances, commit, floor, ingest, pages,
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
    /// A file to which the table is added, with the circumstances
    #[arg(long)]
    append_to: Option<PathBuf>,
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
        only, append_to, ..
    } = cli;
    let places = Places::beside_this_program()?;
    let mut table = Table::default();
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
        }
    }
    let mut out = std::io::stdout();
    writeln!(out, "{table}")?;
    if let Some(path) = append_to {
        let parts: Vec<String> = only.iter().map(|part| format!("{part:?}")).collect();
        let section = format!("\n{}\n{table}", circumstances(&parts));
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        file.write_all(section.as_bytes())?;
    }
    for what in table.missed() {
        writeln!(out, "aim missed: {what}")?;
    }
    Ok(())
}
