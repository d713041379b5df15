//! All checks, one after the other; a failed one does not hide the next.

use std::path::Path;

use anyhow::Result;

use crate::{
    counts::Counts,
    judges, layers, protos,
    run::{cargo, tee},
};

/// Runs everything; `false` if anything failed. The last line printed is the sum of all counts.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let mut ci = Ci {
        root,
        counts: Counts::default(),
        failed: Vec::new(),
    };
    ci.cargo("fmt", &["fmt", "--all", "--check"])?;
    ci.own("layers", &layers::violations(root)?);
    ci.own("protos", &protos::violations(root)?);
    ci.cargo(
        "clippy",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    let output = ci.nextest()?;
    ci.judges(&output)?;
    ci.doctests()?;
    ci.rustdoc()?;
    ci.cargo(
        "deny",
        &["deny", "--locked", "check", "bans", "licenses", "sources"],
    )?;
    Ok(ci.conclude())
}

struct Ci<'a> {
    root: &'a Path,
    counts: Counts,
    failed: Vec<&'static str>,
}

impl Ci<'_> {
    /// A check that is one cargo command and passes when that does.
    fn cargo(&mut self, name: &'static str, arguments: &[&str]) -> Result<()> {
        begin(name);
        let finished = tee(cargo(self.root, arguments))?;
        self.count(name, Counts::one(finished.success), finished.success);
        Ok(())
    }

    /// A check of ours that has found these violations.
    fn own(&mut self, name: &'static str, violations: &[String]) {
        begin(name);
        let passed = crate::report(violations);
        self.count(name, Counts::one(passed), passed);
    }

    fn nextest(&mut self) -> Result<String> {
        begin("nextest");
        let arguments = [
            "nextest",
            "run",
            "--workspace",
            "--locked",
            "--profile",
            "ci",
        ];
        let finished = tee(cargo(self.root, &arguments))?;
        let counts = Counts::from_nextest(&finished.output);
        self.count_tests("nextest", counts.unwrap_or_default(), finished.success);
        Ok(finished.output)
    }

    fn judges(&mut self, output: &str) -> Result<()> {
        begin("judges");
        let verdict = judges::check(&judges::read_list(self.root)?, output);
        crate::report(&verdict.failures);
        self.count("judges", verdict.counts(), verdict.failures.is_empty());
        Ok(())
    }

    fn doctests(&mut self) -> Result<()> {
        begin("doctests");
        let finished = tee(cargo(
            self.root,
            &["test", "--doc", "--workspace", "--locked"],
        ))?;
        let counts = Counts::from_libtest(&finished.output);
        self.count_tests("doctests", counts, finished.success);
        Ok(())
    }

    fn rustdoc(&mut self) -> Result<()> {
        begin("rustdoc");
        let mut command = cargo(self.root, &["doc", "--workspace", "--no-deps", "--locked"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        let finished = tee(command)?;
        self.count("rustdoc", Counts::one(finished.success), finished.success);
        Ok(())
    }

    /// Counts a test runner's own figures; one that failed without a failed test did not compile
    /// or did not run, and counts as one failure.
    fn count_tests(&mut self, name: &'static str, mut counts: Counts, success: bool) {
        if !success && counts.failed == 0 {
            counts.failed = 1;
        }
        self.count(name, counts, success && counts.failed == 0);
    }

    fn count(&mut self, name: &'static str, counts: Counts, passed: bool) {
        self.counts += counts;
        if !passed {
            self.failed.push(name);
        }
    }

    fn conclude(self) -> bool {
        println!();
        if !self.failed.is_empty() {
            println!("failed: {}", self.failed.join(", "));
        }
        println!("{}", self.counts);
        self.failed.is_empty()
    }
}

fn begin(name: &str) {
    println!("\n== {name}");
}
