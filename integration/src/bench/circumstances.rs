//! When, on what and of what was measured: without it a figure says nothing.

use std::{fs, process::Command, thread::available_parallelism};

/// A heading and a line of prose for the table that follows.
pub fn circumstances(parts: &[String]) -> String {
    let arguments = match parts {
        [] => "everything".to_owned(),
        parts => format!("only {}", parts.join(" and ")),
    };
    let commit = commit();
    let date = said("date", &["-u", "+%F %H:%M"]);
    let system = said("uname", &["-sr"]);
    let postgres = said("/usr/lib/postgresql/15/bin/postgres", &["--version"]);
    let cpus = available_parallelism().map_or(0, usize::from);
    let model = field("/proc/cpuinfo", "model name");
    let memory = field("/proc/meminfo", "MemTotal");
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    format!(
        "## {date} UTC, {commit}, optimised\n\n`make bench` ({arguments}); {cpus} CPUs ({model}), \
         {memory} of memory, {system}, {postgres}; load at the end {load}.\n"
    )
}

/// Of what was measured, as part of the name of a file.
pub fn commit_in_names() -> String {
    in_names(&commit())
}

fn commit() -> String {
    said("git", &["describe", "--always", "--dirty", "--abbrev=10"])
}

/// A tag may have any characters, and there may be no commit.
fn in_names(commit: &str) -> String {
    let is_plain = |char: &char| char.is_ascii_alphanumeric() || "-._".contains(*char);
    commit.chars().filter(is_plain).collect()
}

/// What a program prints, or a question mark.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "?".to_owned())
}

/// A field of one of the kernel's files of `name : value` lines.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines
        .filter(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .next();
    value.unwrap_or_else(|| "?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_plain_in_names() {
        assert_eq!(in_names("4596334e1a-dirty"), "4596334e1a-dirty");
        assert_eq!(in_names("release/1.0-7-g45"), "release1.0-7-g45");
        assert_eq!(in_names("?"), "");
    }
}
