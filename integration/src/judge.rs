//! How a judge says what it has found, and how much it is asked to look at.

use std::{env, fmt, process::Command};

/// The findings of one judge, counted.
#[derive(Debug, Clone)]
pub struct Judge {
    name: &'static str,
    promise: &'static str,
    checked: u64,
    wrong: Vec<String>,
}

/// How much a judge looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JudgeSize {
    /// What every test run affords.
    Quick,
    /// What an issue needs before it is resolved.
    Full,
}

/// `full`, or `quick` as when it is not set.
const SIZE_VARIABLE: &str = "PALIMPSEST_JUDGE_SIZE";
/// A number, to repeat an earlier run.
const SEED_VARIABLE: &str = "PALIMPSEST_JUDGE_SEED";

/// Wrong findings that are shown in words; more are only counted.
const SHOWN: usize = 20;

impl Judge {
    /// A judge that holds one of the promises P1 to P9.
    pub fn new(name: &'static str, promise: &'static str) -> Self {
        Self {
            name,
            promise,
            checked: 0,
            wrong: Vec::new(),
        }
    }

    /// One thing was looked at; `finding` says what is wrong with it, if anything.
    pub fn check(&mut self, finding: Option<String>) {
        self.checked += 1;
        self.wrong.extend(finding);
    }

    /// That many things were looked at and found right.
    pub fn pass(&mut self, count: u64) {
        self.checked += count;
    }

    /// Prints the line that CI reads.
    ///
    /// # Panics
    /// If anything was wrong, or nothing was checked.
    pub fn close(&self) {
        eprintln!("{self}");
        for finding in self.wrong.iter().take(SHOWN) {
            eprintln!("  {finding}");
        }
        assert!(
            self.wrong.is_empty(),
            "{self}; the first is: {}",
            self.wrong[0]
        );
        assert!(
            self.checked > 0,
            "{self}: a judge that checks nothing proves nothing"
        );
    }

    /// What is wrong, in words.
    pub fn findings(&self) -> &[String] {
        &self.wrong
    }

    /// How many findings were wrong.
    pub fn wrong(&self) -> usize {
        self.wrong.len()
    }

    /// How many things were looked at.
    pub fn checked(&self) -> u64 {
        self.checked
    }
}

impl JudgeSize {
    /// What the environment asks for.
    ///
    /// # Panics
    /// If it asks for a size that there is not.
    pub fn from_env() -> Self {
        match env::var(SIZE_VARIABLE).as_deref() {
            Err(_) | Ok("quick") => Self::Quick,
            Ok("full") => Self::Full,
            Ok(other) => panic!("{SIZE_VARIABLE} is {other:?}; it may be quick or full"),
        }
    }

    /// One of two values.
    pub fn pick<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

/// What a judge draws its cases from: the number in the environment, or one that differs from
/// commit to commit, so that successive runs cover what one run cannot.
///
/// # Panics
/// If the environment holds something else than a number.
pub fn seed() -> u64 {
    match env::var(SEED_VARIABLE) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{SEED_VARIABLE} is {text:?}; it must be a number")),
        Err(_) => seed_of_commit().unwrap_or(1),
    }
}

/// The first digits of the commit id; none outside a repository.
fn seed_of_commit() -> Option<u64> {
    const DIGITS: usize = 8;
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    u64::from_str_radix(text.get(..DIGITS)?, 16).ok()
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            promise,
            checked,
            wrong,
        } = self;
        write!(
            f,
            "judge {name}: {checked} checked, {} wrong, {promise}",
            wrong.len()
        )
    }
}
