//! The project's own checks. `cargo xtask` without a command lists them.
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool speaks on standard output"
)]

use std::{
    fs,
    io::{self, Read as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

mod ci;
mod counts;
mod judges;
mod layers;
mod manifests;
mod protos;
mod run;
mod verify;

const USAGE: &str = "\
cargo xtask ci             every check that must pass before a change lands
cargo xtask layers         which crate may depend on which (xtask/layers.toml)
cargo xtask protos         form of the protocol files
cargo xtask judges [FILE]  counts of the judges (integration/judges.toml) in captured test output
cargo xtask verify [NAME]  the judges in full size, written to docs/verification.md";

fn main() -> ExitCode {
    match dispatch() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command asked for; `false` if a check failed and has said so.
fn dispatch() -> Result<bool> {
    let root = workspace_root()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["ci"] => ci::run(&root),
        ["verify"] => verify::run(&root, None),
        ["verify", name] => verify::run(&root, Some(name)),
        ["layers"] => Ok(report(&layers::violations(&root)?)),
        ["protos"] => Ok(report(&protos::violations(&root)?)),
        ["judges"] => judge(&root, &io::read_to_string(io::stdin())?),
        ["judges", file] => {
            let mut text = String::new();
            fs::File::open(file)
                .with_context(|| format!("opening {file}"))?
                .read_to_string(&mut text)?;
            judge(&root, &text)
        }
        [] => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => bail!("unknown command; one of\n{USAGE}"),
    }
}

fn judge(root: &std::path::Path, output: &str) -> Result<bool> {
    let verdict = judges::check(&judges::read_list(root)?, output);
    report(&verdict.failures);
    println!("{}", verdict.counts());
    Ok(verdict.failures.is_empty())
}

/// Prints what is wrong, one line each; `true` if nothing is.
fn report(violations: &[String]) -> bool {
    for violation in violations {
        println!("{violation}");
    }
    violations.is_empty()
}

/// The directory above this crate's, as cargo tells when it runs the tool.
fn workspace_root() -> Result<PathBuf> {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").context("start it as `cargo xtask`")?;
    PathBuf::from(own)
        .parent()
        .map(ToOwned::to_owned)
        .context("the crate has no parent directory")
}
