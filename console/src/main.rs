//! The `pal` program.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use palimpsest_console::{Cli, commands};
use palimpsest_service_kit::threads;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match threads::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("can't start threads: {error}"), None, 1),
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough, as in `pal rel list | head`.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => complain(&error.in_full(), error.hint(), error.exit_code()),
    }
}

fn complain(what: &str, hint: Option<String>, code: u8) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    // With standard error closed there is nobody to tell.
    let _ = writeln!(stderr, "pal: {what}");
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "     {hint}");
    }
    ExitCode::from(code)
}
