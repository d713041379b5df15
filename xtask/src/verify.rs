//! The judges in full size, and the page that says what they found.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    judges::{Judge, read_list},
    run::{cargo, tee},
};

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

/// Judges write clusters, backups and WAL; the largest take some GB.
const FREE: u64 = 6 << 30;

/// Runs the judge `name`, all without one; true if all were content. What was found of this very
/// commit with the same seed is not looked for again, so a run that was cut off can be gone on with.
pub(crate) fn run(root: &Path, name: Option<&str>) -> Result<bool> {
    let judges = read_list(root)?;
    let seed = std::env::var("PALIMPSEST_JUDGE_SEED").unwrap_or_else(|_| "1".to_owned());
    let commit = commit(root)?;
    let mut content = true;
    for (test, names) in tests(&judges, name)? {
        let page = fs::read_to_string(root.join(PAGE)).unwrap_or_else(|_| HEADING.to_owned());
        if names.iter().all(|name| is_on(&page, &commit, &seed, name)) {
            println!("{}: on {PAGE} already", names.join(", "));
            continue;
        }
        let free = free(root)?;
        ensure!(
            free >= FREE,
            "judges in full size need {} GiB of free disk, and there are {}",
            FREE >> 30,
            free >> 30
        );
        content &= judge(root, test, &seed, &commit)?;
    }
    Ok(content)
}

/// The tests to run, each with its judges: that of one judge, or all.
fn tests<'j>(judges: &'j [Judge], name: Option<&str>) -> Result<Vec<(&'j str, Vec<&'j str>)>> {
    let mut tests: Vec<(&str, Vec<&str>)> = Vec::new();
    for judge in judges {
        match tests.iter_mut().find(|(test, _)| *test == judge.test) {
            Some((_, names)) => names.push(&judge.name),
            None => tests.push((&judge.test, vec![&judge.name])),
        }
    }
    if let Some(name) = name {
        tests.retain(|(_, names)| names.contains(&name));
        let known: Vec<&str> = judges.iter().map(|judge| judge.name.as_str()).collect();
        ensure!(
            !tests.is_empty(),
            "there is no judge {name:?}; there are {}",
            known.join(", ")
        );
    }
    Ok(tests)
}

/// Whether the page says what a judge found.
fn is_on(page: &str, commit: &str, seed: &str, name: &str) -> bool {
    let said = format!("| {commit} | {seed} | {name}: ");
    page.lines().any(|line| line.contains(&said))
}

/// Runs one test in full size, and writes down what its judges say.
fn judge(root: &Path, test: &str, seed: &str, commit: &str) -> Result<bool> {
    let mut arguments = vec!["nextest", "run", "--locked", "--profile", "judge"];
    arguments.extend(["--package", "palimpsest-integration", test]);
    let mut command = cargo(root, &arguments);
    command
        .env("PALIMPSEST_JUDGE_SIZE", "full")
        .env("PALIMPSEST_JUDGE_SEED", seed);
    let finished = tee(command)?;
    let words = finished.output.lines().map(str::trim);
    let findings: Vec<_> = words
        .filter_map(|line| line.strip_prefix("judge "))
        .collect();
    ensure!(!findings.is_empty(), "no judge has spoken in {test}");
    let date = said(root, "date", &["-u", "+%F"])?;
    let line = |finding: &&str| format!("| {date} | {commit} | {seed} | {finding} |\n");
    let lines: String = findings.iter().map(line).collect();
    let path = root.join(PAGE);
    let page = fs::read_to_string(&path).unwrap_or_else(|_| HEADING.to_owned());
    fs::write(&path, page + &lines).with_context(|| format!("writing {}", path.display()))?;
    Ok(finished.success)
}

/// The commit, marked when the tree differs from it in more than the page.
fn commit(root: &Path) -> Result<String> {
    let mut commit = said(root, "git", &["rev-parse", "--short=10", "HEAD"])?;
    let besides = format!(":!{PAGE}");
    let changed = ["status", "--porcelain", "--", ".", &besides];
    if !said(root, "git", &changed)?.is_empty() {
        commit.push_str("-dirty");
    }
    Ok(commit)
}

/// Bytes that may still be written where the project is.
fn free(root: &Path) -> Result<u64> {
    let said = said(root, "df", &["--output=avail", "--block-size=1", "."])?;
    let bytes = said.lines().last().unwrap_or_default().trim();
    bytes
        .parse()
        .with_context(|| format!("df said {bytes:?} of the free disk"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judge_is_known_by_its_name_and_runs_with_those_of_its_test() {
        let list = |name: &str, test: &str| Judge::of(name, test);
        let judges = [list("a", "x::"), list("b", "y::"), list("a-pages", "x::")];
        let all = tests(&judges, None).unwrap();
        assert_eq!(all, [("x::", vec!["a", "a-pages"]), ("y::", vec!["b"])]);
        let one = tests(&judges, Some("a-pages")).unwrap();
        assert_eq!(one, [("x::", vec!["a", "a-pages"])]);
        let unknown = tests(&judges, Some("c")).unwrap_err().to_string();
        assert!(unknown.contains("a, b, a-pages"), "{unknown}");
    }

    #[test]
    fn what_was_found_of_a_commit_is_not_looked_for_again() {
        let page = format!("{HEADING}| 2026-11-21 | abc | 1 | kill: 71 checked, 0 wrong, P2 |\n");
        assert!(is_on(&page, "abc", "1", "kill"));
        assert!(!is_on(&page, "abc", "2", "kill"));
        assert!(!is_on(&page, "abc-dirty", "1", "kill"));
        assert!(!is_on(&page, "abc", "1", "kil"));
    }
}
