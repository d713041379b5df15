//! What can be asked for on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    commands::{
        attach::AttachArgs,
        branch::BranchCommand,
        completions::CompletionsArgs,
        doctor::DoctorArgs,
        export::ExportArgs,
        init::InitArgs,
        layers::LayersCommand,
        lease::LeaseCommand,
        page::PageCommand,
        reattach::ReattachArgs,
        rel::RelCommand,
        start::StartArgs,
        stop::{PsqlArgs, StopArgs},
        tenant::TenantCommand,
        timeline::TimelineCommand,
        up::UpArgs,
    },
    output::Format,
};

/// Keeps every version of every PostgreSQL page, and lets you read any of them.
#[derive(Debug, Parser)]
#[command(name = "pal", version, arg_required_else_help = true)]
pub struct Cli {
    /// What goes for every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The storage-broker; without it, that of the `pal up` in the data directory, or port 7700.
    #[arg(
        long,
        global = true,
        env = "PALIMPSEST_ENDPOINT",
        value_name = "HOST:PORT"
    )]
    pub endpoint: Option<String>,
    /// The data directory of `pal up`.
    #[arg(
        long,
        global = true,
        env = "PALIMPSEST_DATA",
        value_name = "DIR",
        default_value = "./data"
    )]
    pub data: PathBuf,
    /// How to print answers.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t
    )]
    pub output: Format,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all services in this process until Ctrl-C.
    Up(UpArgs),
    /// Stop the `pal up` of the data directory.
    Down,
    /// Attach a running PostgreSQL 15: copy it, then follow its WAL.
    Attach(AttachArgs),
    /// Make a tenant of an empty cluster, without any source: `pal start` runs it.
    Init(InitArgs),
    /// Go on from a new base backup where WAL was lost at the source.
    ///
    /// For a timeline that has stopped because the source no longer has its WAL. What was there before stays readable,
    /// and what was lost is a hole: nothing can be read inside, and no branch begins there.
    Reattach(ReattachArgs),
    /// Show the services, the timelines and how far they are.
    Status,
    /// Look for what is wrong with this machine, and say what to do about it.
    Doctor(DoctorArgs),
    /// List or delete tenants, the attached clusters.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// List timelines or show one in detail.
    #[command(subcommand)]
    Timeline(TimelineCommand),
    /// Make, list or delete branches: timelines that begin on another at any LSN or time.
    #[command(subcommand)]
    Branch(BranchCommand),
    /// Keep an LSN readable for a while, whatever may be removed otherwise.
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Write a timeline at any LSN or time as a data directory that a stock PostgreSQL starts from.
    Export(ExportArgs),
    /// Start a stock PostgreSQL on a branch; what it writes becomes the history of the branch.
    Start(StartArgs),
    /// End the PostgreSQL of a branch, after all that it wrote has arrived.
    Stop(StopArgs),
    /// Open a psql session with the PostgreSQL of a branch.
    Psql(PsqlArgs),
    /// List relations, or show the size of one or of a database, at an LSN.
    #[command(subcommand)]
    Rel(RelCommand),
    /// Show a page at an LSN, or what changed in it between two.
    #[command(subcommand)]
    Page(PageCommand),
    /// List or draw the layers of a timeline, or compact them.
    #[command(subcommand)]
    Layers(LayersCommand),
    /// Print the completion script of a shell.
    Completions(CompletionsArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn understands_relations_and_lsns() {
        let words = "pal page diff demo 1663/5/1259:vm 0 --lsn 0/1 --lsn 0/2 -o json";
        assert!(Cli::try_parse_from(words.split(' ')).is_ok());
        let words = "pal page get demo pg_class 0";
        let error = Cli::try_parse_from(words.split(' ')).unwrap_err();
        assert!(error.to_string().contains("SPC/DB/REL"), "{error}");
    }
}
