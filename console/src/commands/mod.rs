//! The commands, by family.

pub mod attach;
pub mod branch;
pub mod completions;
pub mod doctor;
mod down;
pub mod export;
pub mod init;
pub mod layers;
pub mod lease;
pub mod page;
pub mod reattach;
pub mod rel;
pub mod start;
mod status;
pub mod stop;
pub mod tenant;
mod tenant_config;
pub mod timeline;
pub mod up;

use crate::{
    cli::{Cli, Command},
    error::CliError,
    output::Output,
};

/// Does what the command line says.
///
/// # Errors
/// What went wrong, for a person.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    let Cli { common, command } = cli;
    let output = Output::new(common.output);
    match command {
        Command::Up(arguments) => up::run(&common, arguments, output).await,
        Command::Down => down::run(&common, output).await,
        Command::Attach(arguments) => attach::run(&common, arguments, output).await,
        Command::Init(arguments) => init::run(&common, arguments, output).await,
        Command::Reattach(arguments) => reattach::run(&common, arguments, output).await,
        Command::Doctor(arguments) => doctor::run(&common, arguments, output).await,
        Command::Status => status::run(&common, output).await,
        Command::Tenant(command) => tenant::run(&common, command, output).await,
        Command::Timeline(command) => timeline::run(&common, command, output).await,
        Command::Branch(command) => branch::run(&common, command, output).await,
        Command::Lease(command) => lease::run(&common, command, output).await,
        Command::Export(arguments) => export::run(&common, arguments, output).await,
        Command::Start(arguments) => start::run(&common, arguments, output).await,
        Command::Stop(arguments) => stop::stop(&common, arguments, output).await,
        Command::Psql(arguments) => stop::psql(&common, arguments).await,
        Command::Rel(command) => rel::run(&common, command, output).await,
        Command::Layers(command) => layers::run(&common, command, output).await,
        Command::Page(command) => page::run(&common, command, output).await,
        Command::Completions(arguments) => completions::run(&arguments, output),
    }
}
