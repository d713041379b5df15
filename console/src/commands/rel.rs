//! `pal rel`.

use clap::Subcommand;
use palimpsest_api::page::{ReadAt, RelationSize};
use palimpsest_catalog::RelationName;
use palimpsest_types::{ByteCount, Fork, Lsn, PAGE_SIZE, RelTag};
use serde::Serialize;

use crate::{
    cli::Common,
    client::{Client, find},
    error::CliError,
    output::{Column, Output},
    relation::locate,
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
    }
}

/// What a page-serve is asked for.
pub(crate) fn at(lsn: Option<Lsn>) -> ReadAt {
    ReadAt {
        lsn,
        not_modified_since: None,
    }
}

fn list(lsn: Lsn, relations: Vec<Relation>, output: Output) -> Result<(), CliError> {
    if output.is_json() {
        return output.json(&Relations { lsn, relations });
    }
    output.table(&COLUMNS, relations.iter().map(Relation::cells).collect())?;
    output.line(format!("at {lsn}"))
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
