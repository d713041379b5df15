//! The judges in full size, and the page that says what they found.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::run::{cargo, tee};

/// Where each run adds its lines.
const PAGE: &str = "docs/verification.md";

const HEADING: &str = "\
# Verification

What the judges found in full size (`make judge`, or `make judge JUDGE=NAME` for one). A line is
added by each run; seeds make a run repeatable (`PALIMPSEST_JUDGE_SEED`). What each judge compares is
said in its test in `integration/tests/it`.

| date | commit | seed | finding |
|---|---|---|---|
";

/// Runs the judges whose test's name contains `name`, all without one; true if all were content.
pub(crate) fn run(root: &Path, name: Option<&str>) -> Result<bool> {
    let mut arguments = vec!["nextest", "run", "--locked", "--profile", "judge"];
    arguments.extend(["--package", "palimpsest-integration"]);
    arguments.extend(name);
    let mut command = cargo(root, &arguments);
    let seed = std::env::var("PALIMPSEST_JUDGE_SEED").unwrap_or_else(|_| "1".to_owned());
    command
        .env("PALIMPSEST_JUDGE_SIZE", "full")
        .env("PALIMPSEST_JUDGE_SEED", &seed);
    let finished = tee(command)?;
    let words = finished.output.lines().map(str::trim);
    let findings: Vec<_> = words
        .filter_map(|line| line.strip_prefix("judge "))
        .collect();
    ensure!(!findings.is_empty(), "no judge has spoken");
    let (date, commit) = (said(root, "date", &["-u", "+%F"])?, commit(root)?);
    let line = |finding: &&str| format!("| {date} | {commit} | {seed} | {finding} |\n");
    let lines: String = findings.iter().map(line).collect();
    let path = root.join(PAGE);
    let page = fs::read_to_string(&path).unwrap_or_else(|_| HEADING.to_owned());
    fs::write(&path, page + &lines).with_context(|| format!("writing {}", path.display()))?;
    Ok(finished.success)
}

/// The commit, marked when the tree differs from it.
fn commit(root: &Path) -> Result<String> {
    said(
        root,
        "git",
        &["describe", "--always", "--dirty", "--abbrev=10"],
    )
}

fn said(root: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .output();
    let output = output.with_context(|| format!("running {program}"))?;
    ensure!(output.status.success(), "{program} failed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
