//! Adding up what test runners say they ran.

use std::{
    fmt,
    ops::{Add, AddAssign},
};

/// How many tests or checks passed, failed, and were not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// One check of ours.
    pub(crate) fn one(passed: bool) -> Self {
        Self {
            passed: passed.into(),
            failed: (!passed).into(),
            skipped: 0,
        }
    }

    /// Reads nextest's `Summary [ 1.2s] 12 tests run: 10 passed (1 slow), 2 failed, 1 skipped`.
    pub(crate) fn from_nextest(output: &str) -> Option<Self> {
        let line = output
            .lines()
            .rev()
            .find(|line| line.trim_start().starts_with("Summary ["))?;
        let (_, parts) = line.split_once(" run: ")?;
        let mut counts = Self::default();
        for part in without_parentheses(parts).split(',') {
            let (number, what) = part.trim().split_once(' ')?;
            let number: u64 = number.parse().ok()?;
            match what.trim() {
                "passed" => counts.passed += number,
                "skipped" => counts.skipped += number,
                // Failed, timed out, failed to be executed: all the same here.
                _ => counts.failed += number,
            }
        }
        Some(counts)
    }

    /// Reads and adds every `test result: ok. 3 passed; 0 failed; 1 ignored; …` of libtest.
    pub(crate) fn from_libtest(output: &str) -> Self {
        output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("test result: "))
            .filter_map(|line| line.split_once(". "))
            .fold(Self::default(), |sum, (_, parts)| {
                sum + libtest_parts(parts)
            })
    }
}

fn libtest_parts(parts: &str) -> Counts {
    let mut counts = Counts::default();
    for (number, what) in parts
        .split(';')
        .filter_map(|part| part.trim().split_once(' '))
    {
        let number = number.parse().unwrap_or(0);
        match what {
            "passed" => counts.passed = number,
            "failed" => counts.failed = number,
            "ignored" => counts.skipped = number,
            _ => {}
        }
    }
    counts
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0u32;
    text.chars()
        .filter(|character| {
            match character {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => return depth == 0,
            }
            false
        })
        .collect()
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_summary_of_nextest() {
        let output = "     PASS [ 0.1s] a b\n------------\n     \
            Summary [  12.345s] 14 tests run: 10 passed (2 slow, 1 flaky), 3 failed, 1 timed out, 5 skipped\n";
        let counts = Counts {
            passed: 10,
            failed: 4,
            skipped: 5,
        };
        assert_eq!(Counts::from_nextest(output), Some(counts));
        let one = "     Summary [   0.005s] 1 test run: 1 passed, 0 skipped";
        assert_eq!(
            Counts::from_nextest(one),
            Some(Counts {
                passed: 1,
                ..Counts::default()
            })
        );
        assert_eq!(Counts::from_nextest("error: could not compile"), None);
    }

    #[test]
    fn adds_the_results_of_several_libtest_binaries() {
        let output = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(
            Counts::from_libtest(output),
            Counts {
                passed: 4,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(
            Counts::from_libtest("").to_string(),
            "0 passed, 0 failed, 0 skipped"
        );
    }
}
