//! `pal rel`.

use clap::Subcommand;
use palimpsest_api::{
    TimelineRef,
    page::{PageClient, ReadAt, RelationSize},
};
use palimpsest_catalog::RelationName;
use palimpsest_types::{ByteCount, Fork, Lsn, Oid, PAGE_SIZE, RelTag};
use serde::Serialize;

use crate::{
    cli::Common,
    client::{Client, find},
    error::CliError,
    output::{Column, Output},
    relation::{locate, locate_database},
};

/// Commands about relations.
#[derive(Debug, Subcommand)]
pub enum RelCommand {
    /// List all relation forks with their sizes.
    List {
        /// TENANT or TENANT/TIMELINE.
        name: String,
        /// As of this LSN; the newest without it.
        #[arg(long)]
        lsn: Option<Lsn>,
    },
    /// Show the size of one fork.
    Size {
        /// TENANT or TENANT/TIMELINE.
        name: String,
        /// database.schema.table\[:fork\], or SPC/DB/REL\[:fork\] as in the directory names of
        /// PostgreSQL, where 1663 is the default tablespace.
        rel: RelationName,
        /// As of this LSN; the newest without it.
        #[arg(long)]
        lsn: Option<Lsn>,
    },
    /// Show the size of a database: all its relation forks together. PostgreSQL's own
    /// `pg_database_size` also counts what is in no WAL, above all unlogged and temporary relations.
    Database {
        /// TENANT or TENANT/TIMELINE.
        name: String,
        /// Its name, as of the LSN.
        database: String,
        /// As of this LSN; the newest without it.
        #[arg(long)]
        lsn: Option<Lsn>,
    },
}

/// A database and what it has.
#[derive(Debug, Serialize)]
struct Database {
    database: String,
    oid: Oid,
    lsn: Lsn,
    blocks: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Relations {
    lsn: Lsn,
    relations: Vec<Relation>,
}

#[derive(Debug, Serialize)]
struct Relation {
    rel: String,
    fork: &'static str,
    blocks: u32,
    bytes: u64,
}

const COLUMNS: [Column; 4] = [
    Column::Left("RELATION"),
    Column::Left("FORK"),
    Column::Right("BLOCKS"),
    Column::Right("SIZE"),
];

const DATABASE_COLUMNS: [Column; 4] = [
    Column::Left("DATABASE"),
    Column::Right("OID"),
    Column::Right("BLOCKS"),
    Column::Right("SIZE"),
];

pub(crate) async fn run(
    common: &Common,
    command: RelCommand,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    match command {
        RelCommand::List { name, lsn } => {
            let timeline = find(&view, &name)?.timeline;
            let pages = client.pages(&view).await?;
            let (lsn, relations) = pages
                .relations(timeline, at(lsn))
                .await
                .map_err(CliError::remote(format!("listing relations of {name}")))?;
            let relations = relations
                .into_iter()
                .map(|(rel, blocks)| Relation::new(rel, blocks.get()));
            list(lsn, relations.collect(), output)
        }
        RelCommand::Size { name, rel, lsn } => {
            let timeline = find(&view, &name)?.timeline;
            let pages = client.pages(&view).await?;
            let (rel, lsn) = locate(&pages, timeline, &rel, lsn).await?;
            let RelationSize { lsn, blocks } = pages
                .relation_size(timeline, at(lsn), rel)
                .await
                .map_err(CliError::remote(format!("the size of {rel} in {name}")))?;
            let blocks = blocks.ok_or(CliError::NoRelation { rel, lsn })?;
            list(lsn, vec![Relation::new(rel, blocks.get())], output)
        }
        RelCommand::Database {
            name,
            database,
            lsn,
        } => {
            let timeline = find(&view, &name)?.timeline;
            let pages = client.pages(&view).await?;
            show_database(&pages, timeline, database, lsn, output).await
        }
    }
}

async fn show_database(
    pages: &PageClient,
    timeline: TimelineRef,
    database: String,
    lsn: Option<Lsn>,
    output: Output,
) -> Result<(), CliError> {
    let (oid, lsn) = locate_database(pages, timeline, &database, lsn).await?;
    let size = pages.database_size(timeline, at(Some(lsn)), oid).await;
    let size = size.map_err(CliError::remote(format!("the size of database {database}")))?;
    let blocks = size.blocks.unwrap_or_default();
    let shown = Database {
        database,
        oid,
        lsn,
        blocks,
        bytes: blocks * PAGE_SIZE as u64,
    };
    if output.is_json() {
        return output.json(&shown);
    }
    output.table(&DATABASE_COLUMNS, vec![shown.cells()])?;
    output.line(format!("at {lsn}"))
}

/// What a page-serve is asked for.
pub(crate) fn at(lsn: Option<Lsn>) -> ReadAt {
    ReadAt {
        lsn,
        ..ReadAt::default()
    }
}

fn list(lsn: Lsn, relations: Vec<Relation>, output: Output) -> Result<(), CliError> {
    if output.is_json() {
        return output.json(&Relations { lsn, relations });
    }
    output.table(&COLUMNS, relations.iter().map(Relation::cells).collect())?;
    output.line(format!("at {lsn}"))
}

impl Database {
    fn cells(&self) -> Vec<String> {
        vec![
            self.database.clone(),
            self.oid.to_string(),
            self.blocks.to_string(),
            ByteCount::new(self.bytes).to_string(),
        ]
    }
}

impl Relation {
    fn new(rel: RelTag, blocks: u32) -> Self {
        Self {
            rel: rel.with_fork(Fork::Main).to_string(),
            fork: rel.fork.name(),
            blocks,
            bytes: u64::from(blocks) * PAGE_SIZE as u64,
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.rel.clone(),
            self.fork.to_owned(),
            self.blocks.to_string(),
            ByteCount::new(self.bytes).to_string(),
        ]
    }
}
